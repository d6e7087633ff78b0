"""What a fence agent says of itself: `AGENT -o metadata`, read for check-config and for `hasnmp agents`.

Only the standard library and errors are used here, so that a configuration can be judged without any of the runtime. The
XML is that of the Fence Agent API (ClusterLabs, "fence-agents/doc/FenceAgentAPI.md"). Runs programs and waits: never
called from the engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from hasnmp.errors import HasnmpError

PREFIX = "fence_"
PLACES = ("/usr/sbin", "/sbin")  # where packages put them; a daemon's PATH need not have these
LONGEST_S = 10.0  # the slowest of Debian's 84 takes 0.4 s on an idle machine
LARGEST = 1 << 20  # octets of metadata; the largest of Debian's has 12 thousand

# Programs that follow the interface but end no machine: name -> why.
NO_FENCE = {
    "fence_ack_manual": "it only takes an administrator's word: use `hasnmp fence confirm`",
    "fence_heuristics_ping": "it ends nothing, it only looks whether this node reaches others",
    "fence_watchdog": "it is a placeholder for Pacemaker and ends nothing: arm `watchdog` on that node instead",
}


class MetadataError(HasnmpError):
    """The agent is not there, or does not tell about itself; the text says why."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An option. type: "string" | "integer" | "boolean" | "second" | "select". default: None if it has none.

    choices: of type select. instead: the name that is to be used now, where this one is deprecated ("" = it is not).
    """

    name: str
    type: str = "string"
    required: bool = False
    default: str | None = None
    description: str = ""
    choices: tuple[str, ...] = ()
    deprecated: bool = False
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """on_target: actions that only the victim itself can do (fence_scsi's `on` registers its own key)."""

    name: str
    description: str
    actions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    on_target: tuple[str, ...] = ()

    def parameter(self, name: str) -> Parameter | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def required(self) -> tuple[Parameter, ...]:
        """What a configuration has to give: without `action`, which hasnmp sets, and names that have a newer one.

        `plug` (or `port`) is said to be required by most agents and has no default; a device with one outlet only (IPMI)
        does not list it.
        """
        return tuple(p for p in self.parameters if p.required and not p.deprecated and p.name != "action")


def find(agent: str) -> str:
    """The path of a fence agent's program: its own if it is one, else looked up in PATH, then in PLACES.

    Raises MetadataError: there is none that can be executed.
    """
    if found := shutil.which(agent, path=search_path()):
        return found
    raise MetadataError(
        f"{agent} is not installed: it is neither in PATH nor in {' or '.join(PLACES)}; Debian has it in fence-agents"
    )


def search_path() -> str:
    """PATH, and after it PLACES."""
    return ":".join((*filter(None, os.environ.get("PATH", "").split(":")), *PLACES))


def installed() -> tuple[str, ...]:
    """The names of the fence agents of this machine, sorted; without what ends no machine (NO_FENCE)."""
    names = set()
    for place in search_path().split(":"):
        if os.path.isdir(place):
            names |= {
                name for name in os.listdir(place) if name.startswith(PREFIX) and os.access(Path(place, name), os.X_OK)
            }
    return tuple(sorted(names - NO_FENCE.keys()))


def read(agent: str, within_s: float = LONGEST_S) -> Metadata:
    """Ask the agent about itself; blocks for at most within_s. Raises MetadataError."""
    path = find(agent)
    try:
        done = subprocess.run(
            [path, "-o", "metadata"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=within_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MetadataError(f"{path} -o metadata: no answer within {within_s:g} s") from None
    except OSError as error:
        raise MetadataError(f"{path}: {error.strerror}") from None
    if done.returncode:
        raise MetadataError(f"{path} -o metadata: exit status {done.returncode}; is it a fence agent?")
    try:
        return parse(done.stdout)
    except MetadataError as error:
        raise MetadataError(f"{path} -o metadata: {error}") from None


def parse(octets: bytes) -> Metadata:
    """Raises MetadataError: not the XML of a fence agent."""
    if len(octets) > LARGEST or b"<!ENTITY" in octets:
        raise MetadataError("longer than 1 MiB, or with entities of its own: this is no metadata")
    try:
        root = ElementTree.fromstring(octets)
    except ElementTree.ParseError as error:
        raise MetadataError(f"not XML: {error}") from None
    if root.tag != "resource-agent":
        raise MetadataError(f"a fence agent's XML begins with <resource-agent>, this with <{root.tag}>")
    newer = {e.get("obsoletes", ""): e.get("name", "") for e in root.iter("parameter") if e.get("obsoletes")}
    actions = [element for element in root.iter("action") if element.get("name")]
    return Metadata(
        root.get("name", ""),
        root.get("shortdesc", "") or _text(root.find("longdesc")),
        tuple(dict.fromkeys(element.get("name", "") for element in actions)),
        tuple(_parameter(element, newer) for element in root.iter("parameter") if element.get("name")),
        tuple(element.get("name", "") for element in actions if element.get("on_target") == "1"),
    )


def _parameter(element: ElementTree.Element, newer: dict[str, str]) -> Parameter:
    name, content = element.get("name", ""), element.find("content")
    choices: tuple[str, ...] = ()
    kind, default = "string", None
    if content is not None:
        kind, default = content.get("type", "string"), content.get("default")
        choices = tuple(option.get("value", "") for option in content.iter("option"))
    return Parameter(
        name, kind, element.get("required") == "1", default, _text(element.find("shortdesc")), choices,
        element.get("deprecated") == "1", newer.get(name, ""),
    )  # fmt: skip


def _text(element: ElementTree.Element | None) -> str:
    return " ".join((element.text or "").split()) if element is not None else ""
