"""Links over the loopback: what peers sign arrives, whatever else comes is refused cheaply, and sending never raises."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from hasnmp.core.events import Received, Rejected
from hasnmp.runtime import links as links_module
from hasnmp.runtime.links import DRAIN, Links, now_ns
from hasnmp.settings import Arbiter, Config, Heartbeat, NodeSettings
from hasnmp.wire import MAX_DATAGRAM, Datagram, DatagramKind, GroupEntry, GroupFlag, Signer
from tests import ports
from tests.runtime.netns import Cable, inside, ip

KEY = b"k" * 32
DATAGRAM = Datagram(DatagramKind.HEARTBEAT, "a", "b", 1, 2, groups=(GroupEntry("nfs", GroupFlag.ASK, 7),))
Got = asyncio.Queue[Received | Rejected]


def config(port: int, *, red: tuple[str, str] = ("127.0.0.2", "127.0.0.3"), b_has_blue: bool = True) -> Config:
    """Nodes a and b with the links red (red[0] and red[1]) and blue, and c, which has another blue."""
    return Config(
        "bank",
        (
            NodeSettings("a", {"red": red[0], "blue": "127.0.1.2"}),
            NodeSettings("b", {"red": red[1], "blue": "127.0.1.3"} if b_has_blue else {"red": red[1]}),
            NodeSettings("c", {"blue": "127.0.1.4"}),
        ),
        Heartbeat(port=port, keys=(KEY,)),
        Arbiter("none"),
        (),
    )


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 15))


class Node:
    def __init__(self, config: Config, name: str) -> None:
        self.got: Got = asyncio.Queue()
        self.said: list[dict[str, object]] = []
        self.links = Links(asyncio.get_running_loop(), config, name, self.got.put_nowait, self)

    def error(self, event: str, **about: object) -> None:
        """The log."""
        self.said.append({"event": event, **about})

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.links.close()

    async def rejected(self, count: int) -> dict[str, int]:
        """What was refused, by reason, once that many are reported."""
        found: dict[str, int] = {}
        while sum(found.values()) < count:
            event = await self.got.get()
            assert isinstance(event, Rejected)
            found[event.reason] = found.get(event.reason, 0) + event.count
        return found


def stranger(address: str, port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def test_a_datagram_arrives_over_every_link_and_over_one() -> None:
    async def test() -> None:
        one = config(ports.free_port("::"))
        async with Node(one, "a") as a, Node(one, "b") as b:
            before_ns = now_ns()
            at_ns = a.links.send(DATAGRAM)
            assert before_ns < at_ns < now_ns()
            assert {(await b.got.get()).link for _ in range(2)} == {"red", "blue"}
            a.links.send(DATAGRAM, "blue")
            assert await b.got.get() == Received("blue", DATAGRAM)
            assert b.got.empty()
            b.links.send(replace(DATAGRAM, sender="b", receiver="a"), "blue")
            assert await a.got.get() == Received("blue", replace(DATAGRAM, sender="b", receiver="a"))
            assert a.links.links["blue"].sent == 2
            assert b.links.links["blue"].received == 2

    run(test)


def test_ipv6_end_to_end() -> None:
    """Both ends on ::1 under different ports: the one who sends is played."""

    async def test() -> None:
        port = ports.free_port("::")
        one = Config(
            "bank",
            (NodeSettings("a", {"red": "0:0:0:0:0:0:0:1"}), NodeSettings("b", {"red": "::1"})),
            Heartbeat(port=port, keys=(KEY,)),
            Arbiter("none"),
            (),
        )
        async with Node(one, "b") as b:
            with stranger("::1") as peer:
                peer.sendto(Signer("bank", (KEY,)).encode(DATAGRAM), ("::1", port))
                assert await b.got.get() == Received("red", DATAGRAM)
                b.links.links["red"].addresses["a"] = peer.getsockname()
                b.links.send(replace(DATAGRAM, sender="b", receiver="a"))
                octets, address = peer.recvfrom(2000)
                assert address[:2] == ("::1", port)
                assert Signer("bank", (KEY,)).decode(octets, "a").sender == "b"

    run(test)


def test_a_strangers_address_is_refused_before_its_signature_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        port = ports.free_port("::")
        decoded: list[bytes] = []
        real = Signer.decode
        monkeypatch.setattr(
            Signer, "decode", lambda self, octets, me: (decoded.append(octets), real(self, octets, me))[1]
        )
        async with Node(config(port), "b") as b:
            with stranger("127.0.0.9") as sock:
                sock.sendto(Signer("bank", (KEY,)).encode(DATAGRAM), ("127.0.0.3", port))
                assert await b.rejected(1) == {"foreign": 1}
            with stranger("127.0.1.2", port) as sock:  # a's address, but of the other link
                sock.sendto(Signer("bank", (KEY,)).encode(DATAGRAM), ("127.0.0.3", port))
                assert await b.rejected(1) == {"foreign": 1}
            assert decoded == []

    run(test)


def test_another_nodes_address_is_refused_even_with_a_good_signature() -> None:
    async def test() -> None:
        port = ports.free_port("::")
        async with Node(config(port), "b") as b:
            with stranger("127.0.1.4", port) as c:
                c.sendto(Signer("bank", (KEY,)).encode(DATAGRAM), ("127.0.1.3", port))
                assert await b.rejected(1) == {"foreign": 1}
                mine = replace(DATAGRAM, sender="c")
                c.sendto(Signer("bank", (KEY,)).encode(mine), ("127.0.1.3", port))
                assert await b.got.get() == Received("blue", mine)

    run(test)


def test_a_peer_of_another_version_is_named_and_a_stranger_is_not() -> None:
    """A node that speaks no version of ours: who it is, by its signature and its address, goes to the engine."""

    async def test() -> None:
        port = ports.free_port("::")
        later = replace(DATAGRAM, lowest=2, highest=3)
        async with Node(config(port), "b") as b:
            with stranger("127.0.0.2", port) as a:
                a.sendto(Signer("bank", (KEY,)).encode(later), ("127.0.0.3", port))
                text = "it speaks versions 2 to 3, this node 1 to 1"
                assert await b.got.get() == Rejected("red", "version", 1, "a", text)
                a.sendto(Signer("bank", (b"other",)).encode(later), ("127.0.0.3", port))
                assert await b.got.get() == Rejected("red", "signature")
                a.sendto(Signer("bank", (KEY,)).encode(replace(later, sender="c")), ("127.0.0.3", port))
                assert await b.got.get() == Rejected("red", "version")

    run(test)


def test_hostile_octets_from_a_peers_address_are_refused_and_counted_by_reason() -> None:
    """Random octets, truncations, every flipped bit, other keys, clusters, receivers and versions; a replay is for the
    core to refuse, and arrives here."""

    async def test() -> None:
        port = ports.free_port("::")
        good = Signer("bank", (KEY,)).encode(DATAGRAM)
        chance = random.Random(7)
        hostile = [chance.randbytes(chance.randrange(1400)) for _ in range(200)]
        hostile += [good[:size] for size in range(0, len(good), 7)]
        hostile += [Signer("bank", (b"other",)).encode(DATAGRAM), Signer("shop", (KEY,)).encode(DATAGRAM)]
        hostile += [Signer("bank", (KEY,)).encode(replace(DATAGRAM, receiver="c"))]
        hostile += [Signer("bank", (KEY,)).encode(replace(DATAGRAM, lowest=2, highest=3))]
        hostile += [good + bytes(MAX_DATAGRAM), b"", good + b"\0"]
        for bit in range(len(good) * 8):
            flipped = bytearray(good)
            flipped[bit // 8] ^= 1 << bit % 8
            hostile.append(bytes(flipped))
        async with Node(config(port), "b") as b:
            found: dict[str, int] = {}
            with stranger("127.0.0.2", port) as a:
                for start in range(0, len(hostile), 100):
                    batch = hostile[start : start + 100]
                    for octets in batch:
                        a.sendto(octets, ("127.0.0.3", port))
                    for reason, count in (await b.rejected(len(batch))).items():
                        found[reason] = found.get(reason, 0) + count
                for _ in range(2):
                    a.sendto(good, ("127.0.0.3", port))
                    assert await b.got.get() == Received("red", DATAGRAM)
            assert set(found) == {"malformed", "version", "foreign", "signature"}
            assert dict(b.links.links["red"].rejected) == found

    run(test)


def test_a_flood_is_reported_in_batches_and_leaves_the_loop_its_turns() -> None:
    async def test() -> None:
        port = ports.free_port("::")
        async with Node(config(port), "b") as b:
            turns = 0
            with stranger("127.0.0.9") as sock:
                for _ in range(10 * DRAIN):
                    sock.sendto(b"x" * 100, ("127.0.0.3", port))
                begun = time.monotonic()
                while sum(b.links.links["red"].rejected.values()) < 10 * DRAIN:
                    turns += 1
                    await asyncio.sleep(0)  # one turn of the loop
                    assert time.monotonic() - begun < 10
            assert turns >= 10
            reports = []
            while sum(reports) < 10 * DRAIN:
                event = await b.got.get()
                assert isinstance(event, Rejected)
                reports.append(event.count)
            most = 1 + (time.monotonic() - begun) / links_module.REPORT_S
            assert sum(reports) == 10 * DRAIN and len(reports) <= most, "one a datagram, or one a turn"

    run(test)


def test_sending_never_raises_and_counts_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        port = ports.free_port("::")
        async with Node(config(port, red=("127.0.0.2", "203.0.113.7"), b_has_blue=False), "a") as a:
            for _ in range(3):  # from a loopback address no route leads to any other network
                assert a.links.send(DATAGRAM) <= now_ns()
            red = a.links.links["red"]
            assert red.sent == 0
            assert sum(red.errors.values()) == 3
            assert red.last_error
            assert [(one["event"], one["link"], one["why"]) for one in a.said] == [
                ("link_unusable", "red", red.last_error)
            ], "said once, not with each heartbeat"
            a.links.send(DATAGRAM, "blue")
            a.links.send(DATAGRAM, "green")
            a.links.send(replace(DATAGRAM, receiver="nobody"))
            a.links.send(replace(DATAGRAM, payload=b"x" * 1000))
            a.links.send(replace(DATAGRAM, seq=-1))
            assert a.links.unsendable == {"no such link": 3, "oversize": 1, "malformed": 1}

    run(test)


def test_an_address_that_is_not_there_yet_does_not_stop_the_start() -> None:
    async def test() -> None:
        port = ports.free_port("::")
        async with Node(config(port, red=("203.0.113.6", "203.0.113.7")), "a") as a, Node(config(port), "b") as b:
            assert a.links.links["red"].sock is not None, (
                "bound beforehand: the socket works as soon as the address is there"
            )
            a.links.send(DATAGRAM)
            assert await b.got.get() == Received("blue", DATAGRAM), "and the other link works all the same"

    run(test)


def test_a_port_that_is_taken_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "REOPEN_S", 0.05)

    async def test() -> None:
        port = ports.free_port("::")
        thief = stranger("127.0.0.3", port)
        async with Node(config(port), "a") as a, Node(config(port), "b") as b:
            red = b.links.links["red"]
            assert red.sock is None and b.links._reopen_timer is not None
            assert a.links._reopen_timer is None, "what has all its sockets wakes nobody"
            assert "Address already in use" in red.last_error
            (said,) = b.said
            assert (said["link"], said["address"], said["port"]) == ("red", "127.0.0.3", port)
            assert "ss -lunp" in str(said["next"])
            b.links.send(replace(DATAGRAM, sender="b", receiver="a"), "red")
            assert red.errors["closed"] == 1
            thief.close()
            begun = time.monotonic()
            while b.got.empty():
                a.links.send(DATAGRAM, "red")
                await asyncio.sleep(0.01)
                assert time.monotonic() - begun < 10
            assert await b.got.get() == Received("red", DATAGRAM)

    run(test)


def test_a_second_daemon_cannot_take_our_port() -> None:
    async def test() -> None:
        port = ports.free_port("::")
        async with Node(config(port), "b"):
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, option, 1)
                    with pytest.raises(OSError, match="already in use"):
                        sock.bind(("127.0.0.3", port))

    run(test)


def test_what_leaves_is_marked_as_network_control() -> None:
    async def test() -> None:
        port = ports.free_port("::")
        async with Node(config(port), "a") as a:
            sock = a.links.links["red"].sock
            assert sock is not None
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == links_module.DSCP_CS6
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 6

    run(test)


# --------------------------------------------------------------------------------------- two hosts, as network namespaces


@pytest.fixture
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Cable()
    yield made
    made.remove()


def pair(port: int, server: str, client: str) -> Config:
    nodes = (NodeSettings("a", {"red": server}), NodeSettings("b", {"red": client}))
    return Config("bank", nodes, Heartbeat(port=port, keys=(KEY,)), Arbiter("none"), ())


async def heard(a: Node, b: Node) -> None:
    """A datagram gets from a to b, sooner or later."""
    begun = time.monotonic()
    while b.got.empty():
        a.links.send(DATAGRAM)
        await asyncio.sleep(0.01)
        assert time.monotonic() - begun < 10, a.links.links["red"].last_error
    assert await b.got.get() == Received("red", DATAGRAM)


@pytest.mark.parametrize(
    ("server", "client"),
    [("192.0.2.1", "192.0.2.2"), ("2001:DB8:0::1", "2001:db8::2"), ("fe80::a%srv0", "fe80::b%cli0")],
)
def test_two_hosts_hear_each_other(cable: Cable, server: str, client: str) -> None:
    ip("-n", cable.server, "addr", "add", "fe80::a/64", "dev", "srv0", "nodad")
    ip("-n", cable.client, "addr", "add", "fe80::b/64", "dev", "cli0", "nodad")

    async def test() -> None:
        both = pair(5405, server, client)
        with inside(cable.server):
            a = Node(both, "a")
        with inside(cable.client):
            b = Node(both, "b")
        async with a, b:
            await heard(a, b)
            b.links.send(replace(DATAGRAM, sender="b", receiver="a"))
            assert await a.got.get() == Received("red", replace(DATAGRAM, sender="b", receiver="a"))

    run(test)


@pytest.mark.parametrize(
    ("server", "client"),
    [("192.0.2.71", "192.0.2.2"), ("2001:db8::71", "2001:db8::2"), ("fe80::71%srv0", "fe80::b%cli0")],
)
def test_an_address_that_comes_later_works_from_then_on(cable: Cable, server: str, client: str) -> None:
    ip("-n", cable.client, "addr", "add", "fe80::b/64", "dev", "cli0", "nodad")

    async def test() -> None:
        both = pair(5405, server, client)
        with inside(cable.server):
            a = Node(both, "a")
        with inside(cable.client):
            b = Node(both, "b")
        async with a, b:
            a.links.send(DATAGRAM)
            address = server.partition("%")[0]
            plain = () if "." in server else ("nodad",)
            ip("-n", cable.server, "addr", "add", f"{address}/{64 if plain else 24}", "dev", "srv0", *plain)
            await heard(a, b)
            assert a.links.links["red"].sock is not None

    run(test)


def test_an_interface_that_is_missing_or_made_anew_is_found_again(
    cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link-local socket is bound to the number of an interface, which changes when it is made anew."""
    monkeypatch.setattr(links_module, "REOPEN_S", 0.05)

    def make() -> None:
        ip("-n", cable.server, "link", "add", "later", "type", "veth", "peer", "name", "other")
        for end in ("later", "other"):
            ip("-n", cable.server, "link", "set", end, "up")
        ip("-n", cable.server, "addr", "add", "fe80::c/64", "dev", "later", "nodad")

    async def sent(a: Node) -> None:
        red = a.links.links["red"]
        before, begun = red.sent, time.monotonic()
        while red.sent == before:
            a.links.send(DATAGRAM)
            await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 10, red.last_error

    async def test() -> None:
        both = pair(5405, "fe80::c%later", "fe80::d%whatever")
        async with Node(both, "a") as a:
            assert a.links.links["red"].sock is None
            make()
            await sent(a)
            ip("-n", cable.server, "link", "del", "later")
            a.links.send(DATAGRAM)
            make()
            await sent(a)

    with inside(cable.server):
        run(test)


def test_a_firewall_that_refuses_is_counted(cable: Cable) -> None:
    done = cable.run(
        cable.server, "nft", "add table inet t; add chain inet t o { type filter hook output priority 0; policy drop; }"
    )
    assert done.returncode == 0, done.stderr

    async def test() -> None:
        with inside(cable.server):
            a = Node(pair(5405, "192.0.2.1", "192.0.2.2"), "a")
        async with a:
            a.links.send(DATAGRAM)
            assert a.links.links["red"].errors == {"EPERM": 1}

    run(test)
