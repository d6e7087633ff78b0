"""ARP (RFC 826) and neighbour discovery (RFC 4861) as the address agent needs them: to tell the neighbours that an
address is here now, and to ask whether a neighbour answers. Raw sockets in the engine's loop; needs CAP_NET_RAW.

Nothing here takes the kernel's RTNL lock, as netlink and some ioctls do: another process may hold that for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import ipaddress
import socket
import struct
from typing import NamedTuple

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
ETH_P_ARP = 0x0806
ARP_REQUEST, ARP_REPLY = 1, 2
ICMP6_FILTER, ND_SOLICIT, ND_ADVERT = 1, 135, 136
ARPHRD_ETHER = 1
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_NOARP = 0x1, 0x8, 0x40, 0x80
SIOCGIFFLAGS, SIOCGIFHWADDR = 0x8913, 0x8927
SO_ATTACH_FILTER = 26
TRIES = 3  # questions to a neighbour within the time that a probe has: one may be lost
LEAST_S = 0.005  # a neighbour answers within a millisecond
FRAMES = 16  # read at one wake-up
BUFFER = 16 * 1024  # octets that a socket keeps between two probes: little, for it is thrown away then

# Classic BPF for an AF_PACKET/SOCK_DGRAM socket: only ARP replies, so that a broadcast storm wakes nobody.
_ARP_REPLIES = ((0x28, 0, 0, 6), (0x15, 0, 1, ARP_REPLY), (0x6, 0, 0, 64), (0x6, 0, 0, 0))


class Interface(NamedTuple):
    """up: set up by the administrator. running: up, and with a carrier; the kernel may need 1 s to see the change of an
    interface that changes often. mac: b"" where there is no Ethernet."""

    name: str
    number: int
    up: bool
    running: bool
    mac: bytes


def interface(name: str) -> Interface:
    """Raises OSError: there is no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16s24x", name.encode()[:15])
        flags = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)[0]
        family, mac = struct.unpack_from("H6s", fcntl.ioctl(sock, SIOCGIFHWADDR, request), 16)
        index = socket.if_nametoindex(name)
    ethernet = family == ARPHRD_ETHER and not flags & (IFF_LOOPBACK | IFF_NOARP)
    return Interface(name, index, bool(flags & IFF_UP), bool(flags & IFF_RUNNING), mac if ethernet else b"")


def present(ip: IP, index: int) -> bool:
    """Does this machine have the address? A socket can be bound to it then, and the question takes no lock.

    Always true where net.ipv4.ip_nonlocal_bind (or the IPv6 one) is set: there only the guardian notices a loss.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind((str(ip), 0) if ip.version == 4 else (str(ip), 0, 0, index))
        except OSError:
            return False
    return True


class Neighbours:
    """The raw sockets of one interface, opened when they are first needed and then kept: to close a packet socket waits
    for the kernel's RCU grace period, 15 ms and more, and that would be the engine that waits."""

    def __init__(self) -> None:
        self._arp: socket.socket | None = None
        self._nd: socket.socket | None = None
        self._number = 0

    def announce(self, ip: IP, where: Interface) -> None:
        """Tell all neighbours that the address is at this interface now. Raises OSError.

        A gratuitous ARP is sent as a *request*: Linux does not take a broadcast reply as one within its locktime.
        """
        if not where.mac:
            return
        if ip.version == 4:
            frame = _arp(ARP_REQUEST, where.mac, ip.packed, b"\xff" * 6, ip.packed)
            self._socket(4, where).sendto(frame, (where.name, ETH_P_ARP, 0, ARPHRD_ETHER, b"\xff" * 6))
            return
        with _nd_socket(where) as sock:  # one of its own: it is bound to the address, and closes at once
            sock.bind((str(ip), 0, 0, where.number))
            # Flags: override. Option 2: our link-layer address (RFC 4861 section 4.4, 7.2.6).
            advert = struct.pack("!BBHI", ND_ADVERT, 0, 0, 0x20000000) + ip.packed + b"\x02\x01" + where.mac
            sock.sendto(advert, ("ff02::1", 0, 0, where.number))

    async def probe(self, targets: tuple[IP, ...], where: Interface, time_s: float) -> IP | None:
        """Ask the neighbours until one answers. Returns which one did, None: nobody within time_s. Raises OSError."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + time_s
        answered: asyncio.Future[IP] = loop.create_future()

        def heard(sock: socket.socket, version: int) -> None:
            for _ in range(FRAMES):
                try:
                    data = sock.recv(2048)
                except OSError:
                    return
                ip = _arp_sender(data) if version == 4 else _advertised(data)
                if ip in targets and not answered.done():
                    answered.set_result(ip)

        with contextlib.ExitStack() as stack:
            sockets = {version: self._socket(version, where) for version in {target.version for target in targets}}
            for version, sock in sockets.items():
                loop.add_reader(sock, heard, sock, version)
                stack.callback(loop.remove_reader, sock)
            for _ in range(TRIES):
                for target in targets:
                    _ask(sockets[target.version], target, where)
                left_s = max(LEAST_S, until_s - loop.time())  # who stood still past the end asks once more all the same
                await asyncio.wait((answered,), timeout=min(time_s / TRIES, left_s))
                if answered.done():
                    return answered.result()
        return None

    def close(self) -> None:
        for sock in (self._arp, self._nd):
            if sock is not None:
                sock.close()
        self._arp = self._nd = None

    def _socket(self, version: int, where: Interface) -> socket.socket:
        if where.number != self._number:  # the interface was made anew: a socket never finds back to it
            self.close()
            self._number = where.number
        if version == 4:
            sock = self._arp = self._arp or _arp_socket(where)
        else:
            sock = self._nd = self._nd or _nd_socket(where)
        _drain(sock)
        return sock


def _drain(sock: socket.socket) -> None:
    """Throw away what came since the last use, which answers nothing that is asked now, and the error that tells of an
    interface that was down meanwhile."""
    for _ in range(64 * FRAMES):
        try:
            sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            continue


def _ask(sock: socket.socket, target: IP, where: Interface) -> None:
    if isinstance(target, ipaddress.IPv4Address):
        frame = _arp(ARP_REQUEST, where.mac, _source(target, where), bytes(6), target.packed)
        sock.sendto(frame, (where.name, ETH_P_ARP, 0, ARPHRD_ETHER, b"\xff" * 6))
    else:
        # To the solicited-node address (RFC 4291 section 2.7.1); the kernel chooses our source and the checksum.
        group = ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + target.packed[13:])
        solicit = struct.pack("!BBHI", ND_SOLICIT, 0, 0, 0) + target.packed + b"\x01\x01" + where.mac
        sock.sendto(solicit, (str(group), 0, 0, where.number))


def _source(target: ipaddress.IPv4Address, where: Interface) -> bytes:
    """The address that we would talk to the target from, 0.0.0.0 without one: an ARP probe (RFC 5227), which most
    machines answer too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, where.name.encode() + b"\0")
            sock.connect((str(target), 9))
            source: str = sock.getsockname()[0]
        except OSError:
            return bytes(4)
    return ipaddress.IPv4Address(source).packed


def _arp(operation: int, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    return struct.pack("!HHBBH6s4s6s4s", ARPHRD_ETHER, 0x0800, 6, 4, operation, sha, spa, tha, tpa)


def _arp_sender(data: bytes) -> IP | None:
    if len(data) < 28 or struct.unpack_from("!HHBBH", data) != (ARPHRD_ETHER, 0x0800, 6, 4, ARP_REPLY):
        return None
    return ipaddress.IPv4Address(data[14:18])


def _advertised(data: bytes) -> IP | None:
    return ipaddress.IPv6Address(data[8:24]) if len(data) >= 24 and data[0] == ND_ADVERT else None


def _arp_socket(where: Interface) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        program = b"".join(struct.pack("HBBI", *step) for step in _ARP_REPLIES)
        buffer = ctypes.create_string_buffer(program)
        sock.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(_ARP_REPLIES), ctypes.addressof(buffer))
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.bind((where.name, ETH_P_ARP))
    except BaseException:
        sock.close()
        raise
    return sock


def _nd_socket(where: Interface) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
    try:
        # A filter of 256 bits, where a bit that is set blocks a type (RFC 3542 section 3.2).
        bits = (1 << 256) - 1 & ~(1 << ND_ADVERT)
        sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, bits.to_bytes(32, "little"))
        for option in (socket.IPV6_MULTICAST_HOPS, socket.IPV6_UNICAST_HOPS):
            sock.setsockopt(socket.IPPROTO_IPV6, option, 255)  # a receiver refuses less: RFC 4861 section 7.1
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, where.number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, where.name.encode() + b"\0")
    except BaseException:
        sock.close()
        raise
    return sock
