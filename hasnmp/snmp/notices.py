"""What a notification carries: always the same objects, all of them, so that no console has to ask back.

The objects are columns of the event's own row in haEventTable, and their instance is the event's number: a console that
missed one can read the row later, and a hole in the numbers tells that it missed one. Numbers: ha_objects.KIND_NUMBERS.
"""

from __future__ import annotations

from hasnmp.model import EventRow, Kind
from hasnmp.snmp.ha_objects import KIND_NUMBERS, SCALARS, TABLES
from hasnmp.snmp.objects import Oid, Reader, Syntax, Value
from hasnmp.snmp.oids import ROOT

# The OBJECTS of every notification, in order.
NOTICE_OBJECTS: tuple[str, ...] = (
    "haClusterName", "haEventId", "haEventSeverity", "haEventNode", "haEventOwnState", "haEventPeer",
    "haEventPeerState", "haEventPreviousState", "haEventState", "haEventReason", "haEventGroup", "haEventService",
    "haEventLink", "haEventAlarmKey", "haEventCommonId", "haEventText",
)  # fmt: skip

# snmpTrapOID of each kind: below a node whose last sub-identifier is 0 (RFC 2578 section 8.5), so that the SNMPv1
# form of it (RFC 3584 section 3.2) is a specific-trap of that number.
NOTICES: dict[Kind, Oid] = {kind: (*ROOT, 0, number) for kind, number in KIND_NUMBERS.items()}

_CLUSTER = next(scalar for scalar in SCALARS if scalar.name == "haClusterName")
_EVENTS = next(table for table in TABLES if table.name == "haEventTable")
_COLUMNS = tuple(column for name in NOTICE_OBJECTS[1:] for column in _EVENTS.columns if column.name == name)


def notification_varbinds(
    event: EventRow, reader: Reader, cluster: str = ""
) -> tuple[Oid, list[tuple[Oid, Syntax, Value]]]:
    """A notification's snmpTrapOID and its variables after sysUpTime.0 and snmpTrapOID.0: (OID with instance, syntax, value).

    The values are the event's alone, true when it happened: the view may have gone on since. cluster: its name by the
    configuration, for a notification from an agent that never had an engine to ask.
    """
    named = _CLUSTER.read(reader) or cluster.encode()
    variables: list[tuple[Oid, Syntax, Value]] = [((*_CLUSTER.oid, 0), _CLUSTER.syntax, named)]
    for column in _COLUMNS:
        value = column.read(reader, event)
        assert value is not None  # an event's columns are never absent
        variables.append(((*_EVENTS.entry_oid, column.number, event.id), column.syntax, value))
    return NOTICES[event.kind], variables
