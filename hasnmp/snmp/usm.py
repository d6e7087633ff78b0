"""SNMPv3 messages and the User-based Security Model: RFC 3412 section 7, RFC 3414; its algorithms are auth.py's.

    Engine.receive(octets) -> Incoming           an authentic, decrypted message
                           raises Report         what the sender is to be told, if it may be told anything
                           raises BerError       not a message
    Engine.send(...) -> octets                   a Response or Report to an Incoming

This engine is always the authoritative one: it answers, and its own notifications carry its own time.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from hasnmp.settings import SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.access import principal_of
from hasnmp.snmp.auth import Digest, cipher, localize, password_to_key
from hasnmp.snmp.ber import BerError
from hasnmp.snmp.standard import Counters

MAX_BOOTS = 2147483647  # RFC 3414 section 2.2.1: an engine that reached it is in nobody's time window any more
TIME_WINDOW_S = 150
MAX_MESSAGE = 65507  # octets of a UDP datagram over IPv4
USM = 3

NO_AUTH, AUTH, PRIV = 1, 2, 3  # security levels as RFC 3411 numbers them
_FLAGS = {NO_AUTH: 0, AUTH: 1, PRIV: 3}
_LEVELS = {flags: level for level, flags in _FLAGS.items()}

# msgMaxSize, msgFlags and msgSecurityModel, for every msgFlags.
_TAILS = [ber.encode_integer(MAX_MESSAGE) + bytes((4, 1, flags, 2, 1, USM)) for flags in range(8)]
_TAIL = len(_TAILS[0])

FORMS = 1000  # of messages, that are remembered at once

# Of a message: msgID, msgMaxSize, msgFlags; engine ID, boots, time, user; start and end of the authentication parameters; the
# salt; where the scoped PDU (or what it is encrypted to) begins, its contents begin, and it ends.
Fields = tuple[int, int, int, bytes, int, int, bytes, int, int, bytes, int, int, int]

_USM_STATS = (1, 3, 6, 1, 6, 3, 15, 1, 1)
_MPD_STATS = (1, 3, 6, 1, 6, 3, 11, 2, 1)
# counter's name -> its instance in OID octets
REPORTS = {
    name: ber.encode_oid(oid)
    for name, oid in {
        "usm_unsupported_levels": (*_USM_STATS, 1, 0),
        "usm_not_in_window": (*_USM_STATS, 2, 0),
        "usm_unknown_users": (*_USM_STATS, 3, 0),
        "usm_unknown_engines": (*_USM_STATS, 4, 0),
        "usm_wrong_digests": (*_USM_STATS, 5, 0),
        "usm_decryption_errors": (*_USM_STATS, 6, 0),
        "unknown_handlers": (*_MPD_STATS, 3, 0),
        "unknown_contexts": (1, 3, 6, 1, 6, 3, 12, 1, 5, 0),
    }.items()
}


class User:
    """One user, the keys ready for use."""

    def __init__(self, settings: SnmpUser, engine_id: bytes) -> None:
        self.name = settings.name.encode()
        self.level = PRIV if settings.priv else AUTH
        self.principal = principal_of(settings, settings.name)
        self.digest = Digest(
            localize(password_to_key(settings.auth_secret, settings.auth), engine_id, settings.auth), settings.auth
        )
        self.blank = bytes(self.digest.size)
        self.who = ber.encode(ber.OCTETS, self.name) + ber.encode(ber.OCTETS, self.blank)  # of a message to be signed
        self.cipher = cipher(settings.priv_secret, engine_id, settings.auth, settings.priv) if settings.priv else None


@dataclass(slots=True)
class Incoming:
    """A message's header and, once it passed USM, its plain scoped PDU: octets[start:stop] of `data`.

    It is as authentic as its level says: at NO_AUTH `user` is only a name that its sender knows. `data` begins with the
    scoped PDU's tag; after a block cipher's there may be padding.
    """

    msg_id: int
    max_size: int  # octets that the sender takes
    reportable: bool
    level: int
    user: User | None = None
    data: bytes = b""
    start: int = 0
    stop: int = 0


class Report(Exception):
    """A message that is refused: `counter` (already counted) goes to its sender in a Report of this security level."""

    def __init__(self, counter: str, message: Incoming, level: int = NO_AUTH) -> None:
        super().__init__(counter)
        self.counter, self.message, self.level = counter, message, level


class Engine:
    """This SNMP engine: its identity, its time, its users.

    seconds: what snmpEngineTime is, whole seconds since this start of the engine.
    """

    def __init__(
        self, engine_id: bytes, boots: int, seconds: Callable[[], int], users: tuple[SnmpUser, ...], counters: Counters
    ) -> None:
        self.id = engine_id
        self.seconds = seconds
        # Of messages sent in one second: what is the same in all of a user's.
        self._said: tuple[int, dict[tuple[User | None, int, bool], bytes]] = (-1, {})
        # Of messages received: size, octets of user, digest and salt, the scoped PDU's header; then the fields that are
        # the same in all of a form: msgMaxSize, msgFlags, engine ID, boots.
        self._forms: dict[bytes, tuple[int, int, bytes, int, int, bytes, int]] = {}
        self._named = ber.encode(ber.OCTETS, engine_id)
        self.boots = boots
        self.context = self._named + b"\4\0"  # what a scoped PDU begins with: this engine, the default context
        self.users = {user.name: user for user in (User(settings, engine_id) for settings in users)}
        self._counters = counters

    @property
    def boots(self) -> int:
        return self._boots

    @boots.setter
    def boots(self, value: int) -> None:
        self._boots = value
        self._here = self._named + ber.encode_integer(value)
        # In a message of the usual form: from msgMaxSize on, that left out, to the length of the time.
        self._until_time = 13 + len(self._here)
        self._said = (-1, {})

    def _refuse(self, counter: str, message: Incoming, level: int = NO_AUTH) -> Report:
        self._counters.add(counter)
        return Report(counter, message, level)

    def receive(self, data: bytes, pos: int, end: int) -> Incoming | None:
        """Take in a message from after its version. None: refused without a word, and counted.

        Raises: Report, BerError.
        """
        fields = self.fields(data, pos, end)
        message = None if fields is None else self.take(data, fields)
        if message is not None and message.level > NO_AUTH:
            self._learn(data, cast(Fields, fields))
        return message

    def take(self, data: bytes, fields: Fields) -> Incoming | None:
        """Of a message with these fields: who sent it, is it authentic, what does it say? As receive()."""
        msg_id, max_size, flags, engine_id, boots, time_s, name, auth_at, auth_end, salt, at, start, stop = fields
        if msg_id < 0 or max_size < 484:
            raise BerError("message header out of its ranges")
        level = _LEVELS.get(flags & 3)
        if level is None:  # privacy without authentication
            self._counters.add("invalid_messages")
            return None
        if boots < 0 or time_s < 0 or len(name) > 32:
            raise BerError("security parameters out of their ranges")
        if data[at] != (ber.OCTETS if level == PRIV else ber.SEQUENCE):
            raise BerError("no scoped PDU of the kind that the flags announce")
        message = Incoming(msg_id, max_size, bool(flags & 4), level)

        # (3) to (5). An empty engine ID is how a manager discovers ours (section 4).
        if engine_id != self.id:
            raise self._refuse("usm_unknown_engines", message)
        user = self.users.get(name)
        if user is None:
            raise self._refuse("usm_unknown_users", message)
        # A level below the user's own is supported, and nothing is allowed at it: that is the access check's to say.
        if level > user.level:
            raise self._refuse("usm_unsupported_levels", message)
        if level == NO_AUTH:
            message.user, message.data, message.start, message.stop = user, data[at:], start - at, stop - at
            return message
        # (6) authentic?
        if auth_end - auth_at != user.digest.size:
            raise self._refuse("usm_wrong_digests", message)
        blank = data[:auth_at] + user.blank + data[auth_end:]
        if not hmac.compare_digest(user.digest(blank), data[auth_at:auth_end]):
            raise self._refuse("usm_wrong_digests", message)
        message.user = user
        # (7a) timely? The Report is authenticated, so that the manager can believe the time in it.
        if self.boots == MAX_BOOTS or boots != self.boots or abs(time_s - self.seconds()) > TIME_WINDOW_S:
            raise self._refuse("usm_not_in_window", message, AUTH)
        # (8) decrypt.
        if level == PRIV:
            assert user.cipher is not None  # else its level is lower
            if len(salt) != user.cipher.salt_size:
                raise self._refuse("usm_decryption_errors", message)
            try:
                data = user.cipher.decrypt(data[start:stop], boots, time_s, salt)
                # DES needs padding, and in CFB mode a sender may have added some (RFC 3826 section 3.1.4): it is ignored.
                message.start, message.stop = ber.expect(data, 0, len(data), ber.SEQUENCE)
            except (BerError, ValueError):
                # Authentic, yet no scoped PDU: the two ends have different privacy keys.
                raise self._refuse("usm_decryption_errors", message) from None
            message.data = data
        else:
            message.data, message.start, message.stop = data[at:], start - at, stop - at
        return message

    def fields(self, data: bytes, pos: int, end: int) -> Fields | None:
        """What a message has from after its version on, checked in form only. None: it is not for USM, and counted.

        Raises BerError.
        """
        # RFC 3412 section 7.2: the header.
        start, header_end = ber.expect(data, pos, end, ber.SEQUENCE)
        msg_id, start = ber.integer(data, start, header_end)
        max_size, start = ber.integer(data, start, header_end)
        flags, start = ber.octets(data, start, header_end)
        model, start = ber.integer(data, start, header_end)
        if msg_id < 0 or max_size < 484 or len(flags) != 1 or model < 1 or start != header_end:
            raise BerError("message header out of its ranges")
        if model != USM:
            self._counters.add("unknown_models")
            return None
        # RFC 3414 section 3.2 (1): the security parameters.
        start, params_end = ber.expect(data, header_end, end, ber.OCTETS)
        inner, inner_end = ber.expect(data, start, params_end, ber.SEQUENCE)
        if inner_end != params_end:
            raise BerError("octets after the security parameters")
        engine_id, inner = ber.octets(data, inner, inner_end)
        boots, inner = ber.integer(data, inner, inner_end)
        time_s, inner = ber.integer(data, inner, inner_end)
        name, inner = ber.octets(data, inner, inner_end)
        auth_at, auth_end = ber.expect(data, inner, inner_end, ber.OCTETS)
        salt, inner = ber.octets(data, auth_end, inner_end)
        if inner != inner_end:
            raise BerError("octets after the security parameters")
        _, start, stop = ber.tlv(data, params_end, end)
        if stop != end:
            raise BerError("octets after the scoped PDU")
        return (
            msg_id, max_size, flags[0], engine_id, boots, time_s, name, auth_at, auth_end, salt, params_end, start, stop
        )  # fmt: skip

    def known(self, data: bytes, pos: int) -> Fields | None:
        """As fields(), of a message whose form is that of one that was authentic; else None.

        A manager's messages differ in their msgID, time, digest and salt, and in what is encrypted; the octets around
        these are the form. data[pos]: the header's tag. Raises: IndexError: octets are missing.
        """
        after_id = pos + 4 + data[pos + 3]
        time_at = after_id + data[after_id + 1] + self._until_time
        form = self._forms.get(data[: pos + 4] + data[after_id : time_at + 1])
        if form is None:
            return None
        time_end = time_at + 1 + data[time_at]
        auth_at = time_end + 4 + data[time_end + 1]
        auth_end = auth_at + data[auth_at - 1]
        at = auth_end + 2 + data[auth_end + 1]
        size, rest, scoped, max_size, flags, engine_id, boots = form
        start = at + len(scoped)
        if (
            size != len(data) or at - time_at != rest or data[at:start] != scoped
            or data[time_end] != 4 or data[auth_at - 2] != 4 or data[auth_end] != 4
        ):  # fmt: skip
            return None
        return (
            int.from_bytes(data[pos + 4 : after_id], "big", signed=True), max_size, flags, engine_id, boots,
            int.from_bytes(data[time_at + 1 : time_end], "big", signed=True), data[time_end + 2 : auth_at - 2],
            auth_at, auth_end, data[auth_end + 2 : at], at, start, size,
        )  # fmt: skip

    def _learn(self, data: bytes, fields: Fields) -> None:
        """Remember the form of an authentic message, where known() reads it as fields() did."""
        max_size, flags, engine_id, boots = fields[1:5]
        at, start = fields[10:12]
        size = data[1]
        pos = 5 if size < 0x80 else 6 if size == 0x81 else 7
        after_id = pos + 4 + data[pos + 3]
        if after_id + 1 >= len(data):
            return
        time_at = after_id + data[after_id + 1] + self._until_time
        form = data[: pos + 4] + data[after_id : time_at + 1]
        if len(self._forms) >= FORMS:
            self._forms.clear()
        self._forms[form] = (len(data), at - time_at, data[at:start], max_size, flags, engine_id, boots)
        with suppress(IndexError):
            if self.known(data, pos) == fields:
                return
        del self._forms[form]

    def send(
        self, message: Incoming, pdu: bytes, level: int, reportable: bool = False, context: bytes | None = None
    ) -> bytes:
        """The answer to a message, at this security level (at most the one that it came with).

        For a notification `message` is made up: its msg_id and user count. reportable: the receiver may answer by a Report,
        as an inform's may. context: contextEngineID, if not this engine's.
        """
        named = self._named if context is None else ber.encode(ber.OCTETS, context)
        return self.seal(message, ber.encode(ber.SEQUENCE, named + b"\4\0" + pdu), level, reportable)

    def seal(self, message: Incoming, scoped: bytes, level: int, reportable: bool = False) -> bytes:
        """As send(), of a scoped PDU."""
        user = message.user
        seconds = self.seconds()
        salt = b"\4\0"
        size = 0
        if level > NO_AUTH:
            assert user is not None
            size = user.digest.size
            if level == PRIV:
                assert user.cipher is not None
                scoped, salt = user.cipher.encrypt(scoped, self._boots, seconds)
                scoped = ber.header(ber.OCTETS, len(scoped)) + scoped
                salt = b"\4\x08" + salt
        said = self._said  # read once: another thread may be here too, in another second
        if seconds != said[0]:
            said = self._said = seconds, {}
        form = user, level, reportable
        middle = said[1].get(form)
        if middle is None:
            # From msgMaxSize to where the salt begins, the digest left blank.
            who = b"\4\0\4\0" if user is None else user.who if size else ber.encode(ber.OCTETS, user.name) + b"\4\0"
            params = self._here + ber.encode_integer(seconds) + who
            inner = ber.header(ber.SEQUENCE, len(params) + len(salt)) + params
            outer = ber.header(ber.OCTETS, len(inner) + len(salt)) + inner
            middle = said[1][form] = _TAILS[_FLAGS[level] | 4 * reportable] + outer
        number = ber.encode_integer(message.msg_id)
        contents = b"".join((b"\2\1\3", ber.header(ber.SEQUENCE, len(number) + _TAIL), number, middle, salt, scoped))
        whole = ber.header(ber.SEQUENCE, len(contents)) + contents
        if size:
            assert user is not None
            end = len(whole) - len(scoped) - len(salt)
            whole = b"".join((whole[: end - size], user.digest(whole), whole[end:]))
        return whole

    def report(self, refused: Report, request_id: int = 0) -> bytes:
        """A Report-PDU that carries the counter which was incremented (RFC 3412 section 7.1)."""
        count = ber.encode_value(ber.COUNTER32, self._counters.value(refused.counter))
        varbind = ber.encode(ber.SEQUENCE, ber.encode(ber.OID, REPORTS[refused.counter]) + count)
        pdu = ber.encode_integer(request_id) + b"\x02\x01\x00\x02\x01\x00" + ber.encode(ber.SEQUENCE, varbind)
        return self.send(refused.message, ber.encode(0xA8, pdu), refused.level)
