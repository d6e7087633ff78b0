"""hasnmp-tickle: clients learn at once that their TCP connections to an address ended with its former owner's crash.

A client that waits for an answer, or sends into the void, finds out when its own timers say so: after seconds that double, or
after hours where it only listens. The new owner does not know who is connected. So this program, run as a service of the
group, keeps the list of the address's connections in a file on the group's disk. When it starts on another node it waits
until the address is there, and sends each of these clients a segment out of sequence: the client answers with its own
acknowledgement (RFC 9293 section 3.10.7.4), which belongs to no connection here, and gets a reset that it believes. It connects
again within milliseconds.

At its start it also destroys what this machine still keeps of its former connections to the address, from when it had it
last: a client that comes back from the same port, as kernels' NFS clients do, would be answered by their ghosts.

Who wrote the list stands in it, by node and lease (HASNMP_TOKEN): one that is started again beside the same owner's living
connections tells nobody; one that comes late, when the address is there already, still tells the former owner's clients.

Put it right after the disk in the group's services, so that it is there before the address, and make it not critical.
Needs CAP_NET_RAW and CAP_NET_ADMIN. Standard library only: it starts while an outage lasts. Sources: sock_diag(7),
linux/inet_diag.h.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator

USAGE = (
    "usage: hasnmp-tickle ADDRESS FILE     FILE: on the group's disk; the list of ADDRESS's connections is kept there"
)
# How often it is looked whether the list has changed: who connected later than that learns by its own timers. A look, and the
# writing, may cost a fifth of the time, no more.
EVERY_S, PART = 0.1, 4
# Each is told again: a packet may be lost, or come before the client knows the new owner's MAC, so that its answer goes astray.
AT_S = (0.0, 0.02, 0.1, 0.5, 2.0)
SOON_S, LATER_S, SOON_FOR_S = 0.002, 0.1, 10.0  # between two looks for the address, first and after a while
MOST = 20_000  # connections that are kept: each is a packet
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 4, 20, 21
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 0x1, 0x4, 0x300, 2, 3
ESTABLISHED, LISTEN, ALL = 1, 10, 0xFFF
MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address as sockets of both families have it
_HEADER = struct.Struct("=IHHII")

OWNER = "owner "  # begins the line of the list that says whose it is

Connection = tuple[int, str, int]  # own port, the client's address and port


def packed(address: str) -> bytes:
    """Raises OSError: it is no IP address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Sockets:
    """This machine's TCP sockets at one address. Raises OSError."""

    def __init__(self, address: str) -> None:
        self._own = packed(address)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._netlink.bind((0, 0))

    def connections(self) -> set[Connection]:
        """Those that are established."""
        found = set()
        for _, identity in self._dump(1 << ESTABLISHED):
            own_port, port = struct.unpack_from("!HH", identity)
            other = identity[20:36]
            if len(self._own) == 4:
                other = other[12:] if other.startswith(MAPPED) else other[:4]
            found.add((own_port, socket.inet_ntop(_family(self._own), other), port))
        return found

    def destroy(self) -> int:
        """All of them that connect to somebody. Returns how many there were."""
        ghosts = list(self._dump(ALL & ~(1 << LISTEN)))
        for family, identity in ghosts:
            self._ask(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, 0, identity)
            self._netlink.recv(1 << 16)  # that one has ended by itself meanwhile says nothing new
        return len(ghosts)

    def _dump(self, states: int) -> Iterator[tuple[int, bytes]]:
        for family in (socket.AF_INET, socket.AF_INET6):
            self._ask(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, states, bytes(48))
            yield from self._answers()

    def _answers(self) -> list[tuple[int, bytes]]:
        """(family, identity) of each socket at the address, of one dump."""
        mine: list[tuple[int, bytes]] = []
        while True:
            data = self._netlink.recv(1 << 16)
            at = 0
            while at + 16 <= len(data):
                size, kind, _, _, _ = _HEADER.unpack_from(data, at)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return mine
                identity = data[at + 20 : at + 68]
                own = identity[4:20]
                if own == MAPPED + self._own or (own[: len(self._own)] == self._own and not any(own[len(self._own) :])):
                    mine.append((data[at + 16], identity))
                at += (size + 3) & ~3

    def _ask(self, kind: int, flags: int, family: int, states: int, identity: bytes) -> None:
        body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states) + identity
        self._netlink.send(_HEADER.pack(16 + len(body), kind, flags, 1, 0) + body)


def _family(address: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def here(address: str) -> bool:
    """Does this machine have the address?"""
    with socket.socket(_family(packed(address)), socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def tickle(address: str, clients: set[Connection]) -> None:
    """One segment to each. Raises OSError: no packet can be sent from the address."""
    own = packed(address)
    with socket.socket(_family(own), socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # it would get a copy of every segment that comes
        sock.bind((address, 0))
        for own_port, client, port in clients:
            with contextlib.suppress(OSError):  # one that can't be reached is no matter to the others
                sock.sendto(out_of_sequence(own, own_port, packed(client), port), (client, 0))


def out_of_sequence(own: bytes, own_port: int, other: bytes, port: int) -> bytes:
    """A FIN with the numbers 0 and 0 (RFC 9293 section 3.1). Linux answers a bare ACK only twice a second (tcp_invalid_ratelimit),
    so that a first one whose answer went to the former owner's MAC would be the only one for that long."""
    segment = struct.pack("!HHIIBBHHH", own_port, port, 0, 0, 5 << 4, 0x11, 1024, 0, 0)
    pseudo = own + other + struct.pack("!II", len(segment), socket.IPPROTO_TCP)  # both families' come to the same sum
    total = sum(struct.unpack(f"!{(len(pseudo) + len(segment)) // 2}H", pseudo + segment))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]


def read(file: str) -> tuple[str, set[Connection]]:
    """Who kept it ("": unknown), and what was kept; nothing if there is no file. A line that is none is left out."""
    owner, found = "", set()
    with contextlib.suppress(OSError), open(file, errors="replace") as lines:
        for line in lines:
            if line.startswith(OWNER):
                owner = line.removeprefix(OWNER).strip()
            with contextlib.suppress(ValueError, OSError):
                own_port, client, port = line.split()
                packed(client)
                found.add((int(own_port) & 0xFFFF, client, int(port) & 0xFFFF))
    return owner, found


def write(file: str, owner: str, connections: set[Connection]) -> None:
    """Raises OSError: it is not on the disk."""
    with open(f"{file}.new", "w") as new:
        new.write(f"{OWNER}{owner}\n")
        new.writelines(f"{own_port} {client} {port}\n" for own_port, client, port in sorted(connections)[:MOST])
        new.flush()
        os.fsync(new.fileno())
    os.rename(f"{file}.new", file)
    folder = os.open(os.path.dirname(os.path.abspath(file)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # else a crash within the next seconds brings the former list back
    finally:
        os.close(folder)


def serve(address: str, file: str) -> None:
    """Until the signal that ends it."""
    sockets = Sockets(address)
    owner, former = read(file)
    token = os.environ.get("HASNMP_TOKEN", "")
    me = f"{os.environ.get('HASNMP_NODE', '')} {token}"
    due_s: list[float] = []
    if owner != me if token else not here(address):
        if not here(address):
            if ghosts := sockets.destroy():
                print(f"{ghosts} former connections of this machine's to {address} destroyed", flush=True)
            soon_s = time.monotonic() + SOON_FOR_S
            while not here(address):
                time.sleep(SOON_S if time.monotonic() < soon_s else LATER_S)
        due_s = [time.monotonic() + at_s for at_s in AT_S]
        print(f"{len(former)} clients are told", flush=True)
    kept: set[Connection] | None = None
    while True:
        began_s = time.monotonic()
        if due_s and began_s >= due_s[0]:
            due_s.pop(0)
            if here(address):
                tickle(address, former)
        now = sockets.connections()
        if due_s:
            now |= former  # if this node crashes, too, the next has to tell them
        # In an orderly stop the address goes first, and then the server's connections: the next owner tells those clients.
        if now != kept and here(address):
            try:
                write(file, me, now)
                kept = now
            except OSError as error:
                print(f"{file}: {error.strerror}", flush=True)
        pause_s = max(EVERY_S, PART * (time.monotonic() - began_s))
        time.sleep(max(0.0, min([pause_s, *(at_s - time.monotonic() for at_s in due_s)])))


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        packed(sys.argv[1])
    except OSError:
        print(f"hasnmp-tickle: {sys.argv[1]} is no IP address\n{USAGE}", file=sys.stderr)
        return 2
    try:
        serve(sys.argv[1], sys.argv[2])
    except OSError as error:
        print(f"hasnmp-tickle: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
