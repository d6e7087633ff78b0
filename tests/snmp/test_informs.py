"""An inform that is not acknowledged is sent again: the same PDU, whose request-id tells the receiver that it is no other."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from hasnmp.model import ReceiverState
from hasnmp.settings import Receiver, SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.access import ALL
from hasnmp.snmp.backlog import Backlog
from hasnmp.snmp.notification import RESPONSE, Notification
from hasnmp.snmp.outlet import COUNTS, Figures, Surroundings
from hasnmp.snmp.peer_engine import PeerEngine
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.traps import InformOutlet
from hasnmp.snmp.usm import Engine, Incoming, Report
from hasnmp.snmp.wire_out import Sources
from tests.snmp.snmp_lab import a_config, wait_for

NAME, OID = "the console", (1, 3, 6, 1, 4, 1, 9, 0, 1)
USER = SnmpUser("noc", "sha256", "aes128", "read", b"authentic-word", b"private-word")
EVENTS = 3


@pytest.fixture
def console() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def an_outlet(folder: Path, console: socket.socket, version: str) -> tuple[InformOutlet, Backlog]:
    backlog = Backlog(folder / "backlog", [NAME], lambda error: pytest.fail(str(error)))
    around = Surroundings(
        backlog, EVENTS, time.monotonic_ns, lambda _: Notification(0, OID, 1, b""), structlog.get_logger()
    )
    to = f"127.0.0.1:{console.getsockname()[1]}"
    receiver = Receiver(to, version, "noc" if version == "3" else "", b"word", "inform", timeout_ms=100, retries=20)
    peer = PeerEngine(USER, b"\x80\0\0\0\x05sender", time.monotonic) if version == "3" else None
    sources = Sources(a_config(folder), "alpha")
    return InformOutlet(NAME, 0, ALL, Figures([0] * len(COUNTS)), around, receiver, sources, peer), backlog


def request_id(pdu: bytes) -> int:
    return ber.integer(pdu, ber.expect(pdu, 0, len(pdu), 0xA6)[0], len(pdu))[0]


def play(outlet: InformOutlet, backlog: Backlog, console: socket.socket, read: Callable[[bytes, Any], bool]) -> None:
    """Tell the console of EVENTS events, until read(datagram, sender) has said EVENTS times that it acknowledged one."""

    async def run() -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        done = 0

        def readable() -> None:
            nonlocal done
            data, sender = console.recvfrom(65535)
            done += read(data, sender)
            if done == EVENTS:
                over.set()

        loop.add_reader(console.fileno(), readable)
        outlet.open()
        for number in range(EVENTS):
            outlet.put(backlog.add(Notification(0, (*OID, number), 1, b"")), [OID])
        async with asyncio.timeout(20):
            await over.wait()
            await asyncio.to_thread(wait_for, lambda: not outlet.queue)
        loop.remove_reader(console.fileno())
        outlet.close()

    asyncio.run(run())
    assert outlet.state is ReceiverState.UP and outlet.figures.value("acknowledged") == EVENTS


def test_v2c_says_the_same_octets_again(tmp_path: Path, console: socket.socket) -> None:
    outlet, backlog = an_outlet(tmp_path, console, "2c")
    came: list[bytes] = []

    def read(data: bytes, sender: Any) -> bool:
        came.append(data)
        if came.count(data) < 3:
            return False
        at = data.index(b"\xa6", 10)
        console.sendto(data[:at] + bytes((RESPONSE,)) + data[at + 1 :], sender)
        return True

    play(outlet, backlog, console, read)
    assert len(set(came)) == EVENTS and all(came.count(data) == 3 for data in came), "three times each, in turn"
    assert (outlet.figures.value("sent"), outlet.figures.value("repeated")) == (EVENTS, 2 * EVENTS)


def test_v3_says_the_same_pdu_again_in_another_message(tmp_path: Path, console: socket.socket) -> None:
    outlet, backlog = an_outlet(tmp_path, console, "3")
    engine = Engine(b"\x80\0\0\0\x05receiver", 7, lambda: 100, (USER,), Counters())
    came: list[tuple[int, bytes]] = []  # msgID, PDU

    def read(data: bytes, sender: Any) -> bool:
        at, end = ber.expect(data, 0, len(data), ber.SEQUENCE)
        _, at = ber.integer(data, at, end)
        try:
            message = engine.receive(data, at, end)
        except Report as report:
            console.sendto(engine.report(report), sender)
            return False
        assert isinstance(message, Incoming)
        scoped = message.data[message.start : message.stop]
        pdu = scoped[scoped.index(b"\xa6") :]
        came.append((message.msg_id, pdu))
        if [one for _, one in came].count(pdu) < 3:
            return False
        console.sendto(engine.send(message, b"\xa2" + pdu[1:], message.level), sender)
        return True

    play(outlet, backlog, console, read)
    pdus = [pdu for _, pdu in came]
    assert all(pdus.count(pdu) == 3 for pdu in pdus) and len({request_id(pdu) for pdu in pdus}) == EVENTS
    assert len({number for number, _ in came}) == len(came), "a msgID came twice"
