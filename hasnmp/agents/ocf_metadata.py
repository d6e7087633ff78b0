"""What OCF agents are given and what they say of themselves: paths, the environment of an action, `meta-data`.

Only the standard library, errors, settings and config are used here, so that a configuration can be judged without any of
the runtime. Source: Open Cluster Framework, resource agent API 1.1. What runs programs and waits is never called from the
engine.
"""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasnmp import settings
from hasnmp.config_ocf import parts
from hasnmp.errors import HasnmpError

TOOLS = Path(__file__).with_name("ocf_tools")  # what agents call of Pacemaker, in our words
PLACES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
LONGEST_S = 10.0  # for meta-data; the slowest of Debian's 135 takes 0.3 s on an idle machine
LARGEST = 1 << 20  # octets of metadata; the largest of Debian's has 47 thousand
FEATURE_SET = (
    "3.16.2"  # of Pacemaker 2.1.5, which Debian 12 has beside these agents: they ask for what came with 3.0 and 3.1
)


def root() -> str:
    return os.environ.get("OCF_ROOT", "") or "/usr/lib/ocf"


def path(agent: str) -> str:
    """Of the agent's program, whether it is there or not."""
    _, provider, name = parts(agent)
    return f"{root()}/resource.d/{provider}/{name}"


def state_dir(run_dir: str, node: str) -> str:
    """HA_RSCTMP, of each node its own: two nodes may be on one machine."""
    return f"{run_dir}/ocf-{node}"


def environment(
    service: settings.Service,
    action: str,
    run_dir: str,
    node: str,
    nodes: tuple[str, ...],
    timeout_ms: int,
    probe: bool = False,
) -> dict[str, str]:
    """The environment of an action, to be added to the daemon's own. probe: a monitor that does not recur, which asks whether
    the service is there at all."""
    _, provider, name = parts(service.agent)
    own = [place for place in os.environ.get("PATH", "").split(":") if place and place not in PLACES]
    recurring = service.check.every_ms if action == "monitor" and not probe else 0
    env = {
        "OCF_ROOT": root(), "OCF_RA_VERSION_MAJOR": "1", "OCF_RA_VERSION_MINOR": "1",
        "OCF_RESOURCE_INSTANCE": service.name, "OCF_RESOURCE_PROVIDER": provider, "OCF_RESOURCE_TYPE": name,
        "OCF_EXIT_REASON_PREFIX": "ocf-exit-reason:", "__OCF_ACTION": action,
        "OCF_RESKEY_crm_feature_set": FEATURE_SET, "OCF_RESKEY_CRM_meta_name": action,
        "OCF_RESKEY_CRM_meta_timeout": str(timeout_ms), "OCF_RESKEY_CRM_meta_interval": str(recurring),
        "OCF_RESKEY_CRM_meta_on_node": node,
        # Without a log of its own an agent writes to standard error, where the end of it is kept.
        "HA_RSCTMP": state_dir(run_dir, node), "HA_SBIN_DIR": str(TOOLS), "HA_LOGFACILITY": "none", "HA_debug": "0",
        "PATH": ":".join((str(TOOLS), *PLACES, *own)),
        "HASNMP_OCF_NODE": node, "HASNMP_OCF_NODES": " ".join(nodes), "HASNMP_OCF_ATTRIBUTES": f"{state_dir(run_dir, node)}/attributes",
    }  # fmt: skip
    if action == "monitor":
        env["OCF_CHECK_LEVEL"] = str(service.check.depth)
    given = {**service.options, **service.secrets}
    return env | {f"OCF_RESKEY_{option}": str(value) for option, value in given.items()}


# --------------------------------------------------------------------------------------------------------- meta-data


class MetadataError(HasnmpError):
    """The agent is not there, or does not tell about itself; the text says why."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An option. type: "string" | "integer" | "boolean" | what the agent calls it. default: None if it has none.

    instead: the name that is to be used now, where this one is deprecated.
    """

    name: str
    type: str = "string"
    required: bool = False
    unique: bool = False
    default: str | None = None
    short: str = ""
    long: str = ""
    deprecated: bool = False
    instead: str = ""


@dataclass(frozen=True, slots=True)
class ActionInfo:
    """What the agent advises of an action; 0: nothing. depth: of a monitor, its OCF_CHECK_LEVEL."""

    name: str
    timeout_ms: int = 0
    interval_ms: int = 0
    depth: int = 0
    role: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    name: str
    short: str
    long: str
    parameters: tuple[Parameter, ...]
    actions: tuple[ActionInfo, ...]

    def action(self, name: str, depth: int = 0) -> ActionInfo | None:
        """The first of that name with that depth; of a monitor not the one for a promoted instance."""
        found = [a for a in self.actions if a.name == name and a.depth == depth]
        plain = [a for a in found if a.role.lower() not in ("master", "promoted")]
        return next(iter(plain or found), None)

    @property
    def promotable(self) -> bool:
        return any(action.name == "promote" for action in self.actions)


def duration_ms(text: str) -> int:
    """ "20s", "20", "500ms", "1min", "2h" in milliseconds; 0 if it is none."""
    number = text.strip().lower()
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz .")
    unit = number[len(digits) :].strip(" .")
    factors = {
        "": 1000,
        "s": 1000,
        "sec": 1000,
        "ms": 1,
        "msec": 1,
        "m": 60_000,
        "min": 60_000,
        "h": 3_600_000,
        "hr": 3_600_000,
    }
    try:
        return int(float(digits) * factors[unit])
    except (ValueError, KeyError, OverflowError):
        return 0


def installed() -> tuple[str, ...]:
    """The OCF agents of this machine, sorted, as a configuration names them."""
    found = []
    for provider in _names(Path(root(), "resource.d")):
        folder = Path(root(), "resource.d", provider)
        found += [f"ocf:{provider}:{name}" for name in _names(folder) if os.access(folder / name, os.X_OK)
                  and (folder / name).is_file()]  # fmt: skip
    return tuple(sorted(found))


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def read(agent: str, cache: str = "", within_s: float = LONGEST_S) -> Metadata:
    """Ask the agent about itself; blocks for at most within_s. cache: a folder that keeps the answer until the agent's file
    changes; "": none. Raises MetadataError."""
    where = path(agent)
    try:
        status = os.stat(where)
    except OSError as error:
        raise MetadataError(f"{where}: {error.strerror}; Debian has agents in resource-agents") from None
    kept = Path(cache, f"{agent.replace(':', '-')}-{status.st_mtime_ns}-{status.st_size}.xml") if cache else None
    if kept:
        with suppress(OSError, MetadataError):
            return parse(kept.read_bytes())
    env = environment(settings.Service("meta-data", "", agent, {}), "meta-data", "/run/hasnmp", "", (), 0)
    try:
        done = subprocess.run(
            [where, "meta-data"], env={**os.environ, **env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=within_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MetadataError(f"{where} meta-data: no answer within {within_s:g} s") from None
    except OSError as error:
        raise MetadataError(f"{where}: {error.strerror}") from None
    if done.returncode:
        raise MetadataError(f"{where} meta-data: exit status {done.returncode}; is it an OCF agent?")
    try:
        found = parse(done.stdout)
    except MetadataError as error:
        raise MetadataError(f"{where} meta-data: {error}") from None
    if kept:
        with suppress(OSError):
            kept.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}")
            draft.write_bytes(done.stdout)
            draft.replace(kept)
    return found


def parse(octets: bytes) -> Metadata:
    """Raises MetadataError: not the XML of an OCF agent."""
    if len(octets) > LARGEST or b"<!ENTITY" in octets:
        raise MetadataError("longer than 1 MiB, or with entities of its own: this is no metadata")
    try:
        top = ElementTree.fromstring(octets.strip())
    except ElementTree.ParseError as error:
        raise MetadataError(f"not XML: {error}") from None
    if top.tag != "resource-agent":
        raise MetadataError(f"an agent's XML begins with <resource-agent>, this with <{top.tag}>")
    return Metadata(
        top.get("name", ""),
        _text(top.find("shortdesc")),
        _text(top.find("longdesc")),
        tuple(_parameter(element) for element in top.iter("parameter") if element.get("name")),
        tuple(
            ActionInfo(e.get("name", ""), duration_ms(e.get("timeout", "")), duration_ms(e.get("interval", "")),
                       int(e.get("depth", "0")) if e.get("depth", "0").isdigit() else 0, e.get("role", ""))
            for e in top.iter("action") if e.get("name")
        ),
    )  # fmt: skip


def _parameter(element: ElementTree.Element) -> Parameter:
    content, deprecated = element.find("content"), element.find("deprecated")
    newer = deprecated.find("replaced-with") if deprecated is not None else None
    kind, default = ("string", None) if content is None else (content.get("type", "string"), content.get("default"))
    return Parameter(
        element.get("name", ""), kind, element.get("required") in ("1", "true"), element.get("unique") in ("1", "true"),
        default, _text(element.find("shortdesc")), _text(element.find("longdesc")),
        deprecated is not None or element.get("deprecated") == "1", newer.get("name", "") if newer is not None else "",
    )  # fmt: skip


def _text(element: ElementTree.Element | None) -> str:
    return " ".join((element.text or "").split()) if element is not None else ""


# ---------------------------------------------------------------------------------------------------------- defaults


def cache_of(config: settings.Config) -> str:
    return f"{config.run_dir}/ocf-metadata"


def complete(config: settings.Config) -> tuple[settings.Config, tuple[str, ...]]:
    """Fill in the times that the file leaves to the agents' metadata. Gives a line too for each agent that does not tell
    of itself: its services keep the form's defaults. Runs agents."""
    asked: dict[str, Metadata | None] = {}
    notes: list[str] = []

    def metadata(agent: str) -> Metadata | None:
        if agent not in asked:
            try:
                asked[agent] = read(agent, cache_of(config))
            except MetadataError as error:
                asked[agent] = None
                notes.append(f"{agent}: {error}; its services have the default times")
        return asked[agent]

    def filled(service: settings.Service) -> settings.Service:
        found = metadata(service.agent) if service.unset else None
        return with_times(service, found) if found else service

    groups = tuple(replace(group, services=tuple(map(filled, group.services))) for group in config.groups)
    return replace(config, groups=groups), tuple(notes)


def with_times(service: settings.Service, metadata: Metadata) -> settings.Service:
    start, stop = metadata.action("start"), metadata.action("stop")
    monitor = metadata.action("monitor", service.check.depth) or metadata.action("monitor")
    advised = {
        "start_timeout_ms": start.timeout_ms if start else 0, "stop_timeout_ms": stop.timeout_ms if stop else 0,
        "check.every_ms": monitor.interval_ms if monitor else 0, "check.timeout_ms": monitor.timeout_ms if monitor else 0,
    }  # fmt: skip
    given = {name: value for name, value in advised.items() if name in service.unset and value >= 10}
    check: dict[str, Any] = {
        name.partition(".")[2]: value for name, value in given.items() if name.startswith("check.")
    }
    own: dict[str, Any] = {name: value for name, value in given.items() if not name.startswith("check.")}
    return replace(service, check=replace(service.check, **check), **own)
