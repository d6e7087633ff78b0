"""A group's address follows its lease, whatever freezes or dies: real packets to a namespace with a real guardian."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.core.events import Release, Released
from hasnmp.runtime.messages import Address, AddressDone, AddressLost, AddressOp, Alarm
from tests.cluster.control import overdue_ms
from tests.runtime.netns import Cable, Probe
from tests.runtime.stack import MS, Stack
from tests.runtime.test_guardian import lives, read_pid, until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.serial,
]
IP = "192.0.2.100"
ADD = Address(AddressOp.ADD, "vip", "g", IP, 24, "srv0")
REMOVE = Address(AddressOp.REMOVE, "vip", "g", IP, 24, "srv0")


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    yield made
    made.remove()


@pytest.fixture
def probe(cable: Cable) -> Iterator[Probe]:
    made = Probe(cable, IP)
    yield made
    made.close()


@pytest.fixture
def stack(cable: Cable, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path, address=f"{IP}/24", netns=cable.server)
    yield made
    made.close()


def has_address(cable: Cable) -> bool:
    return IP in cable.run(cable.server, "ip", "addr", "show", "dev", "srv0").stdout


def test_an_address_lives_with_its_lease(stack: Stack, cable: Cable, probe: Probe) -> None:
    stack.send(ADD)
    refused = stack.expect(AddressDone)
    assert not refused.ok
    assert "no live lease" in refused.text
    stack.lease(1500)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    until(probe.answers)
    for _ in range(20):  # extended as an engine does: it answers without a gap
        stack.lease(1500)
        began = time.monotonic()
        while time.monotonic() - began < 0.1:
            assert probe.answers()
    stack.send(Release("g", 1))
    released = stack.expect(Released)
    assert not released.ok
    assert f"address {IP} (vip)" in released.text
    stack.send(REMOVE)
    assert stack.expect(AddressDone).ok
    assert not probe.answers()
    assert not has_address(cable)
    stack.send(Release("g", 1))
    assert stack.expect(Released).ok


def test_an_engine_that_stops_extending_loses_the_address(stack: Stack, cable: Cable, probe: Probe) -> None:
    expiry = stack.lease(1500)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    os.kill(stack.engine_pid, signal.SIGSTOP)
    until(probe.answers)
    silent = until(lambda: not probe.answers())
    assert overdue_ms(expiry, silent, expiry - 150 * MS) <= 0
    assert stack.accept().addresses == ()
    assert not has_address(cable), "before its valid lifetime ends"


def test_a_new_engine_adopts_the_address(stack: Stack, probe: Probe) -> None:
    stack.lease(2000)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    os.kill(stack.engine_pid, signal.SIGKILL)
    held = stack.accept().addresses
    assert [(a.service, a.group, a.ip, a.prefix, a.interface) for a in held] == [("vip", "g", IP, 24, "srv0")]
    stack.lease(2000)
    assert probe.answers()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_the_whole_stack_frozen_or_dead_at_once(stack: Stack, cable: Cable, probe: Probe, how: signal.Signals) -> None:
    expiry = stack.lease(1500)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    until(probe.answers)
    lease_io = read_pid(stack.folder / "lease_io.pids")
    for pid in (stack.process.pid, stack.engine_pid, lease_io):
        os.kill(pid, how)
    silent = until(lambda: not probe.answers())
    assert overdue_ms(expiry, silent) <= 50
    if how == signal.SIGSTOP:
        engine = stack.engine_pid
        for pid in (engine, stack.process.pid):
            os.kill(pid, signal.SIGCONT)
        hello = stack.accept()
        assert not lives(engine)
        assert hello.leases == ()
        assert hello.addresses == ()
    else:
        stack.process.wait()
        hello = stack.start()
        assert hello.cleaned in ((f"address {IP}/24",), ())  # () if its valid lifetime was over before
    assert not has_address(cable)
    assert not probe.answers()


def test_the_guardian_dead_alone(stack: Stack, cable: Cable) -> None:
    stack.lease(60000)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    os.kill(stack.process.pid, signal.SIGKILL)
    stack.process.wait()
    until(lambda: not has_address(cable))  # the engine ends all by force


def test_an_element_that_lapsed_is_told_and_never_revived(stack: Stack, cable: Cable, probe: Probe) -> None:
    stack.lease(2000)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    # The filter's element is ended by someone, while the lease lives: the address's own lease is over.
    cable.run(cable.server, "nft", "flush", "set", "inet", f"hasnmp_t{os.getpid()}_n", "live4")
    assert not probe.answers()
    stack.lease(60000)
    assert "ended by the kernel" in stack.expect(AddressLost).text
    assert not has_address(cable)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    until(probe.answers)


def test_a_flushed_packet_filter_is_restored(stack: Stack, cable: Cable, probe: Probe) -> None:
    stack.lease(1500)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    cable.run(cable.server, "nft", "flush", "ruleset")
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        expiry = stack.lease(1500)
        time.sleep(0.05)
    assert "restored" in stack.expect(Alarm).text
    for pid in (stack.process.pid, stack.engine_pid):
        os.kill(pid, signal.SIGSTOP)
    until(probe.answers)
    assert overdue_ms(expiry, until(lambda: not probe.answers())) <= 50


def test_a_stop_in_order_leaves_no_trace(stack: Stack, cable: Cable) -> None:
    stack.lease(60000)
    stack.send(ADD)
    assert stack.expect(AddressDone).ok
    stack.process.terminate()
    assert stack.conn
    stack.conn.send(b"exit 0")
    assert stack.process.wait(30) == 0
    assert not has_address(cable)
    assert cable.run(cable.server, "nft", "list", "ruleset").stdout == ""
