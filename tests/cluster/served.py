"""A group of conf/services on a pair of whole machines: the very file, with this laboratory's names in the place of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from hasnmp.model import Kind, NodeState, Proof, Verb
from tests.cluster.alone import Own, alone
from tests.cluster.lab import PROJECT, Host, Lab, sh, wait_for
from tests.cluster.pair import NODES, Group, Pair, boot_ns
from tests.cluster.power import Power, level
from tests.cluster.shared_disk import DEVICE, SharedDisk
from tests.cluster.watch import longest_ms

FOLDER = PROJECT / "conf" / "services"
NAMES = {"primary-a": "a", "secondary-a": "b", "/dev/disk/by-id/shared": DEVICE, "eth0": "lan"}
TICKLE = {"[hasnmp-tickle,": f"[{sys.executable}, -I, -S, {PROJECT}/hasnmp/agents/tickle.py,"}


@dataclass(frozen=True)
class Served(Group):
    """The group that a file of conf/services describes."""

    text: str = ""

    def yaml(self) -> str:
        return "\n" + self.text


def group(file: str, names: dict[str, str] | None = None) -> Served:
    """names: further words of the file, and what stands for them here."""
    _, _, text = (FOLDER / file).read_text().partition("\ngroups:\n")
    for word, ours in {**NAMES, **(names or {})}.items():
        assert word in text, f"{file} does not say {word}"
        text = text.replace(word, ours)
    name = re.match(r" *([a-z]+):\n", text)
    address = re.search(r"ip: ([0-9.]+)/", text)
    assert name and address, text
    return Served(name[1], address[1], text=text)


def missing(*programs: str, libraries: tuple[str, ...] = ()) -> list[str]:
    """Which of these are not there: "ypbind (ypbind-mt)", the program and the Debian package that has it."""
    lacks = [name for name in programs if not shutil.which(name.split()[0])]
    return lacks + [name for name in libraries if name.split()[0] not in sh("ldconfig", "-p")]


def end(program: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """End what Host.spawn() started: nsenter waits for the program, which is its child."""
    for pid in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split():
        os.kill(int(pid), number)
    program.wait(20)


@dataclass(frozen=True)
class Move:
    """What a client saw of one change of the group's node, and what it was made of; ms."""

    name: str  # "planned" or "crash"
    outage_ms: float  # the longest time between two answers
    own_ms: float  # the programs' own stop (planned) and start, without hasnmp
    found_ms: float  # from the crash until its cause was known and the group could be taken: detection, lease, fence

    def beyond_ms(self) -> float:
        """What is left of the outage: hasnmp's own part, and the client's."""
        return self.outage_ms - self.own_ms - self.found_ms

    def __str__(self) -> str:
        found = f" + {self.found_ms:.0f} to find out" if self.found_ms else ""
        own = f"{self.own_ms:.0f} of the programs' own{found} + " if self.own_ms else ""
        return f"{self.name}: {self.outage_ms:.0f} ms without an answer = {own}{self.beyond_ms():.0f}"


class Stage:
    """A pair that serves one group of conf/services on node a, with a shared disk and a power switch. A context manager.

    prepare: what a host needs beside, each time that it is switched on. fill: what lies on the disk from the
    beginning. client: what the client's host needs, once the group runs. own_rounds: how often it is measured what the
    programs take without hasnmp, before it runs; load: a client that works with them before they crash.
    """

    own_rounds = 0
    load: Callable[[Stage], Client] | None = None

    def __init__(
        self,
        group: Served,
        prepare: Callable[[Host], None] = lambda host: None,
        fill: Callable[[Path], None] = lambda folder: None,
        client: Callable[[Stage], None] = lambda stage: None,
    ) -> None:
        self.group = group
        self._prepare, self._fill, self._client = prepare, fill, client
        self._folder = yaml.safe_load(group.text)[group.name]["services"][0]["options"]["directory"]
        self.own = Own()

    def __enter__(self) -> Stage:
        fence = {node: f"[{level(node, action='off')}]" for node in NODES}  # off: what has crashed stays so
        with contextlib.ExitStack() as stack:
            self.pair = stack.enter_context(Pair(groups=(self.group,), fence=fence))
            self.disk = stack.enter_context(SharedDisk(self.pair.lab, self._folder))
            stack.enter_context(Power(self.pair))
            for node in NODES:
                self.prepare(self.pair.lab[node])
            with self.disk.mounted(self.pair.lab["a"]) as folder:
                self._fill(folder)
            if self.own_rounds:
                load = self.load
                client = (lambda: load(self)) if load else contextlib.nullcontext
                self.own = alone(self.group, self.pair.lab, self.disk, self.own_rounds, client)
            self.pair.start()
            # On a busy machine the one that starts later may find the group taken: it is brought home.
            wait_for(lambda: "a" in self.pair.owners()[self.group.name] or self.pair.mend(), 30, self.pair.why)
            self._client(self)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, host: Host) -> None:
        self.disk.prepare(host)
        host.spawn("rpcbind", "-w", "-f", log="rpcbind")
        host.run("sh", "-c", "until rpcinfo -p 127.0.0.1; do sleep 0.02; done")
        self._prepare(host)

    def revive(self, node: str) -> None:
        """One that crashed comes back, and is told that it may."""
        host = self.pair.lab[node]
        host.power_on()
        self.prepare(host)
        self.pair.start(node)
        wait_for(lambda: (row := self.pair.rows(node, "nodes").get(node)) and row.recovering, 20, self.pair.why)
        self.pair.command(node, Verb.RECOVER, node)
        other = next(name for name in NODES if name != node)
        wait_for(lambda: (row := self.pair.rows(other, "nodes").get(node)) and row.state is NodeState.UP
                 and not row.recovering, 20, self.pair.why)  # fmt: skip
        # While no other was there its lease was the disk's: until that record has lapsed a taker would wait it out.
        wait_for(lambda: (row := self.pair.rows(other, "groups").get(self.group.name)) and row.proof is Proof.PROMISES,
                 20, self.pair.why)  # fmt: skip

    # ------------------------------------------------------------------------------------------------- what happens

    def runs_on(self, node: str, seconds: float = 15) -> None:
        wait_for(lambda: node in self.pair.owners()[self.group.name], seconds,
                 lambda: f"{self.group.name} runs on {node}\n{self.pair.why()}")  # fmt: skip

    def move(self, source: str, target: str, client: Client) -> Move:
        """Planned, by command."""
        asked_ns = time.monotonic_ns()
        client.goes_on(asked_ns)
        self.pair.command(source, Verb.FAILOVER, self.group.name, target)
        self.runs_on(target)
        client.goes_on(time.monotonic_ns())
        return Move("planned", client.outage_ms(asked_ns), self.own.stop_ms + self.own.start_ms, 0)

    def crash(self, source: str, target: str, client: Client) -> Move:
        """The source loses its power, and what it had not yet written."""
        begun_ns, offset_ns = boot_ns(), boot_ns() - time.monotonic_ns()
        client.goes_on(time.monotonic_ns())
        fault_ns = self.disk.crash(self.pair.lab[source])
        self.runs_on(target)
        client.goes_on(time.monotonic_ns())
        fenced = self.pair.wait_event(target, Kind.FENCE_SUCCEEDED, begun_ns)
        found_ms = (fenced.ns - offset_ns - fault_ns) / 1e6
        return Move("crash", client.outage_ms(fault_ns), self.own.after_crash_ms, found_ms)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client. Times: CLOCK_MONOTONIC, ns. error: "" if it was answered well."""

    what: str
    number: int
    began_ns: int
    ended_ns: int
    error: str


class Client:
    """A program on the client's host that asks without end, and prints a line of Request's fields for each answer."""

    def __init__(self, lab: Lab, *argv: str) -> None:
        self.requests: list[Request] = []
        self._log = lab["client"].state / "client.err"
        self._process = lab["client"].spawn(sys.executable, "-I", "-S", *argv, stdout=subprocess.PIPE, log="client.err")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process, signal.SIGKILL)
        self._reader.join(10)  # the last that it said is in, too

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            what, number, began, ended, error = line.decode().rstrip("\n").split("\t")
            self.requests.append(Request(what, int(number), int(began), int(ended), error))

    def goes_on(self, since_ns: int, seconds: float = 40) -> None:
        """Wait for an answer to something that was asked after this moment."""
        wait_for(lambda: any(x.began_ns > since_ns and not x.error for x in self.requests[-50:]), seconds,
                 lambda: f"an answer to the client; its last {self.requests[-5:]}; {self._log.read_text()[-2000:]}")  # fmt: skip

    def all_ended(self, seconds: float = 40) -> None:
        """Wait until everything that was asked before now has ended, well or not. The requests are numbered from 1."""
        last = max(x.number for x in list(self.requests))
        wait_for(lambda: len({x.number for x in list(self.requests) if x.number <= last}) == last, seconds,
                 lambda: f"{last} requests have ended, {len(self.requests)} did")  # fmt: skip

    def outage_ms(self, since_ns: int) -> float:
        """The longest time without an answer, from the last one before this moment until now."""
        ends = sorted(x.ended_ns for x in list(self.requests) if not x.error)
        first = bisect_left(ends, since_ns)
        return longest_ms([ends[first - 1] if first else since_ns, *ends[first:]])

    def errors(self) -> list[Request]:
        """What a program would have been told. "later": the server asked to be asked again, as the protocol has it."""
        return [x for x in list(self.requests) if x.error and x.what != "later"]
