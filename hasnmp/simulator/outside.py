"""Outside agents of passive services: each reports to the engine where its group is, and is silent where that does not run."""

from __future__ import annotations

from dataclasses import replace

from hasnmp.core.events import CommandIn
from hasnmp.model import Verb
from hasnmp.settings import Check, Config, OnFailure, Service
from hasnmp.simulator.world import MS, World


def attend(world: World, config: Config) -> None:
    """Let every passive service's agent report for as long as the world lasts."""
    for service in config.services():
        if service.agent == "passive":
            _report(world, service, max(1, service.check.report_within_ms // 3))


def _report(world: World, service: Service, every_ms: int) -> None:
    for machine in world.machines.values():
        if machine.powered and world.truth.holds(machine, service.group):
            up = service.name not in machine.bad
            world.count("reported up" if up else "reported down")
            word = CommandIn(0, Verb.REPORT, service.name, "its agent", wall_ms=world.wall_ms(), up=up)
            world.post(0, machine.engine, machine.engine.command, word)
    world.post(every_ms * MS, None, _report, world, service, every_ms)


def with_passive(config: Config) -> Config:
    """The same with a passive service in each group, which moves it when it fails."""
    groups = []
    for group in config.groups:
        check = Check(type="report", report_within_ms=1500, every_ms=1000)
        service = Service(f"{group.name}-outside", group.name, "passive", {}, True, check, 1000, 500, OnFailure(0, 900))
        groups.append(replace(group, services=(*group.services, service)))
    return replace(config, groups=tuple(groups))
