"""The guardian's part in reload and apply on the simulated machines: acts as runtime/reload.py and runtime/loader.py do.

A file is a Config that lies on the machine's disk (Machine.file), whole or not at all: it is replaced at once, by the
operator or by an apply. Beside it lies what it was before (Machine.webs). What is in force (Machine.config) is the guardian's own;
a guardian that starts anew reads both.
What goes between nodes for an apply is a name in World.documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasnmp.config_changes import Changes, Webs, compare, in_force, nobody, settled, strangers
from hasnmp.core.events import Adopt, Effect, Event, Forward, GiveUp, ReloadEnded, Retire, Stage, Staged
from hasnmp.core.events import Reload as AskReload
from hasnmp.errors import Code
from hasnmp.settings import Config
from hasnmp.simulator.world import MS

if TYPE_CHECKING:
    from hasnmp.simulator.guardian import Guardian

GONE_NS = 200 * MS
SLACK_MS = 60_000
TRIES = 2


def digest_of(config: Config) -> str:
    """As config.py's: over what nodes must agree on before any of them may acquire a group."""
    beat, arbiter = config.heartbeat, config.arbiter
    agreed = (
        [(n.name, n.links, n.fence) for n in config.nodes],
        (beat.port, beat.interval_ms, beat.dead_after_ms, beat.startup_wait_ms, beat.kill_ms),
        (arbiter.type, arbiter.device, arbiter.lease_ms, arbiter.io_timeout_ms),
        sorted((g.name, g.nodes, g.disk, g.on_stop_failure) for g in config.groups),
    )
    return hashlib.sha256(repr(agreed).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Pending:
    """A good file that is not in force yet. gone_by: the engine has left, and removed groups must be gone by then."""

    config: Config
    changes: Changes
    command: int
    tries: int = 0
    gone_by: int = 0


class Reloader:
    """Lives and dies with its guardian, whose start makes it anew."""

    def __init__(self, guardian: Guardian) -> None:
        self.guardian, self.machine, self.world = guardian, guardian.machine, guardian.world
        self.loading = False
        self.staged: tuple[str, Config | None] = ("", None)
        self.next: int | None = None
        self.pending: Pending | None = None
        self.reloaded = ("", 0)

    def busy(self) -> bool:
        return self.loading or self.pending is not None

    def obey(self, effect: Effect) -> None:
        """The engine's word, in its order among the others."""
        match effect:
            case AskReload(command):
                self.ask(command)
            case Stage(ident, document):
                self.stage(ident, document)
            case Adopt(ident, command):
                self.adopt(ident, command)
            case Forward(command):
                self.forward(command)
            case GiveUp():
                self.pending = None
                self.world.count("reloads given up")
                self.go_on()
            case _:
                raise AssertionError(effect)

    # ------------------------------------------------------------------------------------------ read

    def ask(self, command: int = 0) -> None:
        """SIGHUP, or a command."""
        if self.busy():
            if self.next:
                self.tell(ReloadEnded(self.next, Code.BUSY, "another reload was asked for after it"))
            self.next = command
        else:
            self.read(self.loaded, self.machine.file, command, False)

    def read(self, fn: Callable[..., None], *args: object) -> None:
        """The loader takes its time, and dies with its guardian."""
        self.loading = True
        self.world.post(self.world.between(5 * MS, 120 * MS), self.guardian, self.guardian.at_point, "load", fn, *args)

    def loaded(self, file: Config, command: int, applying: bool) -> None:
        new, webs = in_force(file, self.machine.webs)
        if gone := strangers(new):
            self.loading = False
            self.over(command, Code.CONFIG_INVALID, f"{gone} is gone")
        else:
            self.machine.sound = file
            self.go_by(new, webs, command, applying)

    def go_by(self, new: Config, webs: Webs, command: int, applying: bool) -> None:
        self.loading = False
        changes = compare(self.machine.config, new)
        if changes.needs_stop:
            self.over(command, Code.NEEDS_APPLY, f"{', '.join(changes.needs_stop)} need a stop")
        elif changes.needs_apply and not applying:
            self.over(command, Code.NEEDS_APPLY, f"{', '.join(changes.needs_apply)} need an apply")
        elif changes.needs_restart:
            self.over(command, Code.NEEDS_APPLY, f"{', '.join(changes.needs_restart)} need a restart")
        elif not changes.lines:
            self.over(command, Code.DONE, "nothing differs")
        else:
            self.machine.webs = webs
            self.pending = Pending(new, changes, command)
            self.world.tell(self.guardian.name, f"retires its engine for: {changes.text()}")
            self.world.post((changes.stop_ms + SLACK_MS) * MS, self.guardian, self.expire, self.pending)
            self.engine_forked()

    # ------------------------------------------------------------------------------------------ apply

    def stage(self, ident: str, document: str) -> None:
        if self.busy():
            self.tell(Staged(ident, Code.BUSY, "a reload is under way there"))
        else:
            self.read(self.judged, ident, document)

    def judged(self, ident: str, document: str) -> None:
        self.loading = False
        file = self.world.documents.get(document)
        fault = self.fault(file) if file is not None else "that is no file"
        if not fault:
            self.staged = (ident, file)
        self.tell(Staged(ident, Code.CONFIG_INVALID if fault else Code.DONE, fault or "good"))
        self.go_on()

    def fault(self, file: Config) -> str:
        if self.machine.refuses:
            return "a secret that it names is not there"
        new, _ = in_force(file, self.machine.webs)
        changes = compare(self.machine.config, new)
        if refused := (*changes.needs_stop, *changes.needs_restart):
            return f"{', '.join(refused)} can't change while hasnmpd runs"
        return strangers(new) or nobody(new)

    def adopt(self, ident: str, command: int) -> None:
        staged, self.staged = self.staged, ("", None)
        if staged[0] != ident or staged[1] is None or self.busy():
            self.over(command, Code.BUSY, "the staged file could not be taken: another reload came first")
        else:
            self.read(self.write, staged[1], command)

    def write(self, file: Config, command: int) -> None:
        """In place of the file; then what was read is what is there."""
        if fault := self.fault(file):
            self.loading = False
            self.over(command, Code.CONFIG_INVALID, fault)
            return
        if self.machine.name not in [n.name for n in file.nodes]:
            self.loading = False
            self.over(command, Code.DONE, "this is none of its nodes")
            return
        self.world.count("files adopted")
        self.world.tell(self.guardian.name, "wrote the staged file")
        self.machine.file = file
        self.read(self.loaded, file, command, True)

    def forward(self, command: int) -> None:
        """All have the file."""
        if not self.busy() and self.machine.config.webs:
            self.read(self.arrive, command)

    def arrive(self, command: int) -> None:
        self.world.count("changes of nodes ended")
        new, webs = settled(self.machine.config, self.machine.webs)
        self.machine.webs = webs  # from here on, whatever becomes of this reload
        self.go_by(new, webs, command, True)

    # ------------------------------------------------------------------------------------------ retire and swap

    def engine_forked(self) -> None:
        """Tell the engine that lives, also one whose forerunner died over it."""
        pending, engine = self.pending, self.machine.engine
        if pending is None or not engine.alive:
            return
        pending.tries += 1
        if pending.tries > TRIES:
            self.over(pending.command, Code.FAILED, f"{TRIES} engines died while they stopped what changes")
            return
        changes = pending.changes
        self.tell(Retire(pending.command, changes.services, changes.groups, (), changes.stop_ms, changes.text()))

    def holds(self) -> bool:
        """Must the next engine wait?"""
        return self.pending is not None and self.pending.gone_by > 0

    def engine_ended(self) -> None:
        """The engine's exit status says that it made room."""
        if self.pending is None:
            self.guardian.start_engine()
            return
        self.pending.gone_by = self.world.now + GONE_NS
        self.look()

    def look(self) -> None:
        pending, machine = self.pending, self.machine
        if pending is None or not pending.gone_by:
            return
        left = [g for g in pending.changes.groups if self.world.truth.touched(machine, g)]
        if not left:
            self.swap(pending)
        elif self.world.now < pending.gone_by:
            self.world.post(2 * MS, self.guardian, self.look)
        else:
            self.over(pending.command, Code.FAILED, f"of a group that is removed something is left: {left}")
            self.guardian.start_engine()

    def swap(self, pending: Pending) -> None:
        """The new configuration is in force from here on."""
        for group in pending.changes.groups:
            self.guardian.guard.ended(group)
        self.machine.configure(pending.config)
        self.reloaded = (pending.changes.text(), pending.command)
        self.pending = None
        self.world.count("configurations exchanged")
        self.world.tell(self.guardian.name, f"goes by {pending.config.digest}: {pending.changes.text()}")
        self.go_on()
        self.world.post(self.world.between(2 * MS, 30 * MS), self.guardian, self.guardian.start_engine)

    def expire(self, pending: Pending) -> None:
        if self.pending is pending and not pending.gone_by:
            self.over(pending.command, Code.TIMED_OUT, "the engine did not say what became of it")

    def over(self, command: int, code: Code, text: str) -> None:
        """The old configuration stays in force."""
        self.pending = None
        self.world.tell(self.guardian.name, f"reloaded nothing: {text}")
        self.tell(ReloadEnded(command, int(code), text))
        self.go_on()

    def tell(self, event: Event) -> None:
        self.guardian.tell_engine(self.machine.engine.epoch, event)

    def go_on(self) -> None:
        if self.next is not None and not self.busy():
            command, self.next = self.next, None
            self.ask(command)
