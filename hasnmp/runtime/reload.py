"""The guardian's part in a reload: have the file read, have the engine stop what changes, put the new configuration in its
place, and start the processes anew that go by it. What runs is not touched here, and no lease.

    ask -> Loader -> Retire to the engine -> its exit status RETIRED -> look whether removed groups are gone -> swap

Whatever goes wrong on the way ends with the old configuration in force and ReloadEnded to the engine.
"""

from __future__ import annotations

import base64
import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasnmp.config_changes import Changes
from hasnmp.config_yaml import MAX_SIZE
from hasnmp.core.events import ReloadEnded, Retire, Staged
from hasnmp.core.guard import NEVER
from hasnmp.errors import Code
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.loader import Loaded, Loader, adopt, judge, load, settle
from hasnmp.runtime.messages import FromGuardian
from hasnmp.runtime.processes import MS, log, set_up_log
from hasnmp.settings import Config
from hasnmp.wire import fingerprint

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

RETIRED = 3  # exit status of an engine that made room for a new configuration
GONE_NS = 200 * MS  # how long what is just dying is waited for, when a removed group is looked at
SLACK_MS = 60_000  # beyond the stops' limits: the engine gives up before; this is for one that does not
TRIES = 2  # engines that may die over one reload


@dataclass(slots=True)
class Pending:
    """A good file that is not in force yet. gone_by_ns: the engine has left, and removed groups must be gone by then."""

    config: Config
    changes: Changes
    command: int
    until_ns: int
    tries: int = 0
    gone_by_ns: int = 0


class Reloader:
    def __init__(self, guardian: Guardian, tell: Callable[[FromGuardian], None]) -> None:
        """tell: sends a message to the engine that lives; ReloadEnded waits for one if need be."""
        self._guardian, self._send = guardian, tell
        self._loader: Loader | None = None
        self._command = 0
        self._staged = ("", "")  # a file that is judged good, and what it is called
        self._applying = False  # what is read now was staged on every node
        self._next: int | None = None  # one more was asked for meanwhile: its command, 0 = SIGHUP
        self.pending: Pending | None = None
        self._reloaded = ("", 0)  # for the next engine: what is new, and the command

    def busy(self) -> bool:
        """Is one under way?"""
        return self._loader is not None or self.pending is not None

    # ----------------------------------------------------------------------------------------------------------- read

    def ask(self, command: int = 0) -> None:
        """SIGHUP, or a command: read the file anew. While one is under way the next waits, one at most."""
        if self._guardian.handover.busy():
            self._over(
                command, Code.BUSY, "new code is just being put in place (hasnmpd --handover); try again in a moment"
            )
            return
        if self.busy():
            if self._next:
                self._tell(self._next, Code.BUSY, "another reload was asked for after it, which does the same")
            self._next = command
            return
        config = self._guardian.config
        log("reload_asked", source=config.source, command=command)
        self._read(command, lambda: load(config.source, config, self._guardian.node))

    def _read(self, command: int, job: Callable[[], Loaded]) -> None:
        self._command = command
        self._guardian.feeder.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._loader = Loader(self._guardian.family, self._guardian.selector, job, self._loaded)
        except OSError as error:
            self._over(command, Code.FAILED, f"no process to read it: {error.strerror}")

    # ---------------------------------------------------------------------------------------------------------- apply

    def stage(self, ident: str, document: str) -> None:
        """Judge a file that came over the wire, and keep it."""
        guardian, config = self._guardian, self._guardian.config
        if self.busy() or guardian.handover.busy():
            self._send(
                Staged(ident, int(Code.BUSY), "a reload or a handover is under way there; try again in a moment")
            )
            return
        try:
            text = unpack(document)
        except ValueError as error:
            self._send(Staged(ident, int(Code.CONFIG_INVALID), f"what came is not a file: {error}"))
            return

        def judged(loaded: Loaded) -> None:
            self._loader = None
            fault = _first(loaded.faults)
            if loaded.config is not None:
                self._staged = (ident, text)
            log("file_staged", ident=ident, fault=fault)
            self._send(
                Staged(ident, int(Code.CONFIG_INVALID if fault else Code.DONE), fault or loaded.changes.text()[:500])
            )
            self._go_on()

        try:
            self._loader = Loader(
                guardian.family, guardian.selector, lambda: judge(text, config.source, config, guardian.node), judged
            )
        except OSError as error:
            self._send(Staged(ident, int(Code.FAILED), f"no process to judge it: {error.strerror}"))

    def adopt(self, ident: str, command: int) -> None:
        """Every node has judged the file: write it, and go by it."""
        guardian, config = self._guardian, self._guardian.config
        staged, self._staged = self._staged, ("", "")
        if staged[0] != ident or self.busy() or guardian.handover.busy():
            self._over(
                command, Code.BUSY, "the staged file could not be taken: another reload came first; apply it again"
            )
            return
        log("file_adopted", ident=ident, source=config.source)
        self._applying = True
        self._read(command, lambda: adopt(staged[1], config.source, config, guardian.node))

    def forward(self, command: int) -> None:
        """Every node has the file that is in force."""
        guardian, config = self._guardian, self._guardian.config
        if self.busy() or guardian.handover.busy() or not config.webs:
            return  # the engine asks again
        self._applying = True
        self._read(command, lambda: settle(config, guardian.node))

    def _loaded(self, loaded: Loaded) -> None:
        self._loader, command = None, self._command
        applying, self._applying = self._applying, False
        new, changes = loaded.config, loaded.changes
        if new is None:
            self._over(command, Code.CONFIG_INVALID, _first(loaded.faults))
        elif changes.needs_stop:
            names = ", ".join(changes.needs_apply)
            self._over(
                command, Code.NEEDS_APPLY,
                f"{names} can only change on all nodes at once: stop hasnmpd on every node, and start it with the new file",
            )  # fmt: skip
        elif changes.needs_apply and not applying:
            names = ", ".join(changes.needs_apply)
            self._over(
                command,
                Code.NEEDS_APPLY,
                f"{names} can only change on all nodes at once; use: hasnmp apply {new.source}",
            )
        elif changes.needs_restart:
            names = ", ".join(changes.needs_restart)
            self._over(
                command,
                Code.NEEDS_APPLY,
                f"{names} can only change by a restart of hasnmpd, one node after the other; what is in state_dir "
                "moves with it",
            )
        elif not changes.lines:
            self._over(command, Code.DONE, "nothing differs")
        else:
            until = boottime_ns() + (changes.stop_ms + SLACK_MS) * MS
            self.pending = Pending(new, changes, command, until)
            log("reload_begun", changes=changes.lines)
            self.engine_forked()

    # --------------------------------------------------------------------------------------------------------- retire

    def engine_forked(self) -> None:
        """Tell the engine that lives, also one whose forerunner died over it."""
        pending, guardian = self.pending, self._guardian
        if pending is None or guardian.channel is None:
            return
        pending.tries += 1
        if pending.tries > TRIES:
            self._over(pending.command, Code.FAILED, f"{TRIES} engines died while they stopped what changes")
            return
        old, new = guardian.config.heartbeat, pending.config.heartbeat
        keys = tuple(fingerprint(key) for key in new.keys) if new.keys != old.keys else ()
        changes = pending.changes
        self._send(Retire(pending.command, changes.services, changes.groups, keys, changes.stop_ms, changes.text()))

    def news(self) -> tuple[str, int]:
        """What is new in the configuration for the engine that is being forked, and the command; told once."""
        news, self._reloaded = self._reloaded, ("", 0)
        return news

    def untold(self, what: str, command: int) -> None:
        """The engine that was to hear it could not be forked: it is for the next one."""
        self._reloaded = what, command

    def given_up(self, why: str) -> None:
        """The engine's word: it could not stop what changes, or must not."""
        self.pending = None
        log("reload_given_up", logging.ERROR, why=why)
        self._go_on()

    def engine_ended(self, status: int) -> None:
        """Called when an engine has ended."""
        if self.pending is not None and status == RETIRED:
            self.pending.gone_by_ns = boottime_ns() + GONE_NS
            self.look(boottime_ns())

    def holds(self) -> bool:
        """Must the next engine wait? Its configuration is just being put in place."""
        return self.pending is not None and self.pending.gone_by_ns > 0

    def next_deadline_ns(self, now: int) -> int:
        if self.holds():
            return now + 2 * MS
        loader, pending = self._loader, self.pending
        return min(loader.until_ns if loader else NEVER, pending.until_ns if pending else NEVER)

    def look(self, now: int) -> None:
        """What time asks for."""
        if self._loader:
            self._loader.look(now)
        pending = self.pending
        if pending is None:
            return
        if not pending.gone_by_ns:
            if now >= pending.until_ns:
                self._over(pending.command, Code.TIMED_OUT, "the engine did not say what became of it")
            return
        left = [line for group in pending.changes.groups for line in self._guardian.ending.left_of(group)]
        if left and now < pending.gone_by_ns:
            return
        if left:
            self._over(pending.command, Code.FAILED, f"of a group that is removed something is left: {', '.join(left)}")
        else:
            self._swap(pending)

    # ----------------------------------------------------------------------------------------------------------- swap

    def _swap(self, pending: Pending) -> None:
        """The new configuration is in force from here on; the engine that is forked next begins with it."""
        guardian, old, new = self._guardian, self._guardian.config, pending.config
        for group in pending.changes.groups:
            guardian.ending.gone(group)  # seen just now
        guardian.configure(new)
        if new.log != old.log:
            set_up_log(new.log, guardian.node)
        guardian.family.configure(new, restart=tuple(_stale(old, new)))
        self._reloaded = (pending.changes.text(), pending.command)
        self.pending = None
        guardian.family.engine.deaths, guardian.family.engine.start_at_ns = 0, boottime_ns()
        log("reloaded", changes=pending.changes.lines, digest=new.digest)
        self._go_on()

    def _over(self, command: int, code: Code, text: str) -> None:
        """The old configuration stays in force."""
        self.pending, self._applying = None, False
        log("reload_ended", logging.INFO if code is Code.DONE else logging.ERROR, code=code.name, text=text)
        self._tell(command, code, text)
        self._go_on()

    def _tell(self, command: int, code: Code, text: str) -> None:
        self._send(ReloadEnded(command, int(code), text[:1000]))

    def _go_on(self) -> None:
        self._guardian.feeder.notify("READY=1")
        if self._next is not None:
            command, self._next = self._next, None
            self.ask(command)


def _first(faults: tuple[str, ...]) -> str:
    head = f"{len(faults)} faults (all are in the log), the first: " if len(faults) > 1 else ""
    return f"{head}{faults[0]}" if faults else ""


def unpack(document: str) -> str:
    """The file's text out of what goes between nodes. Raises ValueError."""
    try:
        unpacker = zlib.decompressobj()
        octets = unpacker.decompress(base64.b64decode(document, validate=True), MAX_SIZE + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(octets) > MAX_SIZE or not unpacker.eof:
        raise ValueError(f"cut off, or longer than {MAX_SIZE} octets")
    return octets.decode()


def _stale(old: Config, new: Config) -> list[str]:
    """The processes beside the engine that go by what has changed."""
    stale = []
    names = [([g.name for g in c.groups], [n.name for n in c.nodes]) for c in (old, new)]
    moved = old.arbiter.device != new.arbiter.device
    if names[0] != names[1] or moved:
        stale.append("lease_io")
    if moved:
        stale.append("pills")
    if any(getattr(old, one) != getattr(new, one) for one in ("snmp", "control", "events_keep", "log")):
        stale.append("snmp")
    if any(getattr(old, one) != getattr(new, one) for one in ("clients", "control", "groups", "log")):
        stale.append("clients")
    return stale
