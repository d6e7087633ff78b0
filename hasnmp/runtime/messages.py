"""What the engine and the guardian say to each other: one dataclass a message, one JSON object a datagram.

They talk over a SOCK_SEQPACKET pair, so that message boundaries are kept and a dead side is an end of file. The guardian
makes a new pair for every engine, so that a killed engine's last words are never obeyed.

    engine -> guardian            guardian -> engine
    Extend(leases)                Extended(leases, ok)
    Release(group, token)         Released(group, token, ok, text)
    Run(run, ...)                 RunStarted(run, pid) or RunFailed(run, outcome, text); after RunStarted one Exited(run, ...)
    Signal(run, signal)           -
    End(run)                      Exited(run, ...), as for every program
    Address(op, service, ...)     AddressDone(service, op, ok, text); later, perhaps, AddressLost(service, text)
    Alive()                       -
    Reload(command)               Retire(...) or ReloadEnded(...); without a Reload, too (SIGHUP)
    Stage(ident, document)        Staged(ident, code, text)
    Adopt(ident, command)         as after Reload
    Forward(command)              as after Reload
    GiveUp(text)                  -
                                  Alarm(text), Troubled(name, text), Stop(),
                                  Ask()

Extend, Release, Extended, Released, and those of a reload are the very effects and events of the core. What an engine must know at its start
comes as a Hello, which is handed over by fork and never sent:

    engine_main(config, node, hello, guardian, lease_io, store) -> exit status

with `guardian` a Channel, `lease_io` and `store` the engine's ends of SOCK_SEQPACKET pairs. An end of file on `guardian`
means that the guardian is dead: the engine then calls programs.end_everything(config, node) and exits.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from hasnmp.core.events import (
    Adopt,
    Extend,
    Extended,
    Forward,
    GiveUp,
    HeldLease,
    Outcome,
    Release,
    Released,
    Reload,
    ReloadEnded,
    Retire,
    Stage,
    Staged,
    Troubled,
)
from hasnmp.errors import HasnmpError

MAX_MESSAGE = (
    160 * 1024
)  # octets; far more than any command line and environment that a configuration can hold; a staged file
MAX_WAITING = 4096  # messages kept for a reader that does not read


class MessageError(HasnmpError):
    """Octets that are none of these messages: one side has a defect."""


class Purpose(StrEnum):
    SERVICE = "service"  # runs as long as the service does; needs a live lease
    START = "start"  # starts a service and ends; what it leaves running is the service. Needs a live lease and a control group
    STOP = "stop"  # a command that ends by itself, with all that it started: stop, mount; needs a live lease
    CHECK = "check"  # asks only, changes nothing; needs no lease
    FENCE = "fence"  # a fence agent: of no group (group ""), needs no lease, outlives the end of any group
    HOOK = (
        "hook"  # the administrator's own program; of a group it needs a live lease, of none (group "") it needs nothing
    )


class AddressOp(StrEnum):
    ADD = "add"  # needs a live lease
    REMOVE = "remove"


# ------------------------------------------------------------------------------------------------ engine -> guardian


@dataclass(frozen=True, slots=True)
class Run:
    """Start a program. Answered by RunStarted (it was executed), or RunFailed: nothing of it runs.

    run: chosen by the engine, Hello.next_run or more, used once. argv[0] is looked up in PATH. env is added to the
    guardian's own environment. cwd, user: "" = the guardian's. timeout_ms: 0 = none; then it is ended by force.
    stdin: what it reads on standard input, then end of file; never logged (passwords). oom_score_adjust: of proc(5).
    """

    run: int
    group: str
    service: str
    argv: tuple[str, ...]
    purpose: Purpose
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    timeout_ms: int = 0
    stdin: str = field(default="", repr=False)
    oom_score_adjust: int = 0


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the program's process group; silently nothing if it has ended."""

    run: int
    signal: int


@dataclass(frozen=True, slots=True)
class End:
    """End the program and all that it started, by force. Exited follows, once; nothing if it was reported before."""

    run: int


@dataclass(frozen=True, slots=True)
class Address:
    """Add an address to an interface, bound to the group's lease, or remove it. Both are idempotent."""

    op: AddressOp
    service: str
    group: str
    ip: str
    prefix: int
    interface: str


@dataclass(frozen=True, slots=True)
class Alive:
    """The engine's loop turns. 5 s without any message from it, counted from its fork, count as death."""


# ------------------------------------------------------------------------------------------------ guardian -> engine


@dataclass(frozen=True, slots=True)
class RunStarted:
    run: int
    pid: int


@dataclass(frozen=True, slots=True)
class RunFailed:
    """outcome: MISSING (not there or not executable), REFUSED (no live lease) or FAILED; text says why."""

    run: int
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A program ended, with all that it had started. code: exit status, -1 if a signal ended it; signal: 0 if none did.

    output_tail: the end of what it wrote to stdout and stderr, at most 1 KiB. timed_out: the guardian ended it at its
    time limit. May be of a run that a former engine started, while no engine lived.
    """

    run: int
    group: str
    service: str
    purpose: Purpose
    pid: int
    code: int
    signal: int
    output_tail: str
    took_us: int
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class AddressDone:
    service: str
    op: AddressOp
    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class AddressLost:
    """The kernel ended the address's own lease, or someone removed it, while the group's lease lives. It is off."""

    service: str
    text: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that an administrator must know, e.g. that the packet filter was flushed and has been restored."""

    text: str


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM or SIGINT came: move the groups away, leave in order, return 0. Repeated to each engine that follows."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Is the engine still there? Its answer is Alive (pulse.py)."""


# -------------------------------------------------------------------------------------------------------------- hello


@dataclass(frozen=True, slots=True)
class Running:
    """A program that the guardian runs from before this engine's start; run 0, pid 0: a service that is up because an action
    of purpose START ended well."""

    run: int
    group: str
    service: str
    purpose: Purpose
    pid: int
    started_ns: int


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address that is up, bound to its group's lease."""

    service: str
    group: str
    ip: str
    prefix: int
    interface: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Hello:
    """What a starting engine gets from the guardian.

    holder: 16 hex digits, new at each start of the guardian. cleaned: what the guardian found running without a lease at
    its own start, and ended: a line each. notes: what it could not have (memory lock, priority, cgroups), a line each.
    engine_deaths: how many engines died before this one since the guardian's start. watchdog_ms, watchdog_error, unclean,
    unbound, reloaded, reload_command, replaced: as in core.events.Started.
    """

    holder: str
    boot_id: str
    leases: tuple[HeldLease, ...] = ()
    running: tuple[Running, ...] = ()
    addresses: tuple[HeldAddress, ...] = ()
    cleaned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    next_run: int = 1
    engine_deaths: int = 0
    watchdog_ms: int = 0
    watchdog_error: str = ""
    unclean: tuple[str, ...] = ()
    unbound: tuple[str, ...] = ()
    reloaded: str = ""
    reload_command: int = 0
    replaced: bool = False


FromEngine = Extend | Release | Run | Signal | End | Address | Alive | Reload | GiveUp | Stage | Adopt | Forward
FromGuardian = (
    Extended
    | Released
    | RunStarted
    | RunFailed
    | Exited
    | AddressDone
    | AddressLost
    | Alarm
    | Ask
    | Stop
    | Retire
    | ReloadEnded
    | Staged
    | Troubled
)
Message = FromEngine | FromGuardian

_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Extend, Release, Run, Signal, End, Address, Alive,
        Extended, Released, RunStarted, RunFailed, Exited, AddressDone, AddressLost, Alarm, Ask, Stop,
        Reload, GiveUp, Stage, Adopt, Forward, Retire, ReloadEnded, Staged, Troubled,
    )
}  # fmt: skip
_NAMES = {name: tuple(f.name for f in fields(cls)) for name, cls in _CLASSES.items()}
_CONVERT: dict[str, Any] = {
    "leases": lambda rows: tuple(HeldLease(str(g), int(t), int(u)) for g, t, u in rows),
    **dict.fromkeys(("argv", "services", "groups", "keys"), lambda words: tuple(str(word) for word in words)),
    "env": lambda env: {str(k): str(v) for k, v in env.items()},
    "purpose": Purpose, "op": AddressOp, "outcome": Outcome,
    "ok": bool, "timed_out": bool,
    "run": int, "pid": int, "code": int, "token": int, "prefix": int, "took_us": int, "timeout_ms": int, "signal": int,
    "command": int, "stop_ms": int, "oom_score_adjust": int,
}  # fmt: skip


def encode(message: Message) -> bytes:
    """One message as octets. Raises MessageError: longer than MAX_MESSAGE."""
    name = type(message).__name__
    values: dict[str, Any] = {key: getattr(message, key) for key in _NAMES[name]}
    if "leases" in values:
        values["leases"] = [(lease.group, lease.token, lease.until_ns) for lease in values["leases"]]
    values["is"] = name
    data = json.dumps(values, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise MessageError(f"{name} of {len(data)} octets is longer than {MAX_MESSAGE}")
    return data


def decode(data: bytes) -> Message:
    """Raises MessageError: not one of these messages."""
    try:
        values = json.loads(data)
        name = values.pop("is")
        message: Message = _CLASSES[name](
            **{k: _CONVERT.get(k, str)(v) for k, v in values.items() if k in _NAMES[name]}
        )
        return message
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MessageError(f"not a message: {error!r}") from None


class Channel:
    """One end of an engine-guardian pair. Never blocks: what the other side does not take is kept, up to MAX_WAITING.

    Wait for readable on fileno(); while `waiting` is true also for writable, and then call flush().
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._out: deque[bytes] = deque()
        self._buffer = bytearray(MAX_MESSAGE)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def unsent(self) -> deque[bytes]:
        """What the other side has not taken yet."""
        return self._out

    @property
    def waiting(self) -> bool:
        return bool(self._out)

    def send(self, message: Message) -> bool:
        """Send, or keep for later. False: the other side is gone, or has not read for so long that it counts as gone."""
        self._out.append(encode(message))
        return self.flush() and len(self._out) <= MAX_WAITING

    def flush(self) -> bool:
        """Send what waits, as far as the other side takes it. False: it is gone."""
        while self._out:
            try:
                self.sock.send(self._out[0], socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            self._out.popleft()
        return True

    def receive(self) -> Message | None:
        """The next message. None: end of file, the other side is gone.

        Raises BlockingIOError: nothing there now. MessageError: the message can't be understood; the next may be.
        """
        try:
            size = self.sock.recv_into(self._buffer)
        except ConnectionError:
            return None
        return decode(bytes(self._buffer[:size])) if size else None

    def close(self) -> None:
        self.sock.close()


def channel_pair() -> tuple[Channel, Channel]:
    """A new pair, both ends close-on-exec."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    return Channel(one), Channel(other)
