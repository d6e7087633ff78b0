"""Netlink by hand: just the requests that the guardian needs, without threads, event loops or running programs.

Hand-written because a renewal happens several times a second for each address and must cost little: the general
libraries take ten times as long to encode one. Sources: rtnetlink(7), linux/netlink.h, linux/if_addr.h.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
NLMSG_ERROR, NLMSG_DONE = 2, 3
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 6, 8
IFA_F_NODAD = 0x02
WAIT_S = 0.5  # netlink answers within the call; this only keeps a kernel defect from hanging the guardian for ever

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTR = struct.Struct("=HH")


def attr(kind: int, data: bytes) -> bytes:
    """One attribute, padded to 4 octets."""
    return _ATTR.pack(len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attr(kind | NLA_F_NESTED, b"".join(parts))


def attrs(data: bytes) -> dict[int, bytes]:
    """Attributes by kind; of a kind that occurs twice, the last."""
    return dict(each_attr(data))


def each_attr(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = _ATTR.unpack_from(data, at)
        if size < 4:
            return
        yield kind & NLA_TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    return _HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, seq, 0) + body


class Netlink:
    """One netlink socket. Every call sends and reads the whole answer; OSError carries the kernel's errno."""

    def __init__(self, protocol: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(WAIT_S * 1e6)))
        self._sock.bind((0, 0))
        self._seq = 0

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def close(self) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        self._sock.send(data)

    def answers(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, sequence number, body) of each message that comes; never ends by itself."""
        while True:
            data = self._sock.recv(1 << 16)
            at = 0
            while at + 16 <= len(data):
                size, kind, _, seq, _ = _HEADER.unpack_from(data, at)
                yield kind, seq, data[at + 16 : at + size]
                at += (size + 3) & ~3

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one request; give the bodies of its answer (none for a mere acknowledgement). Raises OSError."""
        seq = self.next_seq()
        dump = flags & NLM_F_DUMP == NLM_F_DUMP
        self.send(message(kind, flags, seq, body))
        bodies: list[bytes] = []
        for answer, its_seq, data in self.answers():
            if its_seq != seq:
                continue  # of a request that was given up
            if answer == NLMSG_ERROR:
                code = error_code(data)
                if code:
                    raise OSError(code, os.strerror(code))
                return bodies
            if answer == NLMSG_DONE:
                return bodies
            bodies.append(data)
            if not dump and not flags & NLM_F_ACK:
                return bodies
        raise AssertionError("answers() ended")


def error_code(body: bytes) -> int:
    """errno of an NLMSG_ERROR, 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", body)[0])


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    ip: str
    prefix: int
    index: int


def _address_body(ip: str, prefix: int, index: int, valid_s: int) -> bytes:
    packed = ipaddress.ip_address(ip).packed
    family, flags = (socket.AF_INET, 0) if len(packed) == 4 else (socket.AF_INET6, IFA_F_NODAD)
    body = struct.pack("=BBBBI", family, prefix, flags, 0, index) + attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    if valid_s:
        # Without duplicate address detection: it would keep an IPv6 address silent for a second, and the lease has
        # already decided who answers.
        body += attr(IFA_CACHEINFO, struct.pack("=IIII", valid_s, valid_s, 0, 0)) + attr(
            IFA_FLAGS, struct.pack("=I", flags)
        )
    return body


def set_address(route: Netlink, ip: str, prefix: int, index: int, valid_s: int) -> None:
    """Add the address, or give it a new valid lifetime. Raises OSError."""
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    route.ask(RTM_NEWADDR, flags, _address_body(ip, prefix, index, valid_s))


def delete_address(route: Netlink, ip: str, prefix: int, index: int) -> None:
    """Raises OSError: EADDRNOTAVAIL if it is not there, ENODEV if the interface is not."""
    route.ask(RTM_DELADDR, NLM_F_ACK, _address_body(ip, prefix, index, 0))


def addresses(route: Netlink) -> list[InterfaceAddress]:
    """Every address of every interface."""
    found = []
    for body in route.ask(RTM_GETADDR, NLM_F_DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 0)):
        _, prefix, _, _, index = struct.unpack_from("=BBBBI", body)
        parts = attrs(body[8:])
        packed = parts.get(IFA_LOCAL, parts.get(IFA_ADDRESS, b""))
        if len(packed) in (4, 16):
            found.append(InterfaceAddress(str(ipaddress.ip_address(packed)), prefix, index))
    return found
