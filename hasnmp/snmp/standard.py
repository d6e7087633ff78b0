"""The objects of the standard MIBs that every agent has, in the same form as HASNMP-MIB's own.

SNMPv2-MIB (RFC 3418): system, sysORTable, snmp. SNMP-FRAMEWORK-MIB (RFC 3411): snmpEngine. SNMP-MPD-MIB (RFC 3412):
snmpMPDStats. SNMP-TARGET-MIB (RFC 3413): the two context counters. SNMP-USER-BASED-SM-MIB (RFC 3414): usmStats.

sysName is the node's name, by which the configuration, the MIB and the notifications call it. sysContact and sysLocation
are unknown, which is the empty string, and all three are read-only; so is snmpEnableAuthenTraps, since the
configuration is the one source.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hasnmp.model import View
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.objects import Column, Index, Reader, Scalar, Syntax, TableDef
from hasnmp.snmp.oids import ROOT
from hasnmp.snmp.sets import Assignment, SetError

Oid = tuple[int, ...]

MIB2 = (1, 3, 6, 1, 2, 1)
SNMP_MODULES = (1, 3, 6, 1, 6, 3)
COLD_START = (*SNMP_MODULES, 1, 1, 5, 1)
WARM_START = (*SNMP_MODULES, 1, 1, 5, 2)

# Counters of RFC 3418, 3412, 3413 and 3414: our name, the MIB's name, the OID.
# fmt: off
COUNTERS: tuple[tuple[str, str, Oid], ...] = (
    ("in_packets",             "snmpInPkts",                   (*MIB2, 11, 1)),
    ("bad_versions",           "snmpInBadVersions",            (*MIB2, 11, 3)),
    ("bad_names",              "snmpInBadCommunityNames",      (*MIB2, 11, 4)),
    ("bad_uses",               "snmpInBadCommunityUses",       (*MIB2, 11, 5)),
    ("parse_errors",           "snmpInASNParseErrs",           (*MIB2, 11, 6)),
    ("silent_drops",           "snmpSilentDrops",              (*MIB2, 11, 31)),
    ("proxy_drops",            "snmpProxyDrops",               (*MIB2, 11, 32)),
    ("unknown_models",         "snmpUnknownSecurityModels",    (*SNMP_MODULES, 11, 2, 1, 1)),
    ("invalid_messages",       "snmpInvalidMsgs",              (*SNMP_MODULES, 11, 2, 1, 2)),
    ("unknown_handlers",       "snmpUnknownPDUHandlers",       (*SNMP_MODULES, 11, 2, 1, 3)),
    ("unavailable_contexts",   "snmpUnavailableContexts",      (*SNMP_MODULES, 12, 1, 4)),
    ("unknown_contexts",       "snmpUnknownContexts",          (*SNMP_MODULES, 12, 1, 5)),
    ("usm_unsupported_levels", "usmStatsUnsupportedSecLevels", (*SNMP_MODULES, 15, 1, 1, 1)),
    ("usm_not_in_window",      "usmStatsNotInTimeWindows",     (*SNMP_MODULES, 15, 1, 1, 2)),
    ("usm_unknown_users",      "usmStatsUnknownUserNames",     (*SNMP_MODULES, 15, 1, 1, 3)),
    ("usm_unknown_engines",    "usmStatsUnknownEngineIDs",     (*SNMP_MODULES, 15, 1, 1, 4)),
    ("usm_wrong_digests",      "usmStatsWrongDigests",         (*SNMP_MODULES, 15, 1, 1, 5)),
    ("usm_decryption_errors",  "usmStatsDecryptionErrors",     (*SNMP_MODULES, 15, 1, 1, 6)),
)

# What sysORTable says is implemented: sysORID, an AGENT-CAPABILITIES of mibs/HASNMP-CAPABILITIES-MIB.txt; and sysORDescr.
CAPABILITIES: tuple[tuple[Oid, bytes], ...] = tuple(((*ROOT, 3, number), text) for number, text in enumerate((
    b"The MIB module of hasnmp, SNMP-integrated high availability",
    b"The MIB module for SNMP entities (RFC 3418)",
    b"The SNMP Management Architecture MIB (RFC 3411)",
    b"The MIB for Message Processing and Dispatching (RFC 3412)",
    b"The MIB module for notification targets (RFC 3413), read-only",
    b"The MIB module for notification originators (RFC 3413), read-only",
    b"The management information definitions for the SNMP User-based Security Model (RFC 3414), read-only",
    b"View-based Access Control Model for SNMP (RFC 3415), read-only",
    b"SNMP-COMMUNITY-MIB (RFC 3584), read-only, without the communities' names",
), 1))
OWN_CAPABILITY = CAPABILITIES[0]  # of HASNMP-MIB
# fmt: on


COUNTER_NAMES = tuple(name for name, _, _ in COUNTERS)
_PLACES = {name: place for place, name in enumerate(COUNTER_NAMES)}


class Counters:
    """What this agent counted since sysUpTime was 0; each wraps as a Counter32.

    memory: a number for each of COUNTERS, kept for as long as sysUpTime goes on (kept.py).
    """

    def __init__(self, memory: memoryview[int] | None = None) -> None:
        self._counts: memoryview[int] | list[int] = [0] * len(COUNTERS) if memory is None else memory

    def add(self, name: str) -> None:
        self._counts[_PLACES[name]] += 1

    def value(self, name: str) -> int:
        return self._counts[_PLACES[name]] & 0xFFFFFFFF


@dataclass(slots=True)
class Identity:
    """What the standard objects say of this agent. serial: snmpSetSerialNo, random at each start as RFC 3418 allows."""

    engine_id: bytes
    boots: int
    seconds: Callable[[], int]
    max_message: int
    version: str
    node: str
    counters: Counters
    authentication_traps: bool = False
    serial: int = field(default_factory=lambda: int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF)


def scalars(identity: Identity) -> tuple[Scalar, ...]:
    """The scalars. Those that only this process changes are volatile: no view table stands behind them."""

    def fixed(name: str, oid: Oid, syntax: Syntax, value: int | bytes | Oid) -> Scalar:
        return Scalar(name, oid, syntax, "read-only", lambda _: value, ())

    def live(name: str, oid: Oid, syntax: Syntax, read: Callable[[Reader], Any], access: str = "read-only") -> Scalar:
        allowed = range(1 << 31) if access == "read-write" else ()
        return Scalar(name, oid, syntax, access, read, (), volatile=True, allowed=allowed)

    def counter(key: str) -> Callable[[Reader], int]:
        return lambda _: identity.counters.value(key)

    def up(reader: Reader) -> int:
        return (reader.now_ns - reader.boot_ns) // 10_000_000 % (1 << 32)

    system = os.uname()
    description = (
        f"hasnmp {identity.version} node {identity.node} on {system.sysname} {system.release} {system.machine}"
    )
    engine = (*SNMP_MODULES, 10, 2, 1)
    return (
        fixed("sysDescr", (*MIB2, 1, 1), Syntax.OCTETS, description.encode()[:255]),
        fixed("sysObjectID", (*MIB2, 1, 2), Syntax.OID, ROOT),
        live("sysUpTime", (*MIB2, 1, 3), Syntax.TIMETICKS, up),
        fixed("sysContact", (*MIB2, 1, 4), Syntax.OCTETS, b""),
        fixed("sysName", (*MIB2, 1, 5), Syntax.OCTETS, identity.node.encode()),
        fixed("sysLocation", (*MIB2, 1, 6), Syntax.OCTETS, b""),
        fixed("sysServices", (*MIB2, 1, 7), Syntax.INTEGER32, 72),  # layers 4 and 7: a host that offers applications
        fixed("sysORLastChange", (*MIB2, 1, 8), Syntax.TIMETICKS, 0),
        fixed("snmpEnableAuthenTraps", (*MIB2, 11, 30), Syntax.INTEGER32, 1 if identity.authentication_traps else 2),
        live("snmpSetSerialNo", (*SNMP_MODULES, 1, 1, 6, 1), Syntax.INTEGER32, lambda _: identity.serial, "read-write"),
        fixed("snmpEngineID", (*engine, 1), Syntax.OCTETS, identity.engine_id),
        fixed("snmpEngineBoots", (*engine, 2), Syntax.INTEGER32, identity.boots),
        live("snmpEngineTime", (*engine, 3), Syntax.INTEGER32, lambda _: identity.seconds()),
        fixed("snmpEngineMaxMessageSize", (*engine, 4), Syntax.INTEGER32, identity.max_message),
        *(live(name, oid, Syntax.COUNTER32, counter(key)) for key, name, oid in COUNTERS),
    )


def _capabilities(_view: View) -> tuple[tuple[Oid, Any], ...]:
    return tuple(((number,), row) for number, row in enumerate(CAPABILITIES, 1))


TABLES = (
    TableDef(
        "sysORTable",
        (*MIB2, 1, 9, 1),
        (Index("sysORIndex", 1, Syntax.INTEGER32),),
        _capabilities,
        (
            Column("sysORID", 2, Syntax.OID, "read-only", lambda _, row: row[0]),
            Column("sysORDescr", 3, Syntax.OCTETS, "read-only", lambda _, row: row[1]),
            Column("sysORUpTime", 4, Syntax.TIMETICKS, "read-only", lambda _reader, _row: 0),
        ),
        (),
    ),
)


def check_serial(identity: Identity, assignment: Assignment, position: int) -> int:
    """What snmpSetSerialNo becomes by this assignment (RFC 3418, RFC 2579 TestAndIncr). Raises SetError."""
    if assignment.syntax != Syntax.INTEGER32 or not isinstance(assignment.value, int):
        raise SetError(position, ErrorStatus.WRONG_TYPE, "snmpSetSerialNo is an INTEGER")
    if assignment.value < 0:
        raise SetError(position, ErrorStatus.WRONG_VALUE, f"{assignment.value} is below 0")
    if assignment.value != identity.serial:
        raise SetError(position, ErrorStatus.INCONSISTENT_VALUE, f"snmpSetSerialNo is {identity.serial} now")
    return (identity.serial + 1) & 0x7FFFFFFF
