"""Fence levels, the watchdog and file systems: their kinds, and what they must be to each other (design rules 6 and 7)."""

from __future__ import annotations

import re
from typing import Any

from hasnmp import config_ocf
from hasnmp.config_kinds import PATH, Secret, secret
from hasnmp.config_read import (
    BAD,
    REQUIRED,
    Context,
    Key,
    Kind,
    Section,
    choice,
    integer,
    matching,
    read_section,
    string,
    what,
)
from hasnmp.config_yaml import Node, join, show
from hasnmp.settings import FenceLevel

PILL = "pill"
DISK_CUTS = ("power", "disk")  # after these a node can't write to a shared disk any more
LEVELS = 8  # fence levels of a node, at most

# ------------------------------------------------------------------------------------------------------ fence levels

AGENT = matching(
    "fence agent",
    rf"fence_[A-Za-z0-9_.-]{{1,58}}|{PILL}",
    f"a fence agent's program without its path, as fence_ipmilan, or {PILL}",
)

# An option is a secret if its name, or its last word, is one of these: password, snmp_priv_passwd, secret_key, apikey.
# Not `key`, which is a reservation key (fence_scsi), nor access_key, which is a name (fence_aws).
SECRET_NAMES = frozenset(("secret_key", "api_key", "private_key", "hexadecimal_kg"))
SECRET_WORDS = frozenset(("password", "passwd", "passphrase", "community", "token", "secret", "apikey"))
PASSWORD = secret(1, 255, "")
OPTION_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
OPTIONS_MOST = 64


def is_secret(option: str) -> bool:
    """Does this option of a fence agent hold a secret, by its name?"""
    name = option.lower().replace("-", "_")
    return name in SECRET_NAMES or name.rpartition("_")[2] in SECRET_WORDS


def _line_problem(value: str) -> str:
    # The agent reads key=value lines, and takes the white space around them away.
    if value != value.strip():
        return "begins or ends with white space, which a fence agent would not see"
    if "\n" in value or "\r" in value:
        return "has more than one line"
    return "" if len(value.encode()) <= 1000 else f"has {len(value.encode())} octets"


_VALUE = string("text of one line, a whole number, true or false", _line_problem)


def _read_value(node: Node, path: str, context: Context) -> Any:
    """An option's value as the text that the agent gets. Its library takes 1 for a switch that is on."""
    if isinstance(node.value, bool):
        return "1" if node.value else "0"
    if isinstance(node.value, int):
        return str(node.value)
    return _VALUE.read(node, path, context)


def read_secret(node: Node, path: str, context: Context) -> Any:
    """The secret of a file; it must be one line of text, for that is how it is handed over."""
    found = PASSWORD.read(node, path, context)
    if found is BAD:
        return BAD
    try:
        problem = _line_problem(found.octets.decode())
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    if problem:
        return context.fault(node.line, path, f"what {found.path} holds {problem}; allowed: one line of text")
    return found


def _read_options(node: Node, path: str, context: Context) -> Any:
    """Option -> its value as text, or the Secret out of the file that `NAME_file` names."""
    if node.broken or not (node.value is None or isinstance(node.value, dict)):
        return BAD if node.broken else context.fault(node.line, path, f"{what(node)}; allowed: {OPTIONS.allowed}")
    fields = node.value or {}
    if len(fields) > OPTIONS_MOST:
        return context.fault(node.line, path, f"{len(fields)} are given; allowed: {OPTIONS.allowed}")
    values: dict[str, Any] = {}
    for name, value in fields.items():
        where = join(path, name)
        stem = name.removesuffix("_file").removesuffix("-file")
        if not re.fullmatch(OPTION_NAME, name, re.ASCII):
            values[name] = context.fault(
                value.line, where, f"{show(name)} is no option's name; allowed: letters, digits, _ and -"
            )
        elif name in ("action", "option"):
            values[name] = context.fault(
                value.line,
                where,
                "belongs to hasnmp, which asks for off, on and status by itself; leave it out (and see the level's own "
                "key action)",
            )
        elif is_secret(name):
            # Its value is not shown: it may be the secret.
            values[name] = context.fault(
                value.line,
                where,
                f"holds a secret, and this file holds none; write it into a file of mode 0600, and here {name}_file: PATH",
            )
        elif stem != name and is_secret(stem):
            found = read_secret(value, where, context)
            values[stem] = found
        else:
            values[name] = _read_value(value, where, context)
    return BAD if BAD in values.values() else values


OPTIONS = Kind(f"a mapping of up to {OPTIONS_MOST} options of the fence agent", _read_options)

FENCE_KEYS = (
    Key("agent", AGENT, REQUIRED, f"a fence agent on PATH or in /usr/sbin; {PILL}: by the lease disk"),
    Key("cuts", choice("power", "disk", "network"), REQUIRED, "what the node loses; network does not count for a disk"),
    Key("timeout_ms", integer(1000, 600_000), 20_000, "for all of it: off, the look whether it is off, on again"),
    Key("action", choice("reboot", "off"), "reboot", "off: it stays off, as it does where cuts is not power"),
    Key("options", OPTIONS, None, "for the agent; `NAME_file` for a secret"),
)


# ---------------------------------------------------------------------------------------------------------- watchdog

WATCHDOG_KEYS = (
    Key("device", PATH, "", "the machine's watchdog, as /dev/watchdog; `watchdog: PATH` is short for it"),
    Key("timeout_s", integer(1, 600), 10, "the machine resets when it was not fed for so long"),
)


def _read_watchdog(node: Node, path: str, context: Context) -> Any:
    if isinstance(node.value, str) and not node.broken:
        node = Node(node.line, {"device": node})
    if not node.broken and not (node.value is None or isinstance(node.value, dict)):
        return context.fault(node.line, path, f"{what(node)}; allowed: {WATCHDOG.allowed}")
    return read_section(node, path, context, WATCHDOG_KEYS)


WATCHDOG = Kind("null, a device's path, or a mapping with the keys device, timeout_s", _read_watchdog, WATCHDOG_KEYS)

# ------------------------------------------------------------------------------------------------------ file systems


def _device_problem(value: str) -> str:
    if not value or not value.isprintable() or len(value.encode()) > 1000:
        return "is no device"
    return "is a relative path" if "/" in value and not re.match(r"/|[A-Z]+=|[^/]+:", value) else ""


DEVICE = string("a device's path, UUID=..., LABEL=..., or SERVER:/PATH", _device_problem)
MOUNT_OPTIONS = matching(
    "list of mount options", r"[!-~]{0,1000}", "printable characters without spaces, as for mount -o"
)
FSTYPE = matching("file system's name", r"[a-z0-9][a-z0-9._-]{0,31}", "as for mount -t: ext4, xfs, nfs4, ...")

# ------------------------------------------------------------------------------------------------------------- judge


def judge_nodes(nodes: dict[str, Section], arbiter: Any, context: Context) -> None:
    """Each level of each node, and what the arbiter's type needs of them."""
    kind = arbiter["type"] if arbiter is not BAD and arbiter.good("type") else None
    for node in nodes.values():
        if not node.good("fence"):
            continue
        for level in node["fence"]:
            if level.good("agent") and level["agent"] == PILL:
                _judge_pill(level, kind, context)
            elif level.good("cuts", "action") and level["cuts"] != "power" and "action" in level.lines:
                if level["action"] == "reboot":
                    context.tell(
                        level,
                        ["action"],
                        f"reboot needs cuts: power; a level that cuts the {level['cuts']} leaves the node running, and to switch "
                        "it on again would give it back what it had; leave action out, or write action: off",
                    )
        if kind == "fence" and not node["fence"]:
            context.tell(
                node,
                ["fence"],
                "no fence level, and arbiter type fence ends a silent owner by nothing else; give this node one, "
                "or use arbiter type disk",
            )


def _judge_pill(level: Section, kind: str | None, context: Context) -> None:
    if kind not in (None, "disk"):
        context.tell(
            level,
            ["agent"],
            f"{PILL} is written on the lease disk, and arbiter type {kind} has none; use a fence agent's program, "
            "or arbiter type disk",
        )
    if level.good("cuts") and level["cuts"] != "power":
        context.tell(level, ["cuts"], f"{PILL} makes the node reset itself; write cuts: power")
    if level.good("action") and level["action"] != "reboot":
        context.tell(level, ["action"], f"{PILL} makes the node reset itself, and it starts again; leave it out")
    if level.good("options") and level["options"]:
        context.tell(level, ["options"], f"{PILL} is built in and has no options; leave them out")


def judge_watchdog(root: Section, context: Context) -> None:
    if not root.good("watchdog"):
        return
    watchdog, beat = root["watchdog"], root["heartbeat"]
    if not watchdog.good("device", "timeout_s"):
        return
    if not watchdog["device"] and watchdog.lines:
        context.tell(watchdog, ["device", "timeout_s"], "missing; allowed: the watchdog's path, as /dev/watchdog")
    if watchdog["device"] and beat is not BAD and beat.good("kill_ms"):
        time, kill = watchdog["timeout_s"] * 1000, beat["kill_ms"]
        if time <= 3 * kill:
            context.tell(
                watchdog,
                ["timeout_s", "device"],
                f"{time} ms is not more than 3 x kill_ms ({kill}); the machine would reset while the guardian still ends "
                f"a group in order; allowed: {3 * kill // 1000 + 1} or more",
            )


def judge_fencing(fencing: Any, context: Context) -> None:
    if fencing is BAD or not fencing.good("test_every_s", "test_alarm_s"):
        return
    every, alarm = fencing["test_every_s"], fencing["test_alarm_s"]
    if every and alarm <= every:
        context.tell(
            fencing,
            ["test_alarm_s", "test_every_s"],
            f"{alarm} is not more than test_every_s ({every}); the alarm would come before a test is due; "
            f"allowed: {every + 1} or more",
        )


def has_disk(group: Section) -> bool:
    """The group's `disk`, or its default: may a service of it write to a disk, or be there, when all its processes have ended?"""
    if group["disk"] is not None:
        return bool(group["disk"])
    services = group["services"] if group.good("services") else ()
    return any(map(is_disk, services))


def is_disk(service: Section) -> bool:
    """Does this service make its group one with a disk? A file system that is mounted read-only does not."""
    if not service.good("agent"):
        return False
    if service["agent"] in ("filesystem", config_ocf.FILESYSTEM):
        given = service["options"].value if service.good("options") and service["options"] is not None else None
        mount = given.get("options") if isinstance(given, dict) else None
        return not (mount is not None and isinstance(mount.value, str) and "ro" in mount.value.split(","))
    return config_ocf.outlives(service["agent"])


def unfenced(members: tuple[str, ...], nodes: dict[str, Section]) -> list[str]:
    """Which of these nodes have no fence level that keeps them from a shared disk."""
    return [
        name
        for name in members
        if name in nodes
        and nodes[name].good("fence")
        and not any(level.good("cuts") and level["cuts"] in DISK_CUTS for level in nodes[name]["fence"])
    ]


def judge_group(group: Section, nodes: dict[str, Section], root: Section, context: Context) -> None:
    """Rule 6: silence and a lapsed lease are not enough where something writes to a disk that others reach."""
    if not group.good("disk", "accept_unfenced_disk", "on_stop_failure", "nodes"):
        return
    watchdog, arbiter = root["watchdog"], root["arbiter"]
    members = group["nodes"] or tuple(nodes)
    bare = unfenced(members, nodes)
    named = ", ".join(map(show, bare))
    armed = watchdog is BAD or not watchdog.good("device") or bool(watchdog["device"])
    if has_disk(group) and bare and not armed and not group["accept_unfenced_disk"]:
        why = next((f" ({s['agent']} may leave something on it, or outside of the group's processes)"
                    for s in (group["services"] if group.good("services") else ())
                    if s.good("agent") and config_ocf.outlives(s["agent"])), "")  # fmt: skip
        context.tell(
            group,
            ["disk"],
            f"the group has a disk{why}, and nothing keeps {named} from writing to it when silent: a killed or frozen node's "
            "kernel writes on; give each a fence level that cuts power or disk, or set watchdog, or write "
            "accept_unfenced_disk: true to take that risk (disk: false if no other node reaches what it writes to)",
        )
    alone = arbiter is not BAD and arbiter.good("type") and arbiter["type"] == "none" and len(members) > 1
    if has_disk(group) and alone and not group["accept_unfenced_disk"]:
        context.tell(
            group,
            ["disk"],
            "the group has a disk, and with arbiter type none two nodes that don't hear each other both write to it, also where a "
            "third was fenced, or one that was fenced starts again; use arbiter type disk or fence, or write "
            "accept_unfenced_disk: true to take that risk (disk: false if no other node reaches what it writes to)",
        )
    if group["on_stop_failure"] == "fence" and bare:
        context.tell(
            group,
            ["on_stop_failure"],
            f"fence needs a fence level that cuts power or disk on every node of the group, and {named} "
            f"{'has' if len(bare) == 1 else 'have'} none; give one, or write on_stop_failure: block",
        )


def stop_failure(group: Section, nodes: dict[str, Section]) -> str:
    """The group's on_stop_failure, or its default: fence where it has a disk and every node of it can be kept from that."""
    if group["on_stop_failure"] is not None:
        return str(group["on_stop_failure"])
    return "fence" if has_disk(group) and not unfenced(group["nodes"] or tuple(nodes), nodes) else "block"


def judge_filesystem(
    chosen: Section, name: str, group: str, nodes: tuple[str, ...], used: dict[str, str], lease: str, context: Context
) -> None:
    """One mount. nodes: of its group. used: mounts so far, by folder and node, and by device. lease: the lease disk's path, ""
    if there is none. A device that is only read may be in several groups: identical copies, or one disk that nobody writes."""
    if chosen.good("directory"):
        folder = chosen["directory"]
        if folder == "/":
            context.tell(chosen, ["directory"], "/ is where the system itself is; name a folder of its own")
        elif taken := next((used[at] for node in nodes if (at := f"directory {folder} {node}") in used), ""):
            context.tell(chosen, ["directory"], f"{folder} is used twice, first by {taken}; one would hide the other")
        for node in nodes:
            used.setdefault(f"directory {folder} {node}", f"service {name}")
    if chosen.good("device"):
        device = chosen["device"]
        if lease and device == lease:
            context.tell(chosen, ["device"], f"{device} is the lease disk (arbiter.device), which nothing may mount")
        options = chosen["options"] if "options" in chosen.values and chosen.good("options") else ""
        if "ro" in str(options).split(","):
            return
        first = used.get(f"device {device}")
        if first is not None and first != group:
            context.tell(
                chosen,
                ["device"],
                f"{device} is used twice, first by group {first}; two groups that run on two nodes would both write to it",
            )
        used.setdefault(f"device {device}", group)


# --------------------------------------------------------------------------------------------------------------- values


def levels_of(levels: tuple[Section, ...]) -> tuple[FenceLevel, ...]:
    """Faultless sections as values."""
    made = []
    for level in levels:
        options = level["options"] or {}
        made.append(
            FenceLevel(
                level["agent"],
                level["cuts"],
                level["timeout_ms"],
                level["action"],
                {name: value for name, value in options.items() if not isinstance(value, Secret)},
                {name: value.octets.decode() for name, value in options.items() if isinstance(value, Secret)},
            )
        )
    return tuple(made)
