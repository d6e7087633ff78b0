"""Who may do what: the View-based Access Control Model (RFC 3415), made ready from the configuration.

A principal - a USM user, or a community - has a view that it reads and is told of, and perhaps one that it may SET. What
`access` gives unless a view is named (what may be SET is then what may be read, unless write_view names that too):

    read      reads everything but the tables that say who may do what        sets nothing
    operate   the same                                                        sets the same, but haNodeFenceConfirm
    admin     reads everything                                                sets everything that can be set

haNodeFenceConfirm is the word that a node is off, on which its groups are started elsewhere: wrong, it costs the data. Who
is not admin SETs it only where a write_view of its own has it.

A user is bound to exactly its own security level, and both to their source networks. Who is nobody here gets no answer.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache

from hasnmp.settings import Community, MibView, Receiver, Snmp, SnmpUser
from hasnmp.snmp.oids import ROOT

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Oid = tuple[int, ...]
VIEW_NAME = 32  # octets of vacmViewTreeFamilyViewName
ANY = -1  # in a subtree: any sub-identifier (a zero bit of vacmViewTreeFamilyMask)

_MIB2, _MODULES = (1, 3, 6, 1, 2, 1), (1, 3, 6, 1, 6, 3)
# The numbers of the names in config_views.SUBTREES.
SUBTREES: dict[str, Oid] = {
    "internet": (1, 3, 6, 1), "system": (*_MIB2, 1), "snmp": (*_MIB2, 11), "snmpModules": _MODULES,
    "snmpTraps": (*_MODULES, 1, 1, 5), "snmpSet": (*_MODULES, 1, 1, 6), "snmpFrameworkMIB": (*_MODULES, 10),
    "snmpMPDMIB": (*_MODULES, 11), "snmpTargetMIB": (*_MODULES, 12), "snmpNotificationMIB": (*_MODULES, 13),
    "snmpUsmMIB": (*_MODULES, 15), "snmpVacmMIB": (*_MODULES, 16), "snmpCommunityMIB": (*_MODULES, 18),
    "hasnmpMIB": ROOT, "haNotifications": (*ROOT, 0), "haObjects": (*ROOT, 1), "haSystem": (*ROOT, 1, 1),
    "haControl": (*ROOT, 1, 2), "haCommandTable": (*ROOT, 1, 2, 7), "haNodeTable": (*ROOT, 1, 3),
    "haLinkTable": (*ROOT, 1, 4), "haGroupTable": (*ROOT, 1, 5), "haServiceTable": (*ROOT, 1, 6),
    "haArbiterTable": (*ROOT, 1, 7), "haFenceTable": (*ROOT, 1, 8), "haConfig": (*ROOT, 1, 9),
    "haStatistics": (*ROOT, 1, 10), "haEvents": (*ROOT, 1, 11), "haEventTable": (*ROOT, 1, 11, 3),
    "haAlarms": (*ROOT, 1, 12), "haAlarmTable": (*ROOT, 1, 12, 2), "haNotify": (*ROOT, 1, 13),
    "haReceiverTable": (*ROOT, 1, 13, 6), "haGroupWhyTable": (*ROOT, 1, 14),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """A view subtree, included or excluded; ANY in it is a wildcard (vacmViewTreeFamilyTable)."""

    subtree: Oid
    included: bool

    def fits(self, oid: Oid) -> bool:
        """Does the subtree contain this name?"""
        return len(oid) >= len(self.subtree) and self._agrees(oid)

    def meets(self, prefix: Oid) -> bool:
        """May it contain some names below the prefix, and not all?"""
        return len(self.subtree) > len(prefix) and self._agrees(prefix)

    def _agrees(self, oid: Oid) -> bool:
        return all(own in (ANY, number) for own, number in zip(self.subtree, oid, strict=False))

    @property
    def plain(self) -> Oid:
        """The subtree as vacmViewTreeFamilySubtree shows it: a wildcard is a zero there."""
        return tuple(0 if number == ANY else number for number in self.subtree)

    @property
    def mask(self) -> bytes:
        """vacmViewTreeFamilyMask: a bit for each sub-identifier, the first the highest; empty where all of them count."""
        if ANY not in self.subtree:
            return b""
        bits = "".join("0" if number == ANY else "1" for number in self.subtree)
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big")


class View:
    """A MIB view. Equal to itself alone, so that what is made of it can be kept by it."""

    def __init__(self, name: str, families: tuple[Family, ...]) -> None:
        self.name = name
        # A subtree that is named twice, by its name and its OID perhaps, is in the table once; excluded, if any says so.
        once = {f.subtree: f for f in sorted(families, key=lambda f: not f.included)}
        # The most sub-identifiers decide, then the greater name (RFC 3415 vacmViewTreeFamilyTable, isAccessAllowed (4)).
        self.families = tuple(sorted(once.values(), key=lambda f: (len(f.subtree), f.plain), reverse=True))

    def has(self, oid: Oid) -> bool:
        """Is this name in the view?"""
        return next((family.included for family in self.families if family.fits(oid)), False)

    def covers(self, prefix: Oid) -> bool | None:
        """Everything below the prefix (True), nothing (False), or some of it (None)."""
        whole = self.has(prefix)
        return whole if all(f.included == whole for f in self.families if f.meets(prefix)) else None


def view_of(settings: MibView) -> View:
    """Raises KeyError: a name that is no subtree (config.py lets none through)."""

    def family(text: str, included: bool) -> Family:
        if text in SUBTREES or not text[:1].isdigit():
            return Family(SUBTREES[text], included)
        return Family(tuple(ANY if part == "*" else int(part) for part in text.split(".")), included)

    return View(
        settings.name,
        (*(family(t, True) for t in settings.include), *(family(t, False) for t in settings.exclude)),
    )


def _ready(name: str, include: tuple[str, ...], exclude: tuple[str, ...] = ()) -> View:
    return view_of(MibView(name, include, exclude))


# Names of the configuration's own views can't begin with a dash, so these are nobody else's.
ALL = _ready("-all", ("internet",))
PUBLIC = _ready("-public", ("internet",), ("1.3.6.1.6.3.15.1.2", "snmpVacmMIB", "snmpCommunityMIB"))
NOTHING = View("-nothing", ())
_FENCE_CONFIRM = (*ROOT, 1, 3, 1, 19)


@lru_cache(maxsize=256)
def _operable(view: View) -> View:
    """What `operate` may SET of what it sees."""
    if view.covers(_FENCE_CONFIRM) is False:
        return view
    name = f"-set-{view.name}"
    if len(name) > VIEW_NAME:
        name = f"{name[: VIEW_NAME - 9]}#{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return View(name, (*view.families, Family(_FENCE_CONFIRM, False)))


OPERABLE = View("-operate", _operable(PUBLIC).families)
_READS = {"read": PUBLIC, "operate": PUBLIC, "admin": ALL}
_WRITES: dict[str, View | None] = {"read": None, "operate": OPERABLE, "admin": ALL}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `tag` is how commands name the requester: never a secret. write None: it has no write view at all."""

    tag: str
    view: View
    write: View | None
    networks: tuple[Network, ...] = ()
    group: str = field(default="", compare=False)  # vacmGroupName

    @property
    def operate(self) -> bool:
        return self.write is not None

    def admits(self, host: str) -> bool:
        """May it be used from this address? Without networks from anywhere."""
        return not self.networks or _inside(self.networks, host)


@lru_cache(maxsize=1024)  # the same few managers ask all the time: parsing their address is most of the check
def _inside(networks: tuple[Network, ...], host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return any(address.version == network.version and address in network for network in networks)


@lru_cache(maxsize=256)
def _view(settings: MibView) -> View:
    return view_of(settings)  # one View for each definition, whoever names it


def principal_of(settings: SnmpUser | Community, tag: str, may_set: bool = True) -> Principal:
    """The principal of a user or community. may_set False: whatever the configuration says, it has no write view."""
    read = _READS[settings.access] if settings.view is None else _view(settings.view)
    write = _WRITES[settings.access]
    if write is not None and (settings.write_view or settings.view) is not None:
        # Without a write_view of their own nobody SETs what he can't see.
        seen = read if settings.access == "admin" else _operable(read)
        write = _view(settings.write_view) if settings.write_view is not None else seen
    special = settings.view is not None or settings.write_view is not None
    networks = tuple(ipaddress.ip_network(text, strict=False) for text in settings.networks)
    return Principal(tag, read, write if may_set else None, networks, tag if special else f"-{settings.access}")


def community_principals(settings: Snmp) -> list[tuple[Community, Principal]]:
    """Every community with its principal, in the file's order."""
    # config.py refuses a file with such a SET; a community must not write by this gate either if it slipped through.
    return [
        (community, principal_of(community, community.label or f"community-{number}", settings.allow_insecure_set))
        for number, community in enumerate(settings.communities, 1)
    ]


class Communities:
    """The communities of v1 and v2c, by their secret."""

    def __init__(self, settings: Snmp) -> None:
        self._entries: dict[bytes, list[Principal]] = {}
        for community, principal in community_principals(settings):
            self._entries.setdefault(community.secret, []).append(principal)
        self._find = lru_cache(maxsize=1024)(self._search)  # the same few managers ask all the time

    def known(self, secret: bytes) -> bool:
        """Is it a community of ours, from anywhere? (snmpInBadCommunityNames or snmpInBadCommunityUses)"""
        return secret in self._entries

    def find(self, secret: bytes, host: str) -> Principal | None:
        """The principal behind a community used from this address; None: nobody."""
        return self._find(secret, host) if secret in self._entries else None

    def _search(self, secret: bytes, host: str) -> Principal | None:
        best: Principal | None = None
        for principal in self._entries.get(secret, ()):
            if principal.admits(host) and (best is None or principal.operate):
                best = principal
        return best


def notify_view(settings: Snmp, receiver: Receiver) -> View:
    """What a receiver may be told of: the view of its user or community (RFC 3413 section 3.3, vacmAccessNotifyViewName).

    A community that is for notifications only has no view of its own, and is told everything.
    """
    if receiver.user:
        users = [principal_of(user, user.name).view for user in settings.users if user.name == receiver.user]
        return users[0] if users else NOTHING
    own = [p.view for community, p in community_principals(settings) if community.secret == receiver.community]
    return own[0] if own else PUBLIC


def may_tell(view: View, names: list[Oid]) -> bool:
    """Is all of a notification - its snmpTrapOID and its variables - in the view?"""
    return all(_sees(view, name) for name in names)


def _sees(view: View, name: Oid) -> bool:
    whole = _covers(view, name[:-1])
    return view.has(name) if whole is None else whole


# Mostly a whole column is in a view, or nothing of it.
_covers = lru_cache(maxsize=1024)(View.covers)
