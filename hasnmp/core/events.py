"""What goes into the engine's step and what comes out: every event and every effect, and nothing else.

    effects = engine.step(event, now_ns)

now_ns is CLOCK_BOOTTIME read *before* the step. Effects are executed in order. A slow effect carries an `attempt` and
comes back as an event that bears the same number; a late answer is expected, never an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hasnmp.model import AlarmRow, CommandRow, EventRow, Verb
from hasnmp.wire import Datagram, Slot

# ---------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as the guardian holds it; until_ns is the expiry that it acknowledged."""

    group: str
    token: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """A service that the guardian still runs from before this engine's start (or an address, a file system, it holds)."""

    service: str
    pid: int  # 0: an address, a file system
    since_ns: int


@dataclass(frozen=True, slots=True)
class Started:
    """The first event, exactly once.

    durable: the document of the last Persist that reached the disk, None if there is none. leases and adopted come
    from the guardian. cleaned: what the guardian found running without a lease at its own start, and ended.
    watchdog_ms: the hardware watchdog is armed with this time; 0 = there is none. watchdog_error: why it could not be armed.
    unclean: groups of which the guardian could not end everything yet; Released(group, 0, True) follows when it has.
    unbound: groups whose lease ran out with the former engine, all of them ended since: it promised them to nobody.
    reloaded: what is new in the configuration since the former engine, in words; "" = nothing. reload_command: the command
    that asked for it, 0 = none. replaced: the guardian ended the former engine itself, for this is of another version.
    random: 64 random bits; the engine's only source of jitter. incarnation: 64 random bits.
    """

    incarnation: int
    holder: str  # 16 hex digits
    boot_id: str
    random: int
    wall_ms: int
    leases: tuple[HeldLease, ...] = ()
    adopted: tuple[Adopted, ...] = ()
    cleaned: tuple[str, ...] = ()
    watchdog_ms: int = 0
    watchdog_error: str = ""
    unclean: tuple[str, ...] = ()
    unbound: tuple[str, ...] = ()
    reloaded: str = ""
    reload_command: int = 0
    replaced: bool = False
    durable: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """next_deadline_ns() has passed (or nothing has: it is always allowed). wall_ms: Unix time now."""

    wall_ms: int
    late_us: int = (
        0  # of the timer that this comes from, as its owner saw it: what came before may have moved the deadline
    )


@dataclass(frozen=True, slots=True)
class Received:
    """A datagram whose signature, cluster, sender, receiver and source address are good."""

    link: str
    datagram: Datagram


@dataclass(frozen=True, slots=True)
class Rejected:
    """Datagrams that wire or links refused; reason as in StatisticsRow: malformed foreign signature version.

    count: how many, for links reports a flood in batches. peer, text: of `version`, whose signature was good, and what
    versions it speaks; "" otherwise.
    """

    link: str
    reason: str
    count: int = 1
    peer: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """The answer to Send(receipt=True): at_ns is the clock read *after* the last copy was handed to the kernel."""

    seq: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Extended:
    """The guardian took over these expiries (Extend), or refused them (ok False: it is already ending the group)."""

    leases: tuple[HeldLease, ...]
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Released:
    """The guardian confirms: nothing of the group runs here and its lease is forgotten (ok), or what is left (not ok)."""

    group: str
    token: int
    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class ArbiterAnswer:
    """What came of an ArbiterCall. slots: node -> its slot, or the reason (str) why that slot can't be used.

    read_at_ns: the clock read after the last read. error: "" or why the whole call failed (then slots is empty).
    """

    attempt: int
    group: str
    read_at_ns: int
    slots: dict[str, Slot | str] = field(default_factory=dict)
    error: str = ""
    uuid: str = ""
    took_us: int = 0


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"  # said no, or died
    TIMED_OUT = "timed out"
    MISSING = "not installed"  # the program is not there or can't be executed
    NOT_RUNNING = "not running"  # a check found a cleanly stopped service
    REFUSED = "refused"  # the guardian has no live lease for the group, or the effect came too late


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What came of Act(attempt). took_us: how long it took. pid: of a started program, else 0. killed: which processes that are
    none of the service's had to be killed for it."""

    attempt: int
    service: str
    outcome: Outcome
    message: str = ""
    took_us: int = 0
    pid: int = 0
    killed: str = ""


class FenceAction(StrEnum):
    FENCE = "fence"  # off, verified by status; then on again if the level says so
    TEST = "test"  # status only: does the device answer?


@dataclass(frozen=True, slots=True)
class Fenced:
    """What came of Fence(attempt). ok: verified, within the time limit; a late or unclear end is none."""

    attempt: int
    node: str
    level: int
    action: FenceAction
    ok: bool
    text: str = ""
    took_us: int = 0


@dataclass(frozen=True, slots=True)
class ServiceExited:
    """A program that the guardian runs ended by itself."""

    service: str
    pid: int
    message: str  # "exit status 1; last output: ..."


@dataclass(frozen=True, slots=True)
class CommandIn:
    """A command from the control socket (an operator, the snmp agent). reply is handed back in Reply."""

    reply: int
    verb: Verb
    target: str
    requester: str
    to: str = ""
    reason: str = ""
    address: str = ""
    wall_ms: int = 0
    document: str = field(default="", repr=False)  # Verb.APPLY: the file, compressed, as text
    up: bool = True  # Verb.REPORT: the service is up
    message: str = ""  # Verb.REPORT; Verb.SET: why it was refused
    code: int = 0  # Verb.SET: the same as a number


@dataclass(frozen=True, slots=True)
class Persisted:
    """The document of Persist(version) is on the disk (ok), or could not be written, and why."""

    version: int
    ok: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True)
class Retire:
    """A new configuration waits. Stop what it does not have any more, or has otherwise, under the present one: these
    services, and these groups whole. Keep every lease, touch nothing else, and Exit(retired); or GiveUp.

    command: whose outcome it is, 0 = nobody's (SIGHUP). keys: fingerprints of the new keys, the first signs; () = they are
    those of now. stop_ms: how long the stops may take.
    """

    command: int
    services: tuple[str, ...]
    groups: tuple[str, ...]
    keys: tuple[str, ...]
    stop_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """A reload came to its end while this engine runs on: refused or failed, or (code DONE) there was nothing to do."""

    command: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Staged:
    """What this node's loader thinks of Stage(ident): code DONE, or the first fault in `text`."""

    ident: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class HookEnded:
    """What came of Hook(attempt): all have ended, or a required one failed and the rest was not run (stopped). attempt 0: of
    programs that only tell of an event, which nobody waited for. failures: a text each, of those that failed."""

    attempt: int
    group: str
    on: str
    failures: tuple[str, ...] = ()
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Troubled:
    """A process of this node's stack hangs, or dies again and again, by its guardian's word; text "": it works (again)."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """SIGTERM: move the groups away, leave in order, then Exit."""


Event = (
    Started
    | Tick
    | Received
    | Rejected
    | Sent
    | Extended
    | Released
    | ArbiterAnswer
    | AgentResult
    | Fenced
    | ServiceExited
    | CommandIn
    | Persisted
    | Retire
    | ReloadEnded
    | Staged
    | HookEnded
    | Troubled
    | Shutdown
)

# --------------------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send the datagram to its receiver: over one link, or over every link that both nodes have (link "").

    receipt: come back with Sent as soon as the last copy went to the kernel.
    """

    datagram: Datagram
    link: str = ""
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class Extend:
    """Tell the guardian the expiries of these leases; it answers with Extended. A new lease is told the same way."""

    leases: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Tell the guardian that the group is stopped and its lease given up; it verifies and answers with Released."""

    group: str
    token: int


@dataclass(frozen=True, slots=True)
class ArbiterCall:
    """Write `slot` into this node's own place (None: write nothing), *then* read every node's slot of the group.

    not_after_ns: the write must not be started after this. At most one call a group is under way; the lease i/o
    process answers each one, with an error after io_timeout_ms, and then answers `busy` until the I/O has returned.
    """

    attempt: int
    group: str
    slot: Slot | None
    not_after_ns: int


class Action(StrEnum):
    START = "start"
    STOP = "stop"
    CHECK = "check"


@dataclass(frozen=True, slots=True)
class Act:
    """Have the service's agent do something within timeout_ms; comes back as AgentResult.

    START and STOP of one service never overlap. A START without a live lease of the group is refused by the guardian.
    CHECK of a group that this node does not own asks only for what can be known without running it (an address:
    carrier and `reach:`), so that a node knows beforehand whether it is able to take the group.
    """

    attempt: int
    service: str
    action: Action
    timeout_ms: int
    owned: bool = True


@dataclass(frozen=True, slots=True)
class Fence:
    """Use one fence level (its index in NodeSettings.fence, from 0) of a node; comes back as Fenced within timeout_ms."""

    attempt: int
    node: str
    level: int
    action: FenceAction
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Hook:
    """Run the configuration's hooks of this kind for the group, in order; comes back as HookEnded. before_start and
    before_stop run as part of the group, by its lease; after_stop belongs to no group any more."""

    attempt: int
    group: str
    on: str
    reason: str = ""  # why the group is stopped, or was
    text: str = ""
    to: str = ""  # which node is to have it, "" = none is known


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the document durable; only the newest matters. Comes back as Persisted."""

    version: int
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Notify:
    """Something happened: the trap, the log line, the event row and the console message, all in one."""

    event: EventRow
    raised: AlarmRow | None = None
    cleared: str = ""  # the alarm key that ends


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a CommandIn: accepted (the row's state says what follows) or refused."""

    reply: int
    command: CommandRow


@dataclass(frozen=True, slots=True)
class Exit:
    """The engine ends. In order: everything is stopped and released. By force: the guardian does not act on a lease that
    is over, so the engine itself is to end every group at once (kill, addresses off) before it exits. Retired: what a new
    configuration has otherwise is stopped, and the next engine goes on with the rest."""

    text: str
    force: bool = False
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Reload:
    """Have the configuration read anew for this command; Retire or ReloadEnded follows."""

    command: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Have a file judged that is not yet any node's configuration, and keep it; Staged follows."""

    ident: str
    document: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Adopt:
    """Write the staged file in place of the configuration, and reload it for this command; as after Reload."""

    ident: str
    command: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Every node has the file by which this one goes: groups' nodes are as it says (config_changes.settled); as after Adopt."""

    command: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The reload for which Retire came is not carried out: the new configuration is to be forgotten."""

    text: str


Effect = (
    Send
    | Extend
    | Release
    | ArbiterCall
    | Act
    | Fence
    | Hook
    | Persist
    | Notify
    | Reply
    | Exit
    | Reload
    | GiveUp
    | Stage
    | Adopt
    | Forward
)
