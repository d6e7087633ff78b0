"""Faults in an operator's words: "primary-a off", "lan to primary-a cut", "failover nfs", "wait 30s".

One table says every form that is known; a text is matched against it with the names of one configuration, so that an error
names what is wrong and what there is. What a fault does, what_if.py says, in the method of the same name.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from hasnmp.errors import HasnmpError
from hasnmp.settings import Config

LONGEST_WAIT_MS = 3_600_000
TOGETHER = "+"  # between faults that strike at the same moment


class UnknownFault(HasnmpError):
    """A fault that can't be read. known: the forms that can, with their meanings, where the text does not say it all."""

    def __init__(self, text: str, known: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.known = known


@dataclass(frozen=True, slots=True)
class Form:
    """pattern: words, and in capitals the kinds of names. does: the method of what_if.WhatIf."""

    pattern: str
    does: str
    means: str


FORMS: tuple[Form, ...] = (
    Form("NODE off", "off", "the power of a node fails"),
    Form("NODE on", "on", "it is switched on again"),
    Form("NODE cut", "cut_node", "every link of a node fails"),
    Form("NODE mended", "mend_node", "and carries again"),
    Form("LINK cut", "cut_link", "a link fails, between all nodes"),
    Form("LINK mended", "mend_link", "and carries again"),
    Form("LINK to NODE cut", "cut_link_to", "a link of one node fails, both ways"),
    Form("LINK to NODE mended", "mend_link_to", "and carries again"),
    Form(
        "LINK from NODE to NODE cut", "cut_way", "a link carries no more from one node to another, and still does back"
    ),
    Form("LINK from NODE to NODE mended", "mend_way", "and carries again"),
    Form(
        "SERVICE fails",
        "fails",
        "its program ends once; an address: its interface's check fails; passive: reported down",
    ),
    Form("GROUP fails", "group_fails", "the same for every service of a group"),
    Form("SERVICE broken", "broken", "its program ends and can't be started on any node"),
    Form("SERVICE broken on NODE", "broken_on", "the same on one node"),
    Form("SERVICE hangs", "hangs", "its program lives, and neither serves, nor stops when it is told to"),
    Form("SERVICE mended", "mended", "it is sound again, on every node"),
    Form("disk lost", "disk_lost", "the lease disk fails for every node"),
    Form("disk frozen", "disk_frozen", "no I/O to the lease disk returns in time"),
    Form("disk slow", "disk_slow", "its I/O takes nearly as long as io_timeout_ms"),
    Form("disk mended", "disk_mended", "and works again"),
    Form("NODE disk lost", "disk_lost_for", "the lease disk fails for one node"),
    Form("NODE disk frozen", "disk_frozen_for", "the same for one node"),
    Form("NODE disk slow", "disk_slow_for", "the same for one node"),
    Form("NODE disk mended", "disk_mended_for", "and works again"),
    Form("NODE engine killed", "engine_killed", "the engine's process is killed"),
    Form("NODE guardian killed", "guardian_killed", "the guardian's process is killed, and init starts another"),
    Form("NODE stack killed", "stack_killed", "every process of hasnmp is killed; init starts it again"),
    Form("NODE stack stopped", "stack_stopped", "every process of hasnmp is stopped (SIGSTOP)"),
    Form("NODE stack resumed", "stack_resumed", "and goes on"),
    Form("NODE leaves", "leaves", "hasnmp is stopped in order (systemctl stop)"),
    Form("NODE returns", "returns", "and is started again"),
    Form("NODE fence fails", "fence_fails", "every fence device of a node says no, and does nothing"),
    Form("NODE fence late", "fence_late", "they do their work, and answer after their time limit"),
    Form("NODE fence mended", "fence_mended", "and work again"),
    Form("everything mended", "everything_mended", "links, disk, services, fence devices, power: all is well again"),
    Form("failover GROUP", "failover", "hasnmp failover GROUP"),
    Form("failover GROUP to NODE", "failover_to", "hasnmp failover GROUP --to NODE"),
    Form("force failover GROUP", "force", "hasnmp failover --force GROUP"),
    Form("force failover GROUP to NODE", "force_to", "hasnmp failover --force GROUP --to NODE"),
    Form("inhibit", "inhibit_all", "hasnmp inhibit"),
    Form("inhibit GROUP", "inhibit", "hasnmp inhibit GROUP"),
    Form("permit", "permit_all", "hasnmp permit"),
    Form("permit GROUP", "permit", "hasnmp permit GROUP"),
    Form("freeze GROUP", "freeze", "hasnmp freeze GROUP"),
    Form("thaw GROUP", "thaw", "hasnmp thaw GROUP"),
    Form("standby NODE", "standby", "hasnmp standby NODE"),
    Form("NODE standby", "standby", "the same"),
    Form("online NODE", "online", "hasnmp online NODE"),
    Form("NODE online", "online", "the same"),
    Form("recover NODE", "recover", "hasnmp recover NODE"),
    Form("service start SERVICE", "service_start", "hasnmp service start NAME"),
    Form("service stop SERVICE", "service_stop", "hasnmp service stop NAME"),
    Form("service restart SERVICE", "service_restart", "hasnmp service restart NAME"),
    Form("service clear SERVICE", "service_clear", "hasnmp service clear NAME"),
    Form("wait TIME", "wait", "so long, as 300ms, 30s or 5min, instead of until all has settled"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault as it was said, and read. names: what stands for the capitals of its form, in their order."""

    text: str
    does: str
    names: tuple[str, ...] = ()

    @property
    def waits_ms(self) -> int:
        """0: it is no wait."""
        return milliseconds(self.names[0]) if self.does == "wait" else 0


def milliseconds(text: str) -> int:
    """ "300ms", "30s", "1.5s", "5min" -> ms; 0 for anything else, and beyond LONGEST_WAIT_MS."""
    match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)(ms|s|min)", text)
    ms = round(float(match[1]) * {"ms": 1, "s": 1000, "min": 60_000}[match[2]]) if match else 0
    return ms if ms <= LONGEST_WAIT_MS else 0


class Grammar:
    """Reads faults with the names of one configuration."""

    def __init__(self, config: Config) -> None:
        self.names: dict[str, list[str]] = {
            "NODE": [n.name for n in config.nodes], "LINK": list(config.nodes[0].links), "GROUP": [g.name for g in config.groups],
            "SERVICE": [s.name for s in config.services()],
        }  # fmt: skip
        self.diskless = "" if config.arbiter.type == "disk" else config.arbiter.type

    def read(self, text: str) -> tuple[Fault, ...]:
        """One argument of the command line: a fault, or several that strike together ("lan cut + cross cut").

        Raises: UnknownFault.
        """
        parts = [part.strip() for part in text.split(TOGETHER)]
        faults = tuple(self._one(part) for part in parts)
        if len(faults) > 1 and any(fault.does == "wait" for fault in faults):
            raise UnknownFault(f"fault {text!r}: a wait stands alone, between faults")
        return faults

    def _one(self, text: str) -> Fault:
        words = text.split()
        for form in FORMS:
            names = self._match(form, words)
            if names is not None:
                if "disk" in form.pattern.split() and self.diskless:
                    raise UnknownFault(
                        f"fault {text!r}: the arbiter of this configuration is {self.diskless}: no lease disk"
                    )
                return Fault(" ".join(words), form.does, names)
        wrong = self._why_not(text, words)
        raise UnknownFault(wrong) if wrong else UnknownFault(f"fault {text!r} is not known", self.known())

    def _match(self, form: Form, words: list[str]) -> tuple[str, ...] | None:
        pattern = form.pattern.split()
        if len(pattern) != len(words):
            return None
        names = []
        for want, word in zip(pattern, words, strict=True):
            if want == "TIME":
                if not milliseconds(word):
                    return None
                names.append(word)
            elif want in self.names:
                if word not in self.names[want]:
                    return None
                names.append(word)
            elif want != word:
                return None
        return tuple(names)

    def _why_not(self, text: str, words: list[str]) -> str:
        """What is wrong with it: a name that is not there, where the words are those of a form; "" for none."""
        wrong: dict[tuple[str, str], None] = {}
        for form in FORMS:
            pattern = form.pattern.split()
            if len(pattern) != len(words):
                continue
            plain = [(w, word) for w, word in zip(pattern, words, strict=True) if w not in self.names and w != "TIME"]
            if not plain or any(want != word for want, word in plain):
                continue
            for want, word in zip(pattern, words, strict=True):
                if want == "TIME":
                    return f"fault {text!r}: {word!r} is no time: say 300ms, 30s or 5min, at most 60min"
                if want in self.names and word not in self.names[want]:
                    wrong.setdefault((want, word))
        if wrong:
            word = next(iter(wrong))[1]
            kinds = [want for want, bad in wrong if bad == word]
            known = [name for want in kinds for name in self.names[want]]
            close = difflib.get_close_matches(word, known, 1)
            there = "; ".join(f"{want.lower()}s: {', '.join(self.names[want])}" for want in kinds)
            hint = f"did you mean {close[0]}? " if close else ""
            what = " or ".join(want.lower() for want in kinds)
            return f"fault {text!r}: no {what} {word!r} in this configuration; {hint}{there}"
        return ""

    def known(self) -> tuple[tuple[str, str], ...]:
        """Pattern and meaning of every form that makes sense with this configuration."""
        return tuple((f.pattern, f.means) for f in FORMS if not (self.diskless and "disk" in f.pattern.split()))
