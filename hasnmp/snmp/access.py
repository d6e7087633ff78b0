"""Who may do what: VACM (RFC 3415) as two ready-made groups.

`read` sees every object that the agent serves (none of them holds a secret) and has no write view at all; `operate` has a
write view of the writable ones too. A user is bound to exactly its own security level, and a community to its source
networks. Who is nobody here gets no answer.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from hasnmp.settings import Snmp
from hasnmp.snmp.cells import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `tag` is how commands name the requester: never a secret. operate: has a write view at all.

    reads, writes: views of what it may read and set; None: everything.
    """

    tag: str
    operate: bool
    reads: Scope | None = None
    writes: Scope | None = None


class Communities:
    """The communities of v2c, by their secret."""

    def __init__(self, settings: Snmp) -> None:
        self._entries: dict[bytes, list[tuple[tuple[Network, ...], Principal]]] = {}
        for number, community in enumerate(settings.communities, 1):
            networks = tuple(ipaddress.ip_network(text, strict=False) for text in community.networks)
            # config.py refuses such a file; a community must not write by this gate either if it slipped through.
            operate = community.access == "operate" and settings.allow_insecure_set
            principal = Principal(f"community-{number}", operate)
            self._entries.setdefault(community.secret, []).append((networks, principal))
        # The same few managers ask all the time: parsing their address is most of the check.
        self._find = lru_cache(maxsize=1024)(self._search)

    def known(self, secret: bytes) -> bool:
        """Is it a community of ours, from anywhere? (snmpInBadCommunityNames or snmpInBadCommunityUses)"""
        return secret in self._entries

    def find(self, secret: bytes, host: str) -> Principal | None:
        """The principal behind a community used from this address; None: nobody."""
        return self._find(secret, host) if secret in self._entries else None

    def _search(self, secret: bytes, host: str) -> Principal | None:
        address = ipaddress.ip_address(host.partition("%")[0])
        best: Principal | None = None
        for networks, principal in self._entries[secret]:
            inside = any(address.version == net.version and address in net for net in networks)
            if (inside or not networks) and (best is None or principal.operate):
                best = principal
        return best
