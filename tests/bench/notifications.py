"""How long a notification takes, from what happened to the line that Debian's snmptrapd prints, beside Net-SNMP's own.

hasnmp: an event leaves the engine's socket. snmpd: a request with a wrong community leaves, of which it says
authenticationFailure. snmptrap and snmpinform: the command is begun. All in turns, by the same snmptrapd.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hasnmp.settings import Receiver, Throttle
from hasnmp.snmp import identity
from tests.bench.faults import say
from tests.snmp.snmp_lab import (
    AUTH,
    ENVIRONMENT,
    GET,
    PRIV,
    AgentProcess,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    an_event,
    binding,
    free_port,
    v2c,
    wait_for,
)

Goal = tuple[str, str, str, bool]
ROUNDS, A_ROUND, STARTS = 4, 25, 5
GOAL_MS = 5.0
PAUSE_S = 0.01
# Each of its own, for snmptrapd keeps an engine's boots and time, and takes nothing from before them.
SNMPD_ENGINE, COMMAND_ENGINE = "80007ed905736e6d7064", "80007ed905736e6d7065"
WRONG = v2c(a_pdu(GET, [binding((1, 3, 6, 1, 2, 1, 1, 3, 0))]), b"wrong")

# What is sent: the receiver of hasnmp, snmpd's line for it, the command's arguments.
KINDS: dict[str, tuple[Receiver, str, list[str]]] = {
    "v1 trap": (Receiver("", "1", community=b"public"), "trapsink {to} public", []),
    "v2c trap": (Receiver("", "2c", community=b"public"), "trap2sink {to} public", ["snmptrap", "-v2c", "-c", "public"]),
    "v2c inform": (
        Receiver("", "2c", community=b"public", type="inform"), "informsink {to} public",
        ["snmpinform", "-v2c", "-c", "public"],
    ),
    "v3 trap": (
        Receiver("", "3", user="noc"), "trapsess -v3 -e 0x{engine} -u noc -a SHA-256 -A {auth} -x AES -X {priv} -l authPriv {to}",
        ["snmptrap", "-v3", "-e", f"0x{COMMAND_ENGINE}", "-u", "noc", "-a", "SHA-256", "-A", AUTH, "-x", "AES", "-X", PRIV,
         "-l", "authPriv"],
    ),
    "v3 inform": (
        Receiver("", "3", user="noc", type="inform"),
        "trapsess -Ci -v3 -u noc -a SHA-256 -A {auth} -x AES -X {priv} -l authPriv {to}",
        ["snmpinform", "-v3", "-u", "noc", "-a", "SHA-256", "-A", AUTH, "-x", "AES", "-X", PRIV, "-l", "authPriv"],
    ),
}  # fmt: skip


def missing() -> list[str]:
    return [name for name in ("snmptrapd", "snmpd", "snmptrap") if not shutil.which(name)]


@dataclass
class Seen:
    """The lines that snmptrapd printed, each with when it was there to be read."""

    lines: list[tuple[float, str]] = field(default_factory=list)

    def when(self, text: str, since: int) -> float:
        """When the first line with this text came, among those after the first `since`."""

        def found() -> float:
            return next((at for at, line in self.lines[since:] if text in line), 0.0)

        return float(wait_for(found))


@contextmanager
def receiver(folder: Path, port: int, engine_ids: list[str]) -> Iterator[Seen]:
    settings = folder / "snmptrapd.conf"
    users = [f"createUser noc SHA-256 {AUTH} AES {PRIV}"]
    users += [f"createUser -e 0x{engine} noc SHA-256 {AUTH} AES {PRIV}" for engine in engine_ids]
    settings.write_text("\n".join(["disableAuthorization yes", *users]) + "\n")
    line = [
        "snmptrapd",
        "-f",
        "-Lo",
        "-C",
        "-c",
        str(settings),
        "-On",
        "-Oe",
        "-F",
        "%N %w.%q %v\\n",
        f"127.0.0.1:{port}",
    ]
    seen = Seen()
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**ENVIRONMENT, "SNMP_PERSISTENT_DIR": str(folder)}
    )

    def follow() -> None:
        assert process.stdout is not None
        rest = b""
        while data := os.read(process.stdout.fileno(), 65536):
            at = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            seen.lines.extend((at, line.decode(errors="replace")) for line in lines)

    threading.Thread(target=follow, daemon=True).start()
    try:
        wait_for(lambda: any("NET-SNMP" in line for _, line in seen.lines))
        yield seen
    finally:
        process.terminate()
        process.wait(10)


class Ours:
    """An agent with one receiver. tell() makes an event happen and gives how long it took, in milliseconds."""

    def __init__(self, folder: Path, kind: str, to: Receiver) -> None:
        folder.mkdir()
        self._seen = Seen()
        self._fake = FakeEngine(folder / "control.sock", a_view())
        self._config = a_config(folder, notify=(to,), throttle=Throttle(0, 100_000))
        self.engine_id = identity.start(self._config.state_dir, "alpha")[0].hex()
        self._kind = kind
        self._number = 100
        self._agent: AgentProcess | None = None

    def start(self, seen: Seen) -> None:
        self._seen, before = seen, len(seen.lines)
        self._agent = AgentProcess(self._config)
        # SNMPv1's generic 0 and snmpTrapOID of coldStart: the line of either has our sysObjectID as snmpTrapEnterprise.
        self._seen.when(".1.3.6.1.6.3.1.1.4.3.0", before)
        wait_for(lambda: self._fake.clients())

    def tell(self) -> float:
        before, self._number = len(self._seen.lines), self._number + 1
        event = an_event(self._number, message=f"{self._kind}, {self._number}.")
        begun = time.perf_counter()
        self._fake.happen(event)
        return (self._seen.when(event.message, before) - begun) * 1000

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()
        wait_for(lambda: not self._fake.clients())

    def close(self) -> None:
        if self._agent is not None:
            self._agent.stop()
        self._fake.stop()


class Snmpd:
    """snmpd with one sink."""

    def __init__(self, folder: Path, sink: str, seen: Seen) -> None:
        folder.mkdir()
        self._seen = seen
        self._port = free_port()
        settings = folder / "settings"
        settings.write_text(f"rocommunity look\nauthtrapenable 1\nexactEngineID 0x{SNMPD_ENGINE}\n{sink}\n")
        self._process = subprocess.Popen(
            ["snmpd", "-f", "-Lf", str(folder / "log"), "-C", "-c", str(settings), "-I", "-diskio", f"127.0.0.1:{self._port}"],
            env={**ENVIRONMENT, "SNMP_PERSISTENT_DIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(lambda: subprocess.run(
            ["snmpget", "-v2c", "-c", "look", "-r0", "-t0.3", f"127.0.0.1:{self._port}", "1.3.6.1.2.1.1.3.0"],
            env=ENVIRONMENT, capture_output=True,
        ).returncode == 0)  # fmt: skip
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", self._port))

    def tell(self) -> float:
        before = len(self._seen.lines)
        begun = time.perf_counter()
        self._socket.send(WRONG)
        return (self._seen.when("", before) - begun) * 1000

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)


def command(arguments: list[str], to: str, seen: Seen) -> float:
    before = len(seen.lines)
    line = [*arguments, to, "", "1.3.6.1.4.1.32473.1992.0.5", "1.3.6.1.4.1.32473.1992.1.1.2.0", "s", "by hand"]
    begun = time.perf_counter()
    subprocess.run(line, env=ENVIRONMENT, capture_output=True, check=True)
    return (seen.when("by hand", before) - begun) * 1000


def side_by_side() -> list[Goal]:
    if lacks := missing():
        print(f"notifications are left out: this machine has no {', '.join(lacks)}")
        return []
    say("notifications, from the event to snmptrapd's line")
    goals: list[Goal] = []
    for kind in KINDS:
        goals += _measure(kind)
    return goals


def _measure(kind: str) -> list[Goal]:
    to, sink, arguments = KINDS[kind]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hasnmp-bench-")))
        port = free_port()
        address = f"127.0.0.1:{port}"
        ours = Ours(folder / "ours", kind, Receiver(address, to.version, to.user, to.community, to.type))
        stack.callback(ours.close)
        live = stack.enter_context(receiver(folder, port, [ours.engine_id, SNMPD_ENGINE, COMMAND_ENGINE]))
        firsts = []
        for start in range(STARTS):
            if start:
                ours.stop()
            ours.start(live)
            firsts.append(ours.tell())
        first = statistics.median(firsts)
        theirs = Snmpd(folder / "snmpd", sink.format(to=address, auth=AUTH, priv=PRIV, engine=SNMPD_ENGINE), live)
        stack.callback(theirs.close)
        mine, snmpds, commands = [*firsts], [], []
        for _ in range(ROUNDS):
            for measure, numbers, times in (
                (ours.tell, mine, A_ROUND),
                (theirs.tell, snmpds, A_ROUND),
                (lambda: command(arguments, address, live), commands, 5 if arguments else 0),
            ):
                for _ in range(times):
                    numbers.append(_paused(measure))
    median = statistics.median(mine)
    others = f"snmpd {statistics.median(snmpds):.2f}"
    if commands:
        others += f", {arguments[0]} {statistics.median(commands):.1f}"
    print(
        f"  {kind:11} hasnmp: median {median:.2f} ms, worst {max(mine):.2f}, the first after a start {first:.2f}; {others}"
    )
    return [
        (f"{kind} to snmptrapd, median of {len(mine)} (medians: {others} ms)", f"{median:.2f} ms", "under 5 ms", median < GOAL_MS),
        (f"{kind} to snmptrapd, the first after the agent's start, median of {STARTS}", f"{first:.2f} ms", "under 5 ms", first < GOAL_MS),
    ]  # fmt: skip


def _paused(measure: Callable[[], float]) -> float:
    time.sleep(PAUSE_S)
    return measure()
