"""A pair of real hasnmp daemons on the laboratory's hosts, and the console on its client: configure, start, ask, break."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasnmp.console.control import Control
from hasnmp.errors import HasnmpError
from hasnmp.model import CommandRow, EventRow, GroupState, Kind, NodeState, Proof, ServiceState, Verb, View
from tests.client.pair import picture
from tests.cluster.bounds import within
from tests.cluster.lab import ETC, HERE, LEASE, PATIENCE, PROJECT, STATE, Lab, cluster_name, sh, wait_for
from tests.cluster.watch import PORT, Watch, spent_ms
from tests.snmp.mibs import net_snmp_environment

NODES = ("a", "b")
VIP, VIP2, VIP6 = "192.0.2.100", "192.0.2.101", "2001:db8::100"
LAN = {"a": "192.0.2.11", "b": "192.0.2.12"}
SECRETS = {
    "noc.auth": "authentic-word",
    "noc.priv": "private-word",
    "watch.auth": "watching-word",
    "community": "look",
    "apps.key": "a key that clients of the laboratory have",
}
V3 = ("-v3", "-u", "noc", "-l", "authPriv", "-a", "SHA-256", "-A", "authentic-word", "-x", "AES", "-X", "private-word")
# comm of each process of the stack -> its role; "hasnmpd" is the guardian, which the others are forked from
ROLES = {"hasnmpd": "guardian", "hasnmp-engine": "engine", "hasnmp-lease": "lease", "hasnmp-snmp": "snmp",
         "hasnmp-store": "store"}  # fmt: skip
SUPERVISE = 'while :; do "$@"; sleep 1; done'  # as systemd's Restart=always with RestartSec=1
PYTHON = (sys.executable, "-I", "-S")
# What scheduling, the services' start and the probe's period add on this machine while it is busy.
START_MS = 600
DAEMON_MS = 2000  # of processor time, from starting hasnmpd to its engine's start


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def planned_ms() -> float:
    """At most this long nobody answers in a planned move; the benchmark measures it against its goal.

    Most of it is the start of the group's program. What that costs a machine that is busy is measured here and now.
    """
    starts_ms = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([*PYTHON, "-c", "pass"], check=True)
        starts_ms.append((time.monotonic() - began) * 1000)
    return 250 + 2 * sorted(starts_ms)[2]


@dataclass(frozen=True)
class Group:
    name: str
    ip: str
    home: str = "a"
    limit: int = 1000  # failover_limit.times
    restart: int = 1  # of the echo service
    worker: bool = True  # the program that answers is a child of the one that was started
    program: bool = True  # False: an address alone
    more: str = ""  # further services, as YAML list items at column 6
    keys: str = ""  # further keys of the group, as YAML at column 4

    def yaml(self) -> str:
        other = "b" if self.home == "a" else "a"
        prefix = 64 if ":" in self.ip else 24
        command = ", ".join((*PYTHON, str(HERE / "echo.py"), f'"{self.ip}"', f'"{PORT}"', *["worker"] * self.worker))
        echo = f"""      - name: {self.name}-echo
        agent: exec
        options: {{command: [{command}]}}
        check: {{every_ms: 1000}}
        on_failure: {{restart: {self.restart}, within_s: 60, then: failover}}
"""
        return f"""
  {self.name}:
    nodes: [{self.home}, {other}]
    failover_limit: {{times: {self.limit}, within_s: 3600}}
{self.keys}
    services:
      - name: {self.name}-address
        agent: address
        options: {{ip: "{self.ip}/{prefix}", interface: lan}}
        check: {{every_ms: 1000, timeout_ms: 500}}
{echo if self.program else ""}{self.more}"""


@dataclass(frozen=True)
class Timing:
    interval_ms: int = 200
    dead_after_ms: int = 1000
    startup_wait_ms: int = 1500
    kill_ms: int = 150
    lease_ms: int = 2000
    io_timeout_ms: int = 300
    recovery: str = "manual"

    def takeover_ms(self) -> float:
        """At most this long from an owner's silence to the first answer of the other, while the arbiter rested.

        The promise of the answer that came last, then one claim (write, then read), then the services' start.
        """
        return self.dead_after_ms * 1.01 + self.io_timeout_ms + START_MS

    def alone_ms(self) -> float:
        """At most this long from the start of the engine on the only node to the first answer."""
        return self.startup_wait_ms + self.io_timeout_ms + START_MS

    def arbiter_takeover_ms(self) -> float:
        """The same where the owner's lease had gone over to the arbiter: its record is waited out, too."""
        return self.takeover_ms() + self.lease_ms * 1.01 + self.interval_ms


@dataclass
class Pair:
    """Use as a context manager: gives a lab with a configured pair, whose daemons are not yet started."""

    groups: tuple[Group, ...] = (Group("web", VIP),)
    timing: Timing = field(default_factory=Timing)
    extra: str = ""  # further top-level YAML
    fence: dict[str, str] = field(default_factory=dict)  # node -> its fence levels, a YAML list in one line
    arbiter: str = ""  # in place of the disk arbiter's line
    log_level: str = "debug"
    state_dir: str = STATE
    daemon: tuple[str, ...] = ("-m", "hasnmp.runtime.daemon")  # Python's arguments that start hasnmpd
    offsets_s: dict[str, int] = field(default_factory=dict)  # see Lab
    anew: list[Callable[[], None]] = field(
        default_factory=list
    )  # what other machines need that are made in the place of these

    def __enter__(self) -> Pair:
        self.lab = Lab(offsets_s=self.offsets_s)
        try:
            self._configure()
        except BaseException:
            self.lab.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if keep := os.environ.get("HASNMP_LAB_KEEP"):
            shutil.copytree(self.lab.folder, Path(keep, self.lab.name), dirs_exist_ok=True,
                            ignore=lambda _, names: [n for n in names if n.startswith("lease") or n == "images" or n.endswith(".sock")])  # fmt: skip
        self.lab.close()

    def rebuild(self) -> None:
        """Other machines in the place of these, with a new disk, both daemons started."""
        self.__exit__()
        self.__enter__()
        for make in self.anew:
            make()
        self.begin()

    def _configure(self) -> None:
        for name, secret in {**SECRETS, "heartbeat.key": os.urandom(32).hex()}.items():
            path = self.lab.etc / name
            path.write_text(secret)
            path.chmod(0o600)
        t = self.timing
        (self.lab.etc / "hasnmp.yaml").write_text(f"""cluster: {cluster_name(self.lab.name)}
nodes:
  a: {{links: {{lan: 192.0.2.11, cross: 198.51.100.11}}, fence: {self.fence.get("a", "[]")}}}
  b: {{links: {{lan: 192.0.2.12, cross: 198.51.100.12}}, fence: {self.fence.get("b", "[]")}}}
heartbeat:
  interval_ms: {t.interval_ms}
  late_after_ms: {max(t.interval_ms + 1, t.dead_after_ms // 2)}
  dead_after_ms: {t.dead_after_ms}
  startup_wait_ms: {t.startup_wait_ms}
  kill_ms: {t.kill_ms}
  key_files: [{ETC}/heartbeat.key]
{self.arbiter or f"arbiter: {{type: disk, device: {LEASE}, lease_ms: {t.lease_ms}, io_timeout_ms: {t.io_timeout_ms}}}"}
groups:{"".join(group.yaml() for group in self.groups)}
recovery: {t.recovery}
snmp:
  listen: ["192.0.2.11:161", "192.0.2.12:161", "127.0.0.1:161"]
  users:
    - {{name: noc, auth: sha256, auth_file: {ETC}/noc.auth, priv: aes128, priv_file: {ETC}/noc.priv, access: operate}}
    - {{name: watch, auth: sha256, auth_file: {ETC}/watch.auth, access: read}}
  communities: [{{name_file: {ETC}/community, access: read}}]
  notify: [{{to: "192.0.2.50:162", version: 2c, community_file: {ETC}/community, type: trap}}]
  throttle: {{same_within_ms: 0}}
state_dir: {self.state_dir}
log: {{format: json, level: {self.log_level}}}
{self.extra}""")
        self.environment = net_snmp_environment(self.lab.folder / "net-snmp")
        if "type: disk" in self.arbiter or not self.arbiter:
            self.hasnmp("a", "arbiter", "init", "--config", f"{ETC}/hasnmp.yaml")
            shutil.copyfile(self.lab.images / "lease.img", self.lab.images / "first.img")  # for who wants to restore it

    # --------------------------------------------------------------------------------------------------- the daemons

    def start(self, *nodes: str, supervised: bool = True, file: str = f"{ETC}/hasnmp.yaml") -> int:
        """Start hasnmpd on these nodes (none given: both). supervised: the host's init restarts it. Returns when."""
        at_ns = time.monotonic_ns()
        for node in nodes or NODES:
            daemon = [sys.executable, *self.daemon, "--config", file, "--node", node]
            argv = ["sh", "-c", SUPERVISE, "supervise", *daemon] if supervised else daemon
            where = {"PYTHONPATH": str(PROJECT), "PATH": f"{HERE}:{os.environ['PATH']}"}  # HERE: the lab's fence agent
            self.lab[node].spawn(*argv, log="hasnmpd.log", env={**os.environ, **where})
        return at_ns

    def begin(self, seconds: float = 30) -> None:
        """Start both, until all is well: on a busy machine the one that starts later may find a group taken; it is brought home."""
        self.start()
        wait_for(lambda: all(self.view(node) for node in NODES), seconds, self.why)

        def well() -> bool:
            if not self.unsteady():
                return True
            if all(row.state is NodeState.UP for node in NODES for row in self.rows(node, "nodes").values()):
                self._bring_home()
            return False

        wait_for(well, seconds, lambda: f"{self.unsteady()}\n{self.why()}", 0.05)

    def started(self, watch: Watch, begun_ns: int, node: str = "") -> float:
        """From the start of its engine to the first answer of a node (or of whichever answers) whose daemon was started at
        begun_ns, ms. Until its engine starts a daemon only computes: that is judged by the processor time that it takes."""
        answer = wait_for(lambda: watch.first(begun_ns, node), 20, self.why)
        assert answer
        view = self.view(answer.node)
        assert view
        within(
            cpu_s(self.pids(answer.node, "guardian")) * 1000, DAEMON_MS, lambda: f"of a processor's time\n{self.why()}"
        )
        system: Any = view.tables["system"][""]
        engine_ns = system.started_ns - boot_ns() + time.monotonic_ns()
        assert engine_ns > begun_ns, "it is of an engine that was there before"
        took_ms = spent_ms(engine_ns, answer.at_ns)
        print(f"{answer.node} answers {took_ms:.0f} ms after its engine's start, {(answer.at_ns - begun_ns) / 1e6:.0f} ms after "
              f"its daemon's")  # fmt: skip
        return took_ms

    def stack(self, node: str) -> dict[str, list[int]]:
        """role -> pids of the daemon's processes, the guardian first."""
        roles = ROLES | ({"hasnmp-pills": "pills"} if "agent: pill" in str(self.fence) else {})
        found: dict[str, list[int]] = {role: [] for role in roles.values()}
        for pid, comm in self.lab[node].processes().items():
            if comm in roles:
                found[roles[comm]].append(pid)
        return found

    def pids(self, node: str, *roles: str) -> list[int]:
        """The processes of these roles (none given: of the whole stack)."""
        return [pid for role, pids in self.stack(node).items() if not roles or role in roles for pid in pids]

    def stop(self, node: str, seconds: float = 10) -> int:
        """SIGTERM to the guardian, as `systemctl stop`; waits until the stack has gone. Returns when it was asked."""
        host = self.lab[node]
        host.signal(signal.SIGKILL, [pid for pid, comm in host.processes().items() if comm == "sh"])
        at_ns = host.signal(signal.SIGTERM, self.pids(node, "guardian"))
        wait_for(
            lambda: not self.pids(node), seconds, lambda: f"{node} has stopped: {self.stack(node)}; {self.tail(node)}"
        )
        return at_ns

    def service_pids(self, node: str) -> list[int]:
        """The echo programs that run on a node."""
        found = []
        for pid in self.lab[node].processes():
            with contextlib.suppress(OSError):
                if b"echo.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    # --------------------------------------------------------------------------------------------- what a node says

    def socket(self, node: str) -> str:
        return str(self.lab[node].path("/run/hasnmp/control.sock"))

    def view(self, node: str) -> View | None:
        return picture(self.socket(node))

    def rows(self, node: str, table: str) -> dict[str, Any]:
        view = self.view(node)
        return dict(view.tables[table]) if view else {}

    def events(self, node: str, since_ns: int = 0, *kinds: Kind) -> list[EventRow]:
        """What the node itself recorded after a moment (boot_ns), oldest first."""
        rows = [row for row in self.rows(node, "events").values() if row.ns >= since_ns and row.node == node]
        return sorted((row for row in rows if not kinds or row.kind in kinds), key=lambda row: row.id)

    def wait_event(self, node: str, kind: Kind, since_ns: int, seconds: float = 5) -> EventRow:
        return wait_for(lambda: self.events(node, since_ns, kind), seconds,
                        lambda: f"{kind} on {node}; it recorded {self.story(node)}", 0.1)[0]  # fmt: skip

    def alarms(self, node: str) -> set[Kind]:
        return {row.kind for row in self.rows(node, "alarms").values()}

    def owners(self) -> dict[str, set[str]]:
        """group -> the nodes that say that they run it."""
        return {group.name: {node for node in NODES if (row := self.rows(node, "groups").get(group.name))
                             and row.owner == node and row.state is GroupState.RUNNING} for group in self.groups}  # fmt: skip

    def command(self, node: str, verb: Verb, target: str, to: str = "", seconds: float = 10) -> CommandRow:
        """Give a command at a node's control socket and follow it to its end. Raises HasnmpError."""
        control = Control(self.socket(node))
        try:
            control.view()
            row = control.command(verb, target, to=to, reason="laboratory")
            for step in control.follow(row, seconds):
                row = step if isinstance(step, CommandRow) else row
            return row
        finally:
            control.close()

    def hasnmp(self, node: str, *words: str, check: bool = True) -> str:
        """The command line on a node."""
        argv = ["env", f"PYTHONPATH={PROJECT}", sys.executable, "-m", "hasnmp.cli", *words]
        return self.lab[node].run(*argv, check=check)

    def tail(self, node: str, lines: int = 15) -> str:
        log = self.lab[node].state / "hasnmpd.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "no log"

    def story(self, node: str, last: int = 25) -> str:
        """The node's newest events, for a failure's text."""
        rows = sorted(self.rows(node, "events").values(), key=lambda row: row.id)[-last:]
        if not rows:
            return f"{node} has no engine that answers; its log ends:\n{self.tail(node)}"
        now = boot_ns()
        return f"on {node}:\n" + "\n".join(f"{(x.ns - now) / 1e9:8.3f} s {x.kind} {x.message}" for x in rows)

    def why(self) -> str:
        lines = [f"stacks { ({node: self.stack(node) for node in NODES}) }"]
        for node in NODES:
            view = self.view(node)
            if view:
                for table in ("nodes", "groups", "services", "alarms", "arbiters"):
                    lines += [f"{node} {table}: {row}" for row in view.tables[table].values()]
            lines.append(self.story(node))
        return "\n".join(lines)

    # -------------------------------------------------------------------------------------------------- steady again

    def unsteady(self, homes: dict[str, str] | None = None) -> str:
        """Why the pair is not as it should be ("": it is): both up, nothing recovering, every group at home, no alarm."""
        homes = homes or {group.name: group.home for group in self.groups}
        for node in NODES:
            view = self.view(node)
            if view is None:
                return f"no engine answers on {node}"
            for other in view.tables["nodes"].values():
                if other.state is not NodeState.UP or other.recovering or other.standby:  # type: ignore[union-attr]
                    return f"{node} sees {other}"
            for name, home in homes.items():
                group: Any = view.tables["groups"][name]
                if group.owner != home or group.state is not GroupState.RUNNING or group.excluded:
                    return f"{node} sees {group}"
                if node == home and group.proof is not Proof.PROMISES:
                    return f"the arbiter's record still stands: {group}"  # a takeover now would wait it out
            for service in view.tables["services"].values():
                if service.state is not ServiceState.RUNNING:  # type: ignore[union-attr]
                    return f"{node} sees {service}"
            if view.tables["alarms"]:
                return f"{node} has alarms: {view.tables['alarms']}"
        return ""

    def wait_steady(self, seconds: float = 15, homes: dict[str, str] | None = None) -> None:
        wait_for(lambda: not self.unsteady(homes), seconds, lambda: f"{self.unsteady(homes)}\n{self.why()}", 0.05)

    def restore(self, seconds: float = 15) -> None:
        """Heal everything, start what does not run, recover, clear, and bring every group home."""
        self.heal()
        deadline = time.monotonic() + seconds * PATIENCE
        while why := self.unsteady():
            assert time.monotonic() < deadline, (
                f"the pair is not steady again after {seconds * PATIENCE} s: {why}\n{self.why()}"
            )
            self.mend()
            time.sleep(0.05)

    def heal(self) -> None:
        """Links, disks and power are there, nothing is stopped by a signal, and the daemons are started."""
        self.lab.heal()
        for node in {*NODES} - self.boot():
            host = self.lab[node]
            with host.switch:
                host.signal(signal.SIGCONT, host.processes())
                if not {"sh", "nsenter"} & {*host.processes().values()}:
                    host.signal(signal.SIGKILL, self.pids(node, "guardian"))
                    self.start(node)

    def boot(self) -> set[str]:
        """A machine that is off, or that its guardian has restarted, comes up with its daemon; gives which did."""
        booted = set()
        for node in NODES:
            host = self.lab[node]
            with host.switch:
                if not host.runs():
                    host.power_off()  # what a machine that ended by itself leaves behind
                    host.power_on()
                    self.start(node)
                    booted.add(node)
        return booted

    def mend(self, homes: bool = True) -> None:
        """One administrator's step, if one is needed now. homes: bringing a group home is one."""
        for node in NODES:
            view = self.view(node)
            if view is None:
                return
            for other in view.tables["nodes"].values():
                if other.state is not NodeState.UP:  # type: ignore[union-attr]
                    return
        for node in NODES:
            row: Any
            for row in self.rows(node, "nodes").values():
                if row.this and row.recovering:
                    self._try(node, Verb.RECOVER, node)
                if row.this and row.standby:
                    self._try(node, Verb.ONLINE, node)
            for row in self.rows(node, "alarms").values():
                if row.kind is Kind.FENCE_UNTESTED:  # it failed before it was ever seen to work: else tested in an hour
                    self._try(node, Verb.FENCE_TEST, row.object.partition("/")[0])
            for row in self.rows(node, "services").values():
                if row.state in (ServiceState.FAILED, ServiceState.STOP_FAILED):
                    self._try(node, Verb.SERVICE_CLEAR, row.name)
        for row in self.rows("a", "groups").values():
            if row.excluded:
                for service in self.rows(row.home, "services").values():
                    if service.group == row.name:
                        self._try(row.home, Verb.SERVICE_CLEAR, service.name)
        if homes:
            self._bring_home()

    def _bring_home(self) -> None:
        row: Any
        for row in self.rows("a", "groups").values():
            if row.owner and row.owner != row.home and row.state is GroupState.RUNNING:
                self._try(row.owner, Verb.FAILOVER, row.name, row.home)

    def _try(self, node: str, verb: Verb, target: str, to: str = "") -> None:
        with contextlib.suppress(HasnmpError):  # refused now: what hinders it is seen in the next round
            self.command(node, verb, target, to)

    # ---------------------------------------------------------------------------------------------------- the console

    def snmp(self, program: str, node: str, *words: str, check: bool = True, options: tuple[str, ...] = V3) -> str:
        """Net-SNMP on the client host: `program` asks the node's agent."""
        return self.lab["client"].run(
            "env", *(f"{k}={self.environment[k]}" for k in ("MIBDIRS", "MIBS", "SNMPCONFPATH", "SNMP_PERSISTENT_DIR")),
            program, *options, "-t", "2", "-r", "1", "-Oqs", f"{LAN[node]}:161", *words, check=check,
        )  # fmt: skip

    def wait_snmp(self, node: str, instance: str, value: str, seconds: float = 5) -> None:
        """Until the node's agent gives this value for the object."""
        wait_for(lambda: self.snmp("snmpget", node, instance, check=False).strip().endswith(f" {value}"), seconds,
                 lambda: f"{instance} on {node} is {value}: {self.snmp('snmpget', node, instance, check=False)}")  # fmt: skip

    @staticmethod
    def wait_trap(traps: Path, words: str, seconds: float = 5) -> str:
        """The first line of a trap_receiver's file that has these words."""
        return wait_for(lambda: [line for line in traps.read_text().splitlines() if words in line], seconds,
                        lambda: f"a trap with {words!r} in\n{traps.read_text()}")[0]  # fmt: skip

    @contextlib.contextmanager
    def trap_receiver(self) -> Iterator[Path]:
        """snmptrapd on the client host; gives the file that it writes every trap to, a line each."""
        folder = self.lab.folder / "net-snmp"
        (folder / "trapd.conf").write_text("disableAuthorization yes\n")
        out = self.lab["client"].state / "traps"
        out.touch()
        process = self.lab["client"].spawn(
            "env", *(f"{k}={self.environment[k]}" for k in ("MIBDIRS", "MIBS", "SNMPCONFPATH", "SNMP_PERSISTENT_DIR")),
            "snmptrapd", "-f", "-n", "-Lo", "-C", "-c", str(folder / "trapd.conf"), "-Oqs", "-F", "%v\\n", "udp:192.0.2.50:162",
            log="traps",
        )  # fmt: skip
        try:
            wait_for(
                lambda: ":162 " in sh("ip", "netns", "exec", self.lab["client"].netns, "ss", "-Hlun"),
                5,
                "snmptrapd listens",
            )
            yield out
        finally:
            for pid, comm in self.lab["client"].processes().items():
                if comm == "snmptrapd":
                    os.kill(pid, signal.SIGTERM)
            process.wait(30)


def cpu_s(pids: list[int]) -> float:
    """Processor seconds that these processes have used."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_kb(pids: list[int]) -> int:
    """Proportional set size of these processes together."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


__all__ = ["NODES", "VIP", "VIP2", "VIP6", "Group", "Pair", "Timing", "boot_ns", "cpu_s", "pss_kb", "subprocess"]
