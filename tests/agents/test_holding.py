"""What comes for an address after it has left this machine, as its next owner and the clients see it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from hasnmp.agents import holding, neighbours
from hasnmp.agents.holding import Holding
from hasnmp.core.events import Action, Outcome
from tests.agents.bench import Bench
from tests.agents.test_address import address, give, play
from tests.runtime.netns import Cable, inside, ip

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")
OTHER = bytes.fromhex("020000000077")  # the next owner's MAC
ADDRESS = {4: "192.0.2.100", 6: "2001:db8::100"}
SPELT = {4: "192.0.2.100/24", 6: "2001:db8::100/64"}


@pytest.fixture
def cable() -> Iterator[Cable]:
    one = Cable()
    try:
        for name, link in ((one.server, "srv0"), (one.client, "cli0")):
            with inside(name):
                end_s = time.monotonic() + 30
                while not neighbours.interface(link).running:
                    assert time.monotonic() < end_s
                    time.sleep(0.005)
        yield one
    finally:
        one.remove()


class Wire:
    """The clients' end of the cable: sends to the address as its former owner has it, and sees what is sent to the next."""

    def __init__(self, cable: Cable, version: int) -> None:
        with inside(cable.server):
            mac = neighbours.interface("srv0").mac
        ip(
            "-n",
            cable.client,
            "neigh",
            "replace",
            ADDRESS[version],
            "lladdr",
            mac.hex(":"),
            "dev",
            "cli0",
            "nud",
            "permanent",
        )
        with inside(cable.client):
            self._ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._ear.bind(("cli0", 3))
            self._ear.setblocking(False)
            self._mouth = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        self._version, self._to = version, (ADDRESS[version], 834)

    def send(self, *words: bytes) -> None:
        for word in words:
            with contextlib.suppress(ConnectionRefusedError):
                self._mouth.sendto(word, self._to)

    def announce(self, mac: bytes = OTHER, what: str = "") -> None:
        """As the next owner does it."""
        packed = ipaddress.ip_address(what or ADDRESS[self._version]).packed
        if self._version == 4:
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + packed + b"\xff" * 6 + packed
            self._ear.send(b"\xff" * 6 + mac + b"\x08\x06" + body)
            return
        advert = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + packed + b"\x02\x01" + mac
        head = struct.pack("!IHBB", 6 << 28, len(advert), 58, 255) + packed + ipaddress.ip_address("ff02::1").packed
        self._ear.send(bytes.fromhex("333300000001") + mac + b"\x86\xdd" + head + advert)

    def sent_on(self) -> list[bytes]:
        """The datagrams that went to the next owner's MAC since the last look."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, place = self._ear.recvfrom(4096)
                if frame[:6] == OTHER and place[2] != socket.PACKET_OUTGOING:
                    found.append(frame[14 + (20 if self._version == 4 else 40) + 8 :])
        return found

    def close(self) -> None:
        self._ear.close()
        self._mouth.close()


@pytest.mark.parametrize("version", [4, 6])
def test_what_comes_between_two_owners_is_sent_on_in_its_order(cable: Cable, version: int) -> None:
    wire = Wire(cable, version)

    async def story(bench: Bench) -> None:
        give(cable, SPELT[version])
        await bench.act("address", Action.START)
        wire.send(b"answered here")
        ip("-n", cable.server, "addr", "del", SPELT[version], "dev", "srv0")  # what the guardian does
        stopped = await bench.act("address", Action.STOP)
        assert stopped.outcome is Outcome.OK
        wire.send(b"one", b"two", b"three")
        wire.announce(what="192.0.2.7" if version == 4 else "2001:db8::7")  # some other address of somebody's
        await asyncio.sleep(0.2)
        assert wire.sent_on() == []
        wire.announce()
        seen: list[bytes] = []
        await bench.until(lambda: seen.extend(wire.sent_on()) or len(seen) == 3)
        assert seen == [b"one", b"two", b"three"]
        # From then on the clients know where it is.
        wire.send(b"four")
        wire.announce()
        await asyncio.sleep(0.2)
        assert wire.sent_on() == []

    play(cable, address(SPELT[version]), story)
    wire.close()


def test_its_own_return_is_no_move(cable: Cable) -> None:
    """Restarted in place: what came meanwhile is thrown away, and its own announcement sends nothing anywhere."""
    wire = Wire(cable, 4)

    async def story(bench: Bench) -> None:
        give(cable, SPELT[4])
        for _ in range(2):
            await bench.act("address", Action.START)
            await bench.act("address", Action.STOP)
            wire.send(b"lost")
        await bench.act("address", Action.START)
        wire.announce()
        await asyncio.sleep(0.2)
        assert wire.sent_on() == []

    play(cable, address(SPELT[4]), story)
    wire.close()


def test_it_ends_by_itself(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "HOLD_S", 0.1)
    wire = Wire(cable, 4)

    async def story(bench: Bench) -> None:
        give(cable, SPELT[4])
        await bench.act("address", Action.START)
        await bench.act("address", Action.STOP)
        wire.send(b"old")
        await asyncio.sleep(0.3)
        wire.announce()
        await asyncio.sleep(0.2)
        assert wire.sent_on() == []

    play(cable, address(SPELT[4]), story)
    wire.close()


def test_a_flood_is_kept_as_far_as_the_buffer_goes(cable: Cable) -> None:
    """And sending it on holds nobody up: it is one turn of the engine's loop."""
    wire = Wire(cable, 4)

    async def turn() -> float:
        with inside(cable.server):
            held = Holding(ipaddress.ip_address(ADDRESS[4]))
            held.begin(neighbours.interface("srv0"))
        began_s = time.process_time()
        for _ in range(20_000):
            wire.send(b"x")
        sent_s = time.process_time() - began_s
        wire.sent_on()  # what it sent itself fills the ear
        began_s = time.process_time()
        wire.announce()
        await asyncio.sleep(0.3)
        took_s = time.process_time() - began_s
        held.close()
        return took_s / sent_s

    part = asyncio.run(turn())
    assert 100 <= len(wire.sent_on()) <= holding.FRAMES
    assert part < 2, "of what it costs to send the flood"
    wire.close()
