"""The UDP sockets that requests come in by. An answer leaves from the address that was asked, through the same socket.

Each is read by a thread of its own that blocks in recvfrom: two system calls a request, where an event loop needs four and
as much time again. The lock is what keeps it apart from the agent's loop; whoever floods this socket holds neither that nor
the interpreter for longer than one datagram takes.

A listener may name an address that is not on this machine (a group's virtual address): open() fails then, and the agent
opens it when the address appears and closes it when it goes (Addresses tells of both). Not by IP_FREEBIND: a socket on an
address that nobody has hides a wrong one in the configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

MAX_DATAGRAM = 65535

_IP_PKTINFO = 8  # Linux; Python 3.11's socket module has no name for it
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100  # rtnetlink(7)

Handle = Callable[[bytes, str, Callable[[bytes], None]], None]


def split_address(text: str) -> tuple[str, int]:
    """ "host:port" or "[v6]:port" as (host, port)."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def in_words(error: OSError) -> str:
    """Why open() failed, and what the administrator can do."""
    to_do = {
        errno.EADDRINUSE: "; another program has that port: ss -lunp shows which; end it, or listen at another port",
        errno.EACCES: "; ports below 1024 are for root: start hasnmpd as root, or listen at another port",
    }
    return (error.strerror or str(error)) + to_do.get(error.errno or 0, "")


class Listener:
    """One listen address. open() may be called again after it failed. handle is called in the listener's thread, with the
    lock held; failed: told, there too, what it raised, which it should not."""

    def __init__(
        self,
        text: str,
        handle: Handle,
        lock: contextlib.AbstractContextManager[Any],
        failed: Callable[[Exception], None],
    ) -> None:
        self.text = text
        self._lock = lock
        self._failed = failed
        self._thread: threading.Thread | None = None
        self._address = split_address(text)
        self._handle = handle
        self._v6 = ":" in self._address[0]
        self._wildcard = ipaddress.ip_address(self._address[0].partition("%")[0]).is_unspecified
        self._socket: socket.socket | None = None

    @property
    def opened(self) -> bool:
        return self._socket is not None

    def gone(self) -> bool:
        """Is its address not on this machine? A wildcard is there always."""
        if self._wildcard:
            return False
        family = socket.AF_INET6 if self._v6 else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((self._address[0], 0))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
        return False

    def open(self) -> None:
        """Raises: OSError: the port is taken, or the address is not on this machine (EADDRNOTAVAIL)."""
        host, port = self._address
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            if self._v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._wildcard:
                # Only such a socket must be told from where to answer; the others are bound to it.
                if self._v6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        self._socket = sock
        target = self._receive_any if self._wildcard else self._receive
        self._thread = threading.Thread(target=target, args=(sock,), name=f"listener {self.text}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None and self._thread is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # not connected, says Linux, and wakes who waits in recvfrom
            self._thread.join(1.0)
            sock.close()

    def _receive(self, sock: socket.socket) -> None:
        handle, lock = self._handle, self._lock
        while True:
            try:
                data, source = sock.recvfrom(MAX_DATAGRAM)
            except OSError:  # an ICMP error for an earlier answer
                if self._socket is not sock:  # closed, and maybe opened anew for another thread
                    return
                continue
            if not data and self._socket is not sock:
                return
            try:
                with lock:
                    handle(data, source[0], partial(_send, sock, source))
            except Exception as error:
                self._failed(error)

    def _receive_any(self, sock: socket.socket) -> None:
        while True:
            try:
                data, ancillary, flags, source = sock.recvmsg(MAX_DATAGRAM, 64)
            except OSError:
                if self._socket is not sock:  # closed, and maybe opened anew for another thread
                    return
                continue
            if not data and self._socket is not sock:
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                continue
            try:
                with self._lock:
                    self._handle(data, source[0], partial(_send_from, sock, _answer_from(ancillary), source))
            except Exception as error:
                self._failed(error)


class Addresses:
    """Wakes whoever waits when an address of this machine appears or goes (rtnetlink). Where the kernel gives no such
    socket nothing wakes, and waiting has its time limit."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change, or after timeout_s."""
        sock, loop = self._socket, asyncio.get_running_loop()
        if sock is None:
            await asyncio.sleep(timeout_s)
            return
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_recv(sock, 65536)
        except TimeoutError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # so many changes at once that some were lost: a change, too
                await asyncio.sleep(timeout_s)
        with contextlib.suppress(OSError):  # all that came with it; ENOBUFS: so much that some is lost
            while sock.recv(65536):
                pass

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


Ancillary = list[tuple[int, int, bytes]]


def _answer_from(ancillary: Ancillary) -> Ancillary:
    """The control message that makes an answer leave from where its request went to."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            # struct in_pktinfo: interface, local address, destination. No interface: routing may have changed sides.
            return [(level, kind, struct.pack("=i4s4s", 0, data[4:8], bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            # struct in6_pktinfo: address, interface, which only a link-local address needs.
            link_local = data[0] == 0xFE and data[1] & 0xC0 == 0x80
            return [(level, kind, data[:16] + (data[16:20] if link_local else bytes(4)))]
    return []


def _send(sock: socket.socket, target: tuple[str, int], answer: bytes) -> None:
    # UDP may lose an answer anyway: a full buffer, a vanished route or a socket closed meanwhile loses this one. Never
    # wait for room in the buffer: the agent's lock is held, and who doesn't answer ARP keeps it full for seconds.
    try:  # a context manager would cost as much as the call
        sock.sendto(answer, socket.MSG_DONTWAIT, target)
    except OSError:
        pass


def _send_from(sock: socket.socket, ancillary: Ancillary, target: tuple[str, int], answer: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendmsg([answer], ancillary, socket.MSG_DONTWAIT, target)
