"""The address agent on a cable between two network namespaces: announcements as the neighbour hears them, and checks."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from hasnmp import settings
from hasnmp.agents import neighbours
from hasnmp.core.events import Action, Outcome
from hasnmp.runtime import messages
from tests.agents.bench import Bench, service
from tests.runtime.netns import Cable, inside, ip
from tests.ticks import Ticks

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")


@pytest.fixture
def cable() -> Iterator[Cable]:
    one = Cable()
    try:
        for name, link in ((one.server, "srv0"), (one.client, "cli0")):
            with inside(name):
                end_s = time.monotonic() + 30
                while not neighbours.interface(link).running:  # before that the kernel throws frames away
                    assert time.monotonic() < end_s
                    time.sleep(0.005)
        yield one
    finally:
        one.remove()


def address(spelt: str = "192.0.2.100/24", *reach: str) -> settings.Service:
    return service("address", "address", settings.Check("address"), ip=spelt, interface="srv0", reach=reach)


def play(cable: Cable, one: settings.Service, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        bench = Bench(one)
        try:
            await story(bench)
        finally:
            await bench.close()

    with inside(cable.server):
        asyncio.run(whole())


def give(cable: Cable, spelt: str) -> None:
    """What the guardian does."""
    ip("-n", cable.server, "addr", "add", spelt, "dev", "srv0", *(["nodad"] if ":" in spelt else []))


def test_an_address_is_announced_when_it_has_come(cable: Cable) -> None:
    """At 0 and at 1 s, as a gratuitous ARP *request*: broadcast, sender and target the address."""
    with inside(cable.client):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(neighbours.ETH_P_ARP))
    heard: list[tuple[int, float]] = []

    async def story(bench: Bench) -> None:
        give(cable, "192.0.2.100/24")
        began_s = time.monotonic()
        result = await bench.act("address", Action.START)
        assert (result.outcome, result.message) == (Outcome.OK, "192.0.2.100 is on srv0")
        assert bench.sent == [messages.Address(messages.AddressOp.ADD, "address", "g", "192.0.2.100", 24, "srv0")]
        ear.setblocking(False)
        mac = neighbours.interface("srv0").mac
        for turn in range(300):  # of this loop, which the agent shares: none is shorter than 10 ms
            if len(heard) == 2:
                break
            await asyncio.sleep(0.01)
            try:
                frame, place = ear.recvfrom(100)
            except BlockingIOError:
                continue
            _, _, _, _, op, sha, spa, tha, tpa = struct.unpack_from("!HHBBH6s4s6s4s", frame)
            if spa == tpa == ipaddress.ip_address("192.0.2.100").packed:
                assert (op, sha, tha, place[2]) == (1, mac, b"\xff" * 6, socket.PACKET_BROADCAST)
                heard.append((turn, time.monotonic() - began_s))
        stopped = await bench.act("address", Action.STOP)
        assert stopped.outcome is Outcome.OK

    play(cable, address(), story)
    ear.close()
    assert heard[0][0] < 10 and heard[1][0] < 130 and heard[1][1] > 0.9


def test_a_lapsed_lease_is_announced_no_more(cable: Cable) -> None:
    """ARP passes the kernel's filter: an engine that was frozen past its lease must not draw the clients back."""
    announced: list[float] = []

    async def story(bench: Bench) -> None:
        agent = bench.agents._agents["address"]
        real = agent._neighbours.announce  # type: ignore[attr-defined]

        def announce(*words: object) -> None:
            announced.append(time.monotonic())
            real(*words)

        agent._neighbours.announce = announce  # type: ignore[attr-defined]
        give(cable, "192.0.2.100/24")
        await bench.act("address", Action.START)
        assert len(announced) == 1
        assert bench.host.lease_alive("g")
        bench.lease_until(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        await asyncio.sleep(1.3)  # the repetition at 1 s came
        assert not bench.host.lease_alive("g")
        assert len(announced) == 1
        bench.lease_until(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 3600 * 10**9)
        await bench.until(lambda: len(announced) == 2)  # extended in time it goes on, at 3 s
        bench.host.released("g")
        assert not bench.host.lease_alive("g")

    play(cable, address(), story)


def neighbour_mac(cable: Cable, spelt: str) -> str:
    words = cable.run(cable.client, "ip", "neigh", "show", spelt, "dev", "cli0").stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


@pytest.mark.parametrize(("spelt", "plain"), [("192.0.2.100/24", "192.0.2.100"), ("2001:db8::100/64", "2001:db8::100")])
def test_a_client_with_the_old_owners_hardware_address_learns_the_new_one(cable: Cable, spelt: str, plain: str) -> None:
    give(cable, spelt)
    old = "02:00:00:00:00:01"
    ip("-n", cable.client, "neigh", "replace", plain, "lladdr", old, "nud", "stale", "dev", "cli0")
    assert neighbour_mac(cable, plain) == old

    async def story(bench: Bench) -> None:
        await bench.act("address", Action.START)
        mac = neighbours.interface("srv0").mac.hex(":")
        await bench.until(lambda: neighbour_mac(cable, plain) == mac)

    play(cable, address(spelt), story)


def test_an_adopted_address_is_announced_too(cable: Cable) -> None:
    """The engine before may have died between the adding and the announcing: then nobody knows yet where it is."""
    give(cable, "192.0.2.100/24")
    old = "02:00:00:00:00:01"
    ip("-n", cable.client, "neigh", "replace", "192.0.2.100", "lladdr", old, "nud", "stale", "dev", "cli0")

    async def story(bench: Bench) -> None:
        bench.agents.adopt((), (messages.HeldAddress("address", "g", "192.0.2.100", 24, "srv0", 7),))
        mac = neighbours.interface("srv0").mac.hex(":")
        await bench.until(lambda: neighbour_mac(cable, "192.0.2.100") == mac)

    play(cable, address(), story)


def test_a_refused_address_says_why(cable: Cable) -> None:
    async def story(bench: Bench) -> None:
        bench.address_text = "no live lease of g"
        result = await bench.act("address", Action.START)
        assert result.outcome is Outcome.FAILED and "no live lease of g" in result.message

    play(cable, address(), story)


@pytest.mark.parametrize("spelt", ["192.0.2.100/24", "2001:db8::100/64"])
def test_a_check_sees_the_address_and_the_carrier(cable: Cable, spelt: str) -> None:
    async def story(bench: Bench) -> None:
        await bench.act("address", Action.START)
        assert (await bench.act("address", Action.CHECK)).outcome is Outcome.NOT_RUNNING
        give(cable, spelt)
        assert (await bench.act("address", Action.CHECK)).outcome is Outcome.OK
        ip("-n", cable.client, "link", "set", "cli0", "down")
        await bench.until(lambda: not neighbours.interface("srv0").running)
        result = await bench.act("address", Action.CHECK)
        assert (result.outcome, result.message) == (Outcome.FAILED, "srv0: no carrier")
        assert (await bench.act("address", Action.CHECK, owned=False)).outcome is Outcome.FAILED
        ip("-n", cable.client, "link", "set", "cli0", "up")
        await bench.until(lambda: neighbours.interface("srv0").running)
        assert (await bench.act("address", Action.CHECK)).outcome is Outcome.OK
        ip("-n", cable.server, "link", "set", "srv0", "down")
        assert (await bench.act("address", Action.CHECK)).message == "srv0: is set down"

    play(cable, address(spelt), story)


def test_an_interface_that_is_not_there(cable: Cable) -> None:
    async def story(bench: Bench) -> None:
        result = await bench.act("address", Action.CHECK, owned=False)
        assert (result.outcome, result.message) == (Outcome.FAILED, "nic9: No such device")

    one = service("address", "address", ip="192.0.2.100/24", interface="nic9")
    play(cable, one, story)


@pytest.mark.parametrize("router", ["192.0.2.2", "2001:db8::2"])
def test_a_neighbour_that_answers_is_enough(cable: Cable, router: str) -> None:
    absent = "192.0.2.77" if "." in router else "2001:db8::77"

    async def story(bench: Bench) -> None:
        with Ticks() as ticks:
            good = await bench.act("address", Action.CHECK, owned=False)
            assert ticks.at_most(200)
        assert good.outcome is Outcome.OK and f"{router} answered" in good.message
        ip("-n", cable.client, "addr", "flush", "dev", "cli0")
        at_least_us = 400_000
        with Ticks() as ticks:
            bad = await bench.act("address", Action.CHECK, timeout_ms=500, owned=False)
            assert ticks.at_most(500)
        assert bad.outcome is Outcome.FAILED and at_least_us < bad.took_us
        assert f"none of {absent}, {router} answered within " in bad.message
        asyncio.get_running_loop().call_later(0.1, time.sleep, 0.5)  # it stands still past every limit
        late = await bench.act("address", Action.CHECK, timeout_ms=500, owned=False)
        assert late.outcome is Outcome.FAILED and f"none of {absent}, {router} answered within " in late.message, late

    play(cable, address("192.0.2.100/24", absent, router), story)


def test_a_neighbour_answers_a_node_without_an_address_of_its_own(cable: Cable) -> None:
    ip("-n", cable.server, "addr", "flush", "dev", "srv0")

    async def story(bench: Bench) -> None:
        good = await bench.act("address", Action.CHECK, owned=False)
        assert good.outcome is Outcome.OK, good

    play(cable, address("192.0.2.100/24", "192.0.2.2"), story)


def test_an_address_that_the_kernel_ended_is_told(cable: Cable) -> None:
    async def story(bench: Bench) -> None:
        lost = messages.AddressLost("address", "192.0.2.100: its lease ran out")
        bench.host.handle(lost)
        assert bench.exits() == [], "it was not ours then"
        bench.agents.adopt((), (messages.HeldAddress("address", "g", "192.0.2.100", 24, "srv0", 7),))
        bench.host.handle(lost)
        assert [(e.service, e.message) for e in bench.exits()] == [("address", "192.0.2.100: its lease ran out")]
        assert (await bench.act("address", Action.CHECK)).outcome is Outcome.NOT_RUNNING

    play(cable, address(), story)
