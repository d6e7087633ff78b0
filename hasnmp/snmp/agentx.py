"""A subagent of the host's SNMP master agent (RFC 2741): its session, kept up for as long as the agent runs.

    subagent = Subagent(...)
    await subagent.run()     connects, opens, registers; when the master goes away, does it again
    subagent.wake()          there is a notification: it is fetched from `notices` when it can be sent

Nothing here waits for the master but run() itself. Writes never block: what the socket does not take is kept, and while more
than MAX_WAITING octets are kept no further request is read, so a master that stops reading costs a buffer and no more. One
notification is on its way at a time, the others wait in `notices`; everything that we ask has a time limit, after which the
connection is given up and made anew.

Who may ask is the master's business: AgentX names no principal, so a SET is one by "agentx" (agentx_part.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hasnmp.snmp import agentx_pdu as pdu
from hasnmp.snmp import ber
from hasnmp.snmp.agentx_lookup import Lookup, LookupFailed
from hasnmp.snmp.agentx_pdu import AgentxError, Header, Kind, Reason, write_octets
from hasnmp.snmp.agentx_sets import Sets, Transactions
from hasnmp.snmp.ber import Oid
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.listener import split_address
from hasnmp.snmp.objects import Syntax, Value

READ_SIZE = 65536
PDUS_A_WAKE = 16  # then the loop's other work has its turn
MAX_WAITING = 256 << 10  # octets that the master has not taken yet
BUSY_TRIES = 3  # of one notification that the master answers with processingError
TIMEOUT_S = 3  # how long the master may wait for our answers (o.timeout): a SET takes the engine up to 0.9 s
PRIORITY = 127  # the default of section 6.2.3

Variable = tuple[Oid, Syntax, Value]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. answer: for whatever we ask; ping: of silence, before we ask whether the master is there; retry: before
    each further attempt, the last one for all that follow."""

    answer: float = 10.0
    ping: float = 15.0
    retry: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Lost(Exception):
    """The session is over, and why."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification. at_ns: CLOCK_BOOTTIME when it happened."""

    trap_oid: Oid
    at_ns: int
    variables: list[Variable]


class Notices(Protocol):
    """Where notifications wait, in order."""

    def first(self) -> Notice | None:
        """The one to send now; None: there is none."""

    def done(self, refused: str) -> None:
        """The master has the first one, or has refused it and would refuse it again: why."""

    def connected(self, reason: str) -> None:
        """The session is open ("", and it is ready), or why it is not any more."""


def connect_to(address: str) -> tuple[socket.socket, Any]:
    """A non-blocking socket for a master's address, and what to connect it to: a path, or tcp:ADDRESS:PORT."""
    if address.startswith("tcp:"):
        host, port = split_address(address.removeprefix("tcp:"))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), (host, port)
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), address


class Subagent:
    """address: of the configuration. root: the region that is ours, described by `capability`. sets: who carries
    SETs out. uptime: told the master's sysUpTime, in TimeTicks, whenever the master says it. boot_ns: CLOCK_BOOTTIME when
    that was 0."""

    def __init__(
        self,
        address: str,
        name: str,
        root: Oid,
        capability: tuple[ber.Oid, bytes],
        lookup: Lookup,
        sets: Sets,
        uptime: Callable[[int], None],
        boot_ns: Callable[[], int],
        notices: Notices,
        log: Any,
        times: Times = Times(),
    ) -> None:
        self._address = address
        self._name = name
        self._root = pdu.packed(root)
        self._capability = capability
        self._lookup = lookup
        self._uptime = uptime
        self._boot_ns = boot_ns
        self._notices = notices
        self._log = log
        self._times = times

        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session = 0
        self._proven = False  # has this session taken more than its making?
        self._over = ""  # why this connection is of no more use
        self._input = b""
        self._more = False  # PDUs of what was read already wait for the loop's other work
        self._output = bytearray()
        self._writing = False
        self._reading = False
        self._packets = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._transactions = Transactions(sets, self._send, log)
        self._something = asyncio.Event()

    def wake(self) -> None:
        """There may be something in `notices`."""
        self._something.set()

    # ------------------------------------------------------------------------------------------------- its session

    async def run(self) -> None:
        """Until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        failures = 0
        told: set[str] = set()  # one line for each reason of an outage, not for each attempt
        try:
            while True:
                opened = False
                try:
                    await self._connect()
                    await self._open()
                    self._log.info("agentx_registered", master=self._address, session=self._session)
                    self._notices.connected("")
                    opened = True
                    await self._attend()
                except (OSError, Lost) as error:
                    # (A master that opens sessions and then knows nothing of them is not asked faster and faster.)
                    if opened and (self._proven or not isinstance(error, Refused)):
                        failures = 0
                        told.clear()
                    wait_s = self._times.retry[min(failures, len(self._times.retry) - 1)]
                    failures += 1
                    reason = str(error) or repr(error)
                    self._notices.connected(reason)
                    if reason not in told:
                        told.add(reason)
                        self._log.warning("agentx_master_lost", master=self._address, reason=reason, retry_s=wait_s)
                finally:
                    self._disconnect()
                await asyncio.sleep(wait_s)
        finally:
            self._disconnect()

    async def _connect(self) -> None:
        assert self._loop is not None
        sock, target = connect_to(self._address)
        self._socket = sock
        if sock.family == socket.AF_UNIX:
            # A Unix socket connects at once or not at all. (The loop's own way takes a full backlog, which is EAGAIN, for
            # a connection that is being made.)
            sock.connect(target)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._times.answer):
                await self._loop.sock_connect(sock, target)
        self._over, self._input, self._more, self._proven = "", b"", False, False
        self._output.clear()
        self._loop.add_reader(sock.fileno(), self._readable)
        self._reading = True

    async def _open(self) -> None:
        order = pdu.BIG
        payload = (
            bytes((TIMEOUT_S, 0, 0, 0)) + pdu.write_name(self._root, order) + write_octets(self._name.encode(), order)
        )
        await self._ask("Open", Kind.OPEN, payload)
        payload = bytes((0, PRIORITY, 0, 0)) + pdu.write_name(self._root, order)
        await self._ask("Register", Kind.REGISTER, payload)
        oid, text = self._capability
        payload = pdu.write_name(pdu.packed(oid), order) + write_octets(text, order)
        try:
            await self._ask("AddAgentCaps", Kind.ADD_CAPABILITIES, payload)
        except Refused as refused:  # only a row of sysORTable is missing then
            self._log.warning("agentx_capabilities_refused", reason=str(refused))

    async def _attend(self) -> None:
        """What we have to say to the master, until it is lost."""
        while True:
            self._something.clear()
            if self._over:
                raise Lost(self._over)
            notice = self._notices.first()
            if notice is not None:
                await self._tell(notice)
                self._proven = True
                continue
            try:
                # (Not wait_for: in Python 3.11 that forgets a cancellation which comes together with its result.)
                async with asyncio.timeout(self._times.ping):
                    await self._something.wait()
            except TimeoutError:
                await self._ask("Ping", Kind.PING, b"")
                self._proven = True

    async def _tell(self, notice: Notice) -> None:
        """Send the oldest notification; it is done when the master has it, or has refused it.

        notOpen says nothing of the notification: the session is gone, and is made anew. processingError (RFC 2741 section
        6.2.16) may be one of the moment, or one that comes again each time: it is tried BUSY_TRIES times, not for ever.
        Raises: Lost.
        """
        refused = ""
        for attempt in range(BUSY_TRIES):
            try:
                await self._ask("Notify", Kind.NOTIFY, self._notify_payload(notice))
            except (Refused, ber.BerError) as error:
                code = error.error if isinstance(error, Refused) else 0
                if code == pdu.Error.NOT_OPEN:
                    raise
                if code == pdu.Error.PROCESSING and attempt < BUSY_TRIES - 1:
                    await asyncio.sleep(self._times.retry[min(attempt, len(self._times.retry) - 1)])
                    continue
                refused = str(error)
                self._log.error("agentx_notification_refused", trap=notice.trap_oid, reason=refused)
            break
        self._notices.done(refused)

    def _notify_payload(self, notice: Notice) -> bytes:
        """Section 6.2.10: sysUpTime.0, snmpTrapOID.0, and the variables. sysUpTime is the master's, as it was when this
        happened: it may have waited here."""
        order = pdu.BIG
        ticks = max(0, notice.at_ns - self._boot_ns()) // 10_000_000 % (1 << 32)
        variables: list[tuple[Oid, int, Value]] = [
            ((1, 3, 6, 1, 2, 1, 1, 3, 0), Syntax.TIMETICKS, ticks),
            ((1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0), Syntax.OID, notice.trap_oid),
            *notice.variables,
        ]
        return b"".join(
            pdu.write_binding(pdu.packed(oid), tag, pdu.write_value(tag, value, order), order)
            for oid, tag, value in variables
        )

    async def _ask(self, what: str, kind: Kind, payload: bytes) -> None:
        """Send a PDU of ours and wait for its Response. Raises: Refused, Lost."""
        assert self._loop is not None
        if self._over:
            raise Lost(self._over)
        packet = next(self._packets) & 0xFFFFFFFF
        future: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        self._asked[packet] = future
        self._send(pdu.write_pdu(kind, self._session, 0, packet, payload))
        try:
            async with asyncio.timeout(self._times.answer):
                error, session = await future
        except TimeoutError:
            self._send(self._close_pdu(Reason.TIMEOUTS))
            raise Lost(f"no answer to {what} within {self._times.answer:g} s; is the master stopped?") from None
        finally:
            del self._asked[packet]
        if error:
            raise Refused(what, error)
        if kind == Kind.OPEN:
            self._session = session

    def _close_pdu(self, reason: Reason) -> bytes:
        return pdu.write_pdu(Kind.CLOSE, self._session, 0, next(self._packets) & 0xFFFFFFFF, bytes((reason, 0, 0, 0)))

    def _disconnect(self) -> None:
        """Leave in order where the master is there to hear it."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        assert self._loop is not None
        if self._session and not self._over and not self._output:
            with contextlib.suppress(OSError):
                sock.send(self._close_pdu(Reason.SHUTDOWN))
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        self._reading = self._writing = False
        sock.close()
        self._session = 0
        self._output.clear()
        self._transactions.clear()

    def _lose(self, why: str) -> None:
        """This connection is of no more use: run() will make another."""
        if self._over:
            return
        self._over = why
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Lost(why))
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._reading = self._writing = False
        self._something.set()

    # -------------------------------------------------------------------------------------------------- its octets

    def _send(self, octets: bytes) -> None:
        """Write what the socket takes now and keep the rest."""
        if self._over or self._socket is None:
            return
        if self._output:
            self._output += octets
        else:
            try:
                sent = self._socket.send(octets)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lose(f"write: {error}")
                return
            if sent < len(octets):
                self._output += octets[sent:]
        self._arrange()

    def _arrange(self) -> None:
        """Wait for what there is to wait for."""
        sock, loop = self._socket, self._loop
        assert sock is not None and loop is not None
        writing, reading = bool(self._output), len(self._output) <= MAX_WAITING
        if writing != self._writing:
            self._writing = writing
            if writing:
                loop.add_writer(sock.fileno(), self._writable)
            else:
                loop.remove_writer(sock.fileno())
        if reading != self._reading:
            self._reading = reading
            if reading:
                loop.add_reader(sock.fileno(), self._readable)
                self._more = True
                loop.call_soon(self._take)
            else:
                loop.remove_reader(sock.fileno())

    def _writable(self) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(self._output)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"write: {error}")
            return
        del self._output[:sent]
        self._arrange()

    def _readable(self) -> None:
        assert self._socket is not None
        if self._more:
            return
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"read: {error}")
            return
        if not data:
            self._lose("the master closed the connection")
            return
        self._input = self._input + data if self._input else data
        self._take()

    def _take(self) -> None:
        """The PDUs that are complete, a few at a time."""
        self._more = False
        if self._over or self._socket is None:
            return
        data, pos = self._input, 0
        try:
            for _ in range(PDUS_A_WAKE):
                if len(data) - pos < pdu.HEADER:
                    break
                header = pdu.parse_header(data, pos)
                start, end = pos + pdu.HEADER, pos + pdu.HEADER + header.size
                if end > len(data):
                    break
                pos = end
                self._handle(header, data, start, end)
                if self._over or not self._reading:
                    break
            else:
                assert self._loop is not None
                self._more = True
                self._loop.call_soon(self._take)
        except AgentxError as error:
            self._send(self._close_pdu(Reason.PARSE_ERROR))
            self._lose(f"what came is no AgentX: {error}")
        finally:
            self._input = data[pos:]  # a PDU is taken once, whatever came of it

    # ----------------------------------------------------------------------------------------------------- its PDUs

    def _handle(self, header: Header, data: bytes, start: int, end: int) -> None:
        """One PDU of the master's (section 7.2.2)."""
        if header.kind == Kind.RESPONSE:
            self._response(header, data, start, end)
            return
        if header.kind == Kind.CLOSE and header.session == self._session:
            with contextlib.suppress(AgentxError):
                reason = pdu.read_reason(data, start, end)
                self._lose(f"the master closed the session, reason {reason}")
                return
        try:
            context, start = pdu.read_context(header, data, start, end)
            if header.session != self._session or not self._session:
                answer = pdu.write_response(header, pdu.Error.NOT_OPEN, 0)
            elif context is not None:
                # We registered in the default context only; also its name "" is another one by section 6.1.1.
                answer = pdu.write_response(header, pdu.Error.UNSUPPORTED_CONTEXT, 0)
            else:
                self._serve(header, data, start, end)
                return
        except AgentxError:
            answer = pdu.write_response(header, pdu.Error.PARSE, 0)
        if header.kind != Kind.CLEANUP_SET:  # which has no answer (section 7.2.4.4)
            self._send(answer)

    def _response(self, header: Header, data: bytes, start: int, end: int) -> None:
        """What cannot be read, or answers nothing, is dropped."""
        future = self._asked.get(header.packet)
        with contextlib.suppress(AgentxError):
            up, error, _ = pdu.read_response(data, start, end, header.order)
            if future is not None and not future.done():
                if not error:
                    self._uptime(up)
                future.set_result((error, header.session))

    def _serve(self, header: Header, data: bytes, start: int, end: int) -> None:
        """A request in our session. Raises AgentxError."""
        order = header.order
        match header.kind:
            case Kind.GET | Kind.NEXT:
                self._find(header, pdu.read_ranges(data, start, end, order))
            case Kind.BULK:
                once, repetitions, ranges = pdu.read_bulk(data, start, end, order)
                self._find(header, ranges, once, repetitions)
            case Kind.TEST_SET:
                self._transactions.test(header, pdu.read_bindings(data, start, end, order))
            case Kind.COMMIT_SET:
                self._transactions.commit(header)
            case Kind.UNDO_SET:
                self._transactions.undo(header)
            case Kind.CLEANUP_SET:
                self._transactions.clean_up(header)
            case _:
                raise AgentxError(f"PDU of type {header.kind}")

    def _find(self, header: Header, ranges: list[pdu.Range], once: int = 0, repetitions: int = 0) -> None:
        try:
            found = self._lookup.answer(header.kind, ranges, header.order, once, repetitions)
        except LookupFailed as failed:
            if failed.cause is not None:
                self._log.error("object_read_failed", error=repr(failed.cause), by="agentx")
            self._send(pdu.write_response(header, failed.error, failed.index))
        else:
            self._send(pdu.write_response(header, 0, 0, found))


class Refused(Lost):
    """The master's answer was an error."""

    def __init__(self, what: str, error: int) -> None:
        name = next((e.name.lower() for e in (*pdu.Error, *ErrorStatus) if e == error), "an error")
        super().__init__(f"the master refused {what}: {name} ({error})")
        self.error = error
