"""One campaign: its plan, the pair, the faults, the verdict, the picture."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.control import control
from tests.cluster.lab import DATA, SMALL, wait_for
from tests.cluster.nemesis import picture
from tests.cluster.nemesis.checker import Violation, check
from tests.cluster.nemesis.faults import CLOCK, GROUP, Faults
from tests.cluster.nemesis.history import History, Mark, RoundTime, begun_of, log_of, op_of, told_of
from tests.cluster.nemesis.plan import ROUND_MS, Plan, Round, draw
from tests.cluster.pair import NODES, PYTHON, VIP, Group, Pair, Timing, boot_ns
from tests.cluster.power import Power, level
from tests.cluster.watch import Watch

HERE = Path(__file__).parent
PORT, CLIENTS, PERIOD_MS, TIMEOUT_MS = 7100, 4, 12, 250
TIMING = {
    "interval_ms": 100,
    "dead_after_ms": 500,
    "startup_wait_ms": 800,
    "kill_ms": 100,
    "lease_ms": 1000,
    "io_timeout_ms": 150,
}
# After the healing: a power on, or a second until the supervisor starts the daemon again; the daemon's start; its listening; a
# lease of the arbiter to wait out; the services' start. Doubled for a busy machine.
SERVED_MS = 8000
FENCED_MS = 12_000  # more where a fence may have failed just before: 10 s until the next try, and that one
STEADY_S = 30.0
ROOM_MS = 250  # what is left of a lease when it is extended next: dead_after_ms without 1 %, kill_ms, interval_ms and some delay
UNNOTICED_MS = 400  # a reply that is lost costs a client TIMEOUT_MS; four clients ask at any time
MS = 1_000_000


@dataclass
class Verdict:
    plan: Plan
    history: History
    violations: list[Violation]
    story: str  # what was done, and when
    picture: Path

    def text(self) -> str:
        ops = self.history.ops
        ok = sum(op.outcome == "ok" for op in ops)
        lines = [
            self.story,
            f"{len(ops)} operations, {ok} answered; {len(self.history.log)} records; picture: {self.picture}",
        ]
        for one in self.violations:
            lines.append(
                f"VIOLATION {one.rule} at {(one.at_ns - self.history.rounds[0].begun_ns) / 1e9:.3f} s: {one.text}"
            )
        if self.violations:
            lines.append(
                f"again: python -m tests.cluster.nemesis --seed {self.plan.seed} --rounds {len(self.plan.rounds)}"
            )
        return "\n".join(lines)


class Campaign:
    def __init__(self, plan: Plan, out: Path, say: Callable[[str], None] = print) -> None:
        self.plan, self.out, self.say = plan, out, say
        served_ms = SERVED_MS + (FENCED_MS if plan.disk == "fenced" else 0)
        self.history = History(
            served_within_ms=served_ms, unnoticed_ms=UNNOTICED_MS, kill_ms=TIMING["kill_ms"], room_ms=ROOM_MS
        )
        self.offsets_ns = {node: seconds * 1_000_000_000 for node, seconds in plan.offsets_s.items()}
        self.found: list[Violation] = []
        self.lines: list[str] = []
        self.begun_ns = 0

    def run(self) -> Verdict:
        service = ", ".join((*PYTHON, str(HERE / "register.py"), f'"{VIP}"', f'"{PORT}"', DATA))
        more = f"""
      - name: register
        agent: exec
        options: {{command: [{service}]}}
        check: {{every_ms: 500}}
        on_failure: {{restart: 1000, within_s: 60, then: failover}}
"""
        timing = Timing(**TIMING, recovery=self.plan.recovery)  # type: ignore[arg-type]
        fenced = self.plan.disk == "fenced"
        keys = "    disk: true" + ("" if fenced else "\n    accept_unfenced_disk: true")
        fence = {node: f"[{level(node, switch=node)}]" for node in NODES} if fenced else {}
        with Pair((Group(GROUP, VIP, restart=1000, more=more, keys=keys),), timing, state_dir=SMALL, fence=fence,
                  offsets_s=self.plan.offsets_s, daemon=(str(HERE / "shifted.py"), CLOCK)) as self.pair, \
                Power(self.pair) as power:  # fmt: skip
            for node in NODES:
                (self.pair.lab[node].state / Path(CLOCK).name).write_bytes(bytes(8))
            self.pair.begin()
            with Watch(self.pair.lab, VIP, period_ms=20) as self.watch, self._clients():
                wait_for(self.owner, 5, "the first answer")
                self.begun_ns = boot_ns()
                self.faults = Faults(self.pair, power, self.owner, self._mark)
                for number, one in enumerate(self.plan.rounds, 1):
                    self._round(number, one)
                    if not self.history.rounds[-1].steady_ns:
                        break  # the next one would begin with what this one left
            self._collect()
        return self._verdict()

    # ------------------------------------------------------------------------------------------------- a round

    def _round(self, number: int, one: Round) -> None:
        times = RoundTime(number, boot_ns(), quiet=one.quiet, owner=self.owner())
        self.history.rounds.append(times)
        self._say(f"round {number}, {times.owner} has the group{', no client may notice it' if one.quiet else ''}")
        count = itertools.count()
        todo: list[tuple[int, int, Callable[[], None]]] = []

        def strike(index: int) -> None:
            fault = one.faults[index]
            end = self.faults.strike(fault)
            if fault.for_ms and fault.at_ms + fault.for_ms < ROUND_MS:
                heapq.heappush(todo, (fault.at_ms + fault.for_ms, next(count), end))

        for index, fault in enumerate(one.faults):
            heapq.heappush(todo, (fault.at_ms, next(count), lambda i=index: strike(i)))  # type: ignore[misc]
        while todo:
            at_ms, _, action = heapq.heappop(todo)
            self._until(times.begun_ns + at_ms * MS)
            action()
        self._until(times.begun_ns + ROUND_MS * MS)
        self.faults.heal()
        times.healed_ns = boot_ns()
        self._mark("", "healed", "")
        self._settle(times)

    def _settle(self, times: RoundTime) -> None:
        """Until a write was acknowledged and the pair is steady, wherever the group is."""
        deadline = time.monotonic() + STEADY_S
        while why := self._unsteady(times):
            if time.monotonic() > deadline:
                self._say(f"not steady {STEADY_S:g} s after the healing: {why}\n{self.pair.why()}\n{self._network()}")
                return
            with contextlib.suppress(OSError):
                self.pair.boot()  # a guardian that was let go on only by the healing may restart its machine after it
                self.pair.mend(homes=False)
            time.sleep(0.05)
        times.steady_ns = boot_ns()
        self._say(f"steady {(times.steady_ns - times.healed_ns) / 1e9:.2f} s after it was healed")

    def _unsteady(self, times: RoundTime) -> str:
        wrote = next((op for op in reversed(self.history.ops) if op.kind == "w" and op.outcome == "ok"), None)
        if wrote is None or wrote.ended_ns < times.healed_ns:
            return "no write was acknowledged"
        return self.pair.unsteady({GROUP: self.owner()})

    def _network(self) -> str:
        """Where the clients look for the address, and who has it."""
        lab = self.pair.lab
        look = [("ip", "-br", "addr"), ("nft", "list", "ruleset"), ("ps", "-eo", "pid,ppid,stat,wchan:20,args")]
        ways = {"client": [("ip", "neigh", "show", VIP)], **dict.fromkeys(NODES, look)}
        return "\n".join(f"{host}: {lab[host].run(*way, check=False)}" for host, all_ in ways.items() for way in all_)

    @staticmethod
    def _until(ns: int) -> None:
        time.sleep(max(0, ns - boot_ns()) / 1e9)

    # ------------------------------------------------------------------------------------------------- clients

    @contextlib.contextmanager
    def _clients(self) -> Iterator[None]:
        process = self.pair.lab["client"].spawn(
            sys.executable, "-I", "-S", str(HERE / "client.py"), VIP, str(PORT), str(CLIENTS), str(PERIOD_MS), str(TIMEOUT_MS),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="clients",
        )  # fmt: skip

        def read() -> None:
            assert process.stdout
            for line in process.stdout:
                with contextlib.suppress(json.JSONDecodeError):  # the last one, of a process that ended
                    self.history.ops.append(op_of(line.decode(), self.offsets_ns))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(30)
            reader.join(30)

    def owner(self) -> str:
        """Who answered last."""
        return next((op.node for op in reversed(self.history.ops) if op.outcome == "ok"), "")

    # ------------------------------------------------------------------------------------------------- the verdict

    def _say(self, text: str) -> None:
        line = f"{(boot_ns() - self.begun_ns) / 1e9:8.3f} s  {text}"
        self.lines.append(line)
        self.say(line)

    def _mark(self, node: str, kind: str, text: str) -> None:
        self.history.marks.append(Mark(boot_ns(), node, kind, text))
        self._say(f"{node or '-':2} {kind} {text}")

    def _collect(self) -> None:
        offsets = self.offsets_ns
        ahead_ns = boot_ns() - time.monotonic_ns()
        stalls = control().stalls(self.begun_ns - ahead_ns, time.monotonic_ns())
        self.history.stalls = [[(since + ahead_ns, until + ahead_ns) for since, until in one] for one in stalls]
        self.history.log = log_of(self.pair.lab.data.image, offsets)
        self.history.begun = begun_of([*self.history.log, *self.history.ops], offsets)
        self.history.frozen = self.faults.frozen
        for node in NODES:
            with open(self.pair.lab[node].state / "hasnmpd.log", errors="replace") as lines:
                self.history.told += told_of(node, lines, GROUP, offsets[node])
        for text in [*self.watch.doubles(), *self.watch.falling_tokens()]:
            self.found.append(Violation("two-owners", f"probed: {text}", self.begun_ns))

    def _verdict(self) -> Verdict:
        violations = [*self.found[:5], *check(self.history)]
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"nemesis-{self.plan.seed}.svg"
        path.write_text(picture.draw(self.history, violations, f"seed {self.plan.seed}"))
        return Verdict(self.plan, self.history, violations, f"{self.plan.text()}\n" + "\n".join(self.lines), path)


def run(seed: int, rounds: int, out: Path, say: Callable[[str], None] = print) -> Verdict:
    return Campaign(draw(seed, rounds), out, say).run()
