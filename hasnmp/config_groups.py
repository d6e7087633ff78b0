"""What groups, their services and the checks of these must be: beside each other, and to what else the file says."""

from __future__ import annotations

import ipaddress
import pwd
from typing import Any

from hasnmp import config_fence as fence
from hasnmp import config_ocf as ocf
from hasnmp import config_schema as schema
from hasnmp import config_sql
from hasnmp.config_agents import read_options
from hasnmp.config_kinds import HTTP_URL
from hasnmp.config_read import BAD, Context, Section, allowed_of, judge_only, read_section, suggest
from hasnmp.config_yaml import Node, join, show

# What wire.py makes of a heartbeat; a test holds these three to it.
HEARTBEAT_HEAD = 108  # octets without names and groups: the fixed part, two length octets, the signature
HEARTBEAT_GROUP = 15  # octets of each group beside its name
HEARTBEAT_MOST = 1200


def judge_groups(
    root: Section, nodes: dict[str, Section], names: list[str] | None, used: dict[str, str], context: Context
) -> dict[str, Section]:
    """names: of the nodes, None if these can't be read. used: whose each address is; those of services are added. Returns each
    service's options, by the service's name."""
    options: dict[str, Section] = {}
    lines: dict[str, int] = {}
    _judge_size(root, names or [], context)
    for group in root["groups"].values():
        if group is BAD:
            continue
        _judge_members(group, names, context)
        fence.judge_group(group, nodes, root, context)
        for service in group["services"] if group.good("services") else ():
            _judge_service(service, lines, options, used, context)
    _judge_mounts(root, options, context)
    return options


def _judge_size(root: Section, names: list[str], context: Context) -> None:
    """A heartbeat names every group and is never a fragment: so many groups with so long names fit into it."""
    longest = sum(sorted(len(name.encode()) for name in names)[-2:])
    size = HEARTBEAT_HEAD + longest + sum(HEARTBEAT_GROUP + len(name.encode()) for name in root["groups"])
    if size > HEARTBEAT_MOST:
        context.tell(
            root,
            ["groups"],
            f"{len(root['groups'])} groups make a heartbeat of {size} octets, more than one datagram holds; "
            f"allowed: {HEARTBEAT_MOST} octets, so use fewer groups or shorter names",
        )


def _judge_members(group: Section, names: list[str] | None, context: Context) -> None:
    if names is None or not group.good("nodes") or group["nodes"] is None:
        return
    line, path = group.at("nodes")
    for index, name in enumerate(group["nodes"]):
        if name not in names:
            context.fault(
                line,
                f"{path}[{index}]",
                f"{show(name)} is no node of this file{suggest(name, names)}; "
                f"known nodes: {', '.join(map(show, names))}",
            )


def _judge_service(
    service: Section, lines: dict[str, int], options: dict[str, Section], used: dict[str, str], context: Context
) -> None:
    line, path = service.at("name")
    if service.good("name"):
        if service["name"] in lines:
            context.fault(
                line,
                path,
                f"{service['name']} is given twice, first on line {lines[service['name']]}; "
                "a service's name is unique in the whole file",
            )
        lines.setdefault(service["name"], line)
    if not service.good("agent"):
        return
    agent: str = service["agent"]
    if ocf.is_external(agent):
        _judge_external(service, agent, options, context)
        return
    if agent not in schema.OPTIONS:
        where = service.at("agent")
        if agent.partition(":")[0] in ("ocf", "systemd", "lsb"):
            form = {
                "ocf": "ocf:PROVIDER:NAME, as ocf:heartbeat:pgsql",
                "systemd": "systemd:UNIT with a service unit, as systemd:nfs-ganesha",
            }.get(agent.partition(":")[0])
            context.fault(
                *where,
                f"{show(agent)} is no agent; allowed: {form}"
                if form
                else f"{show(agent)}: {agent.partition(':')[0]} agents are not in this version; "
                "use exec, with the program itself and a check",
            )
        else:
            context.fault(
                *where,
                f"{show(agent)} is no agent{suggest(agent, schema.OPTIONS)}; allowed: {', '.join(schema.OPTIONS)}, "
                "ocf:PROVIDER:NAME, systemd:UNIT",
            )
        return
    _judge_check(service["check"], agent, context)
    node = service["options"] or Node(service.line, {})
    chosen = read_section(node, join(service.path, "options"), context, schema.OPTIONS[agent])
    if chosen is BAD or not service.good("name"):
        return
    options.setdefault(service["name"], chosen)
    if agent == "address":
        _judge_address(chosen, service["name"], used, context)
    if agent == "exec" and chosen.good("user") and chosen["user"] and context.strict:
        try:
            pwd.getpwnam(chosen["user"])
        except KeyError:
            context.tell(
                chosen,
                ["user"],
                f"{show(chosen['user'])} is no user of this machine; run: useradd --system {chosen['user']}",
            )


def _judge_external(service: Section, agent: str, options: dict[str, Section], context: Context) -> None:
    _judge_check(service["check"], ocf.parts(agent)[0], context)
    if (name := ocf.parts(agent)[2]) in ocf.NEEDS_PROMOTION:
        context.tell(
            service,
            ["agent"],
            f"{agent} has to run on several nodes with one of them promoted, and hasnmp runs a service on one node"
            + ("; use a disk that both nodes reach" if name == "drbd" else ""),
        )
    if ocf.parts(agent)[0] == "systemd":
        none = read_section(service["options"] or Node(service.line, {}), join(service.path, "options"), context, ())
        if none is not BAD and service.good("name"):
            options.setdefault(service["name"], none)
        return
    chosen = read_options(service["options"] or Node(service.line, {}), join(service.path, "options"), context)
    if chosen is not BAD and service.good("name"):
        options.setdefault(service["name"], chosen)


def _judge_mounts(root: Section, options: dict[str, Section], context: Context) -> None:
    """Folders and devices of file systems, each used once."""
    mounts: dict[str, str] = {}
    arbiter = root["arbiter"]
    lease = str(arbiter["device"]) if arbiter is not BAD and arbiter.good("device") else ""
    for name, group in root["groups"].items():
        for service in group["services"] if group is not BAD and group.good("services") else ():
            if not service.good("name", "agent") or service["name"] not in options:
                continue
            chosen = options[service["name"]]
            if service["agent"] == "filesystem" or (
                service["agent"] == ocf.FILESYSTEM and {"device", "directory"} <= chosen.values.keys()
            ):
                everybody = tuple(root["nodes"]) if root.good("nodes") else ()
                nodes = (group["nodes"] if group.good("nodes") else None) or everybody
                fence.judge_filesystem(chosen, service["name"], name, nodes, mounts, lease, context)


def _judge_check(check: Any, agent: str, context: Context) -> None:
    if check is BAD or not check.good("type"):
        return
    types = schema.CHECK_TYPES[agent]  # agent: its first word
    kind = check["type"] or types[0]
    if kind not in types:
        context.tell(check, ["type"], f"{kind} is no check of agent {agent}; allowed: {', '.join(types)}")
        return
    judge_only(check, schema.CHECK.keys, kind, "type", context)
    for name in schema.CHECK_REQUIRED.get(kind, ()):
        if name not in check.lines:
            allowed = allowed_of(schema.CHECK.keys, name)
            context.tell(check, [name, "type"], f"missing, and type {kind} has no default for it; allowed: {allowed}")
    if check.good("url") and check["url"] and kind in ("http", "sql"):
        if check["url"].startswith("http") != (kind == "http"):
            form = HTTP_URL if kind == "http" else config_sql.FORM
            context.tell(check, ["url"], f"{show(check['url'])} is no URL for type {kind}; allowed: {form}")
        elif kind == "sql":
            config_sql.judge(check, context)
    every, timeout = check["every_ms"], check["timeout_ms"]
    if check.good("every_ms", "timeout_ms") and timeout is not None and timeout > every:
        context.tell(
            check,
            ["timeout_ms", "every_ms"],
            f"{timeout} is more than every_ms ({every}); a check must end before the next "
            f"one begins; allowed: up to {every}",
        )
    if check.good("status") and 0 < check["status"] < 100:
        context.tell(
            check, ["status"], f"{check['status']} is no HTTP status; allowed: 100..599, or 0 for any of 200..399"
        )


def _judge_address(chosen: Section, name: str, used: dict[str, str], context: Context) -> None:
    if not chosen.good("ip"):
        return
    interface = ipaddress.ip_interface(chosen["ip"])
    own = str(interface.ip)
    if own in used:
        context.tell(
            chosen,
            ["ip"],
            f"{own} is used twice, first by {used[own]}; an address that moves belongs to one service alone",
        )
    used.setdefault(own, f"service {name}")
    line, path = chosen.at("reach")
    for index, other in enumerate(chosen["reach"] if chosen.good("reach") else ()):
        if ipaddress.ip_address(other).version != interface.version:
            context.fault(
                line,
                f"{path}[{index}]",
                f"{other} is IPv{ipaddress.ip_address(other).version}, but ip is IPv{interface.version}; "
                "one family can't ask for the other",
            )
        elif other == own:
            context.fault(
                line, f"{path}[{index}]", f"{other} is this service's own address; name a neighbour, as the router"
            )
