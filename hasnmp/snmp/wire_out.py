"""The UDP socket that one receiver's notifications leave from, and what comes back to it: answers, and ICMP errors.

The socket is connected, so that nobody but the receiver is heard, and IP_RECVERR keeps each ICMP error together with the
datagram that it is about. Its source is an address of this node's own that its console knows it by, and never a virtual
address, which would follow its group to another node.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable

from hasnmp.settings import Config
from hasnmp.snmp.listener import split_address

ANSWERS_A_WAKE = 16
MAX_DATAGRAM = 65535
_IP_RECVERR = 11  # Linux; Python 3.11's socket module has no name for these two
_IPV6_RECVERR = 25
_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err: errno, origin, type, code, info, data


class Sources:
    """The addresses that notifications may come from."""

    def __init__(self, config: Config, node: str) -> None:
        """Those of the node's links that the agent listens at come first, then its other links."""
        links = list(config.node(node).links.values())
        listened = [split_address(text)[0] for text in config.snmp.listen]
        self.own = [a for a in links if a in listened] + [a for a in links if a not in listened]
        self.virtual = {service.ip for service in config.services() if service.ip}

    def best(self, routed: str) -> Iterable[str]:
        """What to try to bind to, where routing alone would take this one; nothing: leave it to routing."""
        if routed in self.own or routed not in self.virtual:
            return [routed] if routed in self.own else []
        return [address for address in self.own if (":" in address) == (":" in routed)]

    def ipv4(self) -> bytes:
        """An IPv4 address of this node; four zeroes if it has none."""
        for address in self.own:
            if ":" not in address:
                return ipaddress.ip_address(address).packed
        return bytes(4)


class Wire:
    """on_answer gets a datagram of the receiver; on_refused gets as much of a datagram of ours as came back, and why."""

    def __init__(
        self, to: str, sources: Sources, on_answer: Callable[[bytes], None], on_refused: Callable[[bytes, str], None]
    ) -> None:
        """Raises: ValueError, OSError: `to` is no address."""
        host, port = split_address(to)
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
        self._family, self._target = found[0][0], found[0][4]
        self._sources = sources
        self._on_answer, self._on_refused = on_answer, on_refused
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self) -> None:
        """Raises: OSError: there is no way to the receiver now."""
        self.close()
        sock = self._connected("")
        try:
            routed = str(sock.getsockname()[0])
            for source in self._sources.best(routed):
                try:
                    bound = self._connected(source)
                except OSError:
                    continue  # this machine does not have that address now
                sock.close()
                sock = bound
                break
            level, option = (
                (socket.IPPROTO_IPV6, _IPV6_RECVERR)
                if self._family == socket.AF_INET6
                else (socket.IPPROTO_IP, _IP_RECVERR)
            )
            sock.setsockopt(level, option, 1)
        except OSError:
            sock.close()
            raise
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable, sock)

    def _connected(self, source: str) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if source:
                sock.bind((source, 0))
            sock.connect(self._target)
        except OSError:
            sock.close()
            raise
        return sock

    def address(self) -> bytes:
        """The IPv4 address that this leaves from, for SNMPv1's agent-addr; another of this node over IPv6."""
        if self._socket is None or self._family != socket.AF_INET:
            return self._sources.ipv4()
        return socket.inet_aton(self._socket.getsockname()[0])

    def send(self, data: bytes) -> bool:
        """Is it sent? False: an error came for an earlier one, of which on_refused has made other plans.

        Raises: BlockingIOError: the socket is full just now. OSError: it can't be sent, and why.
        """
        sock = self._socket
        assert sock is not None
        for last in (False, True):
            try:
                sock.send(data)
                return True
            except BlockingIOError:
                raise
            except OSError as error:
                # An ICMP error for an earlier datagram is told by the next call, which then has sent nothing.
                if last or not self._take_errors(sock):
                    raise OSError(error.errno, _words(error.errno or 0)) from None
            if self._socket is not sock:
                return False
        return False

    def close(self) -> None:
        if self._socket is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self, sock: socket.socket) -> None:
        self._take_errors(sock)
        for _ in range(ANSWERS_A_WAKE):
            if self._socket is not sock:
                return  # what was read made its reader open another
            try:
                data = sock.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                self._take_errors(sock)
                continue
            self._on_answer(data)

    def _take_errors(self, sock: socket.socket) -> int:
        """Read the ICMP errors that came. Returns how many."""
        count = 0
        while count < 64 and self._socket is sock:
            try:
                data, ancillary, _, _ = sock.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
            except OSError:
                break
            count += 1
            for level, kind, value in ancillary:
                if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
                    self._on_refused(data, _words(_ERROR.unpack_from(value)[0]))
        return count


def _words(number: int) -> str:
    """An error for the operator."""
    match number:
        case errno.ECONNREFUSED:
            return "refused: no program listens at its port"
        case errno.EHOSTUNREACH:
            return "no way to it: host unreachable"
        case errno.ENETUNREACH:
            return "no way to it: network unreachable"
    return os.strerror(number).lower()
