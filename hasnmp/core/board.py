"""What the cluster knows together: the administrator's registers and the facts of groups and services.

A register (an inhibit, a standby, an exclusion...) is a value with a version; the higher version wins, and of two equal
ones the later node's name: so all nodes agree once they have spoken, whoever was away. Registers are durable.

Facts are the owner's word on its group and services. The higher token wins; of one token, the newer word of its owner.
Times travel as ages, for clocks differ, and are kept as this node's CLOCK_BOOTTIME.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from hasnmp.core.context import MS, Context
from hasnmp.core.journal import clip, mapping, number_of
from hasnmp.model import GroupState, Proof, Reason, ServiceState

# The kinds of register; the key is kind/object, the value "" (off) or why it is on.
INHIBIT = "inhibit"  # inhibit/GROUP or inhibit/ for all: no automatic failover
FREEZE = "freeze"  # freeze/GROUP: keep the lease, act on no check
STANDBY = "standby"  # standby/NODE: drained
RECOVERING = "recovering"  # recovering/NODE: waits for the administrator's word
EXCLUDED = "excluded"  # excluded/GROUP/NODE: a start failed there
# apply/: the file that every node which has it staged goes by (apply.py)
LOCKED = "locked"  # locked/SERVICE: stopped by the administrator

Word = TypeVar("Word", bound=IntEnum)


@dataclass(slots=True)
class Registers:
    """Replicated on/off switches, each with its reason."""

    values: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # key -> (version, node, value)

    def get(self, kind: str, name: str = "") -> str:
        """Why it is on; "" when it is off."""
        held = self.values.get(f"{kind}/{name}")
        return held[2] if held else ""

    def set(self, kind: str, name: str, value: str, node: str) -> str:
        """A new version by this node; returns the key, to be told to the peers."""
        key = f"{kind}/{name}"
        version = self.values.get(key, (0, "", ""))[0] + 1
        self.values[key] = (version, node, clip(value))
        return key

    def merge(self, key: str, value: Any) -> bool:
        """A peer's word, or a durable one. True: it is newer than ours."""
        try:
            version, node, text = int(value[0]), str(value[1]), clip(str(value[2]))
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            return False
        if (version, node) <= self.values.get(key, (0, "", ""))[:2]:
            return False
        self.values[key] = (version, node, text)
        return True

    def on(self, kind: str) -> dict[str, str]:
        """object -> why, of every switch of this kind that is on."""
        prefix = f"{kind}/"
        return {k[len(prefix) :]: v[2] for k, v in self.values.items() if v[2] and k.startswith(prefix)}


@dataclass(slots=True)
class ServiceFacts:
    node: str = ""
    state: ServiceState = ServiceState.STOPPED
    changed_ns: int = 0
    transitions: int = 0
    checks: int = 0
    failures: int = 0
    restarts: list[int] = field(default_factory=list)  # Unix times in ms, within the window
    last_check_ns: int = 0
    check_us: int = 0
    pid: int = 0
    message: str = ""
    data_ns: int = 0

    def to_json(self, now: int) -> list[Any]:
        return [
            self.node, int(self.state), _age(self.changed_ns, now), self.transitions, self.checks, self.failures,
            self.restarts, _age(self.last_check_ns, now), self.check_us, self.pid, self.message,
        ]  # fmt: skip

    def load(self, data: Any, ctx: Context) -> None:
        """Raises TypeError, ValueError, KeyError or IndexError: not of this form; nothing is changed then."""
        node, state, changed, transitions, checks, failures, restarts, last, took, pid, message = _filled(
            data, _SERVICE
        )
        new = ServiceFacts(
            str(node), known(ServiceState, state, ServiceState.UNKNOWN), _since(changed, ctx), int(transitions), int(checks), int(failures),
            [int(r) for r in restarts], _since(last, ctx), int(took), int(pid), clip(str(message)), ctx.now,
        )  # fmt: skip
        for name in ServiceFacts.__slots__:
            setattr(self, name, getattr(new, name))


@dataclass(slots=True)
class GroupFacts:
    owner: str = ""
    token: int = 0
    state: GroupState = GroupState.STOPPED
    changed_ns: int = 0
    transitions: int = 0
    failovers: int = 0
    moves: list[int] = field(default_factory=list)  # Unix times in ms of moves caused by a failed service
    reason: Reason = Reason.NONE
    reason_text: str = ""
    duration_ms: int = 0
    lease_until_ns: int = 0
    proof: Proof = Proof.NONE
    data_ns: int = 0
    decided_ms: int = 0  # Unix time in ms at which the move under way was decided, 0 without one
    fled_from: str = ""  # the node that the group last left because a service failed there
    fled_ms: int = 0  # Unix time in ms of that

    def forgive(self) -> None:
        """`service clear`: what failed is mended."""
        self.moves.clear()
        self.fled_from = ""

    def to_json(self, now: int) -> list[Any]:
        return [
            self.owner, self.token, int(self.state), _age(self.changed_ns, now), self.transitions, self.failovers,
            self.moves, int(self.reason), self.reason_text, self.duration_ms,
            max(0, (self.lease_until_ns - now) // MS), int(self.proof), self.decided_ms, self.fled_from, self.fled_ms,
        ]  # fmt: skip

    def load(self, data: Any, ctx: Context) -> None:
        """Raises TypeError, ValueError or KeyError: not of this form; nothing is changed then."""
        (
            owner, token, state, changed, transitions, failovers, moves, reason, text, duration, lease, proof, decided,
            fled_from, fled_ms,
        ) = _filled(data, _GROUP)  # fmt: skip
        new = GroupFacts(
            str(owner), int(token), known(GroupState, state, GroupState.UNKNOWN), _since(changed, ctx), int(transitions), int(failovers),
            [int(m) for m in moves], known(Reason, reason, Reason.NONE), clip(str(text)), int(duration),
            ctx.now + int(lease) * MS if lease else 0, known(Proof, proof, Proof.NONE), ctx.now, int(decided), str(fled_from), int(fled_ms),
        )  # fmt: skip
        for name in GroupFacts.__slots__:
            setattr(self, name, getattr(new, name))


# What a list of facts says where its writer, an older version, says nothing; None: every version says that.
_SERVICE: tuple[Any, ...] = (None, None, -1, 0, 0, 0, (), -1, 0, 0, "")
_GROUP: tuple[Any, ...] = (None, None, None, -1, 0, 0, (), int(Reason.NONE), "", 0, 0, int(Proof.NONE), 0, "", 0)


def _filled(data: Any, defaults: tuple[Any, ...]) -> list[Any]:
    """As many facts as this version knows: a newer one may append some, an older one may end earlier.

    Raises TypeError: no list. ValueError: it ends before what every version says.
    """
    if not isinstance(data, (list, tuple)):
        raise TypeError("no list of facts")
    if len(data) < defaults.count(None):
        raise ValueError(f"{len(data)} facts")
    return [*data[: len(defaults)], *defaults[len(data) :]]


def known(cls: type[Word], value: Any, other: Word) -> Word:
    """A word of this version's, or `other` for one of a newer version. Raises TypeError: no number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {cls.__name__}")
    try:
        return cls(value)
    except ValueError:
        return other


def _age(ns: int, now: int) -> int:
    """The age in ms of a moment; -1 for never."""
    return max(0, (now - ns) // MS) if ns else -1


def _since(age_ms: Any, ctx: Context) -> int:
    age = number_of(age_ms, -1)
    return (ctx.now - age * MS) or 1 if age >= 0 else 0


@dataclass(slots=True)
class Board:
    groups: dict[str, GroupFacts]
    services: dict[str, ServiceFacts]
    registers: Registers = field(default_factory=Registers)

    def hear_group(self, name: str, data: Any, ctx: Context) -> bool:
        """The word of a peer on a group that this node does not own. True: it is the newest.

        Raises TypeError, ValueError, KeyError, IndexError or OverflowError: not of this form; nothing is changed then.
        """
        facts = self.groups.get(name)
        if facts is None or int(data[1]) < facts.token:
            return False
        facts.load(data, ctx)
        return True

    def hear_service(self, name: str, data: Any, ctx: Context) -> None:
        """Raises what hear_group raises."""
        facts = self.services.get(name)
        if facts is not None:
            facts.load(data, ctx)

    def document(self, ctx: Context) -> dict[str, Any]:
        """Durable: ages are taken at wall_ms, so that the reader can tell how long ago each thing was."""
        return {
            "wall_ms": ctx.wall_ms(),
            "registers": self.registers.values,
            "groups": {n: f.to_json(ctx.now) for n, f in self.groups.items()},
            "services": {n: f.to_json(ctx.now) for n, f in self.services.items()},
        }

    def restore(self, document: dict[str, Any], ctx: Context) -> None:
        for key, value in mapping(document.get("registers")).items():
            self.registers.merge(key, value)
        unreadable = (TypeError, ValueError, KeyError, IndexError, OverflowError)
        for name, data in mapping(document.get("groups")).items():
            with suppress(*unreadable):
                self.hear_group(name, data, ctx)
        for name, data in mapping(document.get("services")).items():
            with suppress(*unreadable):
                self.hear_service(name, data, ctx)
        gone = max(0, ctx.wall_ms() - number_of(document.get("wall_ms"))) * MS
        for group in self.groups.values():
            group.changed_ns -= gone if group.changed_ns else 0
            group.data_ns -= gone if group.data_ns else 0
            group.decided_ms = 0  # what a former engine decided and did not carry out is decided anew
            group.owner, group.state, group.lease_until_ns, group.proof = "", GroupState.STOPPED, 0, Proof.NONE
        for service in self.services.values():
            service.changed_ns -= gone if service.changed_ns else 0
            service.last_check_ns -= gone if service.last_check_ns else 0
            service.data_ns -= gone if service.data_ns else 0
            service.state, service.pid = ServiceState.STOPPED, 0
