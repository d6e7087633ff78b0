"""One notification, and the octets that it becomes: RFC 3416 sections 4.2.6 and 4.2.7, RFC 3584 section 3.2 for SNMPv1. Pure.

Its variable bindings are encoded once, when it comes to be, and are the same for every receiver and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hasnmp.model import ALARMS, EventRow, Kind, Severity
from hasnmp.snmp import ber
from hasnmp.snmp.oids import ROOT

Oid = tuple[int, ...]
Variable = tuple[Oid, int, int | bytes | Oid]

SYS_UP_TIME = (1, 3, 6, 1, 2, 1, 1, 3, 0)
SNMP_TRAP_OID = (1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0)
SNMP_TRAP_ENTERPRISE = (1, 3, 6, 1, 6, 3, 1, 1, 4, 3, 0)
SNMP_TRAP_ADDRESS = (1, 3, 6, 1, 6, 3, 18, 1, 3, 0)
SNMP_TRAPS = (1, 3, 6, 1, 6, 3, 1, 1, 5)  # below it: coldStart(1) to egpNeighborLoss(6), SNMPv1's generic traps

RESPONSE, INFORM, TRAP, TRAP_V1, REPORT = 0xA2, 0xA6, 0xA7, 0xA4, 0xA8

# How much a receiver's floor must be below, by severity. ALWAYS: what is about the telling itself, which no floor holds back.
_RANKS = {
    Severity.INFO: 1, Severity.INDETERMINATE: 2, Severity.WARNING: 2, Severity.MINOR: 3, Severity.MAJOR: 4,
    Severity.CRITICAL: 5,
}  # fmt: skip
FLOORS = {"info": 1, "warning": 2, "minor": 3, "major": 4, "critical": 5}
ALWAYS = 9


def rank(event: EventRow) -> int:
    """How urgent it is; the end of an alarm is as urgent as the alarm, or a console would show that for ever."""
    if event.kind in (Kind.ALIVE, Kind.EVENTS_LOST):
        return ALWAYS
    if event.severity == Severity.CLEARED:
        return max((_RANKS[severity] for severity, clear in ALARMS.values() if clear == event.kind), default=1)
    return _RANKS[event.severity]


@dataclass(frozen=True, slots=True)
class Notification:
    """number: its place in the backlog, 0 = in none. ticks: sysUpTime when it came to be. variables: the encoded bindings
    after sysUpTime.0 and snmpTrapOID.0."""

    number: int
    oid: Oid
    ticks: int
    variables: bytes
    rank: int = ALWAYS

    def names(self) -> list[Oid]:
        """What a view must have for a receiver to be told of this (RFC 3413 section 3.3 (3)); our own name is no secret."""
        return [self.oid, *(name for name, _, _ in self.bindings() if name != SNMP_TRAP_ENTERPRISE)]

    def bindings(self) -> Iterator[tuple[Oid, int, bytes]]:
        """The variables after the first two: (name, tag, contents). Raises BerError: they were not encoded by us."""
        data, at = self.variables, 0
        while at < len(data):
            start, at = ber.expect(data, at, len(data), ber.SEQUENCE)
            name, name_end = ber.expect(data, start, at, ber.OID)
            tag, value, end = ber.tlv(data, name_end, at)
            yield ber.decode_oid(data[name:name_end]), tag, data[value:end]


def encode_variables(variables: Iterable[Variable]) -> bytes:
    """Raises BerError: a value is not of its syntax."""
    return b"".join(binding(oid, ber.encode_value(syntax, value)) for oid, syntax, value in variables)


def binding(oid: Oid, value: bytes) -> bytes:
    return ber.encode(ber.SEQUENCE, ber.encode(ber.OID, ber.encode_oid(oid)) + value)


def pdu(tag: int, number: int, of: Notification) -> bytes:
    """A Trap-PDU or InformRequest-PDU of SNMPv2c and v3. number: its request-id."""
    first = binding(SYS_UP_TIME, ber.encode_value(ber.TIMETICKS, of.ticks))
    second = binding(SNMP_TRAP_OID, ber.encode_value(ber.OID, of.oid))
    listed = ber.encode(ber.SEQUENCE, first + second + of.variables)
    return ber.encode(tag, ber.encode_integer(number) + b"\x02\x01\x00\x02\x01\x00" + listed)


def trap_v1(of: Notification, address: bytes) -> bytes | None:
    """A Trap-PDU of SNMPv1; None: a variable is a Counter64, which SNMPv1 can't carry.

    address: the agent's own IPv4 address; four zeroes where it has none. Source: RFC 3584 section 3.2.
    """
    standard = of.oid[:-1] == SNMP_TRAPS and 1 <= of.oid[-1] <= 6
    enterprise: Oid = SNMP_TRAPS
    for name, tag, value in of.bindings():
        if tag == ber.COUNTER64:
            return None
        if name == SNMP_TRAP_ENTERPRISE and tag == ber.OID:
            enterprise = ber.decode_oid(value)
        elif name == SNMP_TRAP_ADDRESS and tag == ber.IPADDRESS and len(value) == 4:
            address = value
    if not standard:
        enterprise = of.oid[:-2] if of.oid[-2] == 0 else of.oid[:-1]
    generic, specific = (of.oid[-1] - 1, 0) if standard else (6, of.oid[-1])
    return ber.encode(
        TRAP_V1,
        ber.encode_value(ber.OID, enterprise) + ber.encode_value(ber.IPADDRESS, address)
        + ber.encode_integer(generic) + ber.encode_integer(specific)
        + ber.encode_value(ber.TIMETICKS, of.ticks) + ber.encode(ber.SEQUENCE, of.variables),
    )  # fmt: skip


def community_message(version: int, community: bytes, pdu_octets: bytes) -> bytes:
    """A message of SNMPv1 (0) or v2c (1)."""
    return ber.encode(ber.SEQUENCE, ber.encode_integer(version) + ber.encode(ber.OCTETS, community) + pdu_octets)


def enterprise_binding() -> bytes:
    """snmpTrapEnterprise.0 for a standard trap of ours: by it the SNMPv1 form names our sysObjectID, as RFC 1157 asks."""
    return encode_variables([(SNMP_TRAP_ENTERPRISE, ber.OID, ROOT)])


@dataclass(frozen=True, slots=True)
class Answer:
    """A Response-PDU or Report-PDU. name: of its first variable, as octets; b"" without one."""

    tag: int
    number: int
    status: int
    name: bytes


def parse_answer(data: bytes, at: int, end: int) -> Answer:
    """Raises BerError: it is neither."""
    tag, at, stop = ber.tlv(data, at, end)
    if tag not in (RESPONSE, REPORT):
        raise ber.BerError(f"tag 0x{tag:02x} answers nothing")
    number, at = ber.integer(data, at, stop)
    status, at = ber.integer(data, at, stop)
    _, at = ber.integer(data, at, stop)
    at, stop = ber.expect(data, at, stop, ber.SEQUENCE)
    name = b""
    if at < stop:
        at, stop = ber.expect(data, at, stop, ber.SEQUENCE)
        at, stop = ber.expect(data, at, stop, ber.OID)
        name = data[at:stop]
    return Answer(tag, number, status, name)


def parse_community_answer(data: bytes) -> Answer:
    """An answer of SNMPv2c. Raises BerError."""
    at, end = ber.expect(data, 0, len(data), ber.SEQUENCE)
    version, at = ber.integer(data, at, end)
    _, at = ber.octets(data, at, end)
    if version != 1:
        raise ber.BerError(f"version {version} where SNMPv2c (1) belongs")
    return parse_answer(data, at, end)
