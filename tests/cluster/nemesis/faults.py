"""Does to the laboratory what a plan says, and heals it."""

from __future__ import annotations

import contextlib
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hasnmp.errors import HasnmpError
from hasnmp.model import Verb
from tests.cluster.lab import LINKS, STATE
from tests.cluster.nemesis.history import Frozen
from tests.cluster.nemesis.plan import Fault
from tests.cluster.pair import NODES, Pair, boot_ns
from tests.cluster.power import Power

GROUP = "reg"
CLOCK = f"{STATE}/clock"  # of shifted.py
FILLER = "filler"
ENDERS = ("guardian", "engine")  # who ends a group
OBEYED_S = 1.0  # how long a signal that stops or ends a process may take


class Faults:
    """owner: gives who answers the clients now. told: takes what was done, for the story: node, kind, text."""

    def __init__(
        self, pair: Pair, power: Power, owner: Callable[[], str], told: Callable[[str, str, str], None]
    ) -> None:
        self.pair, self.lab, self.switches, self.owner, self.told = pair, pair.lab, power, owner, told
        self.frozen: list[Frozen] = []
        self._frozen_ns: dict[str, int] = {}  # node -> since when it has been
        self._commands: list[threading.Thread] = []

    def strike(self, fault: Fault) -> Callable[[], None]:
        """Do it; gives what ends it before the round does."""
        owner = self.owner() or "a"
        nodes = {"owner": [owner], "other": [other(owner)], "both": list(NODES)}[fault.target]
        ends = []
        for node in nodes:
            self.told(node, fault.kind, fault.detail)  # before it is done: what comes of it must not seem to come first
            ends.append(getattr(self, fault.kind)(node, fault.detail))

        def end() -> None:
            for one in ends:
                one()
            for node in nodes:
                self.told(node, f"end of {fault.kind}", fault.detail)

        return end

    def heal(self) -> None:
        """Everything as new; who stops it from serving after this is hasnmp."""
        self.switches.modes.clear()
        for node in NODES:
            self._clear(node)
            self._set_clock(node, 0)
        self.lab.heal()  # before anybody goes on: what waited for a disk may write before its guardian ends it
        for node in NODES:
            self._signal(node, signal.SIGCONT, self.lab[node].processes())
        self.pair.heal()
        for thread in self._commands:
            thread.join(20)
        self._commands.clear()

    # ------------------------------------------------------------------------------------------------- the kinds

    def kill(self, node: str, what: str) -> Callable[[], None]:
        self._signal(node, signal.SIGKILL, self._pids(node, what))
        return nothing

    def stop(self, node: str, what: str) -> Callable[[], None]:
        pids = self._pids(node, what)
        self._signal(node, signal.SIGSTOP, pids)
        return lambda: self._signal(node, signal.SIGCONT, pids)

    def power(self, node: str, _: str) -> Callable[[], None]:
        before_ns = boot_ns()
        self.lab[node].power_off()
        self._look(node, before_ns)

        def on() -> None:
            with self.lab[node].switch:  # the other node's fence agent may be at it, too
                if not self.lab[node].pid:
                    self.lab[node].power_on()
                    self.pair.start(node)

        return on

    def cut(self, node: str, detail: str) -> Callable[[], None]:
        words = detail.split()
        links = [word for word in words if word in LINKS] or list(LINKS)
        for link in links:
            if "out" not in words:
                self.lab.block(other(node), node, link)
            if "in" not in words:
                self.lab.block(node, other(node), link)
        return self.lab.reconnect

    def pull(self, node: str, link: str) -> Callable[[], None]:
        self.lab.pull(node, link)
        return self.lab.reconnect

    def disk(self, node: str, mode: str) -> Callable[[], None]:
        self.lab.disk(node, mode)
        return lambda: none_of_it(self.lab.disk(node, "ok"))

    def switch(self, node: str, mode: str) -> Callable[[], None]:
        """The switch that cuts this node's power."""
        self.switches.modes[node] = mode
        return lambda: none_of_it(self.switches.modes.pop(node, None))

    def data(self, node: str, mode: str) -> Callable[[], None]:
        self.lab.data_disk(node, mode)
        return lambda: none_of_it(self.lab.data_disk(node, "ok"))

    def clock(self, node: str, seconds: str) -> Callable[[], None]:
        self._set_clock(node, int(seconds))
        return lambda: self._set_clock(node, 0)

    def full(self, node: str, _: str) -> Callable[[], None]:
        with contextlib.suppress(OSError), open(self.lab[node].small / FILLER, "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return lambda: self._clear(node)

    def rules(self, node: str, _: str) -> Callable[[], None]:
        """Somebody reloads a firewall of his own: all rules of the machine are gone, ours with them."""
        self.lab[node].run("nft", "flush", "ruleset")
        return nothing

    def move(self, node: str, how: str) -> Callable[[], None]:
        """The administrator wants the group on the other node; he waits for the answer elsewhere."""
        verb = Verb.FORCE_FAILOVER if how == "forceFailover" else Verb.FAILOVER
        thread = threading.Thread(target=self._command, args=(node, verb, other(node)), daemon=True)
        thread.start()
        self._commands.append(thread)
        return nothing

    # ------------------------------------------------------------------------------------------------- the means

    def _command(self, node: str, verb: Verb, to: str) -> None:
        try:
            row = self.pair.command(node, verb, GROUP, to, seconds=5)
            self.told(node, "answer", f"{row.state.name.lower()}: {row.text}")
        except (HasnmpError, OSError) as error:  # refused, unreachable, frozen: all of that is to be expected here
            self.told(node, "answer", str(error))

    def _pids(self, node: str, what: str) -> list[int]:
        if what == "register":
            return [pid for pid in self.lab[node].processes() if b"register.py" in command_line(pid)]
        return self.pair.pids(node) if what == "stack" else self.pair.pids(node, what)

    def _signal(self, node: str, number: signal.Signals, pids: Iterable[int]) -> None:
        """And keep account of who stands still for it."""
        pids, before_ns = set(pids), boot_ns()
        self.lab[node].signal(number, pids)
        if number is not signal.SIGCONT:  # that works at once; the others as soon as the process is given a processor
            deadline = time.monotonic() + OBEYED_S
            while any(state(pid) not in "TZ" for pid in pids.intersection(self.pair.pids(node, *ENDERS))):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.001)
        self._look(node, before_ns)

    def _look(self, node: str, before_ns: int) -> None:
        """Is the node frozen now? It is from here on; and what ends it did so no sooner than before_ns."""
        states = {role: "".join(map(state, self.pair.pids(node, role))).replace("Z", "") for role in ENDERS}
        if states["guardian"] and not "".join(states.values()).strip("T"):
            self._frozen_ns.setdefault(node, boot_ns())
        elif since_ns := self._frozen_ns.pop(node, 0):
            self.frozen.append(Frozen(node, since_ns, before_ns))

    def _set_clock(self, node: str, seconds: int) -> None:
        with open(self.lab[node].state / Path(CLOCK).name, "r+b") as file:
            file.write(struct.pack("<q", seconds * 1_000_000_000))

    def _clear(self, node: str) -> None:
        (self.lab[node].small / FILLER).unlink(missing_ok=True)


def other(node: str) -> str:
    return "b" if node == "a" else "a"


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def state(pid: int) -> str:
    """T: stopped; Z: dead, or gone; else it may do something."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].replace("X", "Z")
    except OSError:
        return "Z"


def nothing() -> None:
    """It is over already, or lasts until everything is healed."""


def none_of_it(_: object) -> None:
    """For a lambda that gives nothing back."""
