"""The SNMP engine of a receiver of SNMPv3 informs, which is the authoritative one of them (RFC 3414 section 1.5.1).

Its engine ID is discovered by an empty request (section 4), the user's keys are localized to it, and its boots and time
are followed: first from its Report, which nobody vouches for, so that they are only a guess until an authentic message
of it confirms or corrects them; then forward only, as section 3.2 (7b) asks.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from enum import Enum

from hasnmp.settings import SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.ber import BerError
from hasnmp.snmp.notification import REPORT, Answer, parse_answer
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import MAX_MESSAGE, NO_AUTH, REPORTS, Engine, Incoming, Report

GET = 0xA0
_TROUBLES = {
    REPORTS["usm_unsupported_levels"]: "it does not support the user's security level",
    REPORTS["usm_unknown_users"]: "it does not know the user",
    REPORTS["usm_wrong_digests"]: "it has another authentication key or protocol for the user",
    REPORTS["usm_decryption_errors"]: "it has another privacy key or protocol for the user",
    REPORTS["unknown_contexts"]: "it does not know the context",
    REPORTS["unknown_handlers"]: "it takes no informs",
}


class Learned(Enum):
    """What an answer was about that confirms nothing: the peer's engine; send again."""

    ENGINE = 1
    TIME = 2


class PeerEngine:
    """user: as whom we speak. own_id: our engine ID, the context that notifications come from. now_s: a monotonic clock."""

    def __init__(self, user: SnmpUser, own_id: bytes, now_s: Callable[[], float]) -> None:
        self._settings = user
        self._own_id = own_id
        self._now_s = now_s
        self._counters = Counters()
        self._nobody = Engine(b"", 0, lambda: 0, (), self._counters)
        self._engine: Engine | None = None
        self._time_s = 0  # its snmpEngineTime ...
        self._at_s = 0.0  # ... at this moment of ours
        self._proven = False  # did an authentic message say so?

    @property
    def known(self) -> bool:
        return self._engine is not None

    def forget(self) -> None:
        self._engine = None

    def discovery(self, number: int) -> bytes:
        """The request to which any engine answers with its ID."""
        pdu = ber.encode(GET, ber.encode_integer(number) + b"\x02\x01\x00\x02\x01\x00\x30\x00")
        return self._nobody.send(Incoming(number, MAX_MESSAGE, True, NO_AUTH), pdu, NO_AUTH, reportable=True)

    def message(self, number: int, pdu: bytes) -> bytes:
        """A confirmed-class message; number: its msgID."""
        assert self._engine is not None
        user = self._engine.users[self._settings.name.encode()]
        made_up = Incoming(number, MAX_MESSAGE, True, user.level, user)
        return self._engine.send(made_up, pdu, user.level, reportable=True, context=self._own_id)

    def take(self, data: bytes, asked: Container[int]) -> tuple[int, Answer | Learned | str]:
        """A datagram of the peer: (its msgID, what it says). A text: why it refuses us, by its own unproven word.

        asked: the msgIDs of what we sent and wait for. What bears another one is not looked into, and nothing is learned
        from it (RFC 3412 section 7.2 (11) and (12)): anybody can make a Report, and each new engine costs its keys.

        Raises: BerError: it is no message of ours to read, or not an authentic one.
        """
        at, end = ber.expect(data, 0, len(data), ber.SEQUENCE)
        version, at = ber.integer(data, at, end)
        if version != 3:
            raise BerError(f"version {version} where SNMPv3 (3) belongs")
        msg_id, flags, engine_id, boots, time_s, scoped_at = _header(data, at, end)
        if msg_id not in asked:
            return msg_id, "it answers what was not asked"
        if not flags & 1:
            return msg_id, self._unproven(data, scoped_at, end, engine_id, boots, time_s)
        engine = self._engine
        if engine is None or engine_id != engine.id:
            raise BerError("signed by another engine")
        incoming, fresh = self._authentic(engine, data, at, end, boots, time_s)
        answer = parse_answer(incoming.data, *_scoped(incoming.data, incoming.start, incoming.stop))
        if answer.tag != REPORT:
            if incoming.level != engine.users[self._settings.name.encode()].level:
                raise BerError("answered at a lower security level")
            return msg_id, answer
        if answer.name == REPORTS["usm_not_in_window"] or fresh:
            return msg_id, Learned.TIME
        return msg_id, _TROUBLES.get(answer.name, "it answers with a Report")

    def _authentic(
        self, engine: Engine, data: bytes, at: int, end: int, boots: int, time_s: int
    ) -> tuple[Incoming, bool]:
        """The message behind an authentic digest, and whether it told a newer time."""
        fresh = False
        for _ in range(2):
            try:
                incoming = engine.receive(data, at, end)
            except Report as refused:
                # The digest was good, for the window is looked at after it; so this time may be believed, if it is newer.
                if refused.counter != "usm_not_in_window" or fresh or not self._later(engine, boots, time_s):
                    raise BerError(f"refused: {refused.counter}") from None
                self._set(engine, boots, time_s)
                fresh = True
            else:
                if incoming is None:
                    raise BerError("a message of no form that we send for")
                if self._later(engine, boots, time_s):
                    self._set(engine, boots, time_s)
                return incoming, fresh
        raise BerError("out of the time window")

    def _later(self, engine: Engine, boots: int, time_s: int) -> bool:
        return not self._proven or (boots, time_s) > (engine.boots, self._time_s)

    def _set(self, engine: Engine, boots: int, time_s: int) -> None:
        engine.boots = boots
        self._time_s, self._at_s, self._proven = time_s, self._now_s(), True

    def _unproven(
        self, data: bytes, at: int, end: int, engine_id: bytes, boots: int, time_s: int
    ) -> Answer | Learned | str:
        answer = parse_answer(data, *_scoped(data, *ber.expect(data, at, end, ber.SEQUENCE)))
        if answer.tag != REPORT:
            raise BerError("an answer that proves nothing")
        if answer.name != REPORTS["usm_unknown_engines"]:
            return _TROUBLES.get(answer.name, "it answers with a Report")
        if not 5 <= len(engine_id) <= 32:
            raise BerError("an engine ID of no length that one has")
        if self._engine is not None and engine_id == self._engine.id:
            return "it says that its engine ID is unknown to it"
        self._time_s, self._at_s, self._proven = time_s, self._now_s(), False
        self._engine = Engine(engine_id, boots, self._seconds, (self._settings,), self._counters)
        return Learned.ENGINE

    def _seconds(self) -> int:
        return self._time_s + int(self._now_s() - self._at_s)


def _header(data: bytes, at: int, end: int) -> tuple[int, int, bytes, int, int, int]:
    """msgID, msgFlags, authoritative engine ID, boots, time, and where the scoped PDU begins (RFC 3412 section 6)."""
    at, header_end = ber.expect(data, at, end, ber.SEQUENCE)
    msg_id, at = ber.integer(data, at, header_end)
    _, at = ber.integer(data, at, header_end)
    flags, at = ber.octets(data, at, header_end)
    at, params_end = ber.expect(data, header_end, end, ber.OCTETS)
    at, _ = ber.expect(data, at, params_end, ber.SEQUENCE)
    engine_id, at = ber.octets(data, at, params_end)
    boots, at = ber.integer(data, at, params_end)
    time_s, at = ber.integer(data, at, params_end)
    if len(flags) != 1 or boots < 0 or time_s < 0:
        raise BerError("message header out of its ranges")
    return msg_id, flags[0], engine_id, boots, time_s, params_end


def _scoped(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the PDU of a scoped PDU is."""
    _, at = ber.octets(data, at, end)
    _, at = ber.octets(data, at, end)
    return at, end
