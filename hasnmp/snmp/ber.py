"""Octets <-> the ASN.1 values that SNMP uses: the Basic Encoding Rules as RFC 3417 section 8 restricts them. Pure.

The decoder is strict, because everything it sees comes from strangers: definite lengths of at most four octets, primitive
strings only, integers of at most their type's size, object identifiers of at most 128 sub-identifiers below 2**32, nothing
that reaches past its container. The encoder writes the shortest form of everything.

Functions on the way of every request work on positions in one bytes object, so that nothing is copied or built before
it is known to be wanted.
"""

from __future__ import annotations

from collections.abc import Callable

from hasnmp.errors import HasnmpError

INTEGER = 0x02
OCTETS = 0x04
NULL = 0x05
OID = 0x06
SEQUENCE = 0x30
IPADDRESS = 0x40
COUNTER32 = 0x41
UNSIGNED32 = 0x42  # Gauge32 has the same tag (RFC 2578 section 2)
TIMETICKS = 0x43
OPAQUE = 0x44
COUNTER64 = 0x46

# The exceptions of RFC 3416 section 3, as whole values.
NO_SUCH_OBJECT = b"\x80\x00"
NO_SUCH_INSTANCE = b"\x81\x00"
END_OF_MIB_VIEW = b"\x82\x00"
NULL_VALUE = b"\x05\x00"

MAX_SUBIDS = 128  # RFC 2578 section 3.5

Oid = tuple[int, ...]
Value = int | bytes | Oid | None

# Unsigned types: (tag, octets of contents at most, values below).
_UNSIGNED = {COUNTER32: (5, 1 << 32), UNSIGNED32: (5, 1 << 32), TIMETICKS: (5, 1 << 32), COUNTER64: (9, 1 << 64)}
VALUES = frozenset((INTEGER, OCTETS, NULL, OID, IPADDRESS, OPAQUE, 0x80, 0x81, 0x82, *_UNSIGNED))


class BerError(HasnmpError):
    """Octets that are not BER as SNMP allows it."""


def tlv(data: bytes, pos: int, end: int) -> tuple[int, int, int]:
    """The element at `pos`: (tag, first octet of its contents, octet after it).

    Raises: BerError: indefinite or oversized length, or an element that reaches past `end`.
    """
    if pos + 2 > end:
        raise BerError("truncated element")
    length = data[pos + 1]
    start = pos + 2
    if length & 0x80:
        octets = length & 0x7F
        # 0x80 is the indefinite form, forbidden by RFC 3417 section 8 (1). Long forms that a shorter one could say are
        # allowed by X.690 8.1.3.5, and Net-SNMP writes them.
        if not 1 <= octets <= 4 or start + octets > end:
            raise BerError("length of a form that SNMP does not use")
        length = int.from_bytes(data[start : start + octets], "big")
        start += octets
    stop = start + length
    if stop > end:
        raise BerError("element reaches past its container")
    return data[pos], start, stop


def expect(data: bytes, pos: int, end: int, tag: int) -> tuple[int, int]:
    """The contents (start, stop) of the element at `pos`, which must have this tag."""
    got, start, stop = tlv(data, pos, end)
    if got != tag:
        raise BerError(f"tag 0x{got:02x} where 0x{tag:02x} belongs")
    return start, stop


def integer(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """An INTEGER of at most 32 bits at `pos`: (value, octet after it)."""
    start, stop = expect(data, pos, end, INTEGER)
    if not 1 <= stop - start <= 4:
        raise BerError("INTEGER of no or more than four octets")
    return int.from_bytes(data[start:stop], "big", signed=True), stop


def octets(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """An OCTET STRING at `pos`: (contents, octet after it)."""
    start, stop = expect(data, pos, end, OCTETS)
    return data[start:stop], stop


def decode_oid(raw: bytes) -> Oid:
    """The sub-identifiers in an OBJECT IDENTIFIER's contents.

    Raises: BerError: empty, cut off, padded, more than 128 sub-identifiers, or one of 2**32 or more.
    Source: X.690 8.19, RFC 2578 section 3.5.
    """
    if not raw or raw[-1] & 0x80:
        raise BerError("empty or unfinished OBJECT IDENTIFIER")
    if len(raw) > 5 * MAX_SUBIDS:
        raise BerError("OBJECT IDENTIFIER of more than 128 sub-identifiers")
    subids: list[int] = []
    value = 0
    begun = False
    for octet in raw:
        if octet & 0x80:
            if not begun and octet == 0x80:
                raise BerError("padded sub-identifier")
            begun = True
            value = (value | octet & 0x7F) << 7
            if value >= 1 << 39:  # after the shift: five octets at most, checked exactly below
                raise BerError("sub-identifier of 2**32 or more")
        else:
            value |= octet
            # The first octets carry two sub-identifiers, 40 * a + b with a at most 2.
            if value >= 1 << 32 and (subids or value >= (1 << 32) + 80):
                raise BerError("sub-identifier of 2**32 or more")
            if subids:
                subids.append(value)
            else:
                first = min(value // 40, 2)
                subids += (first, value - 40 * first)
            value, begun = 0, False
    if len(subids) > MAX_SUBIDS:
        raise BerError("OBJECT IDENTIFIER of more than 128 sub-identifiers")
    return tuple(subids)


def encode_subids(subids: Oid) -> bytes:
    """Sub-identifiers in base 128, without the joining of an identifier's first two: the octets of a suffix."""
    out = bytearray()
    for subid in subids:
        if subid < 0x80:
            out.append(subid)
            continue
        chunk = [subid & 0x7F]
        subid >>= 7
        while subid:
            chunk.append(subid & 0x7F | 0x80)
            subid >>= 7
        out += bytes(reversed(chunk))
    return bytes(out)


def encode_oid(oid: Oid) -> bytes:
    """The contents of an OBJECT IDENTIFIER (X.690 section 8.19.4). Raises BerError: BER has no octets for it."""
    if len(oid) < 2 or oid[0] > 2 or (oid[0] < 2 and oid[1] > 39):
        raise BerError(f"object identifier that begins with {'.'.join(map(str, oid[:2])) or 'nothing'}")
    return encode_subids((40 * oid[0] + oid[1], *oid[2:]))


def header(tag: int, length: int) -> bytes:
    """What an element of this tag begins with whose contents have so many octets."""
    if length < 0x80:
        return bytes((tag, length))
    if length < 0x100:
        return bytes((tag, 0x81, length))
    if length < 0x10000:
        return bytes((tag, 0x82, length >> 8, length & 0xFF))
    octets = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + length.to_bytes(octets, "big")


def encode(tag: int, contents: bytes) -> bytes:
    """One element."""
    length = len(contents)
    return bytes((tag, length)) + contents if length < 0x80 else header(tag, length) + contents


def encode_integer(value: int, tag: int = INTEGER) -> bytes:
    """An INTEGER, or any of the unsigned types, in the fewest octets (X.690 8.3.2)."""
    if 0 <= value < 0x80:
        return bytes((tag, 1, value))
    # The bits of a negative number are those of its complement: -128 fits one octet.
    octets = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return bytes((tag, octets)) + value.to_bytes(octets, "big", signed=True)


def encode_value(tag: int, value: Value) -> bytes:
    """A value of any syntax: INTEGER and the unsigned types take int, OID a tuple, NULL None, the others bytes.

    Raises: BerError: the value is not of the tag's type or range, so that a wrong cell is an error, not a wrong number.
    """
    if tag == INTEGER and isinstance(value, int):
        if -0x80000000 <= value <= 0x7FFFFFFF:
            return encode_integer(value)
    elif tag in _UNSIGNED and isinstance(value, int):
        if 0 <= value < _UNSIGNED[tag][1]:
            return encode_integer(value, tag)
    elif tag == OID and isinstance(value, tuple):
        return encode(OID, encode_oid(value))
    elif tag in (OCTETS, OPAQUE) and isinstance(value, bytes):
        if len(value) <= 0xFFFF:  # RFC 2578 section 7.1.2
            return encode(tag, value)
    elif tag == IPADDRESS and isinstance(value, bytes):
        if len(value) == 4:
            return encode(tag, value)
    elif tag == NULL and value is None:
        return NULL_VALUE
    raise BerError(f"{value!r} is no value of tag 0x{tag:02x}")


def encoder(tag: int) -> Callable[[Value], bytes]:
    """encode_value() for one tag, as fast as it goes: most values of a table are small numbers and short texts."""
    small = [bytes((tag, 1, number)) for number in range(0x80)] if tag == INTEGER or tag in _UNSIGNED else []
    heads = [bytes((tag, size)) for size in range(0x80)] if tag in (OCTETS, OPAQUE) else []

    def number(value: Value) -> bytes:
        if type(value) is int and 0 <= value < 0x80000000:
            if value < 0x80:
                return small[value]
            size = (value.bit_length() >> 3) + 1
            return bytes((tag, size)) + value.to_bytes(size, "big")
        return encode_value(tag, value)

    def text(value: Value) -> bytes:
        if type(value) is bytes and len(value) < 0x80:
            return heads[len(value)] + value
        return encode_value(tag, value)

    return number if small else text if heads else lambda value: encode_value(tag, value)


def split_varbind(varbind: bytes) -> tuple[bytes, int, bytes]:
    """One encoded variable binding: its name's octets, its value's tag and contents.

    Raises: BerError: it is none, or something follows it.
    """
    end = len(varbind)
    start, stop = expect(varbind, 0, end, SEQUENCE)
    name, name_stop = expect(varbind, start, stop, OID)
    tag, value, value_stop = tlv(varbind, name_stop, stop)
    if stop != end or value_stop != stop:
        raise BerError("octets after a variable binding")
    return varbind[name:name_stop], tag, varbind[value:value_stop]


def decode_value(tag: int, contents: bytes) -> Value:
    """A variable binding's value: int, bytes, a tuple of sub-identifiers, or None for NULL and the exceptions.

    Raises: BerError: the contents don't suit the tag.
    """
    size = len(contents)
    if tag == INTEGER:
        if 1 <= size <= 4:
            return int.from_bytes(contents, "big", signed=True)
        raise BerError("INTEGER of no or more than four octets")
    if tag == OCTETS or tag == OPAQUE:
        return contents
    if tag in _UNSIGNED:
        most, below = _UNSIGNED[tag]
        if 1 <= size <= most:
            value = int.from_bytes(contents, "big", signed=True)
            if 0 <= value < below:
                return value
        raise BerError("unsigned value of no octets, too many, or a negative sign")
    if tag == OID:
        return decode_oid(contents)
    if tag == IPADDRESS:
        if size == 4:
            return contents
        raise BerError("IpAddress of other than four octets")
    if tag in VALUES:
        if size:
            raise BerError("NULL with contents")
        return None
    raise BerError(f"tag 0x{tag:02x} is of no SNMP type")
