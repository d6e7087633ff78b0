"""One pair a module: every test begins with it steady and the group at home on a, and leaves it so."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.bounds import MEASURED_TWICE, within
from tests.cluster.control import stalled_ms
from tests.cluster.lab import wait_for
from tests.cluster.pair import VIP, Pair, boot_ns
from tests.cluster.watch import Watch

STALL_MS = 300  # what of a lease may be left when it is extended next
NEEDED = ("ip", "nft", "unshare", "nsenter", "snmpset", "snmptrapd", "arping")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in items:
        item.add_marker(pytest.mark.serial)
        item.add_marker(MEASURED_TWICE)
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.getuid() != 0:
        why = "makes network namespaces: run as root"
    elif not os.path.exists("/dev/fuse"):
        why = "makes a lease disk that can fail: needs /dev/fuse"
    elif missing:
        why = f"needs {', '.join(missing)}"
    elif subprocess.run(["unshare", "-n", "-m", "-p", "-u", "-i", "--fork", "true"], capture_output=True).returncode:
        why = "makes namespaces: this machine does not let even root do that"
    else:
        return
    for item in items:
        item.add_marker(pytest.mark.skip(reason=why))


def lasted(same: bool, since_ns: int, room_ms: float, why: str | Callable[[], str]) -> None:
    """What rests on leases is the same. Only a machine that stood still for longer than they had room may cost one: then it is
    measured once more."""
    if not same:
        stood_ms, more = stalled_ms(since_ns, time.monotonic_ns()), why() if callable(why) else why
        assert stood_ms > room_ms, more
        within(stood_ms, room_ms, more)


@dataclass
class Scene:
    """What a scenario works with. Times of faults are the lab's, CLOCK_MONOTONIC; events count in boot_ns."""

    pair: Pair
    watch: Watch
    begun_ns: int  # boot_ns

    def never_two(self) -> None:
        assert self.watch.doubles() == [], self.pair.why()
        assert self.watch.falling_tokens() == []

    def nothing_moved(self, since_ns: int, most_ms: float = 150) -> None:
        """Every client's request from a moment on was answered, by a; and both nodes say that a has the group."""
        answers = self.watch.routed(since_ns)
        seen = {(answer.node, answer.token) for answer in answers}
        same = len(seen) == 1 and {node for node, _ in seen} == {"a"}
        lasted(same, since_ns, STALL_MS, lambda: f"answered, as node and token: {seen}\n{self.pair.why()}")
        within(self.watch.outage_ms(since_ns), most_ms, lambda: f"nobody answered\n{self.pair.why()}")

    def back(self, node: str, fault_ns: int, bound_ms: float) -> float:
        """The address answers again, from `node`, within the bound. Returns how long it took, ms."""
        took_ms = self.watch.back_ms(fault_ns, node, bound_ms / 1000 + 5)
        print(f"back on {node} after {took_ms:.0f} ms, bound {bound_ms:.0f} ms")
        return within(took_ms, bound_ms, self.pair.why)

    def alone(self, node: str, begun_ns: int) -> None:
        """The only node, whose daemon was started at begun_ns, serves within the bound."""
        within(self.pair.started(self.watch, begun_ns, node), self.pair.timing.alone_ms(), self.pair.why)

    def hold(self, seconds: float) -> None:
        """Let the fault last: the time is part of the scenario."""
        time.sleep(seconds)

    def wait_owner(self, node: str, seconds: float = 10, group: str = "web") -> None:
        wait_for(lambda: node in self.pair.owners()[group], seconds, lambda: f"{node} runs {group}\n{self.pair.why()}")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as made:
        made.begin()
        yield made


@contextlib.contextmanager
def restored(pair: Pair) -> Iterator[None]:
    """The pair is steady before and after. If it can't be got there it is made anew, so that only one test fails for it."""
    pair.restore()
    try:
        yield
    except BaseException:
        with contextlib.suppress(AssertionError):
            pair.restore()
        if pair.unsteady():
            pair.rebuild()
        raise
    try:
        pair.restore()
    except BaseException:
        pair.rebuild()
        raise


@pytest.fixture
def scene(pair: Pair) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        with restored(pair):
            watch = stack.enter_context(Watch(pair.lab, VIP))
            watch.wait_node("a", 10, pair.why)
            scene = Scene(pair, watch, boot_ns())
            yield scene
        scene.never_two()  # up to here: healing, recovering and moving back are part of every scenario
