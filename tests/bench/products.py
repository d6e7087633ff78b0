"""What the benchmark compares: each product on two hosts of a laboratory of its own, with one address and one program.

The same hosts, links, address and program for each. Nobody is restarted by an init: what a fault leaves is the product's.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from hasnmp.model import Verb
from tests.cluster.lab import ETC, HERE, PROJECT, Lab, wait_for
from tests.cluster.pair import NODES, PYTHON, VIP, Group, Pair, Timing
from tests.cluster.watch import PORT, Watch

# As tight as config_judge allows with a claim that may take 120 ms, and a good third above it: a node that stands still for 150 ms
# loses nothing. keepalived tells its life each 100 ms and is dead after 300 and a little.
FAST = Timing(interval_ms=50, dead_after_ms=250, startup_wait_ms=1000, kill_ms=40, lease_ms=1000, io_timeout_ms=120,
              recovery="automatic")  # fmt: skip


class Product(ABC):
    """patience_s: how long it is watched after a fault, twice that where the other node has to serve. comms: of its
    processes."""

    name = ""
    told = ""  # its times, in words
    patience_s = 3.0
    comms: tuple[str, ...] = ()
    checks = True  # does it look after the program, too?
    only: tuple[str, ...] = ()  # the faults that it takes part in; (): all

    def __init__(self, lab: Lab) -> None:
        self.lab, self.ip = lab, VIP

    @staticmethod
    def missing() -> list[str]:
        """Programs that this machine lacks for it."""
        return []

    @abstractmethod
    def start(self, *nodes: str) -> None:
        """The stack on these nodes (none given: both)."""

    @abstractmethod
    def planned(self, source: str, target: str) -> int:
        """Move the service in order. Returns when it was asked, CLOCK_MONOTONIC nanoseconds."""

    def after_planned(self, source: str) -> None:  # noqa: B027 - most need nothing
        """Let the node that gave the service up take part again."""

    def steady(self) -> None:  # noqa: B027 - not every product can tell
        """Wait until it is as it should be, as far as it can tell itself."""

    def keep(self, node: str, *argv: str, log: str, **more: Any) -> None:
        """Run a program of the stack, and not again. By a shell, for nsenter stops with the child that it waits for, and
        a stopped process outside of a host would hold up that host's end."""
        self.lab[node].spawn("sh", "-c", '"$@"; true', "keep", *argv, log=log, **more)

    def stack(self, node: str) -> list[int]:
        """Its processes on a node, without the program that it keeps running."""
        return [pid for pid, comm in self.lab[node].processes().items() if comm.startswith(self.comms)]

    def service(self, node: str) -> list[int]:
        """The program that answers the client."""
        found = []
        for pid in self.lab[node].processes():
            try:
                if b"echo.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
            except OSError:
                pass  # it ended meanwhile
        return found

    def is_owner(self, node: str) -> bool:
        """Has the node the address?"""
        return f" {self.ip}/" in self.lab[node].run("ip", "-4", "addr", "show", "dev", "lan", check=False)

    def power_cycle(self) -> None:
        """Everything off, healed, and on again."""
        self.lab.heal()
        for node in NODES:
            self.lab[node].power_off()
        for node in NODES:
            self.lab[node].power_on()
        self.start()

    def settled(self, watch: Watch, seconds: float = 40) -> str:
        """The node that has answered alone and without a gap for a while."""

        def look() -> str:
            since_ns = time.monotonic_ns() - 500_000_000
            nodes = {x.node for x in list(watch.answers) if x.at_ns >= since_ns}  # behind the client's back, too
            return nodes.pop() if len(nodes) == 1 and watch.outage_ms(since_ns) < 100 else ""

        return wait_for(look, seconds, f"{self.name}: the address answers steadily", 0.1)

    def close(self) -> None:
        self.lab.close()


class Hasnmp(Product):
    name, comms = "hasnmp", ("hasnmp",)
    told = f"interval {FAST.interval_ms} ms, dead_after {FAST.dead_after_ms} ms, lease on a shared disk"

    def __init__(self, program: bool = True) -> None:
        self.pair = Pair((Group("web", VIP, worker=False, program=program),), FAST, log_level="info")
        self.pair.__enter__()
        super().__init__(self.pair.lab)

    def start(self, *nodes: str) -> None:
        for node in nodes or NODES:
            daemon = (sys.executable, "-m", "hasnmp.runtime.daemon", "--config", f"{ETC}/hasnmp.yaml", "--node", node)
            self.keep(node, *daemon, log="hasnmpd.log", env={**os.environ, "PYTHONPATH": str(PROJECT)})

    def steady(self) -> None:
        owner = next(iter(wait_for(lambda: self.pair.owners()["web"], 20, self.pair.why)))
        self.pair.wait_steady(20, homes={"web": owner})

    def planned(self, source: str, target: str) -> int:
        asked_ns = time.monotonic_ns()
        self.pair.command(source, Verb.FAILOVER, "web", target)
        return asked_ns

    def close(self) -> None:
        self.pair.__exit__()


class Address(Hasnmp):
    """As keepalived is used: the program runs on both hosts at all times, and what moves is an address alone."""

    name, checks, only = "hasnmp, address", False, ("power off",)
    told = "the same, but as keepalived: the address alone moves, its program runs on both hosts at all times"

    def __init__(self) -> None:
        super().__init__(program=False)

    def start(self, *nodes: str) -> None:
        for node in nodes or NODES:
            self.lab[node].spawn(*PYTHON, str(HERE / "echo.py"), self.ip, str(PORT))
        super().start(*nodes)


KEEPALIVED = """global_defs {{
  router_id {node}
}}
vrrp_instance bench {{
  state BACKUP
  version 3
  interface lan
  virtual_router_id 51
  priority {priority}
  advert_int {advert_s}
  virtual_ipaddress {{
    {ip}/24
  }}
}}
"""


class Keepalived(Product):
    """VRRP version 3; the program runs on both hosts at all times, as is usual with it."""

    name, comms, checks = "keepalived", ("keepalived",), False
    advert_s = 0.1
    told = f"advert_int {advert_s} s"
    patience_s = 2.0

    def __init__(self) -> None:
        super().__init__(Lab(lease_disk=False))

    @staticmethod
    def missing() -> list[str]:
        return [] if shutil.which("keepalived") else ["keepalived"]

    def start(self, *nodes: str) -> None:
        for node, priority in (("a", 150), ("b", 100)):
            if node in (nodes or NODES):
                config = self.lab[node].state / "keepalived.conf"
                config.write_text(KEEPALIVED.format(node=node, priority=priority, advert_s=self.advert_s, ip=self.ip))
                self.lab[node].spawn(*PYTHON, str(HERE / "echo.py"), self.ip, str(PORT))
                self._run(node)

    def _run(self, node: str) -> None:
        config = self.lab[node].state / "keepalived.conf"
        self.keep(node, "keepalived", "-n", "-l", "-D", "-P", "-f", str(config), log="keepalived.log")

    def planned(self, source: str, target: str) -> int:
        """An orderly stop: it tells the other by a last advertisement."""
        return self.lab[source].signal(signal.SIGTERM, self.stack(source)[:1])

    def after_planned(self, source: str) -> None:
        wait_for(lambda: not self.stack(source), 10, "keepalived has ended", 0.05)
        self._run(source)
