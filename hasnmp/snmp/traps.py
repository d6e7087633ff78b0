"""The notification originator (RFC 3413 section 3.3): SNMPv1, v2c and v3 traps, v2c and v3 informs, over UDP.

    TrapOutlet      nothing acknowledges a trap: what is sent counts as told, unless an ICMP error says otherwise
    InformOutlet    one inform at a time, repeated until it is acknowledged, so that they arrive in order

A receiver that is known to be away keeps its queue (outlet.py); it is tried again with growing pauses, and then gets what
it missed, in order. Messages are made by ber.py and usm.py, as the responder's are: v3 traps carry our own engine ID, boots
and time - a trap's sender is its authoritative engine - and v3 informs the receiver's (peer_engine.py).
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass

from hasnmp.model import ReceiverState
from hasnmp.settings import Receiver
from hasnmp.snmp.access import View
from hasnmp.snmp.ber import BerError
from hasnmp.snmp.notification import (
    INFORM,
    RESPONSE,
    TRAP,
    Answer,
    Notification,
    community_message,
    parse_community_answer,
    pdu,
    trap_v1,
)
from hasnmp.snmp.outlet import Figures, Hole, Item, Outlet, Surroundings
from hasnmp.snmp.peer_engine import Learned, PeerEngine
from hasnmp.snmp.usm import MAX_MESSAGE, Engine, Incoming
from hasnmp.snmp.wire_out import Sources, Wire

RETRY_MAX_S = 30.0  # a receiver that is away is tried this often at last
# An ICMP error comes within a round trip; but that an address answers to nobody's ARP is known only after three asks, a
# second apart.
REFUSED_WITHIN_S = 0.5
UNREACHABLE_WITHIN_S = 4.0
# What a receiver's socket holds at once, and what it reads: more would be lost on the receiver's side, without a word.
BURST = 32
A_SECOND = 500.0
FULL_S = 0.02  # until a full socket of ours is tried again
IDENTIFIED = 48  # octets of a returned datagram that name it: they reach into what differs from one to the next
LEARN_AT_MOST = 3  # times in a row that a receiver may ask us to begin anew


class UdpOutlet(Outlet):
    """What traps and informs share: a socket, a timer, message numbers."""

    def __init__(
        self, name: str, floor: int, view: View, figures: Figures, around: Surroundings, to: str, sources: Sources
    ) -> None:
        super().__init__(name, floor, view, figures, around)
        self._wire = Wire(to, sources, self._answered, self._refused)
        self._timer: asyncio.TimerHandle | None = None
        self._number = int.from_bytes(os.urandom(4), "big") & 0x3FFFFFFF

    def _next_number(self) -> int:
        """A request-id and msgID: 0..2**31-1 (RFC 3412 section 6.2), not used lately."""
        self._number = (self._number + 1) & 0x7FFFFFFF
        return self._number

    def _after(self, seconds: float) -> None:
        """Call _due() then, and not before."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._run_due)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run_due(self) -> None:
        self._timer = None
        self._due()

    def _due(self) -> None: ...

    def _answered(self, data: bytes) -> None: ...

    def _refused(self, returned: bytes, why: str) -> None: ...

    def close(self) -> None:
        self._stop_timer()
        self._wire.close()
        super().close()


@dataclass(slots=True)
class _Doubt:
    """A trap that was sent so lately that an error may still come back."""

    at_s: float
    item: Item
    data: bytes


class TrapOutlet(UdpOutlet):
    """engine: this agent's own, for v3."""

    def __init__(
        self, name: str, floor: int, view: View, figures: Figures, around: Surroundings, receiver: Receiver, sources: Sources,
        engine: Engine,
    ) -> None:  # fmt: skip
        super().__init__(name, floor, view, figures, around, receiver.to, sources)
        self._receiver = receiver
        self._engine = engine
        self._doubts: deque[_Doubt] = deque()
        self._tries = 0  # since it went down
        self._left = float(BURST)
        self._filled_s = 0.0
        self._settle_s = REFUSED_WITHIN_S

    def work(self) -> None:
        if self._timer is not None:
            return  # a probe is out, or a pause is on
        loop = asyncio.get_running_loop()
        while self.queue:
            now_s = loop.time()
            self._left = min(float(BURST), self._left + (now_s - self._filled_s) * A_SECOND)
            self._filled_s = now_s
            if self._left < 1:
                self._after((1 - self._left) / A_SECOND + 0.005)
                return
            if not self._send_first(now_s):
                return
            if self.state == ReceiverState.DOWN:
                self._after(self._settle_s)  # one alone, to see what comes back
                return

    def _send_first(self, now_s: float) -> bool:
        item = self.queue[0]
        notification = self.spoken(item)
        try:
            if not self._wire.is_open:
                self._wire.open()
            data = self._encode(notification)
            if data is None:
                self.failed("a notification holds a Counter64, which SNMPv1 can't carry")
                self.queue.popleft()
                self.record()
                return True
            if not self._wire.send(data):
                return False
        except BlockingIOError:
            self._after(FULL_S)
            return False
        except OSError as error:
            self._lost_touch(error.strerror or str(error))
            return False
        self.queue.popleft()
        self._left -= 1
        self.sent()
        while self._doubts and now_s - self._doubts[0].at_s > UNREACHABLE_WITHIN_S:
            self._doubts.popleft()
        self._doubts.append(_Doubt(now_s, item, data))
        if self.state != ReceiverState.DOWN:
            self.record()
        return True

    def _encode(self, notification: Notification) -> bytes | None:
        receiver = self._receiver
        if receiver.version == "1":
            old = trap_v1(notification, self._wire.address())
            return None if old is None else community_message(0, receiver.community, old)
        number = self._next_number()
        octets = pdu(TRAP, number, notification)
        if receiver.version == "2c":
            return community_message(1, receiver.community, octets)
        user = self._engine.users[receiver.user.encode()]
        return self._engine.send(Incoming(number, MAX_MESSAGE, False, user.level, user), octets, user.level)

    def _due(self) -> None:
        """A pause is over; or a probe's, and nothing was said against it."""
        if self.state == ReceiverState.DOWN and self._doubts:
            self._doubts.clear()
            self._tries = 0
            self.up(ReceiverState.UNKNOWN)
            self.record()
        self.work()

    def _refused(self, returned: bytes, why: str) -> None:
        """An ICMP error. What was sent after the datagram that it is about was not received either."""
        loop = asyncio.get_running_loop()
        doubts = [d for d in self._doubts if loop.time() - d.at_s <= UNREACHABLE_WITHIN_S]
        self._doubts.clear()
        first = 0
        if len(returned) >= IDENTIFIED:
            same = (at for at, d in enumerate(doubts) if d.data[: len(returned)] == returned[: len(d.data)])
            first = next(same, len(doubts))
        if first == len(doubts):
            self._doubts.extend(doubts)
            return
        for doubt in reversed(doubts[first:]):
            front = self.queue[0] if self.queue else None
            if isinstance(doubt.item, Hole) and isinstance(front, Hole):
                front.count += doubt.item.count
            else:
                self.queue.appendleft(doubt.item)
        self._bound()
        self._settle_s = REFUSED_WITHIN_S if why.startswith("refused") else UNREACHABLE_WITHIN_S
        self._lost_touch(why)

    def _lost_touch(self, why: str) -> None:
        pause_s = min(2.0**self._tries, RETRY_MAX_S)
        self._tries += 1
        self._doubts.clear()
        self.failed(why)
        self.down(why, pause_s)
        self.record()
        self._wire.close()  # the way to it, and so our own address, may be another next time
        self._after(pause_s)

    def close(self) -> None:
        """Nobody takes up what is sent by now: the pace is of no use any more."""
        if self.state != ReceiverState.DOWN:
            self._stop_timer()
            self._left = float(len(self.queue) + BURST)
            now_s = asyncio.get_running_loop().time()
            while self.queue and self._send_first(now_s):
                pass
        elif self._doubts:
            for doubt in reversed(self._doubts):
                self.queue.appendleft(doubt.item)
        super().close()


@dataclass(slots=True)
class _Inform:
    """What is being sent, word for word, however often: a receiver knows a repetition by its request-id. told: how many
    dropped ones it tells of; a Hole may grow while its first answer is awaited. times: it was sent."""

    item: Item
    request_id: int
    octets: bytes
    told: int
    times: int = 0


class InformOutlet(UdpOutlet):
    """peer: the receiver's engine, for v3; None for v2c."""

    def __init__(
        self, name: str, floor: int, view: View, figures: Figures, around: Surroundings, receiver: Receiver, sources: Sources,
        peer: PeerEngine | None,
    ) -> None:  # fmt: skip
        super().__init__(name, floor, view, figures, around, receiver.to, sources)
        self._receiver = receiver
        self._peer = peer
        self._tries = 0  # of what is first in the queue; it goes on while the receiver is away
        self._learned = 0  # since the last timer
        self._trouble = ""  # what was last heard against this try
        self._inform: _Inform | None = None
        self._asked: dict[int, None] = {}  # the msgIDs that answers to it may bear, the oldest first

    def work(self) -> None:
        if self._timer is None and self.queue:
            self._tries = 0
            self._try()

    def _try(self) -> None:
        self._learned = 0
        self._trouble = ""
        self._transmit()
        self._after(min(self._receiver.timeout_ms / 1000 * 2**self._tries, RETRY_MAX_S))

    def _first(self) -> _Inform:
        """The PDU of what is first in the queue, the same at each try (RFC 3413 section 3.3: it is sent again)."""
        item = self.queue[0]
        if self._inform is None or self._inform.item is not item:
            number = self._next_number()
            told = item.count if isinstance(item, Hole) else 0
            self._inform = _Inform(item, number, pdu(INFORM, number, self.spoken(item)), told)
            self._asked.clear()
        return self._inform

    def _transmit(self) -> None:
        inform = self._first()
        try:
            if not self._wire.is_open:
                self._wire.open()
            if self._peer is None:
                data = community_message(1, self._receiver.community, inform.octets)
            else:
                # Each message has a msgID of its own, a repetition too (RFC 3412 section 6.2), and the time of now.
                number = self._next_number()
                known = self._peer.known
                data = self._peer.message(number, inform.octets) if known else self._peer.discovery(number)
                self._asked[number] = None
                while len(self._asked) > 64:
                    del self._asked[next(iter(self._asked))]
            if self._peer is None or known:
                self.sent(again=inform.times > 0)
                inform.times += 1
            self._wire.send(data)
        except BlockingIOError:
            self._trouble = "the socket was full"
        except OSError as error:
            self._trouble = error.strerror or str(error)

    def _due(self) -> None:
        if not self.queue:
            return
        waited_s = min(self._receiver.timeout_ms / 1000 * 2**self._tries, RETRY_MAX_S)
        why = self._trouble or f"no answer within {waited_s:g} s"
        self.failed(why)
        if self._tries < 30:  # beyond it the pause does not grow any more
            self._tries += 1
        if self._tries > self._receiver.retries:
            self.down(why, min(self._receiver.timeout_ms / 1000 * 2**self._tries, RETRY_MAX_S))
            self._wire.close()  # the way to it, and so our own address, may be another by now
        self._try()

    def _refused(self, returned: bytes, why: str) -> None:
        self._trouble = why

    def _answered(self, data: bytes) -> None:
        if self._inform is None:
            return
        try:
            if self._peer is None:
                answer: Answer | Learned | str = parse_community_answer(data)
            else:
                number, answer = self._peer.take(data, self._asked)
                if number not in self._asked:
                    return  # a late answer to what is over
        except BerError as error:
            self._trouble = f"an answer that is not believed: {error}"
            return
        match answer:
            case Learned():
                self._learned += 1
                if self._learned <= LEARN_AT_MOST and self.queue:
                    self._transmit()
            case str():
                self._trouble = answer
                if self._peer is not None and answer.endswith("unknown to it"):
                    self._peer.forget()
            case Answer(tag=tag, number=request_id, status=status):
                if tag != RESPONSE or request_id != self._inform.request_id:
                    return
                if status:
                    self._trouble = f"it answers with error-status {status}"
                else:
                    self._acknowledged(self._inform)

    def _acknowledged(self, inform: _Inform) -> None:
        self._inform = None
        self._asked.clear()
        self._stop_timer()
        self.figures.add("acknowledged")
        self.figures.last_acknowledged_ns = self._around.now_ns()
        self.up(ReceiverState.UP)
        item = inform.item
        if self.queue and self.queue[0] is item:
            if isinstance(item, Hole) and item.count > inform.told:
                item.count -= inform.told
            else:
                self.queue.popleft()
        self.record()
        self.work()
