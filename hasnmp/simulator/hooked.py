"""The administrator's programs around start and stop, in the simulated world: they end well, fail, hang, or end too late."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hasnmp.core.events import Hook, HookEnded
from hasnmp.core.hooks import GRACE_MS
from hasnmp.settings import Config
from hasnmp.settings import Hook as Settings
from hasnmp.simulator.world import MS, Broken

if TYPE_CHECKING:
    from hasnmp.simulator.guardian import Guardian
    from hasnmp.simulator.machine import Machine

LATE_MS = 4000  # after their time limits, where their end is late; at most


def with_hooks(config: Config) -> Config:
    """The same with a hook of each kind, those that can be required are."""
    kinds = (("before_start", True), ("before_stop", True), ("after_stop", False))
    return replace(config, hooks=tuple(Settings(on, ("/bin/hook",), 300, required) for on, required in kinds))


def run(guardian: Guardian, effect: Hook, life: int) -> None:
    """Of the group, so by its lease; after_stop is of none."""
    world, machine = guardian.world, guardian.machine
    world.count(f"hooks {effect.on}")
    mine = [h for h in machine.config.hooks if h.on == effect.on]
    if effect.on == "after_stop":
        return  # nobody waits for it
    if not guardian.guard.may_run(effect.group, machine.clock()):
        ended = HookEnded(
            effect.attempt, effect.group, effect.on, ("not run: no live lease",), any(h.required for h in mine)
        )
        guardian.tell_engine(life, ended)
        return
    mode = machine.bad_hooks.get(effect.on, "")
    limit_ms = sum(h.timeout_ms for h in mine)
    if mode == "late":
        wait = limit_ms * MS + world.between((GRACE_MS + 50) * MS, LATE_MS * MS)
    elif mode == "slow":  # and good
        wait = world.between(100 * MS, limit_ms * MS + (GRACE_MS - 100) * MS)
    elif mode == "hang":
        wait = limit_ms * MS
    else:
        wait = 10 * MS if world.calm else world.between(1 * MS, 40 * MS)
    token = guardian.guard.leases[effect.group].token
    world.post(wait, guardian, _ended, guardian, effect, life, token, mode)


def _ended(guardian: Guardian, effect: Hook, life: int, token: int, mode: str) -> None:
    machine = guardian.machine
    failures = () if mode in ("", "slow", "late") else (f"hook: {mode}",)
    if effect.on == "before_start" and mode in ("", "slow"):
        machine.prepared.add((effect.group, token))
    stopped = bool(failures) and any(h.required for h in machine.config.hooks if h.on == effect.on)
    guardian.tell_engine(life, HookEnded(effect.attempt, effect.group, effect.on, failures, stopped))


def check_start(machine: Machine, group: str, token: int) -> None:
    """Nothing of a group is started by a lease for which its required before_start has not ended well."""
    required = any(h.required and h.on == "before_start" for h in machine.config.hooks)
    if required and (group, token) not in machine.prepared:
        raise Broken("hooks", f"{machine.name} starts {group}, token {token}, and before_start has not ended well")
