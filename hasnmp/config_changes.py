"""What a new configuration changes against the one in force: what has to be stopped for it, and what can't be reloaded.

Pure. A reload restarts nothing that did not change, so this file decides what counts as a change of a running service:
what it is (agent, options that its start uses, its group), not how it is checked or what its failure leads to.

What nodes must agree on at every moment - who takes part, which arbiter, which times - is for `hasnmp apply`, which switches
all nodes at once: between two reloads, one after the other, two nodes could each count on what the other has given up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from hasnmp.settings import Applying, Config, Group, Service

# Options that the running service does not know of: how it is stopped, what its check asks.
LATER_USED = {"exec": {"stop_signal", "stop_command"}, "address": {"reach"}}
STAGED_TIMES = ("port", "interval_ms", "dead_after_ms", "startup_wait_ms", "max_clock_drift_ppm", "kill_ms")
# Each of these stands in the promise or the record that it concerns, or is this node's own: the rules of the leases hold in
# any mixture of old and new. For the others they don't: one node could count on what another has given up already.
APPLIED = frozenset(
    (*(f"heartbeat.{name}" for name in STAGED_TIMES if name != "port"), "arbiter.lease_ms", "arbiter.io_timeout_ms")
)


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
    stop_ms: int = 0  # how long the stops may take, by their own limits: groups at the same time, services in turn

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
    needs_restart = tuple(
        name for name in ("run_dir", "state_dir", "watchdog") if getattr(old, name) != getattr(new, name)
    )
    return Changes(
        (*lines, *(f"{what} changed" for what in (*needs_apply, *needs_restart))),
        tuple(s.name for name, services in stopped.items() if name not in groups for s in services),
        groups,
        needs_apply,
        tuple(name for name in needs_apply if name not in APPLIED and not (_of_nodes(name) and _is_step(old, new))),
        needs_restart,
        max((sum(s.stop_timeout_ms for s in services) for services in stopped.values()), default=0),
    )


def halfway(new: Config, by: str, before: dict[str, tuple[str, ...]]) -> Config:
    """`new`, as it is gone by while not every node is known to have left `before`: who may run a group then may do so by both;
    and whoever may by one of them is asked."""
    groups = []
    for group in new.groups:
        old = before.get(group.name, group.nodes)
        nodes = tuple(n for n in group.nodes if n in old)
        others = tuple(n for n in dict.fromkeys((*old, *group.nodes)) if n not in nodes)
        groups.append(replace(group, nodes=nodes, also=others))
    canonical = json.dumps([new.digest, by, before], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return replace(new, groups=tuple(groups), applying=Applying(by, before, new.digest), digest=digest)


def first_step(old: Config, new: Config, by: str) -> Config:
    """What a node with `old` goes by first, when `new` is applied by that node."""
    if old.applying is not None:
        return halfway(new, old.applying.by, old.applying.before) if new.digest == old.applying.target else new
    after = {g.name: set(g.nodes) for g in new.groups}
    if all(after.get(g.name, set(g.nodes)) == set(g.nodes) for g in old.groups):
        return new
    return halfway(new, by, {g.name: g.nodes for g in old.groups})


def no_way(old: Config, new: Config) -> str:
    """Why `new` can't be applied where `old` is in force, for the sake of groups' `nodes`; "" when it can."""
    if new.applying is not None:
        return "applying: is written by hasnmp itself while `nodes` change; take that line out"
    if old.applying is not None and new.digest != old.applying.target:
        return f"groups' nodes are just being changed by {old.applying.by}; apply that file there again, and this one when it is done"
    step = first_step(old, new, "")
    if step.applying is None:
        return ""
    if new.arbiter.type != "disk":
        return f"groups' nodes can't change under arbiter {new.arbiter.type} while hasnmpd runs: stop it on every node, and start it with the new file"
    empty = next((g.name for g in step.groups if not g.nodes), "")
    if empty:
        return (
            f"groups.{empty}.nodes: none of the new nodes is one of the old, so nobody could run it meanwhile; apply a file with "
            "both first, and then one without the old"
        )
    return ""


def _of_nodes(name: str) -> bool:
    return name == "applying" or (name.startswith("groups.") and name.endswith(".nodes"))


def _is_step(old: Config, new: Config) -> bool:
    """Are the leases safe while some nodes go by the one and some by the other? Where a group's nodes are the same, in
    whatever order; and between what is halfway and either end of it."""
    if old.applying is not None and new.applying is not None:
        return old.digest == new.digest
    if old.applying is not None:
        return new.digest == old.applying.target
    if new.applying is not None:
        return {g.name: set(g.nodes) for g in old.groups} == {g: set(n) for g, n in new.applying.before.items()}
    # The order decides who is preferred, and which of two claimants gives way: where two nodes differ in it, both give way or both
    # wait, and neither has the lease. Only two owners of one token that hear each other (arbiter `none`) would both go on.
    kind = tuple if new.arbiter.type == "none" else frozenset
    after = {g.name: kind(g.nodes) for g in new.groups}
    return all(after.get(g.name, kind(g.nodes)) == kind(g.nodes) for g in old.groups)


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
    for part in ("recovery_automatic", "fencing", "snmp", "control", "events_keep", "log"):
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
        if following is not None and (following.nodes, following.also) != (group.nodes, group.also):
            yield f"groups.{group.name}.nodes"
    if old.applying != new.applying:
        yield "applying"


def _differs(name: str, old: Any, new: Any) -> bool:
    return bool(getattr(old, name) != getattr(new, name))
