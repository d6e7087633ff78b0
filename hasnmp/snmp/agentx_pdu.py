"""AgentX PDUs (RFC 2741 sections 5 and 6): octets <-> values. Pure.

Names are octets here: four a sub-identifier, most significant first, whichever order their PDU has. Such octets sort as
the OBJECT IDENTIFIERs do, and a region's name is a plain prefix of the names below it, so that a search range is judged by
comparing octets. Types have the numbers of their BER tags, but that AgentX writes them in two octets.

The master is not a stranger, and still nothing that it sends may do more than end its session: every length is checked
before it is used, and no PDU is larger than MAX_PAYLOAD.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from hasnmp.errors import HasnmpError
from hasnmp.snmp import ber

VERSION = 1
HEADER = 20  # octets
MAX_PAYLOAD = 1 << 20  # octets; 5,000 search ranges of the longest names
NON_DEFAULT_CONTEXT = 0x08
NETWORK_BYTE_ORDER = 0x10

# What a prefix octet stands for: 1.3.6.1 and itself.
_PREFIXES = tuple(struct.pack(">5I", 1, 3, 6, 1, prefix) for prefix in range(256))
_FLAT = struct.Struct("BBBB")
NO_END = bytes(4)  # the null object identifier, as the end of a search range


class Kind(IntEnum):
    """h.type (section 6.1)."""

    OPEN = 1
    CLOSE = 2
    REGISTER = 3
    UNREGISTER = 4
    GET = 5
    NEXT = 6
    BULK = 7
    TEST_SET = 8
    COMMIT_SET = 9
    UNDO_SET = 10
    CLEANUP_SET = 11
    NOTIFY = 12
    PING = 13
    INDEX_ALLOCATE = 14
    INDEX_DEALLOCATE = 15
    ADD_CAPABILITIES = 16
    REMOVE_CAPABILITIES = 17
    RESPONSE = 18


class Error(IntEnum):
    """res.error beyond the numbers of SNMP's own error-status (section 6.2.16)."""

    NONE = 0
    OPEN_FAILED = 256
    NOT_OPEN = 257
    INDEX_WRONG_TYPE = 258
    INDEX_ALREADY_ALLOCATED = 259
    INDEX_NONE_AVAILABLE = 260
    INDEX_NOT_ALLOCATED = 261
    UNSUPPORTED_CONTEXT = 262
    DUPLICATE_REGISTRATION = 263
    UNKNOWN_REGISTRATION = 264
    UNKNOWN_CAPABILITIES = 265
    PARSE = 266
    REQUEST_DENIED = 267
    PROCESSING = 268


class Reason(IntEnum):
    """c.reason of a Close (section 6.2.2)."""

    OTHER = 1
    PARSE_ERROR = 2
    PROTOCOL_ERROR = 3
    TIMEOUTS = 4
    SHUTDOWN = 5
    BY_MANAGER = 6


class AgentxError(HasnmpError):
    """Octets that are no AgentX PDU."""


class Order:
    """One byte order: how numbers are written."""

    __slots__ = ("big", "flag", "header", "number", "pair", "result", "signed", "wide")

    def __init__(self, big: bool) -> None:
        mark = ">" if big else "<"
        self.big = big
        self.flag = NETWORK_BYTE_ORDER if big else 0
        self.header = struct.Struct(mark + "BBBBIIII")
        self.number = struct.Struct(mark + "I")
        self.signed = struct.Struct(mark + "i")
        self.wide = struct.Struct(mark + "Q")
        self.pair = struct.Struct(mark + "HH")
        self.result = struct.Struct(mark + "IHH")


BIG, LITTLE = Order(True), Order(False)


def _turned(name: bytes) -> bytes:
    """A name's octets in the other byte order."""
    numbers = array("I", name)
    numbers.byteswap()
    return numbers.tobytes()


@dataclass(slots=True)
class Header:
    """A PDU's header (section 6.1)."""

    kind: int
    order: Order
    flags: int
    session: int
    transaction: int
    packet: int
    size: int  # octets of payload


Range = tuple[bytes, bool, bytes]  # start, is the start itself wanted too, end (b"": none)
Binding = tuple[bytes, int, ber.Value]


def parse_header(data: bytes | bytearray, pos: int = 0) -> Header:
    """The header at `pos`, of which HEADER octets are there.

    Raises: AgentxError: another version, or a payload that no PDU of ours or a master's has: nothing after it can be read.
    """
    flags = data[pos + 2]
    order = BIG if flags & NETWORK_BYTE_ORDER else LITTLE
    version, kind, flags, _, session, transaction, packet, size = order.header.unpack_from(data, pos)
    if version != VERSION:
        raise AgentxError(f"AgentX version {version}; only {VERSION} is known")
    if size % 4 or size > MAX_PAYLOAD:
        raise AgentxError(f"a payload of {size} octets; at most {MAX_PAYLOAD}, and in fours")
    return Header(kind, order, flags, session, transaction, packet, size)


# ------------------------------------------------------------------------------------------------------------- reading


def _number(data: bytes, pos: int, end: int, order: Order) -> int:
    if pos + 4 > end:
        raise AgentxError("truncated number")
    value: int = order.number.unpack_from(data, pos)[0]
    return value


def read_name(data: bytes, pos: int, end: int, order: Order) -> tuple[bytes, bool, int]:
    """An Object Identifier (section 5.1): (octets, include, octet after it). Raises AgentxError."""
    if pos + 4 > end:
        raise AgentxError("truncated object identifier")
    count, prefix, include = data[pos], data[pos + 1], data[pos + 2]
    start = pos + 4
    stop = start + 4 * count
    if stop > end:
        raise AgentxError("object identifier reaches past its PDU")
    if count > ber.MAX_SUBIDS:
        raise AgentxError(f"object identifier of {count} sub-identifiers")
    name = data[start:stop]
    if not order.big:
        name = _turned(name)
    if prefix:
        if count + 5 > ber.MAX_SUBIDS:
            raise AgentxError(f"object identifier of {count + 5} sub-identifiers")
        name = _PREFIXES[prefix] + name
    return name, include != 0, stop


def read_octets(data: bytes, pos: int, end: int, order: Order) -> tuple[bytes, int]:
    """An Octet String (section 5.3) and the octet after its padding. Raises AgentxError."""
    size = _number(data, pos, end, order)
    start = pos + 4
    stop = start + size
    after = start + (size + 3 & ~3)
    if after > end:
        raise AgentxError("octet string reaches past its PDU")
    return data[start:stop], after


def read_context(header: Header, data: bytes, pos: int, end: int) -> tuple[bytes | None, int]:
    """The context that a PDU names (None: the default one), and the octet after it. Raises AgentxError."""
    return read_octets(data, pos, end, header.order) if header.flags & NON_DEFAULT_CONTEXT else (None, pos)


def read_ranges(data: bytes, pos: int, end: int, order: Order) -> list[Range]:
    """A SearchRangeList (section 5.2) to the end of its PDU. Raises AgentxError."""
    ranges: list[Range] = []
    while pos < end:
        start, include, pos = read_name(data, pos, end, order)
        if data[pos : pos + 4] == NO_END and pos + 4 <= end:
            pos += 4
            ranges.append((start, include, b""))
            continue
        stop, _, pos = read_name(data, pos, end, order)
        ranges.append((start, include, stop))
    return ranges


def read_bulk(data: bytes, pos: int, end: int, order: Order) -> tuple[int, int, list[Range]]:
    """A GetBulk's non-repeaters, max-repetitions and ranges (section 6.2.7). Raises AgentxError."""
    if pos + 4 > end:
        raise AgentxError("truncated GetBulk")
    once, repetitions = order.pair.unpack_from(data, pos)
    return once, repetitions, read_ranges(data, pos + 4, end, order)


def read_bindings(data: bytes, pos: int, end: int, order: Order) -> list[Binding]:
    """A VarBindList (section 5.4) to the end of its PDU; values as ber.decode_value gives them. Raises AgentxError."""
    found: list[Binding] = []
    while pos < end:
        if pos + 4 > end:
            raise AgentxError("truncated variable binding")
        tag = order.pair.unpack_from(data, pos)[0]
        name, _, pos = read_name(data, pos + 4, end, order)
        value: ber.Value
        if tag == ber.INTEGER or tag in (ber.COUNTER32, ber.UNSIGNED32, ber.TIMETICKS):
            _number(data, pos, end, order)
            value = (order.signed if tag == ber.INTEGER else order.number).unpack_from(data, pos)[0]
            pos += 4
        elif tag == ber.COUNTER64:
            if pos + 8 > end:
                raise AgentxError("truncated Counter64")
            value = order.wide.unpack_from(data, pos)[0]
            pos += 8
        elif tag in (ber.OCTETS, ber.OPAQUE, ber.IPADDRESS):
            octets, pos = read_octets(data, pos, end, order)
            if tag == ber.IPADDRESS and len(octets) != 4:
                raise AgentxError(f"IpAddress of {len(octets)} octets")
            value = octets
        elif tag == ber.OID:
            octets, _, pos = read_name(data, pos, end, order)
            value = subids(octets)
        elif tag == ber.NULL or 0x80 <= tag <= 0x82:
            value = None
        else:
            raise AgentxError(f"type {tag} is none of SNMP's")
        found.append((name, tag, value))
    return found


def read_response(data: bytes, pos: int, end: int, order: Order) -> tuple[int, int, int]:
    """A Response's sysUpTime, error and index (section 6.2.16); its variable bindings answer nothing that we ask."""
    if pos + 8 > end:
        raise AgentxError("truncated Response")
    up, error, index = order.result.unpack_from(data, pos)
    return up, error, index


def read_reason(data: bytes, pos: int, end: int) -> int:
    """A Close's reason."""
    if pos + 4 > end:
        raise AgentxError("truncated Close")
    return data[pos]


# ------------------------------------------------------------------------------------------------------------- writing


def packed(oid: Iterable[int]) -> bytes:
    """Sub-identifiers as a name's octets."""
    numbers = tuple(oid)
    return struct.pack(f">{len(numbers)}I", *numbers)


def subids(name: bytes) -> ber.Oid:
    """A name's sub-identifiers."""
    return struct.unpack(f">{len(name) // 4}I", name)


def write_name(name: bytes, order: Order, include: bool = False) -> bytes:
    """An Object Identifier."""
    return _FLAT.pack(len(name) >> 2, 0, include, 0) + (name if order.big else _turned(name))


def write_octets(octets: bytes, order: Order) -> bytes:
    """An Octet String, padded to four."""
    return order.number.pack(len(octets)) + octets + bytes(-len(octets) % 4)


def write_binding(name: bytes, tag: int, value: bytes, order: Order) -> bytes:
    """A VarBind; value: its octets already as AgentX writes them."""
    return order.pair.pack(tag, 0) + write_name(name, order) + value


def value_of_ber(tag: int, contents: bytes, order: Order) -> bytes:
    """A value's octets from those that BER has for it. Raises BerError: an OID that is none."""
    if tag == ber.OCTETS or tag == ber.IPADDRESS or tag == ber.OPAQUE:
        return write_octets(contents, order)
    if tag == ber.INTEGER:
        return order.signed.pack(int.from_bytes(contents, "big", signed=True))
    if tag == ber.COUNTER64:
        return order.wide.pack(int.from_bytes(contents, "big"))
    if tag == ber.OID:
        return write_name(packed(ber.decode_oid(contents)), order)
    if tag == ber.NULL or tag >= 0x80:
        return b""
    return order.number.pack(int.from_bytes(contents, "big"))


def write_value(tag: int, value: ber.Value, order: Order) -> bytes:
    """A value's octets. Raises: BerError: it is not of the tag's type or range."""
    encoded = ber.encode_value(tag, value)
    _, start, stop = ber.tlv(encoded, 0, len(encoded))
    return value_of_ber(tag, encoded[start:stop], order)


def write_pdu(kind: int, session: int, transaction: int, packet: int, payload: bytes, order: Order = BIG) -> bytes:
    """A PDU of the default context."""
    return order.header.pack(VERSION, kind, order.flag, 0, session, transaction, packet, len(payload)) + payload


def write_response(request: Header, error: int, index: int, bindings: bytes = b"", up: int = 0) -> bytes:
    """The Response to a request, in its byte order. up: sysUpTime, which only a master has to say."""
    order = request.order
    payload = order.result.pack(up, error, index) + bindings
    return write_pdu(Kind.RESPONSE, request.session, request.transaction, request.packet, payload, order)
