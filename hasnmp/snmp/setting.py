"""SETs, one at a time: tested as a whole, then done or undone as a whole (RFC 3416 section 4.2.5).

    take(request, done)      a message's SET: queued, answered when the engine has
    test(assignments)        what it would do; nothing is changed        } for whoever has phases
    await commit(tested...)  do it; what can't be done is undone         } of their own

Commands that can be taken back (inhibit, freeze) go to the engine before those that can't, so that a refusal of
one leaves nothing of the others, where that is possible at all.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from hasnmp.model import CommandRow, CommandState, GroupRow, SystemRow, Verb
from hasnmp.snmp import sets, standard
from hasnmp.snmp.access import Principal
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.objects import Reader
from hasnmp.snmp.sets import Assignment, SetError

SET_TIMEOUT_S = 0.9  # below the second after which managers repeat a request
SETS_WAITING = 16
REPEAT_S = (
    5.0  # a SET that comes again within this, word for word and by its number, is the same one: its answer was lost
)
REMEMBERED = 256  # SETs whose answer is kept for that
ANSWERS = 4  # at most, to the repetitions of a SET that waits

# error-status, error-index, and whether this answers a repetition, which is no SET of its own.
Done = Callable[[int, int, bool], None]
Command = dict[str, Any]
# A command, who asks, from where, and how many seconds there are. The engine's row; why there is none, as text; None: no
# engine is there to be asked.
Send = Callable[[Command, str, str, float], Awaitable[CommandRow | str | None]]


@dataclass(frozen=True, slots=True)
class SetRequest:
    """A SET that passed the access check. identity: where from, who, request-id, and the variables as octets: equal for a
    manager's retransmissions of one request."""

    assignments: list[Assignment]
    principal: Principal
    host: str
    identity: tuple[str, str, int, bytes]


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a SET. undo: the command that takes it back; {}: nothing to take back; None: it can't be."""

    position: int
    command: Command
    undo: Command | None


@dataclass(frozen=True, slots=True)
class Tested:
    """A SET that passed its tests. spin_lock, serial: what these objects are afterwards; None: as they were."""

    steps: list[Step]
    spin_lock: int | None
    serial: int | None


class Setting:
    """changed: told when an object of the agent's own has another value now. spin_lock: haActionSpinLock."""

    def __init__(
        self, identity: standard.Identity, reader: Callable[[], Reader], send: Send, changed: Callable[[], None]
    ) -> None:
        self._identity = identity
        self._reader = reader
        self._send = send
        self._changed = changed
        self._log = structlog.get_logger().bind(process="snmp", node=identity.node)
        # Another value at each start, so that nobody's value of before is good again (RFC 2579 section 2, TestAndIncr).
        self.spin_lock = int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF
        self._waiting: deque[tuple[SetRequest, list[Done]]] = deque()
        self._arrived = asyncio.Event()
        # where from, who, request-id -> the variables, error-status, error-index, and when; the oldest first
        self._answered: dict[tuple[str, str, int], tuple[bytes, int, int, float]] = {}

    def take(self, request: SetRequest, done: Done) -> None:
        """Queue a SET: one at a time, so that two can't pass the same spin lock."""
        for waiting, repeated in self._waiting:
            if waiting.identity == request.identity:
                # A manager that repeats itself while the engine thinks. Each is answered: in SNMPv3 a repetition has a
                # msgID of its own, and some managers know the newest only.
                if len(repeated) >= ANSWERS:
                    del repeated[1]
                repeated.append(done)
                return
        words, status, index, at_s = self._answered.get(request.identity[:3], (None, 0, 0, 0.0))
        if words == request.identity[3] and time.monotonic() - at_s < REPEAT_S:
            # A failover done twice would be a failover back.
            done(status, index, True)
            return
        if len(self._waiting) >= SETS_WAITING:
            done(ErrorStatus.RESOURCE_UNAVAILABLE, 1 if request.assignments else 0, False)
            return
        self._waiting.append((request, [done]))
        self._arrived.set()

    async def serve(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                request, answers = self._waiting[0]
                status, index = await self._judge(request)
                self._waiting.popleft()
                self._remember(request, status, index)
                for number, done in enumerate(answers):
                    done(status, index, number > 0)

    def _remember(self, request: SetRequest, status: int, index: int) -> None:
        """By its number: other words under the same one say that the manager counts anew, and the old words are a new SET."""
        key, words, now_s = request.identity[:3], request.identity[3], time.monotonic()
        self._answered.pop(key, None)
        self._answered[key] = (words, status, index, now_s)
        while len(self._answered) > REMEMBERED or now_s - next(iter(self._answered.values()))[3] > REPEAT_S:
            del self._answered[next(iter(self._answered))]

    async def _judge(self, request: SetRequest) -> tuple[int, int]:
        try:
            return await self.commit(self.test(request.assignments), request.principal.tag, request.host)
        except SetError as refused:
            self._log.info("set_refused", requester=request.principal.tag, reason=str(refused))
            return int(refused.status), refused.position
        except Exception as error:
            self._log.error("set_failed", error=repr(error))
            return ErrorStatus.GEN_ERR, 1

    def test(self, assignments: list[Assignment]) -> Tested:
        """Everything that can be tested, and nothing done. Raises SetError."""
        reader = self._reader()
        serial: int | None = None
        ours: list[Assignment] = []
        positions: list[int] = []
        for position, assignment in enumerate(assignments, 1):
            if assignment.target.name == "snmpSetSerialNo":
                if assignment.index != (0,):
                    raise SetError(position, ErrorStatus.NO_CREATION, "snmpSetSerialNo has the one instance .0")
                if serial is not None:
                    raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, "snmpSetSerialNo stands twice")
                serial = standard.check_serial(self._identity, assignment, position)
            else:
                ours.append(assignment)
                positions.append(position)
        try:
            plan = sets.plan(reader, ours)
        except SetError as refused:
            raise SetError(positions[refused.position - 1], refused.status, refused.text) from None
        steps = [
            Step(positions[at - 1], command, _undo(reader, command))
            for at, command in zip(plan.positions, plan.commands, strict=True)
        ]
        steps.sort(key=lambda step: step.undo is None)
        return Tested(steps, plan.spin_lock if plan.spin_lock != self.spin_lock else None, serial)

    async def commit(self, tested: Tested, requester: str, host: str) -> tuple[int, int]:
        """Have the engine do it. Returns error-status and error-index."""
        deadline = time.monotonic() + SET_TIMEOUT_S
        done: list[Step] = []
        for step in tested.steps:
            left_s = deadline - time.monotonic()
            sent = left_s > 0  # a command whose answer nobody would wait for is not begun
            answer = await self._send(step.command, requester, host, left_s) if sent else "no time was left for it"
            if isinstance(answer, CommandRow) and answer.state != CommandState.REFUSED:
                done.append(step)
                continue
            self._log.info("command_not_accepted", command=step.command, answer=str(answer))
            if sent and isinstance(answer, str) and len(tested.steps) > 1:
                done.append(step)  # it may happen yet; the engine takes commands in order, so this one's undo after it
            if done:
                undone = await self._take_back(done, requester, host)
                return (ErrorStatus.COMMIT_FAILED, step.position) if undone else (ErrorStatus.UNDO_FAILED, 0)
            if isinstance(answer, CommandRow):
                return ErrorStatus.INCONSISTENT_VALUE, step.position
            return (ErrorStatus.RESOURCE_UNAVAILABLE if answer is None else ErrorStatus.GEN_ERR), step.position
        if tested.serial is not None:
            self._identity.serial = tested.serial
        if tested.spin_lock is not None:
            self.spin_lock = tested.spin_lock
            self._changed()
        return ErrorStatus.NO_ERROR, 0

    async def take_back(self, tested: Tested, requester: str, host: str) -> bool:
        """Undo what commit() did. False: something stays done."""
        if not await self._take_back(tested.steps, requester, host):
            return False
        # Unless somebody else has gone on from there meanwhile.
        if tested.spin_lock is not None and self.spin_lock == tested.spin_lock:
            self.spin_lock = tested.spin_lock - 1 & 0x7FFFFFFF
            self._changed()
        if tested.serial is not None and self._identity.serial == tested.serial:
            self._identity.serial = tested.serial - 1 & 0x7FFFFFFF
        return True

    async def _take_back(self, done: list[Step], requester: str, host: str) -> bool:
        """Undo in the opposite order. False: something stays done."""
        deadline = time.monotonic() + SET_TIMEOUT_S
        complete = True
        for step in reversed(done):
            if step.undo is None:
                complete = False
            elif step.undo:
                answer = await self._send(step.undo, requester, host, deadline - time.monotonic())
                complete &= isinstance(answer, CommandRow) and answer.state != CommandState.REFUSED
        if not complete:
            self._log.error("set_not_undone", commands=[step.command for step in done], requester=requester)
        return complete


_OPPOSITE = {
    Verb.INHIBIT: Verb.PERMIT, Verb.PERMIT: Verb.INHIBIT, Verb.FREEZE: Verb.THAW, Verb.THAW: Verb.FREEZE,
}  # fmt: skip


def _undo(reader: Reader, command: Command) -> Command | None:
    """What takes a command back: a register gets the value that it has now."""
    verb, target = Verb(command["verb"]), str(command["target"])
    if verb not in _OPPOSITE:
        return None
    match reader.view.tables["groups" if target else "system"].get(target):
        case GroupRow() as row:
            now = row.frozen if verb in (Verb.FREEZE, Verb.THAW) else row.inhibited
        case SystemRow() as row:
            now = row.inhibited
        case _:
            return None
    if now == (verb in (Verb.INHIBIT, Verb.FREEZE)):
        return {}
    return {**command, "verb": int(_OPPOSITE[verb]), "reason": "another part of the same SET was refused"}
