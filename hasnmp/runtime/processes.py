"""The other processes of a node's stack: forked from the guardian, restarted when they die, and how long that waits.

Forked without exec: a new engine is there within milliseconds, and all share their code's memory. The guardian keeps both
ends of the socket pairs between engine and lease i/o, and engine and store, so that a restarted one inherits its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hasnmp.runtime import log as logs
from hasnmp.runtime.kernel import boottime_ns, die_with, set_name, set_oom_score
from hasnmp.runtime.lease_board import LeaseBoard
from hasnmp.runtime.messages import Channel, Hello
from hasnmp.settings import Config, Log

MS = 1_000_000
S = 1_000_000_000
STEADY_NS = 5 * S  # a process that lived for this long is restarted at once when it dies
BACK_OFF_NS = (100 * MS, 5 * S)
ENGINE_BACK_OFF_NS = 100 * MS  # no longer: the lease that its services live by would run out meanwhile
SOFTWARE = 70  # exit status after a defect: EX_SOFTWARE of sysexits.h


_logger: Any = None


def set_up_log(settings: Log, node: str) -> None:
    """From here on the guardian logs as the configuration wants it; before, one JSON object a line."""
    global _logger
    _logger = logs.set_up(settings, node, "guardian")


def log(event: str, level: int = logging.INFO, **values: object) -> None:
    """A line to stderr: systemd's journal, or the terminal. Lost if nobody reads there: the guardian waits for no one."""
    if _logger is not None:
        _logger.log(level, event, **values)
        return
    line = json.dumps({"event": event, "process": "guardian", **values}, default=str).encode()[: logs.LONGEST - 1]
    logs.Output(2).write(line.decode(errors="replace") + "\n")


@dataclass(frozen=True, slots=True)
class Children:
    """What runs in the other processes: each a function that returns its exit status. None: there is no such process.

    engine(config, node, hello, guardian, lease_io, store); `guardian` a Channel, the last two SOCK_SEQPACKET sockets
    lease_io(config, node, socket)     store(config, node, socket)     snmp(config, node, warm, beat)
    pills(config, node, socket): a SOCK_SEQPACKET socket to the guardian itself (pills.py)
    clients(config, node, board): only where the configuration has `clients.listen`
    """

    engine: Callable[[Config, str, Hello, Channel, socket.socket, socket.socket], int]
    lease_io: Callable[[Config, str, socket.socket], int] | None = None
    store: Callable[[Config, str, socket.socket], int] | None = None
    # warm: it ran before, under this guardian. The last: to be called again and again while it works (vigil.py)
    snmp: Callable[[Config, str, bool, Callable[[], None]], int] | None = None
    pills: Callable[[Config, str, socket.socket], int] | None = None
    clients: Callable[[Config, str, LeaseBoard], int] | None = None


@dataclass(slots=True)
class Child:
    """A process of the stack. pid 0: it does not live, and is started at start_at_ns."""

    name: str
    comm: str
    main: Callable[[], int]
    pid: int = 0
    started_ns: int = 0
    start_at_ns: int = 0
    deaths: int = 0  # in a row, each before it was steady
    warm: bool = False  # one ran before, under this guardian
    refused: bool = False  # no process could be made for it at the last try
    longest_ns: int = BACK_OFF_NS[1]
    wanted: Callable[[], bool] = lambda: True  # by the configuration of this moment

    def died(self, now: int) -> None:
        self.pid, self.warm = 0, True
        self.deaths = 1 if now - self.started_ns >= STEADY_NS else self.deaths + 1
        wait = min(self.longest_ns, BACK_OFF_NS[0] << min(self.deaths - 2, 10)) if self.deaths > 1 else 0
        self.start_at_ns = now + wait


@dataclass(slots=True)
class Family:
    """The processes. `engine` has no main of its own: fork_engine() gives it one each time."""

    config: Config
    node: str
    engine: Child
    others: list[Child]
    pairs: dict[str, tuple[socket.socket, socket.socket]] = field(default_factory=dict)
    close_in_child: list[Callable[[], None]] = field(default_factory=list)  # what is the guardian's alone

    @classmethod
    def make(cls, config: Config, node: str, children: Children, board: LeaseBoard, beat: Callable[[], None]) -> Family:
        pairs = {
            name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            for name in ("lease_io", "store", *["pills"] * bool(children.pills))
        }
        engine = Child("engine", "hasnmp-engine", lambda: SOFTWARE, longest_ns=ENGINE_BACK_OFF_NS)
        family = cls(config, node, engine, [], pairs)
        others = family.others
        # Each goes by the configuration of the moment in which it is forked.
        if lease_io := children.lease_io:
            others.append(
                Child("lease_io", "hasnmp-lease", lambda: lease_io(family.config, node, pairs["lease_io"][1]))
            )
        if store := children.store:
            others.append(Child("store", "hasnmp-store", lambda: store(family.config, node, pairs["store"][1])))
        if pills := children.pills:
            others.append(Child("pills", "hasnmp-pills", lambda: pills(family.config, node, pairs["pills"][1])))
        if snmp := children.snmp:
            agent = Child("snmp", "hasnmp-snmp", lambda: SOFTWARE)
            agent.main = lambda: snmp(family.config, node, agent.warm, beat)
            others.append(agent)
        if clients := children.clients:
            desk = Child("clients", "hasnmp-clients", lambda: clients(family.config, node, board))
            desk.wanted = lambda: bool(family.config.clients.listen)
            others.append(desk)
        return family

    def configure(self, config: Config, restart: Iterable[str]) -> None:
        """From here on a child that is forked goes by this; those that are named end now, for the next to do so.

        SIGKILL: they keep nothing, and one that is frozen must not hold the new configuration up.
        """
        self.config = config
        for child in self.others:
            if child.name in restart:
                child.deaths = child.started_ns = 0  # wanted: the next one starts at once
                if child.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)

    def all(self) -> tuple[Child, ...]:
        return (self.engine, *self.others)

    def fork(self, child: Child) -> None:
        parent, now = os.getpid(), boottime_ns()
        pid = os.fork()
        if pid == 0:
            self._be(child, parent)
        child.pid, child.started_ns = pid, now

    def _be(self, child: Child, parent: int) -> NoReturn:
        """In the forked process: become the child, with nothing of the guardian's in hand."""
        status = SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            # A Ctrl-C goes to every process of a terminal: the guardian's word is what the children stop by.
            for number, action in (
                (signal.SIGTERM, signal.SIG_DFL),
                (signal.SIGINT, signal.SIG_IGN),
                (signal.SIGHUP, signal.SIG_IGN),
                (signal.SIGCHLD, signal.SIG_DFL),
                (signal.SIGCONT, signal.SIG_DFL),
            ):
                signal.signal(number, action)
            set_name(child.comm)
            if child is self.engine:
                # It outlives the guardian for as long as it takes to end the groups by force. It keeps its ends of the
                # pairs, and is exempt from the OOM killer as the guardian is.
                keep = {self.pairs[name][0] for name in ("lease_io", "store")}
            else:
                die_with(parent)
                set_oom_score(0)
                keep = {self.pairs[child.name][1]} if child.name in self.pairs else set()
            for pair in self.pairs.values():
                for sock in pair:
                    if sock not in keep:
                        sock.close()
            for close in self.close_in_child:
                close()
            status = child.main()
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            log("process_failed", logging.ERROR, name=child.name, traceback=traceback.format_exc())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
