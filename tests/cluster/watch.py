"""What the client saw: runs probe.py on the client host and judges its answers."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.control import control, stalled_ms
from tests.cluster.lab import HERE, Lab, mac, wait_for

PORT = 7000
PERIOD_MS = 5.0
MS = 1_000_000


def spent_ms(begin_ns: int, end_ns: int) -> float:
    """How long it was, without what the machine itself stood still meanwhile."""
    return (end_ns - begin_ns) / MS - stalled_ms(begin_ns, end_ns)


def longest_ms(times: list[int], deaf_ms: Callable[[int, int], float] = lambda begin, end: 0.0) -> float:
    """The longest of the gaps between these moments, from each taken off what the machine stood still in it; or, if that is
    more, what deaf_ms() says of it."""
    worst = 0.0
    for begin, end in sorted(itertools.pairwise(times), key=lambda gap: gap[0] - gap[1]):  # the longest first
        if (end - begin) / MS <= worst:
            break
        worst = max(worst, (end - begin) / MS - max(deaf_ms(begin, end), stalled_ms(begin, end)))
    return worst


@dataclass(frozen=True, slots=True)
class Answer:
    kind: str  # "r" through the neighbour table, "d" to the host's own MAC
    number: int
    node: str
    token: int
    at_ns: int  # CLOCK_MONOTONIC


class Watch:
    """Probes one virtual address from now on. Use as a context manager."""

    def __init__(self, lab: Lab, address: str, port: int = PORT, period_ms: float = PERIOD_MS) -> None:
        self.address, self.period_ms = address, period_ms
        control()  # it must have been there before anything is judged by it
        self.answers: list[Answer] = []
        self.sent_ns: list[int] = []  # of every number that was really sent
        hosts = [f"{name}={mac(name, 'lan')}" for name in ("a", "b")]
        self._process = lab["client"].spawn(
            sys.executable, "-I", "-S", str(HERE / "probe.py"), address, str(port), str(period_ms), "lan", *hosts,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, log=f"probe-{address.replace(':', '.')}",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self.sent_ns, 5, "the probe does not start")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(30)
        self._reader.join(30)

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            word, *rest = line.decode().split()
            if word == "sent":
                self.sent_ns.append(int(rest[1]))
            else:
                self.answers.append(Answer(rest[0], int(rest[1]), rest[2], int(rest[3]), int(rest[4])))

    # ------------------------------------------------------------------------------------------------- what was seen

    def routed(self, since_ns: int = 0, until_ns: int = 1 << 62) -> list[Answer]:
        """What an ordinary client got, in the order of its coming."""
        return [x for x in list(self.answers) if x.kind == "r" and since_ns <= x.at_ns < until_ns]

    def node(self, within_ms: int = 150) -> str:
        """Who answers now; "" if nobody has for a while."""
        since_ns = time.monotonic_ns() - within_ms * MS
        for answer in reversed(self.answers):
            if answer.at_ns < since_ns:
                return ""
            if answer.kind == "r":
                return answer.node
        return ""

    def wait_node(self, node: str, seconds: float = 10, why: object = "") -> None:
        wait_for(lambda: self.node() == node, seconds, lambda: f"{node or 'nobody'} answers at {self.address}, but "
                 f"{self.node() or 'nobody'} does; {why() if callable(why) else why}")  # fmt: skip

    def first(self, since_ns: int, node: str = "", but: str = "") -> Answer | None:
        """The first answer that an ordinary client got after a moment; from `node`, or not from `but`."""
        for answer in self.routed(since_ns):
            if (not node or answer.node == node) and answer.node != but:
                return answer
        return None

    def back_ms(self, fault_ns: int, node: str, seconds: float = 10) -> float:
        """From a fault to the first answer of `node`, without what the machine itself stood still; waits for it."""
        answer = wait_for(lambda: self.first(fault_ns, node), seconds, f"{node} answers at {self.address}", 0.05)
        assert answer
        return spent_ms(fault_ns, answer.at_ns)

    def outage_ms(self, since_ns: int, until_ns: int = 0) -> float:
        """The longest time without an answer from the last one before `since` until now (or `until`).

        A time in which the probe itself was not running is taken off: it says nothing; or that in which the machine stood
        still, if that is more.
        """
        until_ns = until_ns or time.monotonic_ns()
        times = [x.at_ns for x in self.routed(0, until_ns)]
        first = bisect_left(times, since_ns)
        return longest_ms([times[first - 1] if first else since_ns, *times[first:], until_ns], self._deaf_ms)

    def _deaf_ms(self, begin_ns: int, end_ns: int) -> float:
        inside = [ns for ns in list(self.sent_ns) if begin_ns <= ns <= end_ns]
        late = itertools.pairwise(inside)
        return sum(gap for a, b in late if (gap := (b - a) / MS - self.period_ms) > self.period_ms)

    def doubles(self, since_ns: int = 0) -> list[str]:
        """Every time that two nodes answered within one probe period, in words.

        Either both answered one and the same probe (or two next to each other), or their answers came within a period. Two next
        to each other show nothing if the later owner's answer came later: what is sent while an address moves is kept for it.
        """
        found = []
        answers = [x for x in list(self.answers) if x.at_ns >= since_ns]
        direct = sorted((x for x in answers if x.kind == "d"), key=lambda x: x.number)
        for order, what in ((direct, "number"), (sorted(answers, key=lambda x: x.at_ns), "at_ns")):
            for one, two in itertools.pairwise(order):
                apart_ns = two.at_ns - one.at_ns
                near = apart_ns < self.period_ms * MS
                if what == "number":
                    moved = one.token < two.token and apart_ns > self.period_ms * MS
                    near = two.number == one.number or (two.number - one.number == 1 and not moved)
                if one.node != two.node and near:
                    found.append(f"{one.node} (token {one.token}) and {two.node} (token {two.token}) answered probes "
                                 f"{one.kind}{one.number} and {two.kind}{two.number}, "
                                 f"{abs(two.at_ns - one.at_ns) / MS:.2f} ms apart")  # fmt: skip
        return found

    def falling_tokens(self) -> list[str]:
        """Where a later answer carried a lower token than an earlier one: tokens only rise."""
        routed = self.routed()
        return [f"{two.node} token {two.token} after {one.node} token {one.token}"
                for one, two in itertools.pairwise(routed) if two.token < one.token]  # fmt: skip
