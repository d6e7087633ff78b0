"""The links: one UDP socket for each of this node's addresses, for heartbeats, answers and the exchange.

A datagram is looked at in the order of what that costs: its source address (a stranger's costs the recv and nothing
else), its size, its signature, and whether the node that signed it owns that address on this link. What passes is
handed on as Received, what doesn't is counted and reported as Rejected.

Sending never blocks and never raises: a link without a route is an everyday thing here, and its silence is noticed by
the heartbeats' own timing. Errors are counted per link, by their errno's name, and what lasts is in the log once a minute: the
silence that follows does not say whose fault it is.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hasnmp.core.events import Received, Rejected
from hasnmp.errors import WireError
from hasnmp.settings import Config
from hasnmp.wire import MAX_DATAGRAM, Datagram, Signer

if TYPE_CHECKING:
    import asyncio

DRAIN = 32  # datagrams taken in one go: a flood on one link must leave the loop its turns
REPORT_S = 0.1  # rejected datagrams are reported at most this often, with their number
RETELL_S = 60.0  # the log is told at most this often why a link can't be used
REOPEN_S = 1.0  # a socket that can't be bound, or whose sends fail, is made anew at most this often
RECEIVE_BUFFER = 1 << 20  # octets: a flood of a few milliseconds must not push the peers' heartbeats out
DSCP_CS6 = 0xC0  # network control (RFC 2474), what routers use among themselves
PRIORITY = 6  # SO_PRIORITY: the highest that needs no privilege

# Not in the socket module. A link's address may come up later than we do (linux/in.h, linux/in6.h).
IP_FREEBIND = 15
IPV6_FREEBIND = 78

# The socket is bound to what is no longer there: binding again may help.
_REBIND = frozenset((errno.EINVAL, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.EBADF))

_NO_ADDRESS = "has this machine that address? ip address shows those that it has"
_TO_DO = {
    errno.EADDRINUSE: "another program has that port: ss -lunp shows which; end it, or change heartbeat.port on every node",
    errno.EINVAL: _NO_ADDRESS,
    errno.ENODEV: _NO_ADDRESS,
    errno.EADDRNOTAVAIL: _NO_ADDRESS,
    errno.ENETUNREACH: "no route leads to the other nodes: ip route",
    errno.EPERM: "a packet filter of this machine forbids it: nft list ruleset",
}


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Link:
    """One link of this node. peers: the other nodes that have it: name -> address; sources: the same, turned round."""

    name: str
    address: str
    peers: dict[str, str]
    sources: dict[str, str]
    sock: socket.socket | None = None
    addresses: dict[str, tuple[str, int] | tuple[str, int, int, int]] = field(default_factory=dict)  # node -> send to
    sent: int = 0
    received: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by reason, since the start
    errors: Counter[str] = field(default_factory=Counter)  # by errno's name, since the start
    last_error: str = ""
    told_s: float = float("-inf")  # time.monotonic() when the log was last told why it can't be used
    opened_s: float = float("-inf")  # time.monotonic() of the last attempt to bind


class Links:
    """callback gets Received and Rejected; it is called from the loop, never from within send()."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        node: str,
        callback: Callable[[Received | Rejected], None],
        log: Any,
    ) -> None:
        """Raises KeyError: no such node. An address that can't be bound does not stop the start: it is tried again."""
        self._loop = loop
        self._node = node
        self._port = config.heartbeat.port
        self._signer = Signer(config.cluster, config.heartbeat.keys)
        self._callback = callback
        self._log = log
        self._unreported: Counter[tuple[str, str, str, str]] = Counter()  # link, reason, peer, text
        self._report_timer: asyncio.TimerHandle | None = None
        self.unsendable: Counter[str] = Counter()  # datagrams that never reached a link, by reason
        self._reopen_timer: asyncio.TimerHandle | None = None  # while a socket could not be had
        self.links: dict[str, Link] = {}
        for name, address in config.node(node).links.items():
            peers = {one.name: one.links[name] for one in config.nodes if one.name != node and name in one.links}
            sources = {_plain(peer): who for who, peer in peers.items()}
            self.links[name] = Link(name, address, peers, sources)
        for link in self.links.values():
            self._open(link)

    def send(self, datagram: Datagram, link: str = "") -> int:
        """Sign once and send over the link, or over every link that the receiver has as well (link "").

        Returns: CLOCK_BOOTTIME in nanoseconds, read after the last copy was handed to the kernel. Never raises.
        """
        try:
            octets = self._signer.encode(datagram)
        except WireError as error:
            self.unsendable[error.reason] += 1
            return now_ns()
        chosen = self.links.values() if not link else (self.links[link],) if link in self.links else ()
        found = False
        for one in chosen:
            if datagram.receiver in one.peers:
                found = True
                self._send_on(one, datagram.receiver, octets)
        if not found:
            self.unsendable["no such link"] += 1
        return now_ns()

    def close(self) -> None:
        """Nothing is sent or received from here on."""
        if self._reopen_timer is not None:
            self._reopen_timer.cancel()
        if self._report_timer is not None:
            self._report_timer.cancel()
        for link in self.links.values():
            self._shut(link)

    def _send_on(self, link: Link, receiver: str, octets: bytes) -> None:
        if link.sock is None:
            link.errors["closed"] += 1
            return
        try:
            link.sock.sendto(octets, link.addresses[receiver])
            link.sent += 1
        except OSError as error:
            self._failed(link, error)

    # ------------------------------------------------------------------------------------------------ receiving

    def _drain(self, link: Link) -> None:
        sock = link.sock
        for _ in range(DRAIN):
            if sock is None:
                return
            try:
                octets, address = sock.recvfrom(MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(link, error)
                return
            # `get` on the text as the kernel gives it: a stranger must not cost more than this.
            sender = link.sources.get(address[0])
            if sender is None:
                sender = link.sources.get(address[0].partition("%")[0])
            if sender is None:
                self._reject(link, "foreign")
                continue
            try:
                datagram = self._signer.decode(octets, self._node)
            except WireError as error:
                self._reject(link, error.reason, error.peer if error.peer == sender else "", error.detail)
                continue
            if datagram.sender != sender:
                self._reject(link, "foreign")
                continue
            link.received += 1
            self._callback(Received(link.name, datagram))
            sock = link.sock  # the callback may have closed it

    def _reject(self, link: Link, reason: str, peer: str = "", text: str = "") -> None:
        link.rejected[reason] += 1
        self._unreported[link.name, reason, peer, text if peer else ""] += 1
        if self._report_timer is None:
            # Not at once: the engine's step must not be the price that a flood of rubbish makes us pay.
            self._report_timer = self._loop.call_later(REPORT_S, self._report)

    def _report(self) -> None:
        self._report_timer = None
        unreported, self._unreported = self._unreported, Counter()
        for (link, reason, peer, text), count in unreported.items():
            self._callback(Rejected(link, reason, count, peer, text))

    # ------------------------------------------------------------------------------------------------ sockets

    def _failed(self, link: Link, error: OSError) -> None:
        self._count(link, error)
        if time.monotonic() - link.opened_s >= REOPEN_S and (error.errno in _REBIND or _moved(link, self._port)):
            self._open(link)

    def _count(self, link: Link, error: OSError) -> None:
        link.errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1
        link.last_error = error.strerror or str(error)
        if (now_s := time.monotonic()) - link.told_s >= RETELL_S:
            link.told_s = now_s
            self._log.error("link_unusable", link=link.name, address=link.address, port=self._port, why=link.last_error,
                            next=_TO_DO.get(error.errno or 0, "tried again"))  # fmt: skip

    def _open(self, link: Link) -> None:
        """(Re)bind the link's socket. What fails is counted, and tried again by _reopen."""
        self._shut(link)
        link.opened_s = time.monotonic()
        try:
            own = _resolve(link.address, self._port)
            link.addresses = {who: _reachable(peer, self._port, own) for who, peer in link.peers.items()}
            link.sock = _bound(own)
            self._loop.add_reader(link.sock.fileno(), self._drain, link)
        except OSError as error:
            self._count(link, error)
            if self._reopen_timer is None:
                self._reopen_timer = self._loop.call_later(REOPEN_S, self._reopen)

    def _shut(self, link: Link) -> None:
        if link.sock is not None:
            self._loop.remove_reader(link.sock.fileno())
            link.sock.close()
            link.sock = None

    def _reopen(self) -> None:
        self._reopen_timer = None
        for link in self.links.values():
            if link.sock is None:
                self._open(link)


def _plain(address: str) -> str:
    """An address as the kernel spells it, without the interface of a link-local one."""
    text = address.partition("%")[0]
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, text))


def _resolve(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """A numeric address as bind and sendto want it. Raises OSError: the interface of a link-local one is missing."""
    text, _, interface = address.partition("%")
    if ":" not in text:
        return (_plain(text), port)
    return (_plain(text), port, 0, socket.if_nametoindex(interface) if interface else 0)


def _moved(link: Link, port: int) -> bool:
    """Was the interface of a link-local address made anew? It then has another index than the one we are bound to."""
    if link.sock is None or "%" not in link.address:
        return False
    try:
        return bool(_resolve(link.address, port)[2:] != link.sock.getsockname()[2:])
    except OSError:
        return False  # it is missing: not yet


def try_out(address: str, port: int) -> None:
    """Raises OSError: this machine can't receive there."""
    _bound(_resolve(address, port)).close()


def _reachable(
    peer: str, port: int, own: tuple[str, int] | tuple[str, int, int, int]
) -> tuple[str, int] | tuple[str, int, int, int]:
    """The peer's address as seen from here: the interface in a link-local one names the peer's own, ours is in `own`."""
    if len(own) == 2:
        return (_plain(peer), port)
    return (_plain(peer), port, 0, own[3])


def _bound(own: tuple[str, int] | tuple[str, int, int, int]) -> socket.socket:
    """A non-blocking UDP socket. No SO_REUSEADDR: a second daemon, or a thief, must not get our datagrams."""
    six = len(own) == 4
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        for level, option, value in (
            (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, DSCP_CS6) if six else (socket.IPPROTO_IP, socket.IP_TOS, DSCP_CS6),
            (socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY),
            (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER),
        ):  # fmt: skip
            try:
                sock.setsockopt(level, option, value)
            except OSError:
                pass  # only better manners: a heartbeat arrives without them too
        sock.bind(own)
    except OSError:
        sock.close()
        raise
    return sock
