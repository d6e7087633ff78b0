"""The client's eye: asks the virtual address every few milliseconds, and every host behind its back.

    python probe.py ADDRESS PORT PERIOD_MS INTERFACE NAME=MAC...

In each period one datagram as any client sends it, through its neighbour table ("r", routed), and one frame to each
host's own MAC with the virtual address as its destination ("d", direct): so a host that still answers for the address is
seen even if ARP points elsewhere. Written to standard output, some times a second:

    sent N NS                          the newest number sent
    got KIND N NODE TOKEN NS           an answer; NS is when the kernel had it, CLOCK_MONOTONIC

Numbers count periods of the clock: one that could not be kept is left out, never made up for.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import sys
import time
from contextlib import suppress

SO_TIMESTAMPNS = 35
FLUSH_NS = 20_000_000


def checksum(data: bytes) -> int:
    """RFC 1071, data of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(target_mac: bytes, own_mac: bytes, target: bytes, own: bytes, port: int, own_port: int, data: bytes) -> bytes:
    """An Ethernet frame with a UDP datagram over IPv4 or IPv6, by the addresses' length."""
    data += b" " * (len(data) % 2)
    udp = struct.pack("!HHHH", own_port, port, 8 + len(data), 0)
    if len(target) == 4:  # its checksum may be 0, "none"
        head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(data), 0, 0x4000, 64, 17, 0) + own + target
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return target_mac + own_mac + b"\x08\x00" + head + udp + data
    pseudo = own + target + struct.pack("!II", 8 + len(data), 17)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + data) or 0xFFFF)
    return (
        target_mac
        + own_mac
        + b"\x86\xdd"
        + struct.pack("!IHBB", 6 << 28, 8 + len(data), 17, 64)
        + own
        + target
        + udp
        + data
    )


def main() -> None:
    address, port, period_ns = sys.argv[1], int(sys.argv[2]), int(float(sys.argv[3]) * 1e6)
    interface, hosts = sys.argv[4], [bytes.fromhex(word.partition("=")[2].replace(":", "")) for word in sys.argv[5:]]
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    sock.connect((address, port))
    own = ipaddress.ip_address(sock.getsockname()[0]).packed
    own_port = sock.getsockname()[1]
    # Not connected: an ICMP "unreachable" of one host must not become an error here.
    sock.close()
    sock = socket.socket(sock.family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    sock.bind((str(ipaddress.ip_address(own)), own_port))
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.bind((interface, 0))
    own_mac = wire.getsockname()[4]
    target = ipaddress.ip_address(address).packed
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(0, select.POLLHUP)
    lines: list[str] = []
    flushed_ns = begun_ns = time.monotonic_ns()
    number = 0
    while True:
        now = time.monotonic_ns()
        if now >= begun_ns + number * period_ns:
            number = (now - begun_ns) // period_ns
            with suppress(OSError):  # no neighbour answers: nobody has the address now
                sock.sendto(b"r%d" % number, (address, port))
            for host in hosts:
                with suppress(OSError):  # the client's own cable is out
                    wire.send(frame(host, own_mac, target, own, port, own_port, b"d%d" % number))
            lines.append(f"sent {number} {now}")
            number += 1
        if now - flushed_ns >= FLUSH_NS:
            flushed_ns = now
            os.write(1, ("\n".join(lines[-1:] if len(lines) == 1 else lines) + "\n").encode())
            lines.clear()
        left_ms = max(0, begun_ns + number * period_ns - time.monotonic_ns()) // 1_000_000
        for fd, event in poll.poll(left_ms):
            if fd == 0 and event & (select.POLLHUP | select.POLLERR):
                return
            while fd != 0:
                try:
                    data, extra, _, _ = sock.recvmsg(128, 64)
                except OSError:
                    break
                # Two clocks are read one after the other: the pair that is the closest of a few.
                offset_ns = min(-time.time_ns() + time.monotonic_ns() for _ in range(3))
                seconds, rest = struct.unpack("qq", extra[0][2])
                node, token, what = data.decode().split()
                lines.append(f"got {what[0]} {what[1:]} {node} {token} {seconds * 1_000_000_000 + rest + offset_ns}")


main()
