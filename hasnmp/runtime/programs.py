"""The programs of services, their checks and their stop commands: started, watched and ended whole.

Nothing here waits: a program that hangs, floods its output, forks without end or is missing costs the guardian's loop
microseconds. Where no control group can be written (an ordinary user), a program is what has its process group, descends
from it, or bears its mark in the environment; that is all that can be known there, and Hello.notes says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import selectors
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hasnmp.config_ocf import outlives
from hasnmp.core.events import Outcome
from hasnmp.runtime import proc
from hasnmp.runtime.becoming import become, filled
from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.cgroups import Cgroups, folder_name, open_cgroups
from hasnmp.runtime.kernel import F_SETPIPE_SZ, FIONREAD, boottime_ns, fork_into, hurried_children
from hasnmp.runtime.kernel_address import KernelAddresses
from hasnmp.runtime.messages import Exited, Purpose, Run, RunFailed, RunStarted
from hasnmp.runtime.mounts import GroupMounts
from hasnmp.runtime.units import GroupUnits
from hasnmp.settings import Config

MS = 1_000_000
PIPE_SIZE = 1 << 20
DRAIN_EVERY_NS = 50 * MS  # so a program can write 20 MB a second; then its own pipe slows it down, and nobody else
TAIL = 1024
REMAINS_NS = 500 * MS  # how long a program's end waits for what it left behind, before it is told anyway
NEVER = 1 << 62
NO_CGROUP = "no cgroup: a program that leaves its process group can't be ended with certainty"
_SESSION = re.compile(r"/user\.slice/.+\.scope")
_MISSING = (2, 8, 13, 20)  # ENOENT ENOEXEC EACCES ENOTDIR


def mark_of(config: Config, node: str) -> str:
    """What the environment of every program of this node bears as HASNMP_NODE."""
    return folder_name(config, node)


@dataclass(slots=True)
class Program:
    run: Run
    pid: int
    started_ns: int
    deadline_ns: int
    output: int  # read end of its pipe; -1 once closed
    errors: int  # read end of the pipe that tells of its exec; -1 once known
    folder: Path | None
    tail: bytes = b""
    drain_at_ns: int = 0  # its output is not looked at before this; 0 = the selector watches it
    timed_out: bool = False
    ending: bool = False
    silent: bool = False  # its end is nobody's concern any more
    failure: str = ""  # what its exec said
    status: int | None = None  # as of waitpid; None = it lives
    ended_ns: int = 0


@dataclass(slots=True)
class Up:
    """A service that an action of purpose START began. well: that action ended well and no STOP has begun, so the service is up."""

    group: str
    since_ns: int
    well: bool = False
    run: int = 0  # the action


@dataclass(slots=True)
class Programs:
    """All programs of one node. Messages for the engine come out of `tell`."""

    mark: str
    cgroups: Cgroups | None
    selector: selectors.BaseSelector
    tell: Callable[[RunStarted | RunFailed | Exited], None]
    close_in_child: Callable[[], None] = lambda: None
    children: bool = True  # they are this process's own; False: a deputy looks after another's
    running: dict[int, Program] = field(default_factory=dict)  # run -> program, until its Exited
    up: dict[str, Up] = field(default_factory=dict)  # service -> its start, until a stop of it ended well
    _by_pid: dict[int, Program] = field(default_factory=dict)
    _null: int = -1

    def __post_init__(self) -> None:
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    # ---------------------------------------------------------------------------------------------------------- start

    def start(self, run: Run, not_after_ns: int = NEVER) -> None:
        """Start it; RunStarted or RunFailed follows. not_after_ns: it must not be executed from then on.

        Raises OSError: no process or no control group could be made, or its standard input is too long.
        """
        run, stdin = replace(run, stdin=""), run.stdin  # what it is given may be a password: not kept
        folder, new = None, False
        if self.cgroups:
            leaf = run.service if run.purpose in (Purpose.SERVICE, Purpose.START) else f"+{run.run}"
            folder = self.cgroups.group(run.group) / leaf
            new = self.cgroups.anew(folder)
        given = filled(stdin.encode()) if stdin else self._null
        output, output_in = os.pipe2(os.O_CLOEXEC)
        errors, errors_in = os.pipe2(os.O_CLOEXEC)
        try:
            parent, now = os.getpid(), boottime_ns()
            with hurried_children():
                pid, there = fork_into(folder) if folder and new else (os.fork(), not folder)
                if pid == 0:
                    become(self.mark, run, parent, not_after_ns, None if there else folder, given, output_in, errors_in)
        except OSError:
            os.close(output)
            os.close(errors)
            raise
        finally:
            os.close(output_in)
            os.close(errors_in)
            if stdin:
                os.close(given)
        with contextlib.suppress(OSError):  # an ordinary user's pipes may be limited
            fcntl.fcntl(output, F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(output, False)
        os.set_blocking(errors, False)
        deadline = now + run.timeout_ms * MS if run.timeout_ms else NEVER
        program = Program(run, pid, now, deadline, output, errors, folder)
        if run.purpose is Purpose.START:
            self.up.setdefault(run.service, Up(run.group, now, run=run.run)).well = False
        elif run.purpose is Purpose.STOP and run.service in self.up:
            self.up[run.service].well = False  # a next engine does not take for up what is about to end
        self.running[run.run] = self._by_pid[pid] = program
        self.selector.register(output, selectors.EVENT_READ, lambda: self._drain(program, boottime_ns()))
        self.selector.register(errors, selectors.EVENT_READ, lambda: self._executed(program))

    def take_over(self, program: Program) -> None:
        """Go on with one that former code of this very process started, and with its pipes."""
        self.running[program.run.run] = program
        if program.status is None:
            self._by_pid[program.pid] = program
        for fd in (program.output, program.errors):
            if fd >= 0:
                os.set_inheritable(fd, False)
        if program.output >= 0 and not program.drain_at_ns:
            self.selector.register(program.output, selectors.EVENT_READ, lambda: self._drain(program, boottime_ns()))
        if program.errors >= 0:
            self.selector.register(program.errors, selectors.EVENT_READ, lambda: self._executed(program))

    def _lives(self, program: Program) -> bool:
        """Whoever is not its parent hears nothing of its end, but sees that it is dead and waited for."""
        return program.status is None and (self.children or not proc.is_dead(program.pid))

    def _executed(self, program: Program) -> None:
        if program.errors < 0:
            return
        try:
            said = os.read(program.errors, 4096)
        except BlockingIOError:
            return
        self.selector.unregister(program.errors)
        os.close(program.errors)
        program.errors = -1
        if said:
            program.failure = said.decode(errors="replace")
        elif not program.silent:
            self.tell(RunStarted(program.run.run, program.pid))

    # --------------------------------------------------------------------------------------------------------- output

    def _drain(self, program: Program, now: int) -> None:
        """Throw away all but the end of what it wrote; then leave it alone for a while."""
        if program.output < 0:
            return
        buffer = bytearray(4)
        fcntl.ioctl(program.output, FIONREAD, buffer)
        size = struct.unpack("=i", buffer)[0]
        try:
            if size > TAIL:
                os.splice(program.output, self._null, size - TAIL)
            data = os.read(program.output, 2 * TAIL)
        except BlockingIOError:
            return
        if not program.drain_at_ns:
            self.selector.unregister(program.output)
        if not data:
            os.close(program.output)
            program.output, program.drain_at_ns = -1, 0
            return
        program.tail = (program.tail + data)[-TAIL:]
        program.drain_at_ns = now + DRAIN_EVERY_NS

    # ------------------------------------------------------------------------------------------------------------ end

    def signal(self, run: int, number: int) -> None:
        """To the program's process group; nothing if it has ended."""
        program = self.running.get(run)
        if program and program.status is None and not proc.kill_group(program.pid, number):
            proc.kill(program.pid, number)  # it has not got its own process group yet

    def end(self, run: int) -> None:
        """SIGKILL the program and what it started; Exited follows."""
        if program := self.running.get(run):
            self._end(program)

    def _end(self, program: Program) -> None:
        program.ending = True
        if program.status is None:
            if not self.cgroups:  # those that left the process group are found before their parent dies
                for pid in tuple(proc.tree(program.pid)):
                    proc.kill(pid)
            proc.kill(program.pid)  # it may not have reached its control group yet
        if program.run.purpose is Purpose.START:
            if program.status is None:  # the action alone: what it started already is for the service's stop to end
                proc.kill_group(program.pid)
        elif program.folder:
            self.cgroups.kill(program.folder)  # type: ignore[union-attr]
        else:
            proc.kill_group(program.pid)
            for pid in self._strays_of(program):
                proc.kill(pid)

    def _strays(self, variable: str, thorough: bool = True) -> list[int]:
        """Processes of ours that lost their parents, so that they became the guardian's children.

        The kernel's list of children may leave one out while another ends (proc(5)): thorough looks at every process.
        """
        wanted, node = variable.encode(), f"HASNMP_NODE={self.mark}".encode()
        pids = map(int, filter(str.isdigit, os.listdir("/proc"))) if thorough else proc.children(os.getpid())
        found = []
        for pid in pids:
            if pid not in self._by_pid:
                found_in = proc.environment(pid)
                if wanted in found_in and node in found_in:
                    found.append(pid)
        return found

    def before_reaping(self, pid: int) -> None:
        """The process has ended but keeps its number until it is waited for: end what it left behind."""
        program = self._by_pid.get(pid)
        if program and not program.folder:
            proc.kill_group(pid)

    def reaped(self, pid: int, status: int, now: int) -> None:
        """Tell what waitpid said."""
        program = self._by_pid.pop(pid, None)
        if program:
            self._executed(program)
            program.status, program.ended_ns = status, now
            if program.run.purpose in (Purpose.START, Purpose.SERVICE):
                self._bring_home(program)
            self._end(program)
            self._note_what_is_up(program)
            self._settle(program, now)

    def _bring_home(self, program: Program) -> None:
        """su, and runuser with -, open a session by PAM, and where systemd-logind runs it moves them, and what they start, to a
        control group of its own (pam_systemd(8)). What a program has left there lost its parents, so it is the guardian's child
        now: it comes back, for it has to end with its group, or at once."""
        own = proc.control_group(os.getpid())
        for child in proc.children(os.getpid()):
            where = proc.control_group(child)
            if program.folder and child not in self._by_pid and where != own and _SESSION.fullmatch(where):
                for pid in (child, *proc.tree(child)):
                    with contextlib.suppress(OSError):
                        (program.folder / "cgroup.procs").write_text(str(pid))

    def _note_what_is_up(self, program: Program) -> None:
        """A start that ended well leaves a service; after a stop that did so (exit status 0, or 7: it did not run) there is none,
        and what may be left of it ends by force."""
        run, code = program.run, os.waitstatus_to_exitcode(program.status or 0)
        up = self.up.get(run.service)
        if up is None:
            return
        if program.failure:
            if up.run == run.run:
                del self.up[run.service]  # nothing was executed
            return
        if run.purpose is Purpose.START:
            up.well = code == 0
        elif run.purpose is Purpose.STOP and code in (0, 7):
            del self.up[run.service]
            if self.cgroups:
                self.cgroups.kill(self.cgroups.group(run.group) / run.service)
                self.cgroups.remove(self.cgroups.group(run.group) / run.service)

    def _gone(self, program: Program) -> bool:
        if program.status is None:
            return False
        if program.run.purpose is Purpose.START:
            return True  # what it left is the service
        if program.folder:
            return not self.cgroups.populated(program.folder)  # type: ignore[union-attr]
        return not self._strays_of(program)

    def _strays_of(self, program: Program) -> list[int]:
        # Checks end several times a second: what one of them left behind is found quickly, or when its group ends.
        return self._strays(f"HASNMP_RUN={program.run.run}", thorough=program.run.purpose is not Purpose.CHECK)

    def _settle(self, program: Program, now: int) -> None:
        """Report the end of a program, once nothing of it is left (or that can't be waited for)."""
        if not self._gone(program):
            self._end(program)
            if now - program.ended_ns < REMAINS_NS:
                return
        if program.output >= 0:
            self._drain(program, now)
        for fd in (program.output, program.errors):
            if fd >= 0:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(fd)
                os.close(fd)
        program.output = program.errors = -1
        if program.folder:
            self.cgroups.remove(program.folder)  # type: ignore[union-attr]
        run = program.run
        del self.running[run.run]
        if program.silent or program.status is None:
            return
        if program.failure:
            number, _, text = program.failure.partition(" ")
            missing = int(number) in _MISSING
            late = text.endswith("its lease ended meanwhile")
            outcome = Outcome.MISSING if missing else Outcome.REFUSED if late else Outcome.FAILED
            self.tell(RunFailed(run.run, outcome, text))
            return
        code = os.waitstatus_to_exitcode(program.status)
        tail = program.tail.decode(errors="replace")
        took_us = (program.ended_ns - program.started_ns) // 1000
        self.tell(Exited(run.run, run.group, run.service, run.purpose, program.pid, max(code, -1), max(-code, 0), tail,
                         took_us, program.timed_out))  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ the clock

    def poll(self, now: int) -> None:
        """Do what is due."""
        for program in tuple(self.running.values()):
            if program.drain_at_ns and program.drain_at_ns <= now:
                program.drain_at_ns = 0
                self.selector.register(
                    program.output, selectors.EVENT_READ, lambda p=program: self._drain(p, boottime_ns())
                )
            if program.deadline_ns <= now and program.status is None:
                program.timed_out, program.deadline_ns = True, NEVER
                self._end(program)
            if program.status is not None:
                self._settle(program, now)

    def next_deadline_ns(self, now: int) -> int:
        at = NEVER
        for program in self.running.values():
            if program.status is not None:  # waits for what it left behind
                at = min(at, now + (2 * MS if now - program.ended_ns < 50 * MS else 10 * MS))
            else:
                at = min(at, program.deadline_ns, program.drain_at_ns or NEVER)
        return at

    # --------------------------------------------------------------------------------------------------------- groups

    def _of(self, group: str, purposes: Iterable[Purpose]) -> list[Program]:
        return [p for p in self.running.values() if p.run.group == group and p.run.purpose in purposes]

    def end_checks(self, group: str) -> None:
        """End the checks of a group, and hooks that nobody waits for any more."""
        for program in self._of(group, (Purpose.CHECK, Purpose.HOOK)):
            self._end(program)

    def end_questions(self) -> None:
        """End, without an Exited, what answers to the engine only, and that has died: checks, hooks and fence agents.

        A fence agent left to itself would go on in the middle of what the next engine asks of the same device, and might
        switch off a machine long after it was back in service.
        """
        for program in tuple(self.running.values()):
            if program.run.purpose in (Purpose.CHECK, Purpose.HOOK, Purpose.FENCE):
                program.silent = True
                self._end(program)

    def end_group(self, group: str) -> None:
        """SIGKILL to everything of the group: agent programs first, then the services."""
        for program in self._of(group, (Purpose.CHECK, Purpose.START, Purpose.STOP, Purpose.HOOK)):
            self._end(program)
        for program in self._of(group, (Purpose.SERVICE,)):
            self._end(program)
        if self.cgroups:
            self.cgroups.kill(self.cgroups.group(group))
        else:
            for pid in self._strays(f"HASNMP_GROUP={group}"):
                proc.kill(pid)

    def leftovers(self, group: str) -> list[str]:
        """What of the group still lives, a text each; [] = verified: nothing."""
        found = {p.pid: f"{p.run.purpose} of {p.run.service}" for p in self._of(group, Purpose) if self._lives(p)}
        if self.cgroups:
            if self.cgroups.populated(self.cgroups.group(group)):
                for pid in self.cgroups.pids(self.cgroups.group(group)) or [0]:
                    found.setdefault(pid, proc.comm(pid))
        else:
            for pid in self._strays(f"HASNMP_GROUP={group}"):
                found.setdefault(pid, proc.comm(pid))
        return [f"process {pid} ({what})" for pid, what in found.items()]

    def outside(self, group: str, config: Config) -> list[str]:
        """What services of the group may have set up that is neither a process, nor a mount or an address of ours."""
        agents = {s.name: s.agent for s in config.services() if s.group == group and not s.mounts and outlives(s.agent)}
        return [f"what {service} ({agents[service]}) set up" for service in self.up if service in agents]

    def group_folder_removed(self, group: str) -> None:
        """Nothing of the group is here any more, seen and confirmed."""
        self.up = {service: up for service, up in self.up.items() if up.group != group}
        if self.cgroups:
            self.cgroups.remove(self.cgroups.group(group))

    def occupied(self, group: str, service: str) -> bool:
        """Does a program of this service, or what one left behind, still live?"""
        if any(
            p.run.service == service and p.run.purpose is Purpose.SERVICE for p in self._of(group, (Purpose.SERVICE,))
        ):
            return True
        return self.cgroups is not None and self.cgroups.populated(self.cgroups.group(group) / service)

    def clean(self) -> list[str]:
        """At the guardian's start: begin to end what a former guardian left. Gives a line for each process found.

        Call it until it gives none.
        """
        if self.cgroups:
            pids = self.cgroups.pids(self.cgroups.root)
            lines = [f"process {pid} ({proc.comm(pid)})" for pid in pids]
            self.cgroups.kill(self.cgroups.root)
            if not pids:
                self.cgroups.remove(self.cgroups.root)
        else:
            pids = [pid for pid in proc.marked(self.mark) if pid != os.getpid()]
            lines = [f"process {pid} ({proc.comm(pid)})" for pid in pids]
            for pid in pids:
                proc.kill(pid)
        return lines

    def close_all(self) -> None:
        """In a forked child: close what is the guardian's alone."""
        for program in self.running.values():
            for fd in (program.output, program.errors):
                if fd >= 0:
                    os.close(fd)
            program.output = program.errors = -1
        os.close(self._null)


def address_tag(config: Config, node: str) -> str:
    return f"{config.cluster}_{node}"


def virtual_addresses(config: Config) -> tuple[str, ...]:
    """Every address that any service of the cluster may put up, without its prefix length."""
    return tuple(s.ip for s in config.services() if s.ip)


def end_everything(config: Config, node: str, within_ms: int = 5000) -> tuple[str, ...]:
    """End all programs, addresses and file systems of this node by force: the guardian is dead, the engine calls this.

    Blocks until nothing is left, or for within_ms. Gives what is left, a text each: () = verified, nothing.
    """
    programs = Programs(
        mark_of(config, node), open_cgroups(config, node), selectors.SelectSelector(), lambda message: None
    )
    deadline = time.monotonic() + within_ms / 1000
    belongings = Belongings(config, node)
    units = GroupUnits(belongings)
    left: list[str] = [*programs.clean(), *units.kill_all()]
    if addresses := virtual_addresses(config):
        problem = ""
        try:
            held = KernelAddresses(address_tag(config, node))
            held.cleanup(addresses)
            held.close()
        except OSError as error:
            problem = f"addresses: {error}"
    else:
        problem = ""
    _, mounts = GroupMounts(belongings).cut_all(max(0, int((deadline - time.monotonic()) * 1000)))
    while left and time.monotonic() < deadline:
        time.sleep(0.002)
        left = [*programs.clean(), *units.kill_all()]
    os.close(programs._null)
    for group in () if left or mounts else belongings.groups():
        belongings.forget(group)
    return (*left, *mounts, *((problem,) if problem else ()))
