"""The command responder: a datagram in, at most one datagram out (RFC 3412, RFC 3413 section 3, RFC 3416 section 4.2).

    responder.handle(octets, host, reply)

A community or user is checked before the variable bindings are looked at, so that a stranger's datagram costs a few
microseconds whatever its size. GET, GETNEXT and GETBULK are answered before handle() returns; a SET goes to `setter`, which
answers when the engine has. Of the answers only a Report and an authorizationError (no larger than what came) can go to
somebody unproven, and those are few a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from hasnmp.snmp import ber
from hasnmp.snmp.access import Communities, Principal
from hasnmp.snmp.ber import BerError
from hasnmp.snmp.cells import Store, exception
from hasnmp.snmp.sets import Assignment
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import MAX_MESSAGE, NO_AUTH, Engine, Incoming, Report

GET, NEXT, RESPONSE, SET, BULK, INFORM, TRAP, REPORT = 0xA0, 0xA1, 0xA2, 0xA3, 0xA5, 0xA6, 0xA7, 0xA8
_PDUS = frozenset((GET, NEXT, RESPONSE, SET, BULK, INFORM, TRAP, REPORT))
_CONFIRMED = frozenset((GET, NEXT, SET, BULK, INFORM))

REPORTS_A_SECOND = 100  # to one address; far above what a console's discovery needs, far below a useful flood
REPORTS_A_SECOND_TO_ALL = 1000
UNPROVEN_SIZE = 1500  # octets of a scoped PDU that comes without authentication: no manager sends more


class ErrorStatus(IntEnum):
    """RFC 3416 section 3, those that a responder of v2c and v3 says."""

    NO_ERROR = 0
    TOO_BIG = 1
    GEN_ERR = 5
    NO_ACCESS = 6
    WRONG_TYPE = 7
    WRONG_LENGTH = 8
    WRONG_ENCODING = 9
    WRONG_VALUE = 10
    NO_CREATION = 11
    INCONSISTENT_VALUE = 12
    RESOURCE_UNAVAILABLE = 13
    COMMIT_FAILED = 14
    UNDO_FAILED = 15
    AUTHORIZATION_ERROR = 16
    NOT_WRITABLE = 17
    INCONSISTENT_NAME = 18


Reply = Callable[[bytes], None]
Done = Callable[[int, int], None]  # error-status, error-index


@dataclass(frozen=True, slots=True)
class SetRequest:
    """A SET that passed the access check. identity: equal for a manager's retransmissions of one request."""

    assignments: list[Assignment]
    principal: Principal
    host: str
    identity: tuple[str, str, int, bytes]


Setter = Callable[[SetRequest, Done], None]


@dataclass(frozen=True, slots=True)
class SetOutcome:
    """What came of a SET, for the record. who: the user or community's label; name: the OID's octets of the variable that
    it failed at, or of the first; status: the error-status that was answered."""

    who: str
    host: str
    name: bytes
    variables: int
    status: int


@dataclass(slots=True)
class Pdu:
    """A PDU of RFC 3416, its variable bindings not yet taken apart. first, second: error-status and error-index, or
    non-repeaters and max-repetitions."""

    tag: int
    request_id: int
    first: int
    second: int
    data: bytes
    start: int  # of the variable bindings
    stop: int

    def names(self) -> list[tuple[bytes, int, int, int]]:
        """Every variable binding: name octets, then the value's tag, start and stop. Raises BerError."""
        data, pos, stop = self.data, self.start, self.stop
        found = []
        while pos < stop:
            inner, end = ber.expect(data, pos, stop, ber.SEQUENCE)
            name_start, name_stop = ber.expect(data, inner, end, ber.OID)
            tag, value_start, value_stop = ber.tlv(data, name_stop, end)
            ber.check_tag(tag)
            if value_stop != end:
                raise BerError("octets after a value")
            found.append((data[name_start:name_stop], tag, value_start, value_stop))
            pos = end
        return found


def parse_pdu(data: bytes, pos: int, end: int) -> Pdu:
    """Raises: BerError: no PDU of v2c or v3."""
    tag, start, stop = ber.tlv(data, pos, end)
    if tag not in _PDUS or stop != end:
        raise BerError("no PDU, or octets after it")
    request_id, start = ber.integer(data, start, stop)
    first, start = ber.integer(data, start, stop)
    second, start = ber.integer(data, start, stop)
    start, list_stop = ber.expect(data, start, stop, ber.SEQUENCE)
    if list_stop != stop:
        raise BerError("octets after the variable bindings")
    return Pdu(tag, request_id, first, second, data, start, list_stop)


class Responder:
    """Answers requests from a store. clock: monotonic seconds, for the rate of Reports only. failed: told of an object
    whose read raised (its name and the exception), so that a fault of ours is seen as more than a genErr. audit: told of
    every SET and its answer."""

    def __init__(
        self,
        store: Store,
        communities: Communities,
        engine: Engine,
        counters: Counters,
        setter: Setter,
        clock: Callable[[], float],
        failed: Callable[[Exception], None],
        audit: Callable[[SetOutcome], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._communities = communities
        self._engine = engine
        self._counters = counters
        self._setter = setter
        self._clock = clock
        self._failed = failed
        self._audit = audit
        self._reports: dict[str, int] = {}
        self._reports_second = 0
        self._reports_to_all = 0

    def handle(self, data: bytes, host: str, reply: Reply) -> None:
        """Process one datagram. Never raises for what it contains."""
        self._counters.add("in_packets")
        try:
            end = len(data)
            start, stop = ber.expect(data, 0, end, ber.SEQUENCE)
            if stop != end:
                raise BerError("octets after the message")
            version, start = ber.integer(data, start, end)
            if version == 1:
                self._community(data, start, end, host, reply)
            elif version == 3:
                self._v3(data, start, end, host, reply)
            else:
                self._counters.add("bad_versions")
        except BerError:
            self._counters.add("parse_errors")

    # ------------------------------------------------------------------------------------------------ SNMPv2c

    def _community(self, data: bytes, pos: int, end: int, host: str, reply: Reply) -> None:
        secret, pos = ber.octets(data, pos, end)
        principal = self._communities.find(secret, host)
        if principal is None:
            self._counters.add("bad_uses" if self._communities.known(secret) else "bad_names")
            return
        pdu = parse_pdu(data, pos, end)
        if pdu.tag not in _CONFIRMED or pdu.tag == INFORM:
            # Nobody here takes notifications or waits for responses; community messages have no Reports.
            self._counters.add("unknown_handlers")
            return
        prefix = b"\x02\x01\x01" + ber.encode(ber.OCTETS, secret)

        def wrap(answer: bytes) -> bytes:
            return ber.encode(ber.SEQUENCE, prefix + answer)

        self._serve(pdu, principal, principal.tag, host, MAX_MESSAGE, len(prefix) + 4, wrap, reply)

    # -------------------------------------------------------------------------------------------------- SNMPv3

    def _v3(self, data: bytes, pos: int, end: int, host: str, reply: Reply) -> None:
        try:
            message = self._engine.receive(data, pos, end)
            if message is None:
                return
            self._scoped(message, host, reply)
        except Report as refused:
            if refused.message.reportable and self._may_report(host):
                reply(self._engine.report(refused, _request_id(refused.message)))

    def _scoped(self, message: Incoming, host: str, reply: Reply) -> None:
        """RFC 3412 section 7.2 (7) and on: whose PDU is it?"""
        data, end = message.data, message.stop
        context_engine, pos = ber.octets(data, message.start, end)
        context, pos = ber.octets(data, pos, end)
        pdu = parse_pdu(data, pos, end)
        if context_engine != self._engine.id or pdu.tag not in _CONFIRMED or pdu.tag == INFORM:
            self._counters.add("unknown_handlers")
            if pdu.tag in _CONFIRMED:
                raise Report("unknown_handlers", message, message.level)
            return
        if context:
            self._counters.add("unknown_contexts")
            raise Report("unknown_contexts", message, message.level)
        user = message.user
        assert user is not None  # receive() hands out nothing else
        # An address that it may not be used from is no access entry either.
        principal = user.principal if user.principal.admits(host) else None
        if message.level < user.level:
            # VACM has no entry for it: a group may do nothing below its level (RFC 3415 section 3.2 (3), noAccessEntry).
            principal = None
            if message.level == NO_AUTH and (end - message.start > UNPROVEN_SIZE or not self._may_report(host)):
                return

        def wrap(answer: bytes) -> bytes:
            return self._engine.send(message, answer, message.level)

        room = min(message.max_size, MAX_MESSAGE)
        # Headers, engine ID twice, name, digest and salt, each with the longest lengths that may come.
        overhead = 98 + 2 * len(self._engine.id) + len(user.name)
        who = user.principal.tag if message.level == user.level else f"{user.principal.tag} (unproven)"
        self._serve(pdu, principal, who, host, room, overhead, wrap, reply)

    def _may_report(self, host: str) -> bool:
        """An unproven sender's address may be forged: what goes there is limited, so that a flood gains nothing."""
        second = int(self._clock())
        if second != self._reports_second:
            self._reports_second = second
            self._reports.clear()
            self._reports_to_all = 0
        sent = self._reports.get(host, 0)
        if sent >= REPORTS_A_SECOND or self._reports_to_all >= REPORTS_A_SECOND_TO_ALL:
            return False
        self._reports[host] = sent + 1
        self._reports_to_all += 1
        return True

    # ------------------------------------------------------------------------------------------------ requests

    def _serve(
        self, pdu: Pdu, principal: Principal | None, who: str, host: str, limit: int, overhead: int,
        wrap: Callable[[bytes], bytes], reply: Reply,
    ) -> None:  # fmt: skip
        """Answer a request. principal None: its sender may do nothing. who: how a SET's record names the sender. limit:
        octets of the largest answer; overhead: around the PDU."""
        request_id = ber.encode_integer(pdu.request_id)
        room = limit - overhead - len(request_id) - 26  # two integers of at most 6 octets, two headers

        def answer(status: int, index: int, varbinds: bytes) -> None:
            body = request_id + ber.encode_integer(status) + ber.encode_integer(index)
            out = wrap(ber.encode(RESPONSE, body + ber.encode(ber.SEQUENCE, varbinds)))
            if len(out) <= limit:
                reply(out)
            elif status != ErrorStatus.TOO_BIG:
                # Only an echo of the request's own bindings can get here: answers from the store were fitted.
                answer(ErrorStatus.TOO_BIG, 0, b"")
            else:
                self._counters.add("silent_drops")

        bindings = pdu.names()
        respond = self._audited(answer, who, host, bindings) if pdu.tag == SET else answer
        if principal is None or (pdu.tag == SET and not principal.operate):
            # No access entry, or no write view at all: the whole request is refused (RFC 3413 section 3.2 (3)).
            if not all(_is_oid(raw) for raw, _, _, _ in bindings):
                raise BerError("a name that is no OBJECT IDENTIFIER")
            respond(ErrorStatus.AUTHORIZATION_ERROR, 0, pdu.data[pdu.start : pdu.stop])
            return
        if pdu.tag == SET:
            self._store.begin()
            self._set(pdu, bindings, principal, host, respond)
            return
        store = self._store.seen_by(principal.view)
        store.begin()
        found: list[bytes] = []
        try:
            if pdu.tag == BULK:
                self._bulk(store, pdu, bindings, room, found)
            elif not self._plain(store, pdu, bindings, room, found):
                respond(ErrorStatus.TOO_BIG, 0, b"")
                return
        except Exception as error:
            if isinstance(error, BerError) and not all(_is_oid(raw) for raw, _, _, _ in bindings):
                raise
            self._failed(error)  # an object of ours that can't be read, or has a value that can't be encoded
            respond(ErrorStatus.GEN_ERR, _at_fault(pdu, len(found), len(bindings)), pdu.data[pdu.start : pdu.stop])
            return
        respond(ErrorStatus.NO_ERROR, 0, b"".join(found))

    def _plain(
        self, store: Store, pdu: Pdu, bindings: list[tuple[bytes, int, int, int]], room: int, found: list[bytes]
    ) -> bool:
        """GetRequest and GetNextRequest (RFC 3416 4.2.1, 4.2.2). False: the answer is too big."""
        size = 0
        for raw, _, _, _ in bindings:
            if pdu.tag == GET:
                varbind = store.get(raw)
            else:
                place = store.settle(store.after(raw))
                varbind = exception(raw, ber.END_OF_MIB_VIEW) if place is None else place[0]
            size += len(varbind)
            if size > room:
                return False
            found.append(varbind)
        return True

    def _bulk(
        self, store: Store, pdu: Pdu, bindings: list[tuple[bytes, int, int, int]], room: int, found: list[bytes]
    ) -> None:
        """GetBulkRequest (RFC 3416 4.2.3): as many of the bindings, from the front, as the answer has room for."""
        once = min(max(pdu.first, 0), len(bindings))
        repetitions = max(pdu.second, 0)
        size = 0
        for raw, _, _, _ in bindings[:once]:
            place = store.settle(store.after(raw))
            varbind = exception(raw, ber.END_OF_MIB_VIEW) if place is None else place[0]
            size += len(varbind)
            if size > room:
                return
            found.append(varbind)
        if not repetitions:
            return
        cursors = [store.after(raw) for raw, _, _, _ in bindings[once:]]
        names = [raw for raw, _, _, _ in bindings[once:]]
        ended: list[bytes | None] = [None] * len(names)
        for _ in range(repetitions):
            running = False
            for which, cursor in enumerate(cursors):
                varbind = ended[which] or b""
                if not varbind:
                    place = store.settle(cursor)
                    if place is None:
                        varbind = ended[which] = exception(names[which], ber.END_OF_MIB_VIEW)
                    else:
                        varbind, column, at = place
                        cursors[which] = (column, at + 1)
                        names[which] = store.name(column, at)
                        running = True
                size += len(varbind)
                if size > room:
                    return
                found.append(varbind)
            if not running:  # every further repetition would say endOfMibView again; it may be left out
                return

    def _set(
        self, pdu: Pdu, bindings: list[tuple[bytes, int, int, int]], principal: Principal, host: str,
        answer: Callable[[int, int, bytes], None],
    ) -> None:  # fmt: skip
        """SetRequest (RFC 3416 4.2.5): what can be said without the objects' own rules; the rest is the setter's."""
        echo = pdu.data[pdu.start : pdu.stop]
        names = [ber.decode_oid(raw) for raw, _, _, _ in bindings]
        assignments = []
        assert principal.write is not None  # _serve refused who has none
        for position, (raw, tag, start, stop) in enumerate(bindings, 1):
            # (1) comes first, and for names that exist nowhere too: who may not write there is not told what is there.
            if not principal.write.has(names[position - 1]):
                answer(ErrorStatus.NO_ACCESS, position, echo)
                return
            column = self._store.column(raw)
            if column is None or not column.target.write:
                answer(ErrorStatus.NOT_WRITABLE, position, echo)
                return
            if tag != column.syntax:
                answer(ErrorStatus.WRONG_TYPE, position, echo)
                return
            try:
                value = ber.decode_value(tag, pdu.data[start:stop])
            except BerError:
                answer(ErrorStatus.WRONG_ENCODING, position, echo)
                return
            assert value is not None  # no object is of a syntax that decodes to None
            index = names[position - 1][len(column.oid) :]
            assignments.append(Assignment(column.target, index, tag, value))

        def done(status: int, index: int) -> None:
            answer(status, index, echo)

        identity = (host, principal.tag, pdu.request_id, echo)
        self._setter(SetRequest(assignments, principal, host, identity), done)

    def _audited(
        self, answer: Callable[[int, int, bytes], None], who: str, host: str,
        bindings: list[tuple[bytes, int, int, int]],
    ) -> Callable[[int, int, bytes], None]:  # fmt: skip
        """Answer a SET, and have it put on record, whatever came of it."""

        def audited(status: int, index: int, varbinds: bytes) -> None:
            answer(status, index, varbinds)
            raw = bindings[max(index, 1) - 1][0] if index <= len(bindings) and bindings else b""
            self._audit(SetOutcome(who, host, raw, len(bindings), status))

        return audited


def _at_fault(pdu: Pdu, found: int, bindings: int) -> int:
    """The error-index of a request that failed after so many values: its place in the request, also of a repetition."""
    once = min(max(pdu.first, 0), bindings) if pdu.tag == BULK else bindings
    return (found if found < once else once + (found - once) % (bindings - once)) + 1


def _is_oid(raw: bytes) -> bool:
    try:
        ber.decode_oid(raw)
    except BerError:
        return False
    return True


def _request_id(message: Incoming) -> int:
    """The request-id of a message whose PDU could be read, else 0 (RFC 3412 section 7.1 (3) (c))."""
    if not message.data:
        return 0
    try:
        _, pos = ber.octets(message.data, message.start, message.stop)
        _, pos = ber.octets(message.data, pos, message.stop)
        return parse_pdu(message.data, pos, message.stop).request_id
    except BerError:
        return 0
