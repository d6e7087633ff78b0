"""What would happen? From a configuration and faults in an operator's words: who ends up running what, when, and why.

The core that would act on the real machines acts here, on simulated ones. Everything is as fast as it usually is, no
datagram is lost, no clock drifts, and one run is like the next: what comes out is a forecast, not a bound.

    report = foresee(config, ["primary-a off", "wait 30s", "primary-a on"])

The report is plain data, made for `--json`; console/forecast.py sets it as text.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

from hasnmp.core.engine import Engine
from hasnmp.core.events import CommandIn
from hasnmp.core.guard import Guard
from hasnmp.core.placement import STEADY_MS
from hasnmp.errors import HasnmpError
from hasnmp.model import EventRow, GroupRow, GroupState, NodeRow, ServiceRow, ServiceState, Verb, View
from hasnmp.settings import Config
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.outside import attend
from hasnmp.simulator.power import Power
from hasnmp.simulator.served import Served
from hasnmp.simulator.spoken import Fault, Grammar
from hasnmp.simulator.storage import Disk
from hasnmp.simulator.world import MS, Broken, Network, World

START_MS = 100  # how long a program takes to come up where nobody said otherwise
LEAST_BOUND_MS = 120_000  # a fault that has not settled after this, or five quiet times, is told so
# Not ACQUIRING: a node that can't get a lease tries for ever; one that can has it within the quiet time.
TRANSIENT = (GroupState.STARTING, GroupState.STOPPING)
UNDER_WAY = (ServiceState.STARTING, ServiceState.STOPPING)


class CantForesee(HasnmpError):
    """The simulation itself came to an end that it must not come to."""


def foresee(config: Config, faults: Sequence[str], start_ms: dict[str, int] | None = None) -> dict[str, Any]:
    """What these faults would lead to, one after the other, each when the one before has settled.

    Args:    start_ms: service -> how long its start takes; 100 ms for those that are not named.
    Raises:  UnknownFault: before anything is simulated. CantForesee: a rule of hasnmp broke in the simulation.
    """
    grammar = Grammar(config)
    steps = [(text, grammar.read(text)) for text in faults]
    collect = gc.isenabled()
    gc.disable()  # a run leaves little behind, and looking for it costs a tenth of the time
    try:
        return WhatIf(config, start_ms or {}).run(steps)
    except Broken as broken:
        raise CantForesee(
            f"the simulation broke a rule that hasnmp must keep: {broken}; please report it with the configuration and the faults"
        ) from broken
    finally:
        if collect:
            gc.enable()


class WhatIf:
    """The world of one configuration, and the hand that strikes it. Each method without docstring is a form of spoken.py."""

    def __init__(self, config: Config, start_ms: dict[str, int]) -> None:
        self.config = config
        self.lines: list[dict[str, Any]] = []  # the timeline
        self.origin = 0  # true time that counts as 0
        self.told_ns = 0  # when the last event was told
        self.replies = 0
        self.world = world = World(1)
        world.calm, world.max_steps = True, 1 << 40
        world.listen = self.heard
        names = tuple(n.name for n in config.nodes)
        groups = tuple(g.name for g in config.groups)
        links = tuple(config.nodes[0].links)  # every node has the same ones
        world.network, world.disk, world.power = Network(world, links), Disk(world, groups, names), Power(world)
        world.truth = self.served = Served(world, config, self.tell)
        for name in names:
            machine = world.machines[name] = Machine(world, config, name, Engine, Guard)
            machine.watchdog_ms = config.watchdog.timeout_s * 1000 if config.watchdog.device else 0
            for service in config.services():
                machine.takes_ns[service.name] = max(1, start_ms.get(service.name, START_MS)) * MS
        attend(world, config)

    # ------------------------------------------------------------------------------------------ the run

    def run(self, steps: list[tuple[str, tuple[Fault, ...]]]) -> dict[str, Any]:
        for machine in self.world.machines.values():
            self.world.post(MS, None, machine.power_on)
        report: dict[str, Any] = {"cluster": self.config.cluster, "config": self.config.source}
        begun = self.settle()
        report["start"] = self.outcome("", 0, begun)
        self.lines.clear()
        self.origin = self.world.now
        outcomes = []
        texts: list[str] = []
        began = self.world.now
        for i, (text, faults) in enumerate(steps):
            texts.append(text)
            for fault in faults:
                if fault.waits_ms:
                    self.world.run_until(self.world.now + fault.waits_ms * MS)
                else:
                    self.strike(fault)
            # A wait that follows says when the next fault strikes; else it strikes when all has settled.
            last = i + 1 == len(steps)
            if not last and steps[i + 1][1][0].waits_ms:
                continue
            settled = self.settle() if last or not faults[0].waits_ms else self.world.now
            outcomes.append(self.outcome(", ".join(texts), began, settled))
            self.lines.clear()
            texts.clear()
            began = self.world.now
        report["faults"] = outcomes
        end = outcomes[-1] if outcomes else report["start"]
        report["served"] = all(group["node"] and not group["twice"] for group in end["groups"])
        return report

    def settle(self) -> int | None:
        """Let time pass until nothing changes any more; returns when the last change was, None if there is no end to it."""
        world, start = self.world, self.world.now
        quiet = self.quiet_ms() * MS
        bound = max(LEAST_BOUND_MS * MS, 5 * quiet)
        last = start
        while world.now < start + bound:
            world.run_until(world.now + 100 * MS)
            last = max(last, self.told_ns, self.served.changed_ns)
            if self.under_way():
                last = world.now
            elif world.now >= last + quiet:
                return max(start, self.told_ns, self.served.changed_ns)
        return None

    def quiet_ms(self) -> int:
        """For how long nothing must happen for it to have settled: the longest that the core waits before it acts again."""
        hb, arbiter = self.config.heartbeat, self.config.arbiter
        checks = [
            s.check.report_within_ms or s.check.every_ms * s.check.fail_after + s.check.timeout_ms
            for s in self.config.services()
        ]
        return (
            max(checks, default=0) + STEADY_MS + 2 * (hb.dead_after_ms + arbiter.lease_ms) + hb.startup_wait_ms + 1000
        )

    def under_way(self) -> bool:
        """Does any engine say that it is about to change something?"""
        for view in self.views().values():
            for row in view.tables["groups"].values():
                if isinstance(row, GroupRow) and row.state in TRANSIENT:
                    return True
            for each in view.tables["services"].values():
                if isinstance(each, ServiceRow) and each.state in UNDER_WAY:
                    return True
        return False

    def views(self) -> dict[str, View]:
        """Of the engines that could be asked now."""
        views = {name: machine.engine.view() for name, machine in self.world.machines.items()}
        return {name: view for name, view in views.items() if view is not None}

    # ------------------------------------------------------------------------------------------ what is told

    def ms(self, ns: int) -> int:
        return round((ns - self.origin) / MS)

    def tell(self, node: str, kind: str, text: str) -> None:
        self.lines.append({"ms": self.ms(self.world.now), "node": node, "kind": kind, "text": text})

    def heard(self, node: str, event: EventRow) -> None:
        self.told_ns = self.world.now
        self.tell(node, event.kind.value, event.message)

    def outcome(self, text: str, began: int, settled: int | None) -> dict[str, Any]:
        """How things stand now, and what happened since `began`."""
        views = self.views()
        alarms: dict[str, dict[str, Any]] = {}
        for name, view in views.items():
            for alarm in view.tables["alarms"].values():
                key = getattr(alarm, "key", "")
                seen = alarms.setdefault(key, {"alarm": key, "nodes": [], "text": getattr(alarm, "message", "")})
                seen["nodes"].append(name)
        return {
            "fault": text, "from_ms": self.ms(began), "until_ms": self.ms(self.world.now),
            "settled_ms": None if settled is None else self.ms(settled),
            "timeline": list(self.lines),
            "groups": [self.group(g.name, began, views) for g in self.config.groups],
            "nodes": [self.node(n.name, views) for n in self.config.nodes],
            "alarms": [alarms[key] for key in sorted(alarms)],
        }  # fmt: skip

    def group(self, name: str, began: int, views: dict[str, View]) -> dict[str, Any]:
        by = self.served.by[name]
        nodes = self.config.group(name).nodes
        rows = {node: row for node, view in views.items() if isinstance(row := view.tables["groups"][name], GroupRow)}
        said = rows.get(by) or next((rows[n] for n in nodes if n in rows and rows[n].owner == n), None)
        said = said or next((rows[n] for n in nodes if n in rows), None)
        outages = [(self.ms(a), self.ms(b)) for a, b in self.served.outages(name, began, self.world.now)]
        why: dict[str, list[str]] = {}
        for node in nodes:
            machine = self.world.machines[node]
            core = machine.engine.core
            if not by and node in views and isinstance(core, Engine):
                why[node] = list(core.why(name, machine.clock()))
        return {
            "name": name, "node": by, "state": said.state.name.lower() if said else "unknown",
            "outage_ms": sum(b - a for a, b in outages), "outages": outages,
            "twice": [other for other in self.served.all_by[name] if other != by],
            "left_on": [m.name for m in self.world.machines.values() if m.name != by and self.served.touched(m, name)],
            "why": why,
        }  # fmt: skip

    def node(self, name: str, views: dict[str, View]) -> dict[str, Any]:
        machine = self.world.machines[name]
        row = views[name].tables["nodes"][name] if name in views else None
        state = "off" if not machine.powered else "stopped" if machine.stopped else "no engine"
        if machine.engine.paused:
            state = "frozen"
        role = ""
        if isinstance(row, NodeRow):
            state, role = row.state.name.lower(), row.role.name.lower()
        return {"name": name, "state": state, "role": role}

    # ------------------------------------------------------------------------------------------ what strikes

    def strike(self, fault: Fault) -> None:
        self.tell("", "fault", fault.text)
        does: Callable[..., None] = getattr(self, fault.does)
        does(*fault.names)
        self.served.look()

    def off(self, node: str) -> None:
        self.world.machines[node].power_off()

    def on(self, node: str) -> None:
        machine = self.world.machines[node]
        if machine.powered:
            self.tell(node, "nothing", f"{node} is on already")
        machine.power_on()

    # --- links

    def between(self, links: Sequence[str], a: str, b: str) -> set[tuple[str, str, str]]:
        return {(link, x, y) for link in links for x, y in ((a, b), (b, a)) if a != b}

    def around(self, links: Sequence[str], node: str) -> set[tuple[str, str, str]]:
        return {way for other in self.world.machines for way in self.between(links, node, other)}

    def cut(self, ways: set[tuple[str, str, str]]) -> None:
        self.world.network.cut |= ways

    def mend(self, ways: set[tuple[str, str, str]]) -> None:
        self.world.network.cut -= ways

    def cut_node(self, node: str) -> None:
        self.cut(self.around(self.world.network.links, node))

    def mend_node(self, node: str) -> None:
        self.mend(self.around(self.world.network.links, node))

    def cut_link(self, link: str) -> None:
        for node in self.world.machines:
            self.cut(self.around((link,), node))

    def mend_link(self, link: str) -> None:
        for node in self.world.machines:
            self.mend(self.around((link,), node))

    def cut_link_to(self, link: str, node: str) -> None:
        self.cut(self.around((link,), node))

    def mend_link_to(self, link: str, node: str) -> None:
        self.mend(self.around((link,), node))

    def cut_way(self, link: str, a: str, b: str) -> None:
        self.cut({(link, a, b)})

    def mend_way(self, link: str, a: str, b: str) -> None:
        self.mend({(link, a, b)})

    # --- services

    def runs_on(self, service: str) -> Machine | None:
        """Where it runs, or the group that it is a part of."""
        group = next(s.group for s in self.config.services() if s.name == service)
        machines = list(self.world.machines.values())
        by = self.served.by[group]
        return next(
            (m for m in machines if service in m.programs or m.name == by),
            next((m for m in machines if self.served.holds(m, group)), None),
        )

    def fails(self, service: str) -> None:
        machine = self.runs_on(service)
        if machine is None:
            self.tell("", "nothing", f"{service} runs nowhere: there is nothing that could fail")
        elif service in machine.addresses or service in machine.passive:
            machine.bad[service] = "check"
        else:
            machine.die(service)

    def group_fails(self, group: str) -> None:
        for service in self.config.group(group).services:
            self.fails(service.name)

    def broken(self, service: str) -> None:
        for node in self.world.machines:
            self.broken_on(service, node)

    def broken_on(self, service: str, node: str) -> None:
        machine = self.world.machines[node]
        kind = "check" if service in machine.addresses or service in machine.passive else "start"
        machine.bad[service] = kind
        machine.die(service)

    def hangs(self, service: str) -> None:
        machine = self.runs_on(service)
        if machine is None:
            self.tell("", "nothing", f"{service} runs nowhere: there is nothing that could hang")
        else:
            machine.bad[service] = "check" if service in machine.addresses or service in machine.passive else "hang"

    def mended(self, service: str) -> None:
        for machine in self.world.machines.values():
            machine.bad.pop(service, None)

    # --- the lease disk

    def disk_mode(self, mode: str, nodes: Sequence[str] = ()) -> None:
        for node in nodes or self.world.machines:
            self.world.disk.mode[node] = mode

    def disk_lost(self) -> None:
        self.disk_mode("lost")

    def disk_frozen(self) -> None:
        self.disk_mode("frozen")

    def disk_slow(self) -> None:
        self.disk_mode("slow")

    def disk_mended(self) -> None:
        self.disk_mode("")

    def disk_lost_for(self, node: str) -> None:
        self.disk_mode("lost", (node,))

    def disk_frozen_for(self, node: str) -> None:
        self.disk_mode("frozen", (node,))

    def disk_slow_for(self, node: str) -> None:
        self.disk_mode("slow", (node,))

    def disk_mended_for(self, node: str) -> None:
        self.disk_mode("", (node,))

    # --- hasnmp's own processes

    def engine_killed(self, node: str) -> None:
        self.world.machines[node].kill_engine()

    def guardian_killed(self, node: str) -> None:
        self.world.machines[node].kill_guardian(1000 * MS)

    def stack_killed(self, node: str) -> None:
        machine = self.world.machines[node]
        if machine.guardian.alive:
            machine.kill_stack(1000 * MS)

    def stack_stopped(self, node: str) -> None:
        machine = self.world.machines[node]
        for process in (machine.engine, machine.guardian, machine.lease_io, machine.store):
            process.pause(1 << 60)

    def stack_resumed(self, node: str) -> None:
        machine = self.world.machines[node]
        for process in (machine.guardian, machine.engine, machine.lease_io, machine.store):
            if process.paused:
                process.resume()

    def leaves(self, node: str) -> None:
        engine = self.world.machines[node].engine
        self.world.post(MS, engine, engine.shut_down)

    def returns(self, node: str) -> None:
        machine = self.world.machines[node]
        machine.power_on()
        if machine.stopped:
            machine.start_stack()

    def everything_mended(self) -> None:
        self.world.network.cut.clear()
        self.world.power.heal()
        self.disk_mode("")
        for name, machine in self.world.machines.items():
            machine.bad.clear()
            self.stack_resumed(name)
            self.returns(name)

    # --- fence devices

    def fence_mode(self, node: str, mode: str) -> None:
        levels = range(len(self.config.node(node).fence))
        if not levels:
            self.tell(node, "nothing", f"{node} has no fence device")
        for level in levels:
            self.world.power.mode[node, level] = mode

    def fence_fails(self, node: str) -> None:
        self.fence_mode(node, "broken")

    def fence_late(self, node: str) -> None:
        self.fence_mode(node, "late")

    def fence_mended(self, node: str) -> None:
        self.fence_mode(node, "")

    # --- commands

    def order(self, verb: Verb, target: str, at: str = "", to: str = "") -> None:
        """An operator's command, at that node if it can be asked, else at the first that can."""
        views = self.views()
        node = at if at in views else next(iter(views), "")
        if not node:
            self.tell("", "nothing", "no engine runs that could take a command")
            return
        self.replies += 1
        command = CommandIn(self.replies, verb, target, "operator", to, "what if", "", self.world.wall_ms())
        engine = self.world.machines[node].engine
        self.world.post(MS, engine, engine.command, command)

    def at_owner(self, verb: Verb, group: str, target: str = "", to: str = "") -> None:
        owners = [m.name for m in self.world.machines.values() if self.served.holds(m, group)]
        self.order(verb, target or group, owners[0] if owners else "", to)

    def failover(self, group: str) -> None:
        self.at_owner(Verb.FAILOVER, group)

    def failover_to(self, group: str, node: str) -> None:
        self.at_owner(Verb.FAILOVER, group, to=node)

    def force(self, group: str) -> None:
        self.at_owner(Verb.FORCE_FAILOVER, group)

    def force_to(self, group: str, node: str) -> None:
        self.at_owner(Verb.FORCE_FAILOVER, group, to=node)

    def inhibit_all(self) -> None:
        self.order(Verb.INHIBIT, "")

    def inhibit(self, group: str) -> None:
        self.at_owner(Verb.INHIBIT, group)

    def permit_all(self) -> None:
        self.order(Verb.PERMIT, "")

    def permit(self, group: str) -> None:
        self.at_owner(Verb.PERMIT, group)

    def freeze(self, group: str) -> None:
        self.at_owner(Verb.FREEZE, group)

    def thaw(self, group: str) -> None:
        self.at_owner(Verb.THAW, group)

    def standby(self, node: str) -> None:
        self.order(Verb.STANDBY, node, node)

    def online(self, node: str) -> None:
        self.order(Verb.ONLINE, node, node)

    def recover(self, node: str) -> None:
        self.order(Verb.RECOVER, node, node)

    def of_service(self, verb: Verb, service: str) -> None:
        self.at_owner(verb, next(s.group for s in self.config.services() if s.name == service), service)

    def service_start(self, service: str) -> None:
        self.of_service(Verb.SERVICE_START, service)

    def service_stop(self, service: str) -> None:
        self.of_service(Verb.SERVICE_STOP, service)

    def service_restart(self, service: str) -> None:
        self.of_service(Verb.SERVICE_RESTART, service)

    def service_clear(self, service: str) -> None:
        self.of_service(Verb.SERVICE_CLEAR, service)
