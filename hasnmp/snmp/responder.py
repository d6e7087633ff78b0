"""The command responder: a datagram in, at most one datagram out (RFC 3412, RFC 3413 section 3, RFC 3584).

    responder.handle(octets, host, reply)

SNMPv1, v2c and v3 messages; what their requests do with variables is pdus.py's. A community or user is checked before the
variable bindings are looked at, so that a stranger's datagram costs a few microseconds whatever its size. GET, GETNEXT and
GETBULK are answered before handle() returns; a SET goes to `setter`, which answers when the engine has. Of the answers only
a Report and an authorizationError (no larger than what came) can go to somebody unproven, and those are few a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasnmp.snmp import ber
from hasnmp.snmp.access import Communities, Principal
from hasnmp.snmp.ber import BerError
from hasnmp.snmp.cells import Store
from hasnmp.snmp.error_status import V1_STATUS, ErrorStatus
from hasnmp.snmp.pdus import Refused, Requests
from hasnmp.snmp.plain import Forms
from hasnmp.snmp.sets import SetError
from hasnmp.snmp.setting import Done, SetRequest
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import MAX_MESSAGE, NO_AUTH, Engine, Fields, Incoming, Report, User

GET, NEXT, RESPONSE, SET, V1_TRAP, BULK, INFORM, TRAP, REPORT = range(0xA0, 0xA9)
_PDUS = {  # of each version of the message (RFC 1157 section 4.1, RFC 3416 section 3)
    0: frozenset((GET, NEXT, RESPONSE, SET)),
    1: frozenset((GET, NEXT, RESPONSE, SET, BULK, INFORM, TRAP, REPORT)),
}
_PDUS[3] = _PDUS[1]
_REQUESTS = frozenset((GET, NEXT, SET, BULK))
_CONFIRMED = frozenset((*_REQUESTS, INFORM))
# SNMPv1 has neither Counter64 nor exceptions.
_VALUES = {0: ber.VALUES - {ber.COUNTER64, 0x80, 0x81, 0x82}, 1: ber.VALUES, 3: ber.VALUES}

REPORTS_A_SECOND = 100  # to one address; far above what a console's discovery needs, far below a useful flood
REPORTS_A_SECOND_TO_ALL = 1000
ROOM = MAX_MESSAGE - 200  # octets of variable bindings with which an answer by a community of any length is not too big
UNPROVEN_SIZE = 1500  # octets of a scoped PDU that comes without authentication: no manager sends more

Reply = Callable[[bytes], None]
Setter = Callable[[SetRequest, Done], None]
# A name's octets, then its value's tag, start and stop in the message.
Bound = tuple[bytes, int, int, int]


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
    """A PDU, its variable bindings not yet taken apart. first, second: error-status and error-index, or non-repeaters and
    max-repetitions. version: of the message."""

    tag: int
    request_id: int
    first: int
    second: int
    data: bytes
    start: int  # of the variable bindings
    stop: int
    version: int

    def bindings(self) -> list[Bound]:
        """Raises BerError."""
        data, pos, stop = self.data, self.start, self.stop
        known = _VALUES[self.version]
        found = []
        while pos < stop:
            inner, end = ber.expect(data, pos, stop, ber.SEQUENCE)
            name_start, name_stop = ber.expect(data, inner, end, ber.OID)
            tag, value_start, value_stop = ber.tlv(data, name_stop, end)
            if tag not in known:
                raise BerError(f"tag 0x{tag:02x} is of no type of this version")
            if value_stop != end:
                raise BerError("octets after a value")
            found.append((data[name_start:name_stop], tag, value_start, value_stop))
            pos = end
        return found


def parse_pdu(data: bytes, pos: int, end: int, version: int = 3) -> Pdu:
    """Raises: BerError: no PDU of this version."""
    tag, start, stop = ber.tlv(data, pos, end)
    if tag not in _PDUS[version] or stop != end:
        raise BerError("no PDU, or octets after it")
    request_id, start = ber.integer(data, start, stop)
    first, start = ber.integer(data, start, stop)
    second, start = ber.integer(data, start, stop)
    start, list_stop = ber.expect(data, start, stop, ber.SEQUENCE)
    if list_stop != stop:
        raise BerError("octets after the variable bindings")
    return Pdu(tag, request_id, first, second, data, start, list_stop, version)


class Responder:
    """Answers requests. clock: monotonic seconds, for the rate of Reports only. unauthentic: told, once a second
    at most, of the address whose message was not properly authenticated (RFC 3418, authenticationFailure). audit: told of every SET and its answer."""

    def __init__(
        self,
        store: Store,
        requests: Requests,
        communities: Communities,
        engine: Engine,
        counters: Counters,
        setter: Setter,
        clock: Callable[[], float],
        unauthentic: Callable[[str], None],
        audit: Callable[[SetOutcome], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._requests = requests
        self._forms = Forms(store, requests)
        self._communities = communities
        self._engine = engine
        self._counters = counters
        self._setter = setter
        self._clock = clock
        self._unauthentic = unauthentic
        self._audit = audit
        self._reports: dict[tuple[bool, str], int] = {}
        self._reports_second = 0
        self._unauthentic_second = -1
        self._reports_to_all = [0, 0]

    def handle(self, data: bytes, host: str, reply: Reply) -> None:
        """Process one datagram. Never raises for what it contains."""
        self._counters.add("in_packets")
        fields = answer = None
        at = 0
        try:
            # With lengths in the forms that nearly all messages have. Of SNMPv1 and v2c: where the community's length is.
            size = data[1]
            at = 6 if size < 0x80 else 7 if size == 0x81 else 8
            if data[at - 2] == 3:
                fields = self._engine.known(data, at - 1)
            else:
                at += data[at] + 2  # and where the PDU's is
                answer = self._forms.answer(host, data, at, ROOM)
        except IndexError:
            pass
        if answer is not None:
            reply(answer)
            return
        try:
            if fields is not None:
                self._v3(data, fields, 0, host, reply)
                return
            end = len(data)
            start, stop = ber.expect(data, 0, end, ber.SEQUENCE)
            if stop != end:
                raise BerError("octets after the message")
            version, start = ber.integer(data, start, end)
            if version == 1 or version == 0:
                self._community(data, start, end, version, at, host, reply)
            elif version == 3:
                self._v3(data, None, start, host, reply)
            else:
                self._counters.add("bad_versions")
        except BerError:
            self._counters.add("parse_errors")

    # ------------------------------------------------------------------------------------------ SNMPv1 and SNMPv2c

    def _community(
        self, data: bytes, pos: int, end: int, version: int, place: int, host: str, reply: Reply
    ) -> None:  # fmt: skip
        """data[pos]: after the version. place: where handle() looked for the PDU's length."""
        start = pos - 3
        secret, pos = ber.octets(data, pos, end)
        principal = self._communities.find(secret, host)
        if principal is None:
            self._counters.add("bad_uses" if self._communities.known(secret) else "bad_names")
            self._told(host)
            return
        pdu = parse_pdu(data, pos, end, version)
        if pdu.tag not in _REQUESTS:
            # Nobody here takes notifications or waits for responses; community messages have no Reports.
            self._counters.add("unknown_handlers")
            return
        prefix = ber.encode_integer(version) + ber.encode(ber.OCTETS, secret)
        if place == pos + 1 and data[start:pos] == prefix:
            self._learn(host, data, place, pdu, principal, prefix)

        def wrap(answer: bytes) -> bytes:
            return ber.encode(ber.SEQUENCE, prefix + answer)

        self._serve(pdu, principal, principal.tag, host, MAX_MESSAGE, len(prefix) + 4, wrap, reply)

    # -------------------------------------------------------------------------------------------------- SNMPv3

    def _v3(self, data: bytes, fields: Fields | None, pos: int, host: str, reply: Reply) -> None:
        """data[pos]: after the version, of a message whose fields are not known yet."""
        engine = self._engine
        try:
            message = engine.receive(data, pos, len(data)) if fields is None else engine.take(data, fields)
            if message is not None and not self._at_once(message, host, reply):
                self._scoped(message, host, reply)
        except Report as refused:
            if refused.counter in _UNAUTHENTIC:
                self._told(host)
            if refused.message.reportable and self._may_report(host, proven=refused.level > NO_AUTH):
                reply(self._engine.report(refused, _request_id(refused.message)))

    def _at_once(self, message: Incoming, host: str, reply: Reply) -> bool:
        """Answer a request of a known form. False: nothing was done."""
        user = message.user
        if user is None or message.level != user.level or not user.principal.admits(host):
            return False
        room = min(message.max_size, MAX_MESSAGE) - self._overhead(user) - 32
        try:
            scoped = self._forms.answer(user, message.data, message.start + len(self._engine.context) + 1, room)
        except IndexError:
            return False
        if scoped is None:
            return False
        reply(self._engine.seal(message, scoped, message.level))
        return True

    def _overhead(self, user: User) -> int:
        """Octets around a PDU: headers, engine ID twice, name, digest, salt and a block of padding, each with the longest
        lengths that may come."""
        return 82 + 2 * len(self._engine.id) + len(user.name) + user.digest.size

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

        if principal is not None and data[message.start : pos] == self._engine.context:
            self._learn(user, data, pos + 1, pdu, principal, self._engine.context)

        def wrap(answer: bytes) -> bytes:
            return self._engine.send(message, answer, message.level)

        room = min(message.max_size, MAX_MESSAGE)
        who = user.principal.tag if message.level == user.level else f"{user.principal.tag} (unproven)"
        self._serve(pdu, principal, who, host, room, self._overhead(user), wrap, reply)

    def _told(self, host: str) -> None:
        """Tell of a message that was not authentic, once a second: a flood of them costs nobody but us."""
        second = int(self._clock())
        if second != self._unauthentic_second:
            self._unauthentic_second = second
            self._unauthentic(host)

    def _may_report(self, host: str, proven: bool = False) -> bool:
        """An unproven sender's address may be forged: what goes there is limited, so that a flood gains nothing.

        proven: its message was authentic, if old. These have a limit of their own: after a restart the managers learn our
        boots by them, whatever strangers send.
        """
        second = int(self._clock())
        if second != self._reports_second:
            self._reports_second = second
            self._reports.clear()
            self._reports_to_all = [0, 0]
        sent = self._reports.get((proven, host), 0)
        if sent >= REPORTS_A_SECOND or self._reports_to_all[proven] >= REPORTS_A_SECOND_TO_ALL:
            return False
        self._reports[proven, host] = sent + 1
        self._reports_to_all[proven] += 1
        return True

    # ------------------------------------------------------------------------------------------------ requests

    def _learn(self, who: object, data: bytes, at: int, pdu: Pdu, principal: Principal, prefix: bytes) -> None:
        """Have the next requests of this form answered without their being taken apart."""
        window = self._store.window(principal.view, pdu.version != 0)
        self._forms.learn(who, data, at, pdu.tag, pdu.first, pdu.second, pdu.start, window, prefix)

    def _serve(
        self, pdu: Pdu, principal: Principal | None, who: str, host: str, limit: int, overhead: int,
        wrap: Callable[[bytes], bytes], reply: Reply,
    ) -> None:  # fmt: skip
        """Answer a request. principal None: its sender may do nothing. who: how a SET's record names the sender. limit:
        octets of the largest answer; overhead: around the PDU."""
        request_id = ber.encode_integer(pdu.request_id)
        v1 = pdu.version == 0

        def message(status: int, index: int, varbinds: bytes) -> bytes:
            body = request_id + ber.encode_integer(status) + ber.encode_integer(index)
            return wrap(ber.encode(RESPONSE, body + ber.encode(ber.SEQUENCE, varbinds)))

        def answer(status: int, index: int, varbinds: bytes, again: bool = False) -> None:
            if v1:
                status = V1_STATUS[status]
            out = message(status, index, varbinds)
            if len(out) <= limit:
                reply(out)
                if pdu.tag == SET and not again:
                    raw = bindings[max(index, 1) - 1][0] if bindings else b""
                    self._audit(SetOutcome(who, host, raw, len(bindings), status))
            elif status != ErrorStatus.TOO_BIG:
                answer(ErrorStatus.TOO_BIG, 0, echo if v1 else b"", again)
            else:
                self._counters.add("silent_drops")

        bindings = pdu.bindings()
        echo = pdu.data[pdu.start : pdu.stop]
        if principal is None or (pdu.tag == SET and not principal.operate):
            # No access entry, or no write view at all: the whole request is refused (RFC 3413 section 3.2 (3)).
            for raw, _, _, _ in bindings:
                ber.decode_oid(raw)
            # SNMPv1 calls it noSuchName, which names a variable.
            answer(ErrorStatus.AUTHORIZATION_ERROR, 1 if v1 and bindings else 0, echo)
            return
        self._store.begin()
        room = limit - overhead - len(request_id) - 26  # two integers of at most 6 octets, two headers
        try:
            if pdu.tag == SET:
                if len(message(0, 0, echo)) > limit:  # nothing is done that could not be told of
                    raise Refused(ErrorStatus.TOO_BIG)
                self._set(pdu, bindings, principal, host, answer)
                return
            # What a GET or GETNEXT is answered with is measured once it is sealed; a GETBULK must know where to stop.
            window = self._store.window(principal.view, not v1)
            names = [raw for raw, _, _, _ in bindings]
            if pdu.tag == GET:
                found = self._requests.get(names, window, limit, not v1)
            elif pdu.tag == NEXT:
                found = self._requests.next(names, window, limit, not v1)
            else:
                found = self._requests.bulk(names, pdu.first, pdu.second, window, room)
        except Refused as refused:
            # An error echoes the request; but tooBig, which has no bindings, save in SNMPv1 (RFC 3416 4.2, RFC 1157 4.1).
            answer(refused.status, refused.index, echo if v1 or refused.status != ErrorStatus.TOO_BIG else b"")
            return
        except SetError as refused:
            answer(int(refused.status), refused.position, echo)
            return
        answer(ErrorStatus.NO_ERROR, 0, b"".join(found))

    def _set(
        self, pdu: Pdu, bindings: list[Bound], principal: Principal, host: str,
        answer: Callable[[int, int, bytes, bool], None],
    ) -> None:  # fmt: skip
        """SetRequest. Raises: SetError, BerError."""
        data = pdu.data
        assignments = self._requests.assignments(
            [(raw, tag, data[start:stop]) for raw, tag, start, stop in bindings], principal.write
        )
        echo = data[pdu.start : pdu.stop]

        def done(status: int, index: int, again: bool = False) -> None:
            answer(status, index, echo, again)

        self._setter(SetRequest(assignments, principal, host, (host, principal.tag, pdu.request_id, echo)), done)


_UNAUTHENTIC = frozenset(("usm_unknown_users", "usm_wrong_digests"))


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
