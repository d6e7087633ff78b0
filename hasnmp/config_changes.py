"""What a new configuration changes against the one in force: what has to be stopped for it, and what can't be reloaded.

Pure. A reload restarts nothing that did not change, so this file decides what counts as a change of a running service:
what it is (agent, options that its start uses, its group), not how it is checked or what its failure leads to.

What nodes must agree on at every moment - who takes part, which arbiter, which times - is for `hasnmp apply`, which switches
all nodes at once: between two reloads, one after the other, two nodes could each count on what the other has given up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from hasnmp.settings import Config, Group, Service, beside

# Options that the running service does not know of: how it is stopped, what its check asks.
LATER_USED = {"exec": {"stop_signal", "stop_command"}, "address": {"reach"}, "filesystem": {"fsck", "unmount"}}
STAGED_TIMES = ("port", "interval_ms", "dead_after_ms", "startup_wait_ms", "max_clock_drift_ppm", "kill_ms")
# Each of these stands in the promise or the record that it concerns, or is this node's own: the rules of the leases hold in
# any mixture of old and new. For the others they don't: one node could count on what another has given up already.
APPLIED = frozenset(
    (*(f"heartbeat.{name}" for name in STAGED_TIMES if name != "port"), "arbiter.lease_ms", "arbiter.io_timeout_ms")
)


Webs = dict[str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True, slots=True)
class Changes:
    """lines: what differs, in words, never a secret. The services to stop are in the order in which they are started,
    without those of groups that are removed as a whole."""

    lines: tuple[str, ...] = ()
    services: tuple[str, ...] = ()  # to be stopped under the old settings: removed, or another thing from now on
    groups: tuple[str, ...] = ()  # removed: stopped whole, and given up
    needs_apply: tuple[str, ...] = ()  # what only `hasnmp apply` may change
    needs_stop: tuple[str, ...] = ()  # of those, what even that may not change: hasnmpd is stopped on every node for it
    needs_restart: tuple[str, ...] = ()  # what only a restart of hasnmpd changes
    stop_ms: int = 0  # how long the stops may take, by their own limits and their hooks': groups at the same time, services in turn

    def text(self) -> str:
        return "; ".join(self.lines) or "nothing differs"


def compare(old: Config, new: Config) -> Changes:
    """What has to happen for `new` to be in force where `old` is."""
    before, after = {g.name: g for g in old.groups}, {g.name: g for g in new.groups}
    lines: list[str] = []
    stopped: dict[str, list[Service]] = {}
    groups = tuple(name for name in before if name not in after)
    now = {s.name: s for s in new.services()}
    was = {s.name for s in old.services()}
    for name, group in before.items():
        if name in groups:
            lines.append(f"group {name} removed")
            stopped[name] = list(group.services)
            continue
        stopped[name] = _to_stop(group, now)
        lines += _group_lines(group, after[name], stopped[name], now)
    for name in after:
        if name not in before:
            lines.append(f"group {name} added")
    lines += (
        f"service {s.name} added" for g in new.groups if g.name in before for s in g.services if s.name not in was
    )
    lines += _other_lines(old, new)
    needs_apply = tuple(_staged(old, new))
    with_disk = old.arbiter.type == new.arbiter.type == "disk"
    needs_restart = tuple(
        name for name in ("run_dir", "state_dir", "watchdog") if getattr(old, name) != getattr(new, name)
    )
    return Changes(
        (*lines, *(f"{what} changed" for what in (*needs_apply, *needs_restart))),
        tuple(s.name for name, services in stopped.items() if name not in groups for s in services),
        groups,
        needs_apply,
        tuple(
            name
            for name in needs_apply
            if name not in APPLIED
            and not (_of_nodes(name) and _is_step(old, new))
            and not (name == "nodes" and _is_apart(old, new))
            # The core goes over to another disk when every node is heard to read it and nothing rests on the former one.
            and not (name == "arbiter.device" and with_disk)
            # A cut, as long as the switch takes: the leases go over to the disk. For good, where a node misses it.
            and not (name == "heartbeat.port" and with_disk)
            and not (name.endswith(".links") and _keeps_a_link(old, new))
        ),
        needs_restart,
        max(
            (
                sum(s.stop_timeout_ms for s in services) + (_hooks_ms(old, name) if name in groups else 0)
                for name, services in stopped.items()
            ),
            default=0,
        ),
    )


def in_force(file: Config, webs: Webs) -> tuple[Config, Webs]:
    """What a node goes by that has this file, and what it must have made durable before.

    webs: group -> each set of nodes by which this node, or one that counts on it, may still go. With the file's own, which
    comes last, they are what the lease of the group has to respect: who is in all of them may take it, and whoever is in any
    is asked. So two nodes that have one set in common exclude each other, whatever else each of them goes by. A set leaves
    the list when every node is known to have the newest (core/apply), and never by a group's removal.
    """
    known, groups, open_ = dict(webs), [], {}
    for group in file.groups:
        former = webs.get(group.name, ()) if file.arbiter.type == "disk" else ()
        known[group.name] = all_ = (*(web for web in former if set(web) != set(group.nodes)), group.nodes)
        nodes = tuple(n for n in group.nodes if all(n in web for web in all_))
        also = tuple(n for n in dict.fromkeys(n for web in all_ for n in web) if n not in nodes)
        groups.append(replace(group, nodes=nodes, also=also))
        if len(all_) > 1:
            open_[group.name] = all_
    if not open_:
        return file, known
    return replace(file, groups=tuple(groups), webs=open_, digest=beside(file.digest)), known


def settled(halfway: Config, webs: Webs) -> tuple[Config, Webs]:
    """The same when every node is known to have the file: its own nodes alone count."""
    now = {g.name: halfway.webs[g.name][-1] if g.name in halfway.webs else g.nodes for g in halfway.groups}
    groups = tuple(replace(g, nodes=now[g.name], also=()) for g in halfway.groups)
    file = replace(halfway, groups=groups, webs={}, digest=beside(halfway.digest))
    return file, {**webs, **{name: (nodes,) for name, nodes in now.items()}}


def strangers(halfway: Config) -> str:
    """A node of which this configuration knows nothing but that a group may still be run by it; "" when there is none."""
    names = {n.name for n in halfway.nodes}
    return next((f"{n} of {g.name}" for g in halfway.groups for n in g.also if n not in names), "")


def nobody(halfway: Config) -> str:
    """Why what in_force() gives can't be applied; "" when it can."""
    empty = next((g.name for g in halfway.groups if not g.nodes), "")
    if not empty:
        return ""
    return (
        f"groups.{empty}.nodes: none of the new nodes is one of the old, so nobody could run it meanwhile; apply a file with "
        "both first, and then one without the old"
    )


def _hooks_ms(config: Config, group: str) -> int:
    """How long the hooks before a stop of the group may take."""
    return sum(h.timeout_ms for h in config.hooks if h.on == "before_stop" and (not h.groups or group in h.groups))


def _of_nodes(name: str) -> bool:
    return name.startswith("groups.") and name.endswith(".nodes")


def _is_step(old: Config, new: Config) -> bool:
    """Are the leases safe while some nodes go by the one and some by the other, as to groups' nodes? With a lease disk always, by
    in_force(). Else where a group's nodes are the same, in whatever order."""
    if old.arbiter.type == new.arbiter.type == "disk":
        return True
    # The order decides who is preferred, and which of two claimants gives way: where two nodes differ in it, both give way or both
    # wait, and neither has the lease. Only two owners of one token that hear each other (arbiter `none`) would both go on.
    kind = tuple if new.arbiter.type == "none" else frozenset
    after = {g.name: kind(g.nodes) for g in new.groups}
    return all(after.get(g.name, kind(g.nodes)) == kind(g.nodes) for g in old.groups)


def _is_apart(old: Config, new: Config) -> bool:
    """Are the nodes that come or go none of any group? Only whoever may run a group is asked for its lease, so they have nothing to
    do with one. (The arbiter `fence` counts the turns of all nodes.)"""
    names = [{n.name for n in c.nodes} for c in (old, new)]
    moved = names[0] ^ names[1]
    return old.arbiter.type == new.arbiter.type == "disk" and not any(
        n in moved for c in (old, new) for g in c.groups for n in g.asked()
    )


def _keeps_a_link(old: Config, new: Config) -> bool:
    """Have any two nodes a link that stays as it is? Then they hear each other over it at every moment, whoever goes by which
    file. (No lease rests on an address; but whoever does not hear the others can't be told of the next file either.)"""
    before = {n.name: n.links for n in old.nodes}
    stay = [
        {link for link, at in n.links.items() if before[n.name].get(link) == at} for n in new.nodes if n.name in before
    ]
    return all(one & other for i, one in enumerate(stay) for other in stay[:i])


def same_program(old: Service, new: Service) -> bool:
    """Would a start under the new settings give what runs now?"""
    if (old.agent, old.group) != (new.agent, new.group):
        return False
    skipped = LATER_USED.get(old.agent, set())
    names = (old.options.keys() | new.options.keys()) - skipped
    return old.secrets == new.secrets and all(old.options.get(name) == new.options.get(name) for name in names)


def _to_stop(group: Group, now: dict[str, Service]) -> list[Service]:
    """What of a group that stays can't run on. What was started after a file system may have files open on it, so it goes
    with it; anything else is left alone."""
    found: list[Service] = []
    unmounted = False
    for service in group.services:
        successor = now.get(service.name)
        if unmounted or successor is None or not same_program(service, successor):
            found.append(service)
            unmounted |= bool(service.mounts)
    return found


def _group_lines(old: Group, new: Group, stopped: list[Service], now: dict[str, Service]) -> Iterator[str]:
    names = (
        [s.name for s in old.services if s.name in now and now[s.name].group == old.name],
        [s.name for s in new.services],
    )
    if names[0] != [name for name in names[1] if name in names[0]]:
        yield f"group {old.name}: order of services"
    differ = [
        f.name
        for f in fields(Group)
        if f.name not in ("name", "nodes", "also", "services") and _differs(f.name, old, new)
    ]
    if differ:
        yield f"group {old.name}: {', '.join(differ)}"
    for service in old.services:
        successor = now.get(service.name)
        if successor is None:
            yield f"service {service.name} removed"
        elif successor.group != service.group:
            yield f"service {service.name} moved to group {successor.group}"
        elif service != successor:
            yield f"service {service.name}: {', '.join(f.name for f in fields(Service) if _differs(f.name, service, successor))}"
        elif service in stopped:
            yield f"service {service.name}: the file system below it"


def _other_lines(old: Config, new: Config) -> Iterator[str]:
    """What concerns no group and what every node may change in its turn."""
    beat, other = old.heartbeat, new.heartbeat
    if beat.late_after_ms != other.late_after_ms:
        yield "heartbeat.late_after_ms"
    if (beat.keys, beat.key_files) != (other.keys, other.key_files):
        yield "heartbeat.key_files"
    for node in old.nodes:
        successor = next((n for n in new.nodes if n.name == node.name), None)
        if successor is not None and successor.fence != node.fence:
            yield f"nodes.{node.name}.fence"
    for part in ("recovery_automatic", "fencing", "snmp", "clients", "hooks", "control", "events_keep", "log"):
        yield from _below(part, getattr(old, part), getattr(new, part))


def _below(path: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if is_dataclass(old) and not isinstance(old, type):
        for one in fields(old):
            yield from _below(f"{path}.{one.name}", getattr(old, one.name), getattr(new, one.name))
    else:
        yield path


def _staged(old: Config, new: Config) -> Iterator[str]:
    """What nodes must switch at one moment."""
    if old.cluster != new.cluster:
        yield "cluster"
    if [n.name for n in old.nodes] != [n.name for n in new.nodes]:
        yield "nodes"
    for node in old.nodes:
        successor = next((n for n in new.nodes if n.name == node.name), None)
        if successor is not None and successor.links != node.links:
            yield f"nodes.{node.name}.links"
    yield from (f"heartbeat.{name}" for name in STAGED_TIMES if _differs(name, old.heartbeat, new.heartbeat))
    yield from _below("arbiter", old.arbiter, new.arbiter)
    for group in old.groups:
        following = next((g for g in new.groups if g.name == group.name), None)
        # Their order, too: of two nodes that claim a lease at once the later in this list gives way.
        if following is not None and (
            (following.nodes, following.also) != (group.nodes, group.also)
            or old.webs.get(group.name) != new.webs.get(group.name)
        ):
            yield f"groups.{group.name}.nodes"


def _differs(name: str, old: Any, new: Any) -> bool:
    return bool(getattr(old, name) != getattr(new, name))
