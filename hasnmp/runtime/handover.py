"""Handover: the guardian executes itself anew, in place, while everything that it guards runs on.

    asked     `hasnmpd --handover` leaves a request in run_dir and sends SIGUSR2
    rehearsed the new code reads the configuration in a process of its own; if it can't, nothing has happened. What it read
              there is what the new code goes by: the file may be another one, or half of one, a moment later
    executed  the guardian forks a deputy (deputy.py) and executes the new code in its own place: the same process id, so
              its children stay its children. The deputy, the old code, keeps every lease meanwhile
    taken     once the new code is warm it gets everything from the deputy over a socket, and the deputy leaves
    renewed   lease i/o, store, engine and snmp agent are started again one after another; the engine adopts what runs

What is handed over is one JSON object (picture, restore) and the open descriptors. A later version reads every form that
it can still take over from; keys that it does not know are left alone.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasnmp import __version__
from hasnmp.core.events import HeldLease
from hasnmp.core.guard import NEVER
from hasnmp.runtime import kernel
from hasnmp.runtime.kernel import boot_id, boottime_ns
from hasnmp.runtime.kernel_address import Live
from hasnmp.runtime.messages import Channel, HeldAddress, Message, Purpose, Run, decode, encode
from hasnmp.runtime.orders import PendingRelease
from hasnmp.runtime.proc import is_dead
from hasnmp.runtime.processes import MS, S, log
from hasnmp.runtime.programs import Program, Up
from hasnmp.runtime.rehearsal import REHEARSAL, VARIABLE, digest, shape
from hasnmp.settings import Config

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

FORM = 1  # of what is handed over
REHEARSAL_NS = 30 * S  # what the new code may take to read the configuration
PAUSE_NS = 300 * MS  # between the renewals of two processes
PATIENCE_NS = 5 * S  # how long the engine's renewal waits for what it has under way; and any other process to end
ASK_S = 90.0  # what `hasnmpd --handover` waits
ORDER = ("lease_io", "store", "pills", "engine", "snmp", "clients")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2)


class HandoverError(Exception):
    """It can't be done; the text says why."""


def _write(path: Path, values: dict[str, Any]) -> None:
    """Raises OSError."""
    new = path.with_suffix(".handover-new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(values, file)
        os.replace(new, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # a disk that is full names none


# ------------------------------------------------------------------------------------------- what is handed over


def descriptors(guardian: Guardian) -> list[int]:
    """Everything open that the new code goes on with."""
    found = [sock.fileno() for pair in guardian.family.pairs.values() for sock in pair]
    for program in guardian.programs.running.values():
        found += [fd for fd in (program.output, program.errors) if fd >= 0]
    if guardian.channel:
        found.append(guardian.channel.fileno())
    if guardian.watchdog.fd >= 0:
        found.append(guardian.watchdog.fd)
    return found


def picture(guardian: Guardian, said: Sequence[Message]) -> dict[str, Any]:
    """All that a guardian knows. said: what the engine said and is not yet obeyed."""
    g = guardian
    kernel = g.addresses.kernel
    return {
        "form": FORM, "version": __version__, "boot": g.boot, "holder": g.holder,
        "leases": [[lease.group, lease.token, lease.until_ns] for lease in g.guard.leases.values()],
        "last_token": g.guard.last_token, "ending": sorted(g.guard.ending), "until": g.ending.until,
        "found": sorted(g.ending.found), "why": g.ending.why,
        "releases": {group: [pending.token, pending.until_ns] for group, pending in g.orders.releases.items()},
        "programs": [_program(program) for program in g.programs.running.values()],
        "up": {service: [up.group, up.since_ns, up.well] for service, up in g.programs.up.items()},
        "next_run": g.orders.next_run, "engine_deaths": g.engine_deaths, "cleaned": g.cleaned, "stopping": g.stopping,
        "family": {child.name: [child.pid, child.started_ns, child.start_at_ns] for child in g.family.all()},
        "pairs": {name: [sock.fileno() for sock in pair] for name, pair in g.family.pairs.items()},
        "channel": g.channel.fileno() if g.channel else -1,
        "unsent": [base64.b64encode(octets).decode() for octets in g.channel.unsent] if g.channel else [],
        "said": [encode(message).decode() for message in said],
        "kept": [encode(message).decode() for message in g.kept],
        "addresses": [asdict(address) for address in g.addresses.held.values()],
        "live": [asdict(live) for live in kernel.present()] if kernel else [],
        "watchdog": [g.watchdog.settings.device, g.watchdog.fd, g.watchdog.timeout_ms],
    }  # fmt: skip


def _program(program: Program) -> dict[str, Any]:
    values = {name: getattr(program, name) for name in ("pid", "started_ns", "deadline_ns", "output", "errors",
              "drain_at_ns", "timed_out", "ending", "silent", "failure", "status", "ended_ns")}  # fmt: skip
    return values | {"run": encode(program.run).decode(), "folder": str(program.folder or ""),
                     "tail": base64.b64encode(program.tail).decode()}  # fmt: skip


def restore(guardian: Guardian, values: dict[str, Any]) -> list[Message]:
    """Make it all one's own. Gives what the engine said and is to be obeyed now. Raises HandoverError."""
    g = guardian
    if values["form"] != FORM or values["boot"] != g.boot:
        raise HandoverError(f"what is handed over has form {values['form']} of boot {values['boot']}")
    g.holder = str(values["holder"])
    g.guard.leases = {group: HeldLease(group, token, until) for group, token, until in values["leases"]}
    g.guard.last_token, g.guard.ending = dict(values["last_token"]), set(values["ending"])
    for lease in g.guard.leases.values():
        if (
            lease.group not in g.guard.ending
        ):  # at once: clients are asked from here on by a process that reads this board
            g.board.show(lease.group, lease.token, lease.until_ns)
    g.ending.until, g.ending.found = dict(values["until"]), set(values["found"])
    g.ending.why = dict(values.get("why", {}))
    g.ending.retry_at_ns = boottime_ns() if g.ending.until else NEVER
    g.orders.releases = {group: PendingRelease(token, until) for group, (token, until) in values["releases"].items()}
    for row in values["programs"]:
        run = decode(row.pop("run").encode())
        folder, tail = row.pop("folder"), base64.b64decode(row.pop("tail"))
        assert isinstance(run, Run)
        g.programs.take_over(
            Program(run=run, folder=Path(folder) if folder else None, tail=tail, **_known(Program, row))
        )
    g.programs.up = {service: Up(group, since, well) for service, (group, since, well) in values.get("up", {}).items()}
    g.orders.next_run, g.engine_deaths, g.stopping = values["next_run"], values["engine_deaths"], values["stopping"]
    g.cleaned = tuple(values["cleaned"])
    for child in g.family.all():
        child.pid, child.started_ns, child.start_at_ns = values["family"].get(child.name, (0, 0, 0))
        if child.name == "clients" and child.pid:
            os.kill(
                child.pid, signal.SIGKILL
            )  # what it reads of leases is the former code's: nobody wipes it out any more
    for name, numbers in values["pairs"].items():
        for sock, number in zip(g.family.pairs.get(name, ()), numbers, strict=False):
            os.dup2(number, sock.fileno(), inheritable=False)  # the object stays the same for whoever has it
            os.close(number)
    g.kept.extend(decode(text.encode()) for text in values["kept"])  # type: ignore[misc]
    for row in values["addresses"]:
        g.addresses.held[row["service"]] = HeldAddress(**_known(HeldAddress, row))
    if g.addresses.kernel:
        g.addresses.kernel.take_over(Live(**_known(Live, row)) for row in values["live"])
    device, fd, timeout_ms = values["watchdog"]
    if fd >= 0:
        os.set_inheritable(fd, False)
        g.watchdog.take_over(device, fd, timeout_ms)
    if values["channel"] >= 0:
        channel = Channel(_socket(values["channel"]))
        channel.unsent.extend(base64.b64decode(text) for text in values["unsent"])
        g.listen_to(channel)
    return [decode(text.encode()) for text in values["said"]]


def _known(kind: type[Any], row: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in row.items() if name in names}


def _socket(number: int) -> socket.socket:
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)


def inherited() -> tuple[socket.socket | None, int]:
    """The deputy's socket and the lock's descriptor, if this is new code in a guardian's place."""
    if not (words := os.environ.pop(VARIABLE, "").split()):
        return None, -1
    lock = int(words[1])
    os.set_inheritable(lock, False)
    return _socket(int(words[0])), lock


def take_over(guardian: Guardian, sock: socket.socket) -> None:
    """The new code is warm: take everything from the deputy. Raises HandoverError, OSError: nothing is ours then."""
    sock.settimeout(10)
    sock.sendall(b"R")
    size = struct.unpack("!I", _exactly(sock, 4))[0]
    values = json.loads(_exactly(sock, size))
    said = restore(guardian, values)
    for name in os.listdir("/proc/self/fd"):  # of what has ended meanwhile
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that read the folder
                if os.get_inheritable(int(name)):
                    os.close(int(name))
    guardian._end_what_is_due(boottime_ns())
    sock.sendall(b"T")  # from here on the deputy is gone
    sock.close()
    guardian.handover.taken()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    guardian._reap()
    for message in said:
        guardian._end_what_is_due(boottime_ns())
        if guardian.channel:
            guardian.obey(message)
    log("guardian_handed_over", version=__version__, before=values["version"], programs=len(values["programs"]),
        leases=len(values["leases"]), waited=len(said))  # fmt: skip


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise HandoverError("the deputy is gone")
        data += more
    return bytes(data)


def send_picture(sock: socket.socket, values: dict[str, Any]) -> bool:
    """The deputy's side of take_over(). True: it was taken. Raises OSError."""
    data = json.dumps(values).encode()
    sock.sendall(struct.pack("!I", len(data)) + data)
    return sock.recv(1) == b"T"


# ----------------------------------------------------------------------------------------------- in the guardian


@dataclass(slots=True)
class Handover:
    """Where a handover stands, in the guardian that runs."""

    guardian: Guardian
    argv: list[str] = field(default_factory=list)
    rehearsal: int = 0  # its process id; 0 = none is under way
    read: int = -1  # the file in memory that it leaves what it has read in
    until_ns: int = NEVER  # of the rehearsal, or of the renewal that is under way
    to_renew: list[str] = field(default_factory=list)
    renewing: tuple[str, int] = ("", 0)  # a process and the id that it must lose
    next_ns: int = NEVER

    @property
    def _path(self) -> Path:
        return Path(self.guardian.config.run_dir, f"{self.guardian.node}.handover")

    def busy(self) -> bool:
        """Is one under way?"""
        return bool(self.rehearsal or self.to_renew)

    def asked(self) -> None:
        """SIGUSR2 came."""
        if self.busy() or self.guardian.stopping:
            log("handover_refused", logging.WARNING, why="one is under way, or this daemon stops")
            return
        if self.guardian.reload.busy() or (self.guardian.pills and self.guardian.pills.pending):
            self._failed("a reload, or the end by a poison pill, is under way")
            return
        try:
            if os.stat(self._path).st_uid != os.geteuid():
                raise HandoverError(f"{self._path} belongs to another user")
            request = json.loads(self._path.read_text())
            self.argv = [str(word) for word in request["argv"]]
            if request["shape"] != shape(self.guardian.config):
                raise HandoverError("the configuration differs from the one in force in its groups, services or "
                                    "what safety rests on: reload it first, or write it as it was")  # fmt: skip
            self._forget()
            self.read = os.memfd_create("hasnmp-handover")
            said = os.open(
                self._path.with_suffix(".rehearsal"), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            try:
                self.rehearsal = os.posix_spawn(
                    self.argv[0], [*self.argv, "--rehearse", str(FORM)],
                    os.environ | {REHEARSAL: f"3 {digest(self.guardian.config)}"},
                    file_actions=[(os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2),
                                  (os.POSIX_SPAWN_DUP2, self.read, 3)],
                    setsigdef=SIGNALS,
                )  # fmt: skip
            finally:
                os.close(said)
        except (HandoverError, OSError, ValueError, TypeError, KeyError) as error:
            self._failed(str(error))
            return
        self.until_ns = boottime_ns() + REHEARSAL_NS
        log("handover_began", argv=self.argv)

    def reaped(self, pid: int, status: int) -> bool:
        """Take what waitpid said. False: no process of a handover."""
        if pid != self.rehearsal or not pid:
            return False
        self.rehearsal, self.until_ns = 0, NEVER
        code = os.waitstatus_to_exitcode(status)
        if code:
            path = self._path.with_suffix(".rehearsal")
            said = path.read_text(errors="replace").strip()[-600:] if path.exists() else ""
            self._failed(f"the new code does not start (exit status {code}): {said}")
        elif self.guardian.stopping:
            self._failed("this daemon stops")
        else:
            self._execute()
        return True

    def _execute(self) -> None:
        """Fork the deputy and become the new code. Returns only where that failed, with everything as before."""
        from hasnmp.runtime.deputy import Deputy

        g = self.guardian
        try:
            ours, its = socket.socketpair()
            go, ready = os.pipe2(os.O_CLOEXEC)  # its end of file is the successful exec
        except OSError as error:
            self._failed(f"no descriptors for its deputy: {error.strerror}")
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they wait for the new code
        main = os.getpid()
        with contextlib.suppress(OSError):  # the deputy runs before others from its first moment on
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(kernel.PRIORITY))
        try:
            deputy = os.fork()
        except OSError as error:
            ours.close()
            os.close(go)
            self._stay(its, ready, f"no process for its deputy: {error.strerror}")
            return
        if deputy == 0:
            its.close()
            os.close(ready)
            Deputy(g, ours, go, main).run()
        ours.close()
        os.close(go)
        inherited = [*descriptors(g), its.fileno(), g.lock, self.read]
        for fd in inherited:
            os.set_inheritable(fd, True)
        kernel.give_back_descriptors()
        try:
            os.execve(self.argv[0], self.argv, os.environ | {VARIABLE: f"{its.fileno()} {g.lock} {self.read}"})
        except OSError as error:
            os.kill(deputy, signal.SIGKILL)  # it waits for the exec and has done nothing yet
            os.waitpid(deputy, 0)
            for fd in inherited:
                os.set_inheritable(fd, False)
            kernel.take_descriptors()
            self._stay(its, ready, f"{self.argv[0]} can't be executed: {error.strerror}")

    def _stay(self, its: socket.socket, ready: int, why: str) -> None:
        """Go on as before."""
        its.close()
        os.close(ready)
        kernel.prefer_this_process()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._failed(why)

    def _forget(self) -> None:
        if self.read >= 0:
            os.close(self.read)
            self.read = -1

    def _failed(self, why: str) -> None:
        self._forget()
        log("handover_failed", logging.ERROR, why=why, next="this guardian goes on")
        self._tell("failed", f"{why}; nothing has changed, the daemon goes on as it was")

    def _tell(self, outcome: str, text: str) -> None:
        with contextlib.suppress(OSError):
            _write(self._path, {"outcome": outcome, "text": text})

    # ------------------------------------------------------------------------------------------------- renewal

    def taken(self) -> None:
        """This is the new code, and it has taken over: now the other processes."""
        there = {child.name for child in self.guardian.family.all()}
        self.to_renew = [name for name in ORDER if name in there]
        self.next_ns = boottime_ns() + PAUSE_NS
        self.until_ns = self.next_ns + PATIENCE_NS

    def poll(self, now: int) -> None:
        g = self.guardian
        if self.rehearsal and now >= self.until_ns:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rehearsal, signal.SIGKILL)
            self.until_ns = NEVER
        if now < self.next_ns:
            return
        self.next_ns = now + 20 * MS
        name, pid = self.renewing
        if pid:
            child = next(c for c in g.family.all() if c.name == name)
            if child.pid == pid and now >= self.until_ns:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if child.pid in (0, pid) and now < self.until_ns + S:
                return
            self.renewing = ("", 0)
            self.next_ns, self.until_ns = now + PAUSE_NS, now + PAUSE_NS + PATIENCE_NS
        elif g.stopping or not self.to_renew:
            self.next_ns = NEVER
            self.to_renew = []
            log("handover_finished", version=__version__)
            self._tell("done", f"hasnmpd {__version__} has taken over; no service was restarted")
        else:
            self._renew(self.to_renew[0], now)

    def _renew(self, name: str, now: int) -> None:
        g = self.guardian
        child = next(c for c in g.family.all() if c.name == name)
        busy = g.orders.releases or any(
            p.run.purpose in (Purpose.START, Purpose.STOP) for p in g.programs.running.values()
        )
        if name == "engine" and busy and now < self.until_ns:
            return  # its answer is awaited by this engine; the next one would ask again
        del self.to_renew[0]
        self.renewing, self.until_ns = (name, child.pid), now + PATIENCE_NS
        child.started_ns = child.deaths = 0  # an end that is wanted: the next one comes at once
        if name == "engine":
            g.engine_replaced = True
            g._kill_engine("the new code's engine follows")
        elif child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)

    def next_deadline_ns(self) -> int:
        return min(self.next_ns, self.until_ns if self.rehearsal else NEVER)


# --------------------------------------------------------------------------------------------------- who asks for it


def ask(config: Config, node: str, program: Sequence[str], source: str) -> int:
    """`hasnmpd --handover`: have the daemon of this node become the code that this is. Prints the outcome.

    program: how to run this very code, with absolute paths. Gives the exit status: 0 done, 1 not.
    """
    folder = Path(config.run_dir)
    try:
        with open(folder / f"{node}.lock", "r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(f"hasnmpd: no daemon runs node {node}: start it", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"hasnmpd: no daemon runs node {node} ({error.filename} is not there): start it", file=sys.stderr)
        return 1
    except (BlockingIOError, PermissionError):
        pass  # it is locked: one runs
    try:
        held = json.loads((folder / f"{node}.holder").read_text())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it was not written whole, its disk was full"
        print(f"hasnmpd: the daemon of node {node} can't be asked: {folder / f'{node}.holder'}: {why}; restart it", file=sys.stderr)  # fmt: skip
        return 1
    if held.get("boot_id") != boot_id() or held.get("handover") != FORM:
        print(f"hasnmpd: the daemon of node {node} is of a version that can't hand over to this one: restart it", file=sys.stderr)  # fmt: skip
        return 1
    path, pid = folder / f"{node}.handover", int(held["pid"])
    try:
        argv = [*program, "--config", os.path.abspath(source), "--node", node]
        _write(path, {"argv": argv, "shape": shape(config)})
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        print(f"hasnmpd: {error.filename or f'process {pid}'}: {error.strerror}", file=sys.stderr)
        return 1
    deadline = time.monotonic() + ASK_S
    while time.monotonic() < deadline:
        said = json.loads(path.read_text())
        if "outcome" in said:
            print(f"hasnmpd: handover {said['outcome']}: {said['text']}", file=sys.stderr if said["outcome"] != "done" else sys.stdout)  # fmt: skip
            return int(said["outcome"] != "done")
        if is_dead(pid):
            print(f"hasnmpd: handover failed: the daemon (process {pid}) has ended; see its log, and start it", file=sys.stderr)  # fmt: skip
            return 1
        time.sleep(0.05)
    print(f"hasnmpd: handover not finished within {ASK_S:.0f} s; see the daemon's log", file=sys.stderr)
    return 1
