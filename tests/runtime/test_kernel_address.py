"""Addresses that the kernel ends: real packets between two network namespaces."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hasnmp.runtime import kernel_address
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.kernel_address import AddressError, KernelAddresses
from hasnmp.runtime.netlink import NLMSG_ERROR, RTM_NEWADDR, Netlink, error_code
from hasnmp.runtime.packet_filter import BATCH_BEGIN, BATCH_END, DELSETELEM, GETGEN, NEWSETELEM
from tests.cluster.control import overdue_ms, stalled_ms
from tests.runtime.netns import Cable, Probe, inside

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.serial,
    pytest.mark.alone,  # it measures milliseconds
]
MS = 1_000_000
V4, V6 = "192.0.2.100", "2001:db8::100"


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    made = Cable()
    yield made
    made.remove()


@pytest.fixture(params=[V4, V6])
def probe(request: pytest.FixtureRequest, cable: Cable) -> Iterator[Probe]:
    made = Probe(cable, request.param)
    yield made
    made.close()


@pytest.fixture
def node(cable: Cable) -> Iterator[KernelAddresses]:
    alarms: list[str] = []
    with inside(cable.server):
        made = KernelAddresses("t", alarms.append)
        made.alarms = alarms  # type: ignore[attr-defined]
        made.cleanup((V4, V6))
        yield made
        made.uninstall()
    made.close()


def prefix(ip: str) -> int:
    return 64 if ":" in ip else 24


def until(true: Callable[[], bool], within_s: float) -> float:
    """Seconds until it is true, without what the machine stood still; fails the test if it isn't in time."""
    began = boottime_ns()
    while not true():
        late = (now := boottime_ns()) - began > within_s * 1e9 and overdue_ms(began, now) > within_s * 1000
        assert not late, f"not within {within_s} s"
    return overdue_ms(began, boottime_ns()) / 1000


def undisturbed(story: Callable[[], None], most_ms: float) -> None:
    """What is about times that a machine which stands still does not keep: then it is played once more."""
    for again in (True, True, False):
        begun_ns = time.monotonic_ns()
        try:
            return story()
        except (AssertionError, AddressError):
            if not again or stalled_ms(begun_ns, time.monotonic_ns()) < most_ms:
                raise


def on_interface(cable: Cable, ip: str) -> bool:
    return f"{ip}/" in cable.run(cable.server, "ip", "addr", "show", "dev", "srv0").stdout


def test_answers_while_renewed_and_is_silent_when_not(cable: Cable, node: KernelAddresses, probe: Probe) -> None:
    ip = probe.address
    node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 1000 * MS)
    until(probe.answers, 0.1)
    for _ in range(20):  # well past the first lease
        node.renew("web", expiry := boottime_ns() + 1000 * MS)
        time.sleep(0.06)
        assert probe.answers()
    until(lambda: not probe.answers(), 1.1)
    late_ms = overdue_ms(expiry, boottime_ns())
    assert late_ms < 50, f"still answered {late_ms} ms after its lease"
    until(lambda: not on_interface(cable, ip), 2)  # and its valid lifetime takes it off


def test_arp_ping_and_neighbour_discovery(cable: Cable, node: KernelAddresses, probe: Probe) -> None:
    ip = probe.address

    def resolves() -> bool:
        cable.run(cable.client, "ip", "neigh", "flush", "dev", "cli0")
        if ":" in ip:
            probe.answers()  # its first datagram asks who has the address
            return "lladdr" in cable.run(cable.client, "ip", "neigh", "show", ip).stdout
        return cable.run(cable.client, "arping", "-c", "1", "-w", "1", "-I", "cli0", ip).returncode == 0

    # Something else puts the address there: protected and without a lease, it stays silent.
    cable.run(cable.server, "ip", "addr", "add", f"{ip}/{prefix(ip)}", "dev", "srv0", "nodad")
    assert not probe.answers()
    assert not resolves()
    node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 5000 * MS)
    until(resolves, 5)
    assert probe.answers()
    node.remove("web")
    assert not probe.answers()
    assert not on_interface(cable, ip)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_frozen_or_dead_process_falls_silent(cable: Cable, probe: Probe, how: signal.Signals) -> None:
    ip, lease_ms = probe.address, 1000
    child = os.fork()
    if child == 0:
        try:
            with inside(cable.server):
                held = KernelAddresses("t")
                held.cleanup((ip,))
                held.add("web", ip, prefix(ip), "srv0", boottime_ns() + lease_ms * MS)
                while True:
                    with contextlib.suppress(AddressError, KeyError):  # it goes on trying, after it was frozen
                        held.renew("web", boottime_ns() + lease_ms * MS)
                    time.sleep(0.02)
        finally:
            os._exit(1)
    try:
        until(probe.answers, 2)
        time.sleep(0.1)
        assert probe.answers()
        os.kill(child, how)
        took = until(lambda: not probe.answers(), 2)
        assert took < (lease_ms + 50) / 1000
        if how == signal.SIGSTOP:
            os.kill(child, signal.SIGCONT)  # it goes on renewing with a fresh lease: the lapsed one must not come back
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                assert not probe.answers()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with inside(cable.server):
            after = KernelAddresses("t")
            left = after.cleanup()  # what the killed one left, by its own table's list
            after.uninstall()
            after.close()
    assert left == (f"address {ip}/{prefix(ip)}",) or not on_interface(cable, ip)
    assert not on_interface(cable, ip)


def test_lapsed_is_never_resurrected(cable: Cable, node: KernelAddresses, probe: Probe) -> None:
    ip = probe.address
    node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 700 * MS)
    until(lambda: not probe.answers(), 0.9)
    with pytest.raises(AddressError, match="ended by the kernel"):
        node.renew("web", boottime_ns() + 5000 * MS)
    assert not probe.answers()
    assert not on_interface(cable, ip)
    assert node.present() == ()
    node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 1000 * MS)  # a new lease adds it anew
    until(probe.answers, 0.1)


def test_frozen_between_reading_the_clock_and_the_kernel(
    cable: Cable, node: KernelAddresses, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip = probe.address
    node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 2000 * MS)
    real = node._filter.renew
    frozen = [0.15]

    def late(address: str, for_ms: int) -> None:
        time.sleep(frozen.pop() if frozen else 0)
        real(address, for_ms)

    monkeypatch.setattr(node._filter, "renew", late)
    expiry = boottime_ns() + 1000 * MS
    node.renew("web", expiry)  # the first try gives 150 ms too much, the second puts it right
    until(lambda: not probe.answers(), 1.2)
    assert overdue_ms(expiry, boottime_ns()) < 50
    # And while it is first added: the element made for 20 ms has lapsed when the renewal comes.
    frozen.append(0.05)
    node.remove("web")
    with pytest.raises(AddressError, match="stalled"):
        node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 1000 * MS)
    assert not probe.answers()


def test_frozen_before_the_address_comes_on_its_interface(
    cable: Cable, node: KernelAddresses, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is frozen past its lease puts no address on; frozen in the call itself, it takes it off again."""
    ip = probe.address
    real = kernel_address.set_address
    for before in (True, False):

        def late(*words: Any, before: bool = before) -> None:
            if before:
                time.sleep(0.3)
            real(*words)
            if not before:
                time.sleep(0.3)

        monkeypatch.setattr(kernel_address, "set_address", late)
        with pytest.raises(AddressError, match="the lease ended"):
            node.add("web", ip, prefix(ip), "srv0", boottime_ns() + 200 * MS)
        assert not probe.answers()
        assert not on_interface(cable, ip)
        assert not node.is_up("web")


def test_a_restored_filter_lets_no_lapsed_address_answer(
    cable: Cable, node: KernelAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add("web", V4, 24, "srv0", boottime_ns() + 700 * MS)
    node.add("web6", V6, 64, "srv0", boottime_ns() + 5000 * MS)
    time.sleep(0.75)
    let_in: list[str] = []
    real = node._filter.let_in

    def noted(ip: str, for_ms: int) -> None:
        let_in.append(ip)
        real(ip, for_ms)

    monkeypatch.setattr(node._filter, "let_in", noted)
    cable.run(cable.server, "nft", "flush", "ruleset")
    node.renew("web6", boottime_ns() + 5000 * MS)
    assert let_in == [V6]


@pytest.mark.parametrize(
    "damage",
    ["flush ruleset", "delete table inet hasnmp_t", "delete table arp hasnmp_t", "flush table inet hasnmp_t",
     "flush chain arp hasnmp_t output"],
)  # fmt: skip
def test_tampering_is_seen_and_restored(cable: Cable, node: KernelAddresses, damage: str) -> None:
    alarms: list[str] = node.alarms  # type: ignore[attr-defined]
    node.add("web", V4, 24, "srv0", boottime_ns() + 3000 * MS)
    node.add("web6", V6, 64, "srv0", boottime_ns() + 3000 * MS)
    assert cable.run(cable.server, "nft", *damage.split()).returncode == 0
    assert node.verify() != ""
    expiry = boottime_ns() + 1000 * MS
    node.renew("web", expiry)
    node.renew("web6", expiry)
    assert node.verify() == ""
    assert len(alarms) == 1
    assert "restored" in alarms[0]
    probes = [Probe(cable, ip) for ip in (V4, V6)]
    try:
        for probe in probes:
            until(probe.answers, 0.1)
        until(lambda: not any(probe.answers() for probe in probes), 1.2)
    finally:
        for probe in probes:
            probe.close()
    assert overdue_ms(expiry, boottime_ns()) < 60


def test_others_changes_are_no_alarm(cable: Cable, node: KernelAddresses) -> None:
    node.add("web", V4, 24, "srv0", boottime_ns() + 1000 * MS)
    cable.run(cable.server, "nft", "add", "table", "inet", "other")
    node.renew("web", boottime_ns() + 1000 * MS)
    assert node.alarms == []  # type: ignore[attr-defined]
    cable.run(cable.server, "nft", "delete", "table", "inet", "other")


def test_a_protected_address_of_another_node_stays_reachable(cable: Cable, node: KernelAddresses) -> None:
    """A node without the address is still a client of its owner, and learns from its announcements."""
    there = cable.turned()
    for ip in (V4, V6):
        cable.run(cable.client, "ip", "addr", "add", f"{ip}/{prefix(ip)}", "dev", "cli0", "nodad")
        probe = Probe(there, ip)
        try:
            until(probe.answers, 1)
        finally:
            probe.close()
            cable.run(cable.client, "ip", "addr", "del", f"{ip}/{prefix(ip)}", "dev", "cli0")


def test_no_interface_and_idempotence(cable: Cable, node: KernelAddresses) -> None:
    with pytest.raises(AddressError, match="no interface nope0"):
        node.add("web", V4, 24, "nope0", boottime_ns() + 1000 * MS)
    with pytest.raises(AddressError):
        node.add("web", V4, 24, "srv0", boottime_ns() - 1)  # a lease that is over
    assert not on_interface(cable, V4)
    node.add("web", V4, 24, "srv0", boottime_ns() + 1000 * MS)
    node.add("web", V4, 24, "srv0", boottime_ns() + 1000 * MS)
    node.remove("web")
    node.remove("web")
    node._filter.let_in(V4, 5000)  # an element that is left of an addition that failed half-way
    node.add("web", V4, 24, "srv0", boottime_ns() + 1000 * MS)
    node.uninstall()
    assert cable.run(cable.server, "nft", "list", "ruleset").stdout == ""


class Talk:
    """What is said to the kernel over netlink, and which of it the kernel refuses. How long it takes: `python -m tests.bench`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[int] = []  # the kind of each message; of a batch, of each that is in it
        self.sent = self.read = 0
        self.refused: list[str] = []
        send, answers = Netlink.send, Netlink.answers

        def sending(netlink: Netlink, data: bytes) -> None:
            self.sent += 1
            at = 0
            while at < len(data):
                size, kind = struct.unpack_from("=IH", data, at)
                self.requests.append(kind)
                at += (size + 3) & ~3
            send(netlink, data)

        def answered(netlink: Netlink) -> Iterator[tuple[int, int, bytes]]:
            for kind, seq, body in answers(netlink):
                self.read += 1
                if kind == NLMSG_ERROR and (code := error_code(body)):
                    self.refused.append(os.strerror(code))
                yield kind, seq, body

        monkeypatch.setattr(Netlink, "send", sending)
        monkeypatch.setattr(Netlink, "answers", answered)


def test_to_come_and_to_go_waits_for_no_grace_period_of_the_kernel(
    node: KernelAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails costs 12 ms and more: the usual case has none. What is refused is the address that is not there."""
    talk = Talk(monkeypatch)
    for _ in range(3):
        node.add("web", V4, 24, "srv0", boottime_ns() + 5000 * MS)
        node.remove("web")
    assert talk.refused == ["Cannot assign requested address"] * 3
    with contextlib.suppress(FileExistsError):  # and what it must not do is seen here
        node._filter.let_in(V4, 5000)
        node._filter.let_in(V4, 5000)
    assert set(talk.refused[3:]) == {"File exists"}


def test_a_renewal_is_cheap_and_rare(node: KernelAddresses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions with an answer of one message each; no list of what the kernel has, and no program run."""
    node.add("web", V4, 24, "srv0", boottime_ns() + 5000 * MS)
    talk = Talk(monkeypatch)
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    for _ in range(20):
        node.renew("web", boottime_ns() + 5000 * MS)
    exchange = [BATCH_BEGIN, *[DELSETELEM, NEWSETELEM] * 2, BATCH_END, GETGEN]
    assert [x for x in talk.requests if x != RTM_NEWADDR] == exchange * 20
    assert talk.requests.count(RTM_NEWADDR) <= 20
    assert talk.sent == talk.read == 2 * 20 + talk.requests.count(RTM_NEWADDR)
    assert talk.refused == []
    node.renew("web", boottime_ns() + 1000 * MS)
    now = boottime_ns()
    assert not node.renew_due("web", now + 1000 * MS)  # just renewed
    assert kernel_address.FIRST_MS < 1000
    assert now + 400 * MS < node.renew_at_ns("web", now + 1010 * MS) < now + 600 * MS


def test_a_short_lease_takes_the_lock_of_all_interfaces_once_a_second(
    cable: Cable, node: KernelAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes interfaces holds it for long; the guardian would stand behind them at each renewal."""
    calls, real = [], kernel_address.set_address

    def counted(*arguments: Any) -> None:
        calls.append(boottime_ns())
        real(*arguments)

    monkeypatch.setattr(kernel_address, "set_address", counted)

    def story() -> None:
        if node.is_up("web"):
            node.remove("web")
        calls.clear()
        node.add("web", V4, 24, "srv0", boottime_ns() + 200 * MS)
        begun_ns = boottime_ns()
        while boottime_ns() < begun_ns + 2500 * MS:
            node.renew("web", boottime_ns() + 200 * MS)
            time.sleep(0.02)
            assert on_interface(cable, V4), "its valid lifetime is wound up before it ends"
        assert 3 <= len(calls) <= 6, calls

    undisturbed(story, 50)


def test_a_lease_that_nobody_extends_keeps_its_address_to_its_end(cable: Cable, node: KernelAddresses) -> None:
    """The valid lifetime is up to a second shorter than the lease: an address was off while its lease still stood."""

    def story() -> None:
        if node.is_up("web"):
            node.remove("web")
        expiry = boottime_ns() + 1950 * MS
        node.add("web", V4, 24, "srv0", expiry)
        while boottime_ns() < expiry - 50 * MS:
            if node.renew_due("web", expiry):
                node.renew("web", expiry)
            time.sleep(0.01)
            there, left_ms = on_interface(cable, V4), (expiry - boottime_ns()) / MS
            assert there or left_ms < 50, f"off {left_ms:.0f} ms before its lease ends"

    undisturbed(story, 20)


def test_what_could_not_be_removed_counts_as_up(
    cable: Cable, node: KernelAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a group would be released while its address may still be there."""
    node.add("web", V4, 24, "srv0", boottime_ns() + 1000 * MS)

    def refuse(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as broken:
        broken.setattr(kernel_address, "delete_address", refuse)
        with pytest.raises(AddressError, match=r"not removed: .*busy"):
            node.remove("web")
        broken.setattr(kernel_address, "set_address", refuse)
        with pytest.raises(AddressError, match="not removed"):
            node.renew("web", boottime_ns() + 1000 * MS)
        assert node.is_up("web")
    node.remove("web")
    assert not node.is_up("web")
    assert not on_interface(cable, V4)


def test_a_renewal_that_the_kernel_refuses_for_a_moment_costs_no_healthy_address(
    cable: Cable, node: KernelAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add("web", V4, 24, "srv0", boottime_ns() + 1500 * MS)

    def refuse(*_: object) -> None:
        raise OSError(105, "No buffer space available")

    with monkeypatch.context() as broken:
        broken.setattr(node._filter, "renew", refuse)
        node.renew("web", boottime_ns() + 1000 * MS)  # said to nobody: it is as good as ever
        assert node.is_up("web") and on_interface(cable, V4)
        assert node.renew_at_ns("web", 0) - boottime_ns() < 25 * MS, (
            "tried again soon, whether the lease has grown or not"
        )
    node.renew("web", expiry := boottime_ns() + 1000 * MS)
    assert node.renew_at_ns("web", expiry + MS) > boottime_ns() + 400 * MS
    with monkeypatch.context() as broken:
        broken.setattr(node._filter, "renew", refuse)
        with pytest.raises(AddressError, match="No buffer space"):
            while True:  # what can't be renewed goes before its lease does
                node.renew("web", boottime_ns() + 1000 * MS)
                time.sleep(0.02)
    assert overdue_ms(expiry, boottime_ns(), expiry - 1000 * MS) < 0
    assert not node.is_up("web") and not on_interface(cable, V4)


def test_an_interface_that_has_gone_is_no_moments_trouble(cable: Cable, node: KernelAddresses) -> None:
    cable.run(cable.server, "ip", "link", "add", "gone9", "type", "veth", "peer", "name", "gone8")
    cable.run(cable.server, "ip", "link", "set", "gone9", "up")
    node.add("web", V4, 24, "gone9", boottime_ns() + 1000 * MS)
    cable.run(cable.server, "ip", "link", "del", "gone9")
    with pytest.raises(AddressError, match="No such device"):
        node.renew("web", boottime_ns() + 1000 * MS)
    assert not node.is_up("web")
