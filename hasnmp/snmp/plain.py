"""Requests of the plain form that nearly all have, read in one go: no call an element, nothing built that is not needed.

What is not of that form - any length or number written long, any value but NULL, anything malformed - is None here, and the
responder's full parser has the word. Both read the same in what they both take (tests/snmp/test_snmp_plain.py).
"""

from __future__ import annotations

from hasnmp.snmp import ber

# What a variable binding of a name of so many octets and NULL begins with.
HEADS = [bytes((ber.SEQUENCE, size + 4, ber.OID)) for size in range(0x7A)]
_HEADERS = 1500  # octets of contents whose headers are kept ready: an answer's, mostly
SEQUENCES = [ber.encode(ber.SEQUENCE, bytes(size))[: -size or None] for size in range(_HEADERS)]
RESPONSES = [ber.encode(0xA2, bytes(size))[: -size or None] for size in range(_HEADERS)]
STRINGS = [ber.encode(ber.OCTETS, bytes(size))[: -size or None] for size in range(_HEADERS)]

# Tag, the request-id as it is encoded, error-status and error-index (or non-repeaters and max-repetitions), the names.
Plain = tuple[int, bytes, int, int, list[bytes]]


def head(data: bytes) -> tuple[int, bytes, int] | None:
    """Of a message: its version, its community, and where its PDU begins; of v3 no community, and where its header begins."""
    try:
        at = 2
        size = data[1]
        if size >= 0x80:
            if size == 0x81:
                size = data[2]
                at = 3
            elif size == 0x82:
                size = data[2] << 8 | data[3]
                at = 4
        if at + size != len(data) or data[0] != 0x30 or data[at : at + 2] != b"\2\1":
            return None
        if data[at + 2] == 3:
            return 3, b"", at + 3
        if data[at + 3] != 4:
            return None
        size = data[at + 4]
        return (data[at + 2], data[at + 5 : at + 5 + size], at + 5 + size) if size < 0x80 else None
    except IndexError:
        return None


def pdu(data: bytes, at: int, end: int) -> Plain | None:
    """A PDU that fills octets[at:end]."""
    try:
        tag = data[at]
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            if size == 0x81:
                size = data[at]
                at += 1
            elif size == 0x82:
                size = data[at] << 8 | data[at + 1]
                at += 2
        if at + size != end or data[at] != 2:
            return None
        size = data[at + 1]
        start, at = at, at + size + 2
        request_id = data[start:at]
        if size != 1 and (
            not 2 <= size <= 4
            or (request_id[2] == 0 and request_id[3] < 0x80)
            or (request_id[2] == 0xFF and request_id[3] >= 0x80)
        ):
            return None
        first, second = data[at + 2], data[at + 5]
        if data[at : at + 2] != b"\2\1" or data[at + 3 : at + 5] != b"\2\1" or first > 0x7F or second > 0x7F:
            return None
        if data[at + 6] != 0x30:
            return None
        size = data[at + 7]
        at += 8
        if size >= 0x80:
            if size == 0x81:
                size = data[at]
                at += 1
            elif size == 0x82:
                size = data[at] << 8 | data[at + 1]
                at += 2
        if at + size != end:
            return None
        names = []
        while at < end:
            size = data[at + 3]
            stop = at + 6 + size
            if size >= 0x7A or data[at : at + 3] != HEADS[size] or data[stop - 2 : stop] != b"\5\0":
                return None
            names.append(data[at + 4 : stop - 2])
            at = stop
        return (tag, request_id, first, second, names) if at == end else None
    except IndexError:
        return None


# Of an SNMPv3 message by USM: msgID, msgMaxSize, msgFlags; engine ID, boots, time, user; start and end of the authentication
# parameters; the salt; tag, start and end of the scoped PDU, or of what it is encrypted to.
Secured = tuple[int, int, int, bytes, int, int, bytes, int, int, bytes, int, int, int]


def secured(data: bytes, at: int, end: int) -> Secured | None:
    """An SNMPv3 message from after its version on."""
    try:
        # HeaderData (RFC 3412 section 6): in lengths of one octet.
        head_end = at + 2 + data[at + 1]
        size = data[at + 3]
        stop = at + 4 + size
        if data[at] != 0x30 or data[at + 2] != 2 or not 1 <= size <= 4 or data[stop] != 2:
            return None
        msg_id = int.from_bytes(data[at + 4 : stop], "big", signed=True)
        size = data[stop + 1]
        at = stop + 2 + size
        max_size = int.from_bytes(data[stop + 2 : at], "big", signed=True)
        if (
            not 1 <= size <= 4
            or data[at : at + 2] != b"\4\1"
            or data[at + 3 : at + 6] != b"\2\1\3"
            or at + 6 != head_end
        ):
            return None
        flags = data[at + 2]
        # UsmSecurityParameters (RFC 3414 section 2.4), in an OCTET STRING.
        at += 7
        size = data[at]
        if size == 0x81:
            at += 1
            size = data[at]
        elif size >= 0x80:
            return None
        params_end = at + 1 + size
        if data[head_end] != 4 or data[at + 1] != 0x30:
            return None
        at += 2
        size = data[at]
        if size == 0x81:
            at += 1
            size = data[at]
        elif size >= 0x80:
            return None
        at += 1
        if at + size != params_end:
            return None
        size = data[at + 1]
        stop = at + 2 + size
        if data[at] != 4 or size >= 0x80:
            return None
        engine_id = data[at + 2 : stop]
        size = data[stop + 1]
        at = stop + 2 + size
        if data[stop] != 2 or not 1 <= size <= 4:
            return None
        boots = int.from_bytes(data[stop + 2 : at], "big", signed=True)
        size = data[at + 1]
        stop = at + 2 + size
        if data[at] != 2 or not 1 <= size <= 4:
            return None
        seconds = int.from_bytes(data[at + 2 : stop], "big", signed=True)
        size = data[stop + 1]
        at = stop + 2 + size
        if data[stop] != 4 or size >= 0x80:
            return None
        name = data[stop + 2 : at]
        size = data[at + 1]
        auth_at = at + 2
        auth_end = auth_at + size
        if data[at] != 4 or size >= 0x80 or data[auth_end] != 4:
            return None
        size = data[auth_end + 1]
        at = auth_end + 2 + size
        if size >= 0x80 or at != params_end:
            return None
        salt = data[auth_end + 2 : at]
        # ScopedPduData
        tag = data[at]
        size = data[at + 1]
        at += 2
        if size == 0x81:
            size = data[at]
            at += 1
        elif size == 0x82:
            size = data[at] << 8 | data[at + 1]
            at += 2
        if at + size != end:
            return None
        return msg_id, max_size, flags, engine_id, boots, seconds, name, auth_at, auth_end, salt, tag, at, end
    except IndexError:
        return None


def response(request_id: bytes, varbinds: bytes) -> bytes:
    """A Response-PDU without an error."""
    size = len(varbinds)
    if size < _HEADERS - 30:
        head = SEQUENCES[size]
        return b"".join(
            (RESPONSES[size + len(head) + len(request_id) + 6], request_id, b"\2\1\0\2\1\0", head, varbinds)
        )
    return ber.encode(0xA2, request_id + b"\2\1\0\2\1\0" + ber.encode(ber.SEQUENCE, varbinds))


def sequence(contents: bytes) -> bytes:
    size = len(contents)
    return SEQUENCES[size] + contents if size < _HEADERS else ber.encode(ber.SEQUENCE, contents)


def octets(contents: bytes) -> bytes:
    size = len(contents)
    return STRINGS[size] + contents if size < _HEADERS else ber.encode(ber.OCTETS, contents)
