"""What a configuration's keys must be to each other: names that exist, addresses used once, timings that can hold."""

from __future__ import annotations

import grp
import ipaddress
from typing import Any

from hasnmp import config_fence as fence
from hasnmp import config_schema as schema
from hasnmp.config_clients import judge_clients, judge_hooks, judge_ports
from hasnmp.config_groups import judge_groups
from hasnmp.config_kinds import split_endpoint
from hasnmp.config_read import BAD, Context, Section, allowed_of, judge_only, suggest
from hasnmp.config_views import judge_access, judge_views
from hasnmp.config_yaml import join, show


def judge(root: Section, context: Context) -> dict[str, Section]:
    """Everything that takes more than one key to see. Returns each service's options, by the service's name."""
    nodes = {name: node for name, node in root["nodes"].items() if node is not BAD} if root.good("nodes") else {}
    names = list(root["nodes"]) if root.good("nodes") else None
    used = _judge_links(nodes, context)
    if root.good("heartbeat"):
        _judge_heartbeat(root["heartbeat"], context)
    if root.good("arbiter"):
        _judge_arbiter(root["arbiter"], root["heartbeat"], context)
    fence.judge_nodes(nodes, root["arbiter"], context)
    fence.judge_watchdog(root, context)
    fence.judge_fencing(root["fencing"], context)
    options = judge_groups(root, nodes, names, used, context) if root.good("groups") else {}
    if root.good("snmp"):
        _judge_snmp(root["snmp"], context)
    judge_clients(root, context)
    judge_ports(root, context)
    judge_hooks(root, context)
    control = root["control"]
    if control is not BAD and control.good("group") and control["group"] and context.strict:
        try:
            grp.getgrnam(control["group"])
        except KeyError:
            context.tell(
                control,
                ["group"],
                f"{show(control['group'])} is no group of this machine; run: groupadd --system {control['group']}",
            )
    if control is not BAD and control["socket"] is None and root.good("run_dir"):
        size = len(f"{root['run_dir']}/control.sock".encode())
        if size > 107:
            context.tell(
                root,
                ["run_dir"],
                f"control.sock in it is a path of {size} octets; allowed: 107 (or give control.socket)",
            )
    return options


def _judge_links(nodes: dict[str, Section], context: Context) -> dict[str, str]:
    """Every node on every link, by one family, no address twice. Returns address -> what uses it."""
    used: dict[str, str] = {}
    model: tuple[str, dict[str, Any]] | None = None
    for name, node in nodes.items():
        if not node.good("links"):
            continue
        links = node["links"]
        path = join(node.path, "links")
        for link, address in links.items():
            if address is BAD:
                continue
            if address in used:
                context.fault(
                    links.lines[link],
                    join(path, link),
                    f"{address} is used twice, first by {used[address]}; give each link and node its own",
                )
            used.setdefault(address, f"link {link} of node {name}")
        if model is None:
            model = (name, links)
            continue
        first, others = model
        missing, more = [x for x in others if x not in links], [x for x in links if x not in others]
        if missing or more:
            parts = [f"lacks {', '.join(map(show, missing))}"] if missing else []
            parts += [f"adds {', '.join(map(show, more))}"] if more else []
            difference = f"{' and '.join(parts)} compared with node {show(first)}"
            context.tell(node, ["links"], f"{difference}; every node needs the same links")
        for link in links:
            mine, theirs = links[link], others.get(link, BAD)
            if mine is not BAD and theirs is not BAD and (":" in mine) != (":" in theirs):
                context.fault(
                    links.lines[link],
                    join(path, link),
                    f"{mine} is IPv{6 if ':' in mine else 4}, but {theirs} of node {show(first)} is not; "
                    "a link has one family",
                )
    return used


def _judge_heartbeat(beat: Section, context: Context) -> None:
    def less(low: str, high: str, why: str) -> None:
        if beat.good(low, high) and beat[low] >= beat[high]:
            context.tell(beat, [low, high], f"{beat[low]} is not less than {high} ({beat[high]}); {why}")

    if beat.good("interval_ms", "dead_after_ms") and beat["dead_after_ms"] < 3 * beat["interval_ms"]:
        interval, dead = beat["interval_ms"], beat["dead_after_ms"]
        context.tell(
            beat,
            ["dead_after_ms", "interval_ms"],
            f"{dead} is less than 3 x interval_ms ({interval}); one lost datagram would look "
            f"like a dead peer; allowed: {3 * interval} or more",
        )
    less("interval_ms", "late_after_ms", "every heartbeat would count as late")
    less("late_after_ms", "dead_after_ms", "the warning would come after the end")
    if beat.good("startup_wait_ms", "dead_after_ms") and beat["startup_wait_ms"] < beat["dead_after_ms"]:
        wait, dead = beat["startup_wait_ms"], beat["dead_after_ms"]
        context.tell(
            beat,
            ["startup_wait_ms", "dead_after_ms"],
            f"{wait} is less than dead_after_ms ({dead}); a node that just started may have "
            f"promised for that long; allowed: {dead} or more",
        )


def _judge_arbiter(arbiter: Section, beat: Any, context: Context) -> None:
    """Also design rule 12: what must happen within a lease fits into it."""
    if not arbiter.good("type"):
        return
    disk = arbiter["type"] == "disk"
    judge_only(arbiter, schema.ARBITER.keys, arbiter["type"], "type", context)
    if disk and "device" not in arbiter.lines:
        context.tell(
            arbiter,
            ["device", "type"],
            "missing, and type disk has no default for it; allowed: a block device or file that every node reaches",
        )
    if arbiter["type"] == "none" and arbiter["accept_split_brain"] is False:
        context.tell(
            arbiter,
            ["accept_split_brain", "type"],
            "type none means that two nodes that don't hear each other both run a "
            "group; write accept_split_brain: true, or use type disk or fence",
        )
    if beat is BAD or not beat.good("kill_ms") or not arbiter.good("lease_ms", "io_timeout_ms"):
        return
    lease, kill, bound = arbiter["lease_ms"], beat["kill_ms"], arbiter["io_timeout_ms"] if disk else 0
    claim = f" + io_timeout_ms ({bound})" if disk else ""
    if kill + lease // 3 + bound >= lease:
        context.tell(
            arbiter,
            ["lease_ms", "io_timeout_ms", "type"],
            f"kill_ms ({kill}) + a renewal each third of the lease ({lease // 3}){claim} = "
            f"{kill + lease // 3 + bound}, not less than lease_ms ({lease}); one slow renewal would end the group; "
            f"allowed: {_least_lease(kill + bound)} or more",
        )
    if not beat.good("interval_ms", "dead_after_ms"):
        return
    interval, dead = beat["interval_ms"], beat["dead_after_ms"]
    if interval + bound + kill >= dead:
        context.tell(
            beat,
            ["dead_after_ms", "interval_ms", "kill_ms"],
            f"interval_ms ({interval}){claim} + kill_ms ({kill}) = {interval + bound + kill}, "
            f"not less than dead_after_ms ({dead}); an owner could not claim the arbiter before its promises end; "
            f"allowed: more than {interval + bound + kill}",
        )


def _least_lease(rest: int) -> int:
    """The least lease with rest + lease // 3 < lease."""
    lease = rest * 3 // 2
    while rest + lease // 3 >= lease:
        lease += 1
    return lease


def _judge_snmp(snmp: Section, context: Context) -> None:
    judge_views(snmp, context)
    lines: dict[str, int] = {}
    users = snmp["users"] if snmp.good("users") else ()
    for user in users:
        line, path = user.at("name")
        if user.good("name"):
            if user["name"] in lines:
                context.fault(
                    line,
                    path,
                    f"{user['name']} is given twice, first on line {lines[user['name']]}; a user's name is unique",
                )
            lines.setdefault(user["name"], line)
        judge_access(user, snmp, context)
        if user["priv"] == "" and "priv_file" in user.lines:
            context.tell(user, ["priv_file"], "is given, but priv is not; write priv: aes128, or leave it out")
        if user["priv"] not in ("", BAD) and "priv_file" not in user.lines:
            context.tell(
                user,
                ["priv_file", "priv"],
                "missing, and priv needs it; allowed: the path of a file with a passphrase",
            )
    seen: dict[bytes, str] = {}
    labels: dict[str, int] = dict(lines)
    for community in snmp["communities"] if snmp.good("communities") else ():
        judge_access(community, snmp, context)
        label = community["label"]
        if isinstance(label, str):
            line, path = community.at("label")
            if label in labels:
                context.fault(line, path, f"{label} is given twice, first on line {labels[label]}; label it otherwise")
            labels.setdefault(label, line)
        if community["access"] in ("operate", "admin") and snmp["allow_insecure_set"] is False:
            context.tell(
                community,
                ["access"],
                f"{community['access']} lets everybody who can read the network SET; use an SNMPv3 user, "
                "or write snmp.allow_insecure_set: true",
            )
        name = community["name_file"]
        if name is not BAD and name.octets:
            if name.octets in seen:
                context.tell(
                    community, ["name_file"], f"holds the same name as {seen[name.octets]}; a community is given once"
                )
            seen.setdefault(name.octets, name.path)
    told: dict[tuple[object, ...], str] = {}
    for receiver in snmp["notify"] if snmp.good("notify") else ():
        _judge_receiver(receiver, lines if snmp.good("users") else None, context)
        if not receiver.good("to", "version", "user", "community_file", "type", "enabled") or not receiver["enabled"]:
            continue
        file = receiver["community_file"]
        who = receiver["user"] if receiver["version"] == "3" else file and (file.octets or file.path)
        key = (receiver["to"], receiver["version"], who, receiver["type"])
        if key in told:
            context.tell(
                receiver,
                ["to"],
                f"is the same receiver as {told[key]}; each notification would come twice; give it once",
            )
        told.setdefault(key, receiver.path)
    _judge_receiver_names(snmp, context)
    if snmp.good("agentx"):
        _judge_agentx(snmp, context)


def _judge_receiver_names(snmp: Section, context: Context) -> None:
    """Rows of the MIB and places in the backlog are kept by them: each has one, and not by its place in the file."""
    named: dict[str, str] = {"agentx": "the master agent"}
    unnamed: dict[tuple[object, ...], str] = {}
    for receiver in snmp["notify"] if snmp.good("notify") else ():
        if not receiver.good("to", "version", "user", "type", "name", "enabled"):
            continue
        if name := receiver["name"]:
            if name in named:
                context.tell(receiver, ["name"], f"{show(name)} is the name of {named[name]} already")
            named.setdefault(name, "another receiver")
            continue
        key = (receiver["to"], receiver["version"], receiver["user"], receiver["type"])
        if key in unnamed and not (receiver["user"] and receiver["enabled"]):  # that is a fault already
            context.tell(receiver, ["name"], f"is missing: {unnamed[key]} has the same address, version and type, of which a "
                         "name is made; a community is a secret, and no part of it; give one of them a name")  # fmt: skip
        unnamed.setdefault(key, receiver.path)


def _judge_agentx(snmp: Section, context: Context) -> None:
    master = snmp["agentx"]
    if not master:
        if snmp.good("listen") and not snmp["listen"]:
            context.tell(snmp, ["listen"], "is empty, and agentx is not given: nobody could ask this agent anything")
        if snmp["agentx_access"] == "operate":
            context.tell(
                snmp, ["agentx_access"], "is operate, but agentx is not given; name the master, or leave it out"
            )
    elif (
        master.startswith("tcp:")
        and not ipaddress.ip_address(split_endpoint(master[4:])[0]).is_loopback
        and snmp["agentx_access"] == "operate"
        and snmp["allow_insecure_set"] is False
    ):
        context.tell(
            snmp,
            ["agentx_access", "agentx"],
            f"operate lets whoever answers at {master} SET, for AgentX proves nothing; use the master's socket or a "
            "loopback address, or write snmp.allow_insecure_set: true",
        )


def _judge_receiver(receiver: Section, users: dict[str, int] | None, context: Context) -> None:
    """users: the known names, None while that list itself is at fault."""
    if not receiver.good("version"):
        return
    version = receiver["version"]
    judge_only(receiver, schema.NOTIFY.keys, version, "version", context)
    needed = "user" if version == "3" else "community_file"
    if needed not in receiver.lines:
        allowed = allowed_of(schema.NOTIFY.keys, needed)
        context.tell(
            receiver, [needed, "version"], f"missing, and version {version} has no default for it; allowed: {allowed}"
        )
    if receiver["type"] == "inform" and version == "1":
        context.tell(receiver, ["type"], "inform is not in SNMPv1; use version 2c or 3, or type: trap")
    if receiver["type"] == "trap":
        for key in ("timeout_ms", "retries"):
            if key in receiver.lines:
                context.tell(receiver, [key], "belongs to type inform, for nobody answers a trap; leave it out")
    user = receiver["user"]
    if version == "3" and users is not None and isinstance(user, str) and user not in users:
        known = ", ".join(users) or "none"
        context.tell(receiver, ["user"], f"{user} is no user of this file{suggest(user, users)}; known users: {known}")
