"""A packet filter with a clock: what is to, from or about a protected address passes only while its element lives.

Two nftables tables of one name: family `inet` for IPv4, IPv6 and neighbour discovery, family `arp` for ARP. Each has a set
of protected addresses and a set of live ones whose elements the kernel lets lapse by itself, at the millisecond:

    inet  input    ip daddr, ip6 daddr, neighbour solicitation for       protected and not live: drop
    inet  output   ip saddr, ip6 saddr, neighbour advertisement of       protected and not live: drop
    arp   input    sender is protected: accept (its present owner's announcement, which this node must learn from);
                   target is protected and not live: drop
    arp   output   sender is protected and not live: drop

So a node whose whole stack is frozen or dead falls silent, and can still be a client of the address on its new owner.
Source: linux/netfilter/nf_tables.h; RFC 826 (ARP), RFC 4861 sections 4.3 and 4.4 (neighbour discovery).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable

from hasnmp.runtime.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLMSG_ERROR,
    Netlink,
    attr,
    attrs,
    each_attr,
    error_code,
    message,
    nested,
)  # fmt: skip

INET, ARP = 1, 3
_NFT = 10 << 8
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN = _NFT, _NFT + 1, _NFT + 2, _NFT + 3, _NFT + 4
NEWRULE, GETRULE, NEWSET, GETSET = _NFT + 6, _NFT + 7, _NFT + 9, _NFT + 10
NEWSETELEM, GETSETELEM, DELSETELEM, GETGEN = _NFT + 12, _NFT + 13, _NFT + 14, _NFT + 16
BATCH_BEGIN, BATCH_END = 0x10, 0x11
SET_TIMEOUT = 0x10
TYPE_IPV4, TYPE_IPV6 = 7, 8
DROP, ACCEPT = 0, 1
PRIORITY = -450  # before connection tracking and whatever else the machine filters
_LIST_ELEM = 1


def _u32(value: int) -> bytes:
    return struct.pack(">i", value)


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


def _family(family: int) -> bytes:
    return struct.pack(">BBH", family, 0, 0)


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(_LIST_ELEM, attr(1, _name(name)), nested(2, *parts))


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", attr(1, _u32(1)), attr(2, _u32(base)), attr(3, _u32(offset)), attr(4, _u32(length)))


def _meta(key: int) -> bytes:
    return _expression("meta", attr(1, _u32(1)), attr(2, _u32(key)))


def _equal(value: bytes) -> bytes:
    return _expression("cmp", attr(1, _u32(1)), attr(2, _u32(0)), nested(3, attr(1, value)))


def _in_set(name: str, inverted: bool = False) -> bytes:
    return _expression("lookup", attr(1, _name(name)), attr(2, _u32(1)), attr(5, _u32(int(inverted))))


def _verdict(code: int) -> bytes:
    return _expression("immediate", attr(1, _u32(0)), nested(2, nested(2, attr(1, _u32(code)))))


def _drop_unless_live(load: bytes, version: int) -> bytes:
    return load + _in_set(f"protected{version}") + load + _in_set(f"live{version}", inverted=True) + _verdict(DROP)


_NETWORK, _TRANSPORT = 1, 2
_IS4, _IS6 = _meta(15) + _equal(bytes([2])), _meta(15) + _equal(bytes([10]))  # nfproto
_ICMP6 = _IS6 + _meta(16) + _equal(bytes([58]))
_ND_TARGET = _load(_TRANSPORT, 8, 16)
_ARP_SENDER, _ARP_TARGET = _load(_NETWORK, 14, 4), _load(_NETWORK, 24, 4)
# (family, chain, hook number) -> its rules
CHAINS: dict[tuple[int, str, int], tuple[bytes, ...]] = {
    (INET, "input", 1): (
        _IS4 + _drop_unless_live(_load(_NETWORK, 16, 4), 4),
        _IS6 + _drop_unless_live(_load(_NETWORK, 24, 16), 6),
        _ICMP6 + _load(_TRANSPORT, 0, 1) + _equal(bytes([135])) + _drop_unless_live(_ND_TARGET, 6),
    ),
    (INET, "output", 3): (
        _IS4 + _drop_unless_live(_load(_NETWORK, 12, 4), 4),
        _IS6 + _drop_unless_live(_load(_NETWORK, 8, 16), 6),
        _ICMP6 + _load(_TRANSPORT, 0, 1) + _equal(bytes([136])) + _drop_unless_live(_ND_TARGET, 6),
    ),
    (ARP, "input", 0): (
        _ARP_SENDER + _in_set("protected4") + _verdict(ACCEPT),
        _drop_unless_live(_ARP_TARGET, 4),
    ),
    (ARP, "output", 1): (_drop_unless_live(_ARP_SENDER, 4),),
}  # fmt: skip
_SETS = {INET: (4, 6), ARP: (4,)}


class Lapsed(Exception):
    """The element of the address is not there any more: its lease ended, and only a new one may bring it back."""


class Damaged(Exception):
    """Someone else removed our tables, chains, rules or sets."""


class PacketFilter:
    """The two tables of one node, named `name`. Every change is one batch: all of it happens, or nothing.

    Methods raise OSError with the kernel's errno, or as they say. Opening needs CAP_NET_ADMIN only from the first change.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._table = _name(name)
        self._netlink = Netlink(NETLINK_NETFILTER)
        self._generation = 0
        self._rules: frozenset[tuple[int, bytes, bytes]] = (
            frozenset()
        )  # as the kernel numbered them: family, chain, handle

    def close(self) -> None:
        self._netlink.close()

    def install(self, protected: dict[str, str]) -> None:
        """Make the tables anew, with these protected addresses (address -> a note that protected() gives back)."""
        requests = self._remove_requests()
        for family, versions in _SETS.items():
            requests.append((NEWTABLE, NLM_F_CREATE, family, attr(1, self._table)))
            for number, (kind, version) in enumerate((k, v) for v in versions for k in ("protected", "live")):
                key = struct.pack(">II", *((TYPE_IPV4, 4) if version == 4 else (TYPE_IPV6, 16)))
                requests.append((NEWSET, NLM_F_CREATE, family, attr(1, self._table)
                    + attr(2, _name(f"{kind}{version}")) + attr(3, _u32(SET_TIMEOUT if kind == "live" else 0))
                    + attr(4, key[:4]) + attr(5, key[4:]) + attr(10, _u32(number + 1))))  # fmt: skip
        for (family, chain, hook), rules in CHAINS.items():
            requests.append((NEWCHAIN, NLM_F_CREATE, family, attr(1, self._table) + attr(3, _name(chain))
                + nested(4, attr(1, _u32(hook)), attr(2, _u32(PRIORITY))) + attr(7, _name("filter"))))  # fmt: skip
            for rule in rules:
                body = attr(1, self._table) + attr(2, _name(chain)) + nested(4, rule)
                requests.append((NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, body))
        for ip, note in protected.items():
            requests += self._protect_requests(ip, note)
        self._batch(requests)
        self._rules = self._dump_rules()
        self._generation = self._read_generation()

    def attach(self) -> None:
        """Take the tables that are there for those that install() made."""
        self._rules = self._dump_rules()
        self._generation = self._read_generation()

    def uninstall(self) -> None:
        """Remove both tables; quietly if they are not there."""
        self._batch(self._remove_requests())

    def protect(self, ip: str, note: str) -> None:
        """Count the address as protected from here on. Raises Damaged."""
        try:
            self._batch(self._protect_requests(ip, note))
        except FileNotFoundError:
            raise Damaged(self.damage()) from None

    def let_in(self, ip: str, for_ms: int) -> None:
        """Make a protected address live for the first time. Raises Damaged. FileExistsError: it is live already.

        It fails rather than look first: a batch that fails keeps us waiting for the kernel's RCU grace period, 12 ms
        and more, and what is seldom so is to pay for it.
        """
        flags = NLM_F_CREATE | NLM_F_EXCL
        try:
            self._batch([self._element(NEWSETELEM, f, ip, for_ms, flags) for f in self._families(ip)])
        except FileNotFoundError:
            raise Damaged(self.damage()) from None

    def renew(self, ip: str, for_ms: int) -> None:
        """Keep a live address live for for_ms from now. Raises Lapsed, Damaged.

        Delete and add in one batch: if the element has lapsed the delete fails and the batch is void. So a process that
        was frozen between reading the clock and this call can't bring back what the kernel has ended.
        """
        requests = []
        for family in self._families(ip):
            requests.append(self._element(DELSETELEM, family, ip))
            requests.append(self._element(NEWSETELEM, family, ip, for_ms, NLM_F_CREATE))
        try:
            self._batch(requests)
        except FileNotFoundError:
            if damage := self.damage():
                raise Damaged(damage) from None
            raise Lapsed(ip) from None
        # The kernel counts the changes of all tables, and _batch ours: if it counted more, someone else was here.
        expected, self._generation = self._generation, self._read_generation()
        if self._generation != expected and (damage := self.damage()):
            raise Damaged(damage)

    def shut_out(self, ip: str) -> None:
        """End the address's life at once; quietly if it has ended. Raises Damaged."""
        for family in self._families(ip):  # a batch each: one of them may have lapsed, and the other not yet
            try:
                self._batch([self._element(DELSETELEM, family, ip)])
            except FileNotFoundError:
                if damage := self.damage():
                    raise Damaged(damage) from None

    def damage(self) -> str:
        """What is missing of our tables; "" if they are as install() left them."""
        for family in _SETS:
            try:
                self._netlink.ask(GETTABLE, 0, _family(family) + attr(1, self._table))
            except FileNotFoundError:
                return f"table {'inet' if family == INET else 'arp'} {self.name} was removed"
        for family, versions in _SETS.items():
            for name in (f"{kind}{version}" for version in versions for kind in ("protected", "live")):
                try:
                    self._netlink.ask(GETSET, 0, _family(family) + attr(1, self._table) + attr(2, _name(name)))
                except FileNotFoundError:
                    return f"set {name} of table {self.name} was removed"
        for family, chain, _ in CHAINS:
            try:
                self._netlink.ask(GETCHAIN, 0, _family(family) + attr(1, self._table) + attr(3, _name(chain)))
            except FileNotFoundError:
                return f"chain {chain} of table {self.name} was removed"
        return "" if self._dump_rules() == self._rules else f"rules of table {self.name} were changed"

    def protected(self) -> dict[str, str]:
        """The protected addresses with their notes; empty if there is no table."""
        return self._elements("protected4") | self._elements("protected6")

    def live(self) -> set[str]:
        """The addresses that live now; empty if there is no table."""
        return set(self._elements("live4") | self._elements("live6"))

    # ------------------------------------------------------------------------------------------------------ requests

    def _remove_requests(self) -> list[tuple[int, int, int, bytes]]:
        table = attr(1, self._table)  # created first, so that removing what is not there is no error
        return [
            (kind, flags, family, table)
            for family in _SETS
            for kind, flags in ((NEWTABLE, NLM_F_CREATE), (DELTABLE, 0))
        ]

    @staticmethod
    def _families(ip: str) -> tuple[int, ...]:
        return (INET,) if ":" in ip else (INET, ARP)

    def _element(
        self, kind: int, family: int, ip: str, for_ms: int = 0, flags: int = 0, name: str = "live", note: str = ""
    ) -> tuple[int, int, int, bytes]:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)
        parts = nested(1, attr(1, packed))
        if for_ms:
            parts += attr(4, struct.pack(">Q", for_ms))
        if note:
            comment = note.encode()[:250] + b"\0"
            parts += attr(6, bytes([0, len(comment)]) + comment)  # shown as a comment by `nft list`
        body = (
            attr(1, self._table)
            + attr(2, _name(f"{name}{6 if ':' in ip else 4}"))
            + nested(3, nested(_LIST_ELEM, parts))
        )
        return kind, flags, family, body

    def _protect_requests(self, ip: str, note: str) -> list[tuple[int, int, int, bytes]]:
        return [self._element(NEWSETELEM, f, ip, 0, NLM_F_CREATE, "protected", note) for f in self._families(ip)]

    def _batch(self, requests: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Do all or nothing. Raises OSError with the first error."""
        begin = self._netlink.next_seq()
        parts = [message(BATCH_BEGIN, 0, begin, struct.pack(">BBH", 0, 0, 10))]
        pending = list(requests)
        for number, (kind, flags, family, body) in enumerate(pending):
            last = self._netlink.next_seq()
            # One acknowledgement is enough, of the last: every request that fails is answered anyway.
            acknowledge = NLM_F_ACK if number == len(pending) - 1 else 0
            parts.append(message(kind, flags | acknowledge, last, _family(family) + body))
        parts.append(message(BATCH_END, 0, self._netlink.next_seq(), struct.pack(">BBH", 0, 0, 10)))
        self._netlink.send(b"".join(parts))
        failed = 0
        for kind, seq, body in self._netlink.answers():
            if kind != NLMSG_ERROR or not begin <= seq <= last:
                continue
            failed = failed or error_code(body)
            if seq in (begin, last):
                break
        if failed:
            raise OSError(failed, os.strerror(failed))
        self._generation = (self._generation + 1) & 0xFFFFFFFF

    def _read_generation(self) -> int:
        for body in self._netlink.ask(GETGEN, 0, _family(0)):
            return int.from_bytes(attrs(body[4:])[1], "big")
        return 0

    def _dump_rules(self) -> frozenset[tuple[int, bytes, bytes]]:
        found = set()
        for family in _SETS:
            try:
                for body in self._netlink.ask(GETRULE, NLM_F_DUMP, _family(family) + attr(1, self._table)):
                    parts = attrs(body[4:])
                    if parts[1] == self._table:
                        found.add((family, parts[2], parts[3]))
            except FileNotFoundError:
                pass
        return frozenset(found)

    def _elements(self, name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            bodies = self._netlink.ask(
                GETSETELEM, NLM_F_DUMP, _family(INET) + attr(1, self._table) + attr(2, _name(name))
            )
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        for body in bodies:
            for _, element in each_attr(attrs(body[4:]).get(3, b"")):
                parts = attrs(element)
                note = parts.get(6, b"")[2:].rstrip(b"\0").decode(errors="replace")
                found[str(ipaddress.ip_address(attrs(parts[1])[1]))] = note
        return found
