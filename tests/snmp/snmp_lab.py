"""An agent process with an engine made of a dict and a list: what the tests of this folder stand on.

The fake engine speaks protocol.py on a Unix socket: it serves a View that the test made, and notes every command.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hasnmp import protocol
from hasnmp.errors import Code
from hasnmp.model import (
    AlarmRow,
    ArbiterRow,
    ArbiterState,
    CommandRow,
    CommandState,
    Condition,
    ConfigRow,
    EventRow,
    FenceRow,
    GroupRow,
    GroupState,
    Kind,
    LinkRow,
    LinkState,
    NodeRow,
    NodeState,
    PartState,
    Proof,
    Reason,
    Role,
    ServiceRow,
    ServiceState,
    Severity,
    StatisticsRow,
    SystemRow,
    Verb,
    View,
)  # fmt: skip
from hasnmp.settings import Arbiter, Community, Config, Control, Heartbeat, NodeSettings, Snmp, SnmpUser
from hasnmp.snmp import ber, ha_objects
from tests.ports import free_port

READ, WRITE = b"look", b"touch"
AUTH, PRIV = "authentic-word", "private-word"
V3 = ["-v3", "-a", "SHA-256", "-A", AUTH, "-x", "AES", "-X", PRIV, "-l", "authPriv"]
OPERATE = [*V3, "-u", "noc"]
WATCH = [*V3, "-u", "watch"]
_SCRATCH = tempfile.TemporaryDirectory(prefix="hasnmp-net-snmp-")  # Net-SNMP's tools make the folder that they are told
ENVIRONMENT = {
    **os.environ,
    "MIBS": "",
    "MIBDIRS": "",
    "SNMPCONFPATH": _SCRATCH.name,
    "SNMP_PERSISTENT_DIR": _SCRATCH.name,
}


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Ask until it is true; the answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return answer


def an_event(number: int, kind: Kind = Kind.TAKEOVER_COMPLETED, **more: Any) -> EventRow:
    row: dict[str, Any] = {
        "id": number, "kind": kind, "severity": Severity.INFO, "wall_ms": time.time_ns() // 1_000_000, "ns": now_ns(),
        "node": "alpha", "message": f"what happened, {number}", "peer": "beta", "group": "web", "service": "httpd",
        "own_state": Role.PRIMARY, "peer_state": NodeState.LOST, "previous_state": 4, "state": 5,
        "reason": Reason.NODE_LOST, "common_id": f"c{number}",
    }  # fmt: skip
    return EventRow(**{**row, **more})


def a_view(events: int = 5) -> View:
    """A cluster of two nodes, two groups, three services, with something in every table."""
    t = now_ns()
    view = View(t, time.time_ns() // 1_000_000, 1)
    tables: dict[str, dict[str, Any]] = view.tables  # type: ignore[assignment]
    tables["system"][""] = SystemRow(
        "bank", "alpha", "0.1.0", Role.PRIMARY, Condition.OK, Condition.DEGRADED, t - 10**10, 3, PartState.UP,
        PartState.UP, PartState.ABSENT, t - 10**11,
    )  # fmt: skip
    for name, state in (("alpha", NodeState.UP), ("beta", NodeState.UP)):
        tables["nodes"][name] = NodeRow(
            name, name == "alpha", state, Role.PRIMARY if name == "alpha" else Role.STANDBY, Condition.OK,
            "0123456789abcdef", "fedcba9876543210", last_heard_ns=t, last_change_ns=t - 10**9, transitions=2,
            heartbeats_received=1000, digest="0011223344556677", version="0.1.0",
        )  # fmt: skip
    for link, address in (("lan", "192.0.2.12"), ("cross", "2001:db8::12")):
        tables["links"][f"beta/{link}"] = LinkRow("beta", link, address, LinkState.UP, 10, 9, 1, 250, t, t, 1)
    for number, name in enumerate(("web", "database")):
        tables["groups"][name] = GroupRow(
            name, GroupState.RUNNING, Condition.OK, "alpha", 7 + number, t + 10**9, Proof.PROMISES, "alpha",
            ("alpha", "beta"), last_change_ns=t, failover_limit=3, data_ns=t,
        )  # fmt: skip
    for name, group in (("address", "web"), ("httpd", "web"), ("postgres", "database")):
        tables["services"][name] = ServiceRow(
            name, group, "alpha", "exec", ServiceState.RUNNING, checks=12, last_check_ns=t, last_change_ns=t, pid=4711,
            message="as it should be", data_ns=t,
        )  # fmt: skip
    tables["arbiters"]["disk"] = ArbiterRow("disk", ArbiterState.RESTING, "/dev/shared", "a-uuid", t, 800, t)
    tables["fences"]["beta/1"] = FenceRow("beta", 1, "fence_ipmilan", "power")
    tables["config"][""] = ConfigRow("0011223344556677", "hasnmp.yaml", t, "", 200, 500, 1000, 5000, 150, 3000, 500)
    tables["statistics"][""] = StatisticsRow(takeovers=1, heartbeats_sent=2**32 + 5, since_wall_ms=view.wall_ms)
    for number in range(1, events + 1):
        tables["events"][str(number)] = an_event(number)
    tables["alarms"]["node/beta"] = AlarmRow(
        "node/beta", Kind.NODE_LOST, Severity.MAJOR, "alpha", "beta", t, view.wall_ms, 1, "beta is lost"
    )
    tables["commands"]["1"] = CommandRow(
        1, "root", "", Verb.FAILOVER, "web", "beta", "because", CommandState.DONE, Code.DONE, "done", view.wall_ms,
        view.wall_ms, t, t,
    )  # fmt: skip
    return view


class FakeEngine:
    """A thread that serves `view`. commands: every command that came. verdict: what becomes of each next one."""

    def __init__(self, path: Path, view: View) -> None:
        self.path = path
        self.view = view
        self.commands: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.refusal = (Code.DONE, "")  # what is said where the verdict is a refusal
        self.whys: dict[str, list[str]] = {}  # group -> what is to be said of it; nothing is said of others
        self.verdict: CommandState | None = CommandState.ACCEPTED  # None: say nothing at all
        self.verdicts: list[CommandState] = []  # for the next commands, one each
        self.beating = True
        self._clients: list[socket.socket] = []
        self._lock = threading.RLock()
        self._server: socket.socket | None = None
        self._stopped = threading.Event()
        self.start()

    def start(self) -> None:
        self._stopped = threading.Event()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.path))
        self._server.listen(4)
        threading.Thread(target=self._accept, args=(self._server, self._stopped), daemon=True).start()
        threading.Thread(target=self._beat, args=(self._stopped,), daemon=True).start()

    def stop(self) -> None:
        """Gone, as by SIGKILL."""
        self._stopped.set()
        with self._lock:
            for sock in (*self._clients, self._server):
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                    sock.close()
            self._clients.clear()

    def _accept(self, server: socket.socket, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            with self._lock:
                self._stamp()
                client.sendall(protocol.encode(protocol.snapshot(self.view)))
                self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message["type"] == "why":
                    if message["group"] in self.whys:
                        self._say({"type": "why", "id": message["id"], "lines": self.whys[message["group"]]})
                    continue
                if message["verb"] == Verb.SET:  # nothing to do: a SET that the agent refused, for the record
                    self.records.append(message)
                    self._recorded(message)
                    continue
                self.commands.append(message)
                verdict = self.verdicts.pop(0) if self.verdicts else self.verdict
                if verdict is None:
                    continue
                number = 0 if message["verb"] == Verb.REPORT else len(self.commands)  # a report has no row
                code, text = self.refusal if verdict is CommandState.REFUSED else (Code.DONE, "")
                row = CommandRow(
                    number, message["requester"], message["address"], Verb(message["verb"]),
                    message["target"], message.get("to", ""), message.get("reason", ""), verdict, code, text,
                )  # fmt: skip
                self._say({"type": "reply", "id": message["id"], "command": protocol.row_to_json(row)})
        with self._lock, contextlib.suppress(ValueError):
            self._clients.remove(client)

    def _recorded(self, message: dict[str, Any]) -> None: ...

    def _stamp(self) -> None:
        self.view.now_ns, self.view.wall_ms = now_ns(), time.time_ns() // 1_000_000
        self.view.number += 1

    def _beat(self, stopped: threading.Event) -> None:
        while not stopped.wait(0.3):
            if self.beating:
                self.change({})

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.sendall(protocol.encode(message))

    def change(self, rows: dict[str, dict[str, Any]], gone: dict[str, list[str]] | None = None) -> None:
        """Rows changed, as a delta."""
        with self._lock:
            self._stamp()
            for table, changed in rows.items():
                self.view.tables[table].update(changed)
            for table, keys in (gone or {}).items():
                for key in keys:
                    self.view.tables[table].pop(key, None)
            self._say({
                "type": "delta", "number": self.view.number, "now_ns": self.view.now_ns, "wall_ms": self.view.wall_ms,
                "rows": {t: {k: protocol.row_to_json(r) for k, r in c.items()} for t, c in rows.items()},
                "gone": gone or {},
            })  # fmt: skip

    def clients(self) -> int:
        return len(self._clients)

    def happen(self, event: EventRow) -> None:
        with self._lock:
            self.view.tables["events"][str(event.id)] = event
            self._say(protocol.event(event, None, ""))


def a_config(folder: Path, **snmp: Any) -> Config:
    """A configuration with a user and a community of each kind, on a free port of 127.0.0.1."""
    settings: dict[str, Any] = {
        "listen": (f"127.0.0.1:{free_port()}",),
        "users": (
            SnmpUser("noc", "sha256", "aes128", "operate", AUTH.encode(), PRIV.encode()),
            SnmpUser("watch", "sha256", "aes128", "read", AUTH.encode(), PRIV.encode()),
            SnmpUser("plain", "sha256", "", "read", AUTH.encode()),
        ),
        "communities": (Community("read", (), READ), Community("operate", ("127.0.0.0/8", "::1/128"), WRITE)),
        "allow_insecure_set": True,
    }  # fmt: skip
    return Config(
        "bank",
        (NodeSettings("alpha", {"lan": "192.0.2.11"}), NodeSettings("beta", {"lan": "192.0.2.12"})),
        Heartbeat(),
        Arbiter("none"),
        (),
        snmp=Snmp(**{**settings, **snmp}),
        control=Control(str(folder / "control.sock")),
        state_dir=str(folder / "state"),
        run_dir=str(folder),
    )


MAIN = """
import pickle, sys
from hasnmp.snmp import agent
with open(sys.argv[1], "rb") as file:
    config, warm = pickle.load(file)
sys.exit(agent.main(config, "alpha", warm=warm))
"""


class AgentProcess:
    """The agent as a process of its own. Not by a bare fork: the threads of a test run would leave their locks in it."""

    def __init__(self, config: Config, warm: bool = False) -> None:
        self.config = config
        self.log = Path(config.run_dir) / "agent.log"
        self.port = int(config.snmp.listen[0].rpartition(":")[2]) if config.snmp.listen else 0
        settings = Path(config.run_dir) / "agent.config"
        settings.write_bytes(pickle.dumps((config, warm)))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and give its exit status (negative: the signal)."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode

    def run(self, tool: str, auth: list[str], *words: str, target: str = "") -> subprocess.CompletedProcess[str]:
        """One of Net-SNMP's tools, with numeric output and no MIB files."""
        line = [tool, "-r4", "-t0.7", "-On", *auth, target or f"127.0.0.1:{self.port}", *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)

    def ask(self, tool: str, auth: list[str], *words: str) -> str:
        """As run(), and it must succeed; its output, stripped."""
        result = self.run(tool, auth, *words)
        assert result.returncode == 0, (result.stdout, result.stderr, self.log.read_text())
        return result.stdout.strip()

    def value(self, auth: list[str], oid: str) -> str:
        """The value that snmpget prints, without its type."""
        return self.ask("snmpget", [*auth, "-Oqv"], oid).strip('"')

    def counter(self, oid: str) -> int:
        return int(self.value(["-v2c", "-c", READ.decode()], oid))

    def datagram(self, data: bytes, seconds: float = 0.0) -> bytes | None:
        """Send octets and give what comes back; None: nothing within `seconds` (0: nothing is waited for)."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", self.port))
            sock.send(data)
            if not seconds:
                return None
            sock.settimeout(seconds)
            try:
                return sock.recv(65535)
            except OSError:  # too late, or nobody there
                return None


def listens(path: str) -> bool:
    """Does somebody listen at this Unix socket?"""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(words[-1] == path and words[3] == "00010000" for words in lines)  # SO_ACCEPTCON


@contextlib.contextmanager
def running(config: Config, **more: Any) -> Iterator[AgentProcess]:
    """An agent that answers, until the block ends; then it must end in order."""
    agent = AgentProcess(config, **more)
    try:
        wait_for(lambda: agent.run("snmpget", V2C_READ, SYS_UP_TIME).returncode == 0)
        if config.snmp.notify and listens(config.control.socket):  # what happens before it listens is no news to it
            state = next(dotted((*each.oid, 0)) for each in ha_objects.SCALARS if each.name == "haEngineState")
            wait_for(lambda: agent.value(V2C_READ, state) == str(int(PartState.UP)))
            wait_for(lambda: "notifications_" in agent.log.read_text())
        yield agent
    finally:
        status = agent.stop()
        assert status == 0, agent.log.read_text()


@contextlib.contextmanager
def trap_receiver(
    folder: Path,
    port: int,
    *lines: str,
    mibs: dict[str, str] | None = None,
    form: str = "%V~%v\\n",
    host: str = "127.0.0.1",
) -> Iterator[Path]:
    """snmptrapd on 127.0.0.1; gives the file that it writes, a notification a line. A second one in the same folder is the
    same SNMP engine, restarted, and writes the file anew.

    mibs: an environment in which it knows MIBs; without one it prints numbers only. form: see snmptrapd(8).
    """
    settings, output = folder / "snmptrapd.conf", folder / "traps.log"
    settings.write_text("\n".join(("disableAuthorization yes", *lines)) + "\n")
    state = folder / "snmptrapd"
    state.mkdir(exist_ok=True)
    with output.open("w") as log:
        numbers = [] if mibs else ["-On", "-Oe", "-Ob"]
        line = ["snmptrapd", "-f", "-Lo", "-C", "-c", str(settings), *numbers, "-F", form]
        process = subprocess.Popen(
            [*line, f"{'udp6:' if ':' in host else ''}{host}:{port}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**(mibs or ENVIRONMENT), "SNMP_PERSISTENT_DIR": str(state)},
        )
        try:
            wait_for(lambda: "NET-SNMP version" in output.read_text())
            yield output
        finally:
            process.terminate()
            process.wait(10)


V2C_READ = ["-v2c", "-c", READ.decode()]
V2C_WRITE = ["-v2c", "-c", WRITE.decode()]
SYS_UP_TIME = "1.3.6.1.2.1.1.3.0"


def dotted(oid: tuple[int, ...]) -> str:
    return ".".join(map(str, oid))


def rows_of(walk: str) -> dict[str, str]:
    """What snmpwalk -On printed, by OID without the leading dot."""
    return {m[1]: m[2] for m in re.finditer(r"^\.([\d.]+) = (.*)$", walk, re.M)}


# ------------------------------------------------------------------------------------------- messages, octet by octet

GET, NEXT, RESPONSE, SET, BULK, INFORM, TRAP, REPORT = 0xA0, 0xA1, 0xA2, 0xA3, 0xA5, 0xA6, 0xA7, 0xA8
Name = tuple[int, ...]


def binding(name: Name, value: bytes = b"\x05\x00") -> bytes:
    return ber.encode(ber.SEQUENCE, ber.encode(ber.OID, ber.encode_oid(name)) + value)


def a_pdu(tag: int, bindings: list[bytes], first: int = 0, second: int = 0, request_id: int = 77) -> bytes:
    numbers = b"".join(ber.encode_integer(n) for n in (request_id, first, second))
    return ber.encode(tag, numbers + ber.encode(ber.SEQUENCE, b"".join(bindings)))


def v2c(pdu: bytes, community: bytes = READ) -> bytes:
    return ber.encode(ber.SEQUENCE, b"\x02\x01\x01" + ber.encode(ber.OCTETS, community) + pdu)


def sealed_by(user: Any, data: bytes, boots: int, seconds: int, salt: bytes) -> bytes:
    """AES-CFB with a salt of the sender's choice."""
    vector = boots.to_bytes(4, "big") + seconds.to_bytes(4, "big") + salt
    out = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        stream = user.cipher._block(vector)[: len(part)]
        vector = bytes(a ^ b for a, b in zip(part, stream, strict=True))
        out.append(vector)
    return b"".join(out)


class Answer:
    """A Response or Report of v2c, or the PDU of a v3 one."""

    def __init__(self, message: bytes) -> None:
        start, end = ber.expect(message, 0, len(message), ber.SEQUENCE)
        _, start = ber.integer(message, start, end)
        _, start = ber.octets(message, start, end)
        self._pdu(message, start, end)

    @classmethod
    def of_pdu(cls, data: bytes, start: int, end: int) -> Answer:
        self = cls.__new__(cls)
        self._pdu(data, start, end)
        return self

    def _pdu(self, data: bytes, start: int, end: int) -> None:
        self.tag, start, end = ber.tlv(data, start, end)
        self.request_id, start = ber.integer(data, start, end)
        self.status, start = ber.integer(data, start, end)
        self.index, start = ber.integer(data, start, end)
        start, end = ber.expect(data, start, end, ber.SEQUENCE)
        self.tags: list[int] = []
        self.names: list[Name] = []
        self.values: list[Any] = []
        self.raw: list[bytes] = []  # the values as they came
        while start < end:
            at, start = ber.expect(data, start, end, ber.SEQUENCE)
            name, name_end = ber.expect(data, at, start, ber.OID)
            tag, at, stop = ber.tlv(data, name_end, start)
            self.names.append(ber.decode_oid(data[name:name_end]))
            self.tags.append(tag)
            self.raw.append(data[name_end:stop])
            try:
                self.values.append(ber.decode_value(tag, data[at:stop]))
            except ber.BerError:  # an error's echo of what was no value
                self.values.append(data[at:stop])
