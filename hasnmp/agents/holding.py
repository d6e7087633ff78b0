"""What clients send to an address between its leaving here and its coming elsewhere is kept, and sent on to its new owner.

A planned move takes as long as the services take to stop and to start. A client's datagram that gets lost meanwhile is sent
again when its library says so: after 5 s or 15 s with ONC RPC (NIS), after 1 s for the first segment of a TCP connection.
Here nothing is lost: whoever has the address next announces it by ARP or neighbour discovery, and gets what was kept, in
its order. It is a delay on the wire to the clients, and resets at once what their connections to the former owner were.

The kernel keeps it, in the bounded buffer of a packet socket that nobody reads until then: a flood costs the engine nothing.
Segments that a network card has joined, and checksums that it would have completed, go through PACKET_VNET_HDR as they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct

from hasnmp.agents.neighbours import ETH_P_ARP, IP, SO_ATTACH_FILTER, Interface

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SO_RCVBUFFORCE = 33
HOLD_S = 10.0  # nobody has announced it for so long: then it is not a move, or clients have asked again
BUFFER = 1 << 19  # octets that are kept, with what the kernel adds to each frame; what comes then is lost
FRAMES = 2048  # sent on at most: what BUFFER holds of the smallest frames
VNET = 10  # octets of struct virtio_net_hdr
LD_PACKET_TYPE = (0x30, 0, 0, 0xFFFFF004)  # load SKF_AD_PKTTYPE: PACKET_HOST is 0, for this machine's own MAC
NOTHING = ((0x6, 0, 0, 0),)


class Holding:
    """The frames to one address on one interface. Its sockets are kept, as those of neighbours.Neighbours and why."""

    def __init__(self, ip: IP) -> None:
        self._ip = ip
        self._frames: socket.socket | None = None
        self._news: socket.socket | None = None
        self._where: Interface | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, where: Interface) -> None:
        """Keep what comes from now on. Raises OSError."""
        self.end()
        if not where.mac:
            return
        if self._where is None or self._where.number != where.number:
            self.close()
            self._open(where)
        assert self._frames and self._news
        v4 = self._ip.version == 4
        _filter(self._news, _announced_v4(self._ip) if v4 else _announced_v6(self._ip))
        _filter(self._frames, _sent_v4(self._ip) if v4 else _sent_v6(self._ip))
        loop = asyncio.get_running_loop()
        loop.add_reader(self._news, self._announced)
        self._timer = loop.call_later(HOLD_S, self.end)

    def forget(self) -> None:
        """What has come up to now was answered here."""
        if self._frames:
            _drain(self._frames)

    def end(self) -> None:
        """Keep nothing any more, and throw away what was kept."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        assert self._frames and self._news
        asyncio.get_running_loop().remove_reader(self._news)
        for sock in (self._frames, self._news):
            _filter(sock, NOTHING)
            _drain(sock)

    def close(self) -> None:
        for sock in (self._frames, self._news):
            if sock is not None:
                sock.close()
        self._frames = self._news = self._where = None

    def _announced(self) -> None:
        """Somebody says that the address is at another MAC now: that is where the clients' frames belong."""
        assert self._frames and self._news and self._where
        try:
            frame = self._news.recv(2048)
        except OSError:
            return
        mac = frame[6:12]
        if mac == self._where.mac:
            return
        for _ in range(FRAMES):
            try:
                kept = self._frames.recv(VNET + 14 + (1 << 16))
            except BlockingIOError:
                break
            except OSError:
                continue
            with contextlib.suppress(OSError):  # what the interface does not take is lost as on any wire
                self._frames.send(kept[:VNET] + mac + self._where.mac + kept[VNET + 12 :])
        self.end()

    def _open(self, where: Interface) -> None:
        protocol = ETH_P_IP if self._ip.version == 4 else ETH_P_IPV6
        self._frames = _socket(where, protocol)
        try:
            self._frames.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            with contextlib.suppress(PermissionError):
                self._frames.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            self._news = _socket(where, ETH_P_ARP if self._ip.version == 4 else ETH_P_IPV6)
        except BaseException:
            self.close()
            raise
        self._where = where


def _socket(where: Interface, protocol: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_PACKET, kind, 0)
    try:
        _filter(sock, NOTHING)
        sock.bind((where.name, protocol))
    except BaseException:
        sock.close()
        raise
    return sock


def _filter(sock: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    """Classic BPF (bpf(4) of the BSDs; linux/filter.h): (code, jump if true, jump if false, constant) a step."""
    steps = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(steps)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(buffer)))


def _equal(*pairs: tuple[tuple[int, int, int, int], int]) -> tuple[tuple[int, int, int, int], ...]:
    """Let through what has all of these values: (the load, the value) each."""
    steps = []
    for index, (load, value) in enumerate(pairs):
        left = 2 * (len(pairs) - index - 1)
        steps += [load, (0x15, 0, left + 1, value)]
    return (*steps, (0x6, 0, 0, 0xFFFF_FFFF), (0x6, 0, 0, 0))


def _words(at: int, packed: bytes) -> list[tuple[tuple[int, int, int, int], int]]:
    """Loads and values of an address of 4 or 16 octets at an offset of the frame."""
    return [((0x20, 0, 0, at + i), int.from_bytes(packed[i : i + 4], "big")) for i in range(0, len(packed), 4)]


def _sent_v4(ip: IP) -> tuple[tuple[int, int, int, int], ...]:
    return _equal((LD_PACKET_TYPE, 0), *_words(30, ip.packed))


def _sent_v6(ip: IP) -> tuple[tuple[int, int, int, int], ...]:
    return _equal((LD_PACKET_TYPE, 0), *_words(38, ip.packed))


def _announced_v4(ip: IP) -> tuple[tuple[int, int, int, int], ...]:
    """An ARP packet, of whatever kind, whose sender is the address (RFC 826)."""
    return _equal(*_words(28, ip.packed))


def _announced_v6(ip: IP) -> tuple[tuple[int, int, int, int], ...]:
    """A neighbour advertisement of the address, without extension headers (RFC 4861 section 4.4)."""
    return _equal(((0x30, 0, 0, 20), 58), ((0x30, 0, 0, 54), 136), *_words(62, ip.packed))


def _drain(sock: socket.socket) -> None:
    for _ in range(FRAMES):
        try:
            sock.recv(64)
        except BlockingIOError:
            return
        except OSError:
            continue
