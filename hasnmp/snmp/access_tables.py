"""The standard tables of who may do what, read-only: the configuration is the one source.

SNMP-USER-BASED-SM-MIB usmUser (RFC 3414 section 5), SNMP-VIEW-BASED-ACM-MIB (RFC 3415 section 4), SNMP-COMMUNITY-MIB
snmpCommunityTable (RFC 3584 section 5). Only `access: admin`, or a view of its own, sees them. No secret is here: the columns that change keys
read as the empty string, as RFC 3414 has it, and there is no snmpCommunityName, which would be the community itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hasnmp.model import View as Picture
from hasnmp.settings import Snmp
from hasnmp.snmp.access import Principal, View, community_principals, principal_of
from hasnmp.snmp.objects import Column, Index, Oid, Reader, Scalar, Syntax, TableDef, Value, text_index

_SNMP = (1, 3, 6, 1, 6, 3)
_USM, _VACM, _COMMUNITY = (*_SNMP, 15, 1, 2), (*_SNMP, 16, 1), (*_SNMP, 18, 1, 1)
_AUTH, _PRIV = (*_SNMP, 10, 1, 1), (*_SNMP, 10, 1, 2)
# RFC 3414, RFC 7860; and of privacy RFC 3826 and, for what no RFC numbers, what Net-SNMP and Cisco use.
AUTH_PROTOCOLS = {
    "": 1, "md5": 2, "sha": 3, "sha1": 3, "sha224": 4, "sha256": 5, "sha384": 6, "sha512": 7,
}  # fmt: skip
PRIV_PROTOCOLS: dict[str, Oid] = {
    "": (*_PRIV, 1), "des": (*_PRIV, 2), "aes128": (*_PRIV, 4),
    "aes192": (1, 3, 6, 1, 4, 1, 14832, 1, 3), "aes256": (1, 3, 6, 1, 4, 1, 14832, 1, 4),
    "aes192c": (1, 3, 6, 1, 4, 1, 9, 12, 6, 1, 1), "aes256c": (1, 3, 6, 1, 4, 1, 9, 12, 6, 1, 2),
}  # fmt: skip
_READ_ONLY, _ACTIVE, _EXACT = 5, 1, 1  # StorageType, RowStatus, vacmAccessContextMatch
_V1, _V2C, _USER_BASED = 1, 2, 3  # SnmpSecurityModel
_NO_AUTH, _AUTH_ONLY, _AUTH_PRIV = 1, 2, 3  # SnmpSecurityLevel

Row = dict[str, Any]


def _table(name: str, oid: Oid, index: tuple[tuple[str, int, Syntax], ...], rows: Iterable[tuple[Oid, Row]],
           *columns: tuple[str, int, Syntax]) -> TableDef:  # fmt: skip
    """A table whose rows never change. Columns: name, number, syntax; a row has its values by name."""
    kept = tuple(sorted(rows, key=lambda row: row[0]))

    def listed(_: Picture) -> tuple[tuple[Oid, Row], ...]:
        return kept

    def read(column: str) -> Callable[[Reader, Row], Value | None]:
        return lambda _, row: row[column]

    return TableDef(
        name, oid, tuple(Index(*one) for one in index), listed,
        tuple(Column(column, number, syntax, "read-only", read(column)) for column, number, syntax in columns), (),
    )  # fmt: skip


def _lock(name: str, oid: Oid) -> Scalar:
    return Scalar(name, oid, Syntax.INTEGER32, "read-only", lambda _: 0, ())


def scalars() -> tuple[Scalar, ...]:
    """The two spin locks, which guard rows that nobody can write here."""
    return (_lock("usmUserSpinLock", (*_USM, 1)), _lock("vacmViewSpinLock", (*_VACM, 5, 1)))


def tables(settings: Snmp, engine_id: bytes) -> tuple[TableDef, ...]:
    return (
        _users(settings, engine_id), *_vacm(settings), _communities(settings, engine_id),
    )  # fmt: skip


def _users(settings: Snmp, engine_id: bytes) -> TableDef:
    rows = [
        (
            (len(engine_id), *engine_id, *text_index(user.name)),
            {
                "usmUserSecurityName": user.name.encode(), "usmUserCloneFrom": (0, 0),
                "usmUserAuthProtocol": (*_AUTH, AUTH_PROTOCOLS[user.auth]),
                "usmUserAuthKeyChange": b"", "usmUserOwnAuthKeyChange": b"",
                "usmUserPrivProtocol": PRIV_PROTOCOLS[user.priv],
                "usmUserPrivKeyChange": b"", "usmUserOwnPrivKeyChange": b"", "usmUserPublic": b"",
                "usmUserStorageType": _READ_ONLY, "usmUserStatus": _ACTIVE,
            },
        )
        for user in settings.users
    ]  # fmt: skip
    return _table(
        "usmUserTable", (*_USM, 2, 1),
        (("usmUserEngineID", 1, Syntax.OCTETS), ("usmUserName", 2, Syntax.OCTETS)), rows,
        ("usmUserSecurityName", 3, Syntax.OCTETS), ("usmUserCloneFrom", 4, Syntax.OID),
        ("usmUserAuthProtocol", 5, Syntax.OID), ("usmUserAuthKeyChange", 6, Syntax.OCTETS),
        ("usmUserOwnAuthKeyChange", 7, Syntax.OCTETS), ("usmUserPrivProtocol", 8, Syntax.OID),
        ("usmUserPrivKeyChange", 9, Syntax.OCTETS), ("usmUserOwnPrivKeyChange", 10, Syntax.OCTETS),
        ("usmUserPublic", 11, Syntax.OCTETS), ("usmUserStorageType", 12, Syntax.INTEGER32),
        ("usmUserStatus", 13, Syntax.INTEGER32),
    )  # fmt: skip


def _vacm(settings: Snmp) -> tuple[TableDef, ...]:
    # Who it is, by which security model, and at which level at least.
    known: list[tuple[Principal, int, int]] = [
        (principal_of(user, user.name), _USER_BASED, _AUTH_PRIV if user.priv else _AUTH_ONLY) for user in settings.users
    ]
    known += [(p, model, _NO_AUTH) for _, p in community_principals(settings) for model in (_V1, _V2C)]
    groups: dict[Oid, Row] = {}
    access: dict[Oid, Row] = {}
    views: dict[str, View] = {}
    for who, model, level in known:
        groups[(model, *text_index(who.tag))] = {
            "vacmGroupName": who.group.encode(), "vacmSecurityToGroupStorageType": _READ_ONLY,
            "vacmSecurityToGroupStatus": _ACTIVE,
        }  # fmt: skip
        access[(*text_index(who.group), 0, model, level)] = {
            "vacmAccessContextMatch": _EXACT, "vacmAccessReadViewName": who.view.name.encode(),
            "vacmAccessWriteViewName": who.write.name.encode() if who.write else b"",
            "vacmAccessNotifyViewName": who.view.name.encode(),
            "vacmAccessStorageType": _READ_ONLY, "vacmAccessStatus": _ACTIVE,
        }  # fmt: skip
        views |= {view.name: view for view in (who.view, who.write) if view is not None}
    families = {
        (*text_index(view.name), len(family.subtree), *family.plain): {
            "vacmViewTreeFamilyMask": family.mask, "vacmViewTreeFamilyType": 1 if family.included else 2,
            "vacmViewTreeFamilyStorageType": _READ_ONLY, "vacmViewTreeFamilyStatus": _ACTIVE,
        }
        for view in views.values() for family in view.families
    }  # fmt: skip
    octets, number = Syntax.OCTETS, Syntax.INTEGER32
    return (
        # The one context there is: the default one, whose name is empty.
        _table("vacmContextTable", (*_VACM, 1, 1), (), [((0,), {"vacmContextName": b""})], ("vacmContextName", 1, octets)),
        _table(
            "vacmSecurityToGroupTable", (*_VACM, 2, 1),
            (("vacmSecurityModel", 1, number), ("vacmSecurityName", 2, octets)), groups.items(),
            ("vacmGroupName", 3, octets), ("vacmSecurityToGroupStorageType", 4, number),
            ("vacmSecurityToGroupStatus", 5, number),
        ),
        _table(
            "vacmAccessTable", (*_VACM, 4, 1),
            (("vacmAccessContextPrefix", 1, octets), ("vacmAccessSecurityModel", 2, number),
             ("vacmAccessSecurityLevel", 3, number)), access.items(),
            ("vacmAccessContextMatch", 4, number), ("vacmAccessReadViewName", 5, octets),
            ("vacmAccessWriteViewName", 6, octets), ("vacmAccessNotifyViewName", 7, octets),
            ("vacmAccessStorageType", 8, number), ("vacmAccessStatus", 9, number),
        ),
        _table(
            "vacmViewTreeFamilyTable", (*_VACM, 5, 2, 1),
            (("vacmViewTreeFamilyViewName", 1, octets), ("vacmViewTreeFamilySubtree", 2, Syntax.OID)), families.items(),
            ("vacmViewTreeFamilyMask", 3, octets), ("vacmViewTreeFamilyType", 4, number),
            ("vacmViewTreeFamilyStorageType", 5, number), ("vacmViewTreeFamilyStatus", 6, number),
        ),
    )  # fmt: skip


def _communities(settings: Snmp, engine_id: bytes) -> TableDef:
    rows = [
        (
            tuple(who.tag.encode()),  # IMPLIED: without its length
            {
                "snmpCommunitySecurityName": who.tag.encode(), "snmpCommunityContextEngineID": engine_id,
                "snmpCommunityContextName": b"",
                # Empty would say: from anywhere. No row of snmpTargetAddrTable bears this tag: sources are not receivers.
                "snmpCommunityTransportTag": f"from-{who.tag}".encode() if who.networks else b"",
                "snmpCommunityStorageType": _READ_ONLY, "snmpCommunityStatus": _ACTIVE,
            },
        )
        for _, who in community_principals(settings)
    ]  # fmt: skip
    return _table(
        "snmpCommunityTable", (*_COMMUNITY, 1), (("snmpCommunityIndex", 1, Syntax.OCTETS),), rows,
        ("snmpCommunitySecurityName", 3, Syntax.OCTETS), ("snmpCommunityContextEngineID", 4, Syntax.OCTETS),
        ("snmpCommunityContextName", 5, Syntax.OCTETS), ("snmpCommunityTransportTag", 6, Syntax.OCTETS),
        ("snmpCommunityStorageType", 7, Syntax.INTEGER32), ("snmpCommunityStatus", 8, Syntax.INTEGER32),
    )  # fmt: skip
