"""Who is told, as objects: haNotify of HASNMP-MIB, SNMP-TARGET-MIB and SNMP-NOTIFICATION-MIB (RFC 3413 sections 4 and 5).

All of it is read-only and its StorageType readOnly: the configuration file is the one source, and the same on every node.
A receiver's community is never shown: the security name is the name by which commands call that community's users.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hasnmp.model import ReceiverState, Severity, View
from hasnmp.settings import Receiver, Snmp
from hasnmp.snmp.access import community_principals
from hasnmp.snmp.listener import split_address
from hasnmp.snmp.objects import Column, Index, Oid, Reader, Scalar, Syntax, TableDef, Value, inet_address, text_index
from hasnmp.snmp.oids import ROOT
from hasnmp.snmp.outlet import Figures, Outlet

_NOTIFY = (*ROOT, 1, 13)
_TARGET = (1, 3, 6, 1, 6, 3, 12, 1)
_NOTIFICATION = (1, 3, 6, 1, 6, 3, 13, 1)
_UDP_IPV4 = (1, 3, 6, 1, 6, 1, 1)  # snmpUDPDomain (RFC 3417)
_UDP_IPV6 = (1, 3, 6, 1, 2, 1, 100, 1, 2)  # transportDomainUdpIpv6 (RFC 3419), and with a zone index:
_UDP_IPV6Z = (1, 3, 6, 1, 2, 1, 100, 1, 4)
_READ_ONLY = 5  # StorageType
_ACTIVE, _NOT_IN_SERVICE = 1, 2  # RowStatus
_MODELS = {"1": 0, "2c": 1, "3": 3}  # SnmpMessageProcessingModel
_SECURITY = {"1": 1, "2c": 2, "3": 3}  # SnmpSecurityModel
_NO_AUTH, _AUTH, _PRIV = 1, 2, 3
_FLOORS = {
    "info": Severity.INFO, "warning": Severity.WARNING, "minor": Severity.MINOR, "major": Severity.MAJOR,
    "critical": Severity.CRITICAL,
}  # fmt: skip


@dataclass(slots=True)
class Board:
    """What the objects are read from. outlets: of those that are enabled; figures: of the others too."""

    snmp: Snmp = field(default_factory=Snmp)
    receivers: Mapping[str, Receiver] = field(default_factory=dict)
    outlets: Mapping[str, Outlet] = field(default_factory=dict)
    figures: Callable[[str], Figures] = lambda _: Figures([0] * 5)
    suppressed: Callable[[], int] = int


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    receiver: Receiver
    outlet: Outlet | None
    figures: Figures

    @property
    def state(self) -> ReceiverState:
        if self.outlet is not None:
            return self.outlet.state
        return ReceiverState.DOWN if self.receiver.enabled else ReceiverState.DISABLED


def _rows(board: Board) -> list[_Row]:
    rows = []
    for name, receiver in board.receivers.items():
        outlet = board.outlets.get(name)
        rows.append(_Row(name, receiver, outlet, outlet.figures if outlet else board.figures(name)))
    for name, outlet in board.outlets.items():
        if name not in board.receivers:  # no receiver of the file's own: it has no address, and its own ways
            rows.append(_Row(name, Receiver("", ""), outlet, outlet.figures))
    return rows


def _read(source: Callable[[_Row], Any] | Value) -> Callable[[Reader, Any], Value]:
    def read(_: Reader, row: Any) -> Value:
        value = source(row) if callable(source) else source
        return value.encode()[:255] if isinstance(value, str) else value

    return read


def _column(
    number: int, name: str, syntax: Syntax, source: Callable[[_Row], Any] | Value, live: bool = False
) -> Column:
    return Column(name, number, syntax, "read-only", _read(source), volatile=live)


def _stamp(number: int, name: str, source: Callable[[_Row], int]) -> Column:
    return Column(name, number, Syntax.TIMETICKS, "read-only", lambda r, row: r.timestamp(source(row)), volatile=True)


def scalars(board: Board) -> tuple[Scalar, ...]:
    def of(number: int, name: str, syntax: Syntax, read: Callable[[], int], live: bool = False) -> Scalar:
        return Scalar(name, (*_NOTIFY, number), syntax, "read-only", lambda _: read(), (), volatile=live)

    snmp = board.snmp
    return (
        of(1, "haNotifyAlivePeriod", Syntax.UNSIGNED32, lambda: snmp.alive_s),
        of(2, "haNotifySameWithin", Syntax.UNSIGNED32, lambda: snmp.throttle.same_within_ms),
        of(3, "haNotifyPerMinute", Syntax.UNSIGNED32, lambda: snmp.throttle.per_minute),
        of(4, "haNotifySuppressed", Syntax.COUNTER32, board.suppressed, live=True),
        of(5, "haNotifyBacklog", Syntax.UNSIGNED32, lambda: snmp.backlog),
    )


def target_scalars() -> tuple[Scalar, ...]:
    # Nothing here can be written, so that nobody ever has to hold it; it is there because the MIB has it.
    return (Scalar("snmpTargetSpinLock", (*_TARGET, 1), Syntax.INTEGER32, "read-only", lambda _: 0, ()),)


def _oldest_ms(reader: Reader, row: _Row) -> int:
    """sysUpTime wraps, and so does the difference."""
    ticks = row.outlet.oldest_ticks() if row.outlet is not None else None
    if ticks is None:
        return 0
    now = (reader.now_ns - reader.boot_ns) // 10_000_000 % 2**32
    return min((now - ticks) % 2**32 * 10, 2**32 - 1) if now >= ticks else 0


def tables(board: Board) -> tuple[TableDef, ...]:
    """haReceiverTable: it is held to HASNMP-MIB by the MIB's test."""
    integer, octets, counter, gauge = Syntax.INTEGER32, Syntax.OCTETS, Syntax.COUNTER32, Syntax.UNSIGNED32

    def rows(_: View) -> list[tuple[Oid, Any]]:
        return [(text_index(row.name), row) for row in _rows(board)]

    def count(number: int, name: str, which: str) -> Column:
        return _column(number, name, counter, lambda row: row.figures.value(which), live=True)

    return (
        TableDef(
            "haReceiverTable", (*_NOTIFY, 6, 1), (Index("haReceiverName", 1, octets),), rows,
            (
                _column(2, "haReceiverAddressType", integer, lambda row: inet_address(row.receiver.to)[0]),
                _column(3, "haReceiverAddress", octets, lambda row: inet_address(row.receiver.to)[1]),
                _column(4, "haReceiverPort", gauge, lambda row: _port(row.receiver.to)),
                _column(5, "haReceiverVersion", octets, lambda row: row.receiver.version),
                _column(6, "haReceiverInform", integer, lambda row: 1 if row.receiver.type == "inform" else 2),
                _column(7, "haReceiverFloor", integer, lambda row: int(_FLOORS[row.receiver.min_severity])),
                _column(8, "haReceiverState", integer, lambda row: int(row.state), live=True),
                count(9, "haReceiverSent", "sent"),
                count(10, "haReceiverAcknowledged", "acknowledged"),
                count(11, "haReceiverRepeated", "repeated"),
                count(12, "haReceiverErrors", "errors"),
                count(13, "haReceiverLost", "lost"),
                _column(14, "haReceiverQueued", gauge, lambda row: len(row.outlet.queue) if row.outlet else 0, live=True),
                Column("haReceiverOldest", 15, gauge, "read-only", _oldest_ms, volatile=True),
                _stamp(16, "haReceiverLastSent", lambda row: row.figures.last_sent_ns),
                _stamp(17, "haReceiverLastAcknowledged", lambda row: row.figures.last_acknowledged_ns),
                _column(18, "haReceiverLastError", octets, lambda row: row.figures.last_error, live=True),
                _stamp(19, "haReceiverLastErrorTime", lambda row: row.figures.last_error_ns),
            ),
            (),
        ),
    )  # fmt: skip


def target_tables(board: Board) -> tuple[TableDef, ...]:
    """SNMP-TARGET-MIB's and SNMP-NOTIFICATION-MIB's."""
    integer, octets = Syntax.INTEGER32, Syntax.OCTETS

    def targets(_: View) -> list[tuple[Oid, Any]]:
        return [(tuple(row.name.encode()), row) for row in _rows(board) if row.name in board.receivers]

    def kinds(_: View) -> list[tuple[Oid, Any]]:
        return [(tuple(kind.encode()), kind) for kind in sorted({r.type for r in board.receivers.values()})]

    def nothing(_: View) -> list[tuple[Oid, Any]]:
        return []

    def status(row: _Row) -> int:
        return _ACTIVE if row.receiver.enabled else _NOT_IN_SERVICE

    def text(kind: Any) -> bytes:
        return str(kind).encode()

    def empty(number: int, name: str, syntax: Syntax) -> Column:
        return Column(name, number, syntax, "read-only", lambda _reader, _row: None)

    return (
        TableDef(
            "snmpTargetAddrTable", (*_TARGET, 2, 1), (Index("snmpTargetAddrName", 1, octets),), targets,
            (
                _column(2, "snmpTargetAddrTDomain", Syntax.OID, lambda row: _transport(row.receiver.to)[0]),
                _column(3, "snmpTargetAddrTAddress", octets, lambda row: _transport(row.receiver.to)[1]),
                _column(4, "snmpTargetAddrTimeout", integer, lambda row: row.receiver.timeout_ms // 10),
                _column(5, "snmpTargetAddrRetryCount", integer, lambda row: row.receiver.retries),
                _column(6, "snmpTargetAddrTagList", octets, lambda row: row.receiver.type),
                _column(7, "snmpTargetAddrParams", octets, lambda row: row.name),
                _column(8, "snmpTargetAddrStorageType", integer, _READ_ONLY),
                _column(9, "snmpTargetAddrRowStatus", integer, status),
            ),
            (),
        ),
        TableDef(
            "snmpTargetParamsTable", (*_TARGET, 3, 1), (Index("snmpTargetParamsName", 1, octets),), targets,
            (
                _column(2, "snmpTargetParamsMPModel", integer, lambda row: _MODELS[row.receiver.version]),
                _column(3, "snmpTargetParamsSecurityModel", integer, lambda row: _SECURITY[row.receiver.version]),
                _column(4, "snmpTargetParamsSecurityName", octets, lambda row: _security_name(board.snmp, row)),
                _column(5, "snmpTargetParamsSecurityLevel", integer, lambda row: _level(board.snmp, row.receiver)),
                _column(6, "snmpTargetParamsStorageType", integer, _READ_ONLY),
                _column(7, "snmpTargetParamsRowStatus", integer, status),
            ),
            (),
        ),
        TableDef(
            "snmpNotifyTable", (*_NOTIFICATION, 1, 1), (Index("snmpNotifyName", 1, octets),), kinds,
            (
                Column("snmpNotifyTag", 2, octets, "read-only", lambda _, kind: text(kind)),
                Column("snmpNotifyType", 3, integer, "read-only", lambda _, kind: 2 if kind == "inform" else 1),
                Column("snmpNotifyStorageType", 4, integer, "read-only", lambda _reader, _kind: _READ_ONLY),
                Column("snmpNotifyRowStatus", 5, integer, "read-only", lambda _reader, _kind: _ACTIVE),
            ),
            (),
        ),
        # A receiver's floor is by severity, which no subtree of object identifiers can say: haReceiverFloor says it.
        TableDef(
            "snmpNotifyFilterProfileTable", (*_NOTIFICATION, 2, 1), (Index("snmpTargetParamsName", 1, octets),), nothing,
            (
                empty(1, "snmpNotifyFilterProfileName", octets),
                empty(2, "snmpNotifyFilterProfileStorType", integer),
                empty(3, "snmpNotifyFilterProfileRowStatus", integer),
            ),
            (),
        ),
        TableDef(
            "snmpNotifyFilterTable", (*_NOTIFICATION, 3, 1),
            (Index("snmpNotifyFilterProfileName", 0, octets), Index("snmpNotifyFilterSubtree", 1, Syntax.OID)), nothing,
            (
                empty(2, "snmpNotifyFilterMask", octets),
                empty(3, "snmpNotifyFilterType", integer),
                empty(4, "snmpNotifyFilterStorageType", integer),
                empty(5, "snmpNotifyFilterRowStatus", integer),
            ),
            (),
        ),
    )  # fmt: skip


def _port(to: str) -> int:
    try:
        return split_address(to)[1]
    except ValueError:
        return 0


def _transport(to: str) -> tuple[Oid, bytes]:
    """snmpTargetAddrTDomain and snmpTargetAddrTAddress of "address:port"; no domain (0.0) for what is no address."""
    try:
        host, port = split_address(to)
        address, _, zone = host.partition("%")
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        return (0, 0), b""
    if len(packed) == 4:
        return _UDP_IPV4, packed + port.to_bytes(2, "big")
    if zone:
        number = int(zone) if zone.isdigit() else 0
        return _UDP_IPV6Z, packed + number.to_bytes(4, "big") + port.to_bytes(2, "big")
    return _UDP_IPV6, packed + port.to_bytes(2, "big")


def _security_name(snmp: Snmp, row: _Row) -> str:
    if row.receiver.version == "3":
        return row.receiver.user
    for community, principal in community_principals(snmp):
        if community.secret == row.receiver.community:
            return principal.tag
    return f"notify-{row.name}"


def _level(snmp: Snmp, receiver: Receiver) -> int:
    if receiver.version != "3":
        return _NO_AUTH
    return _PRIV if any(user.name == receiver.user and user.priv for user in snmp.users) else _AUTH


def all_scalars(board: Board) -> Iterable[Scalar]:
    return (*scalars(board), *target_scalars())


def all_tables(board: Board) -> Iterable[TableDef]:
    return (*tables(board), *target_tables(board))
