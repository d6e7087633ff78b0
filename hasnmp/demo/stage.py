"""Where the demo plays: a temporary folder, addresses of 127.0.0.0/8 and free ports, and two nodes of processes.

Everything is an ordinary user's: on Linux every address of 127.0.0.0/8 may be bound without being added anywhere.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hasnmp.errors import Code, Refused

NODES = ("node-a", "node-b")
LAN = {"node-a": "127.0.0.11", "node-b": "127.0.0.12"}
CROSS = {"node-a": "127.0.1.11", "node-b": "127.0.1.12"}
GROUPS = {"web": ("node-a", "node-b"), "files": ("node-b", "node-a")}  # each has its home, so the pair is symmetrical
SERVED = {"web": "127.0.0.20", "files": "127.0.0.30"}
RECEIVER = "127.0.0.1"
DEAD_AFTER_MS = 1000
STOP_S = 15.0
MARK = "HASNMP_DEMO"  # in the environment of all that belongs to a node: found again even when its parents are gone


@dataclass(frozen=True, slots=True)
class Ports:
    heartbeat: int
    snmp: int
    http: int
    trap: int


def free_ports(held: list[socket.socket]) -> Ports:
    """Ports that are free on every address where they are wanted; the usual ones where possible.

    held: takes what keeps these ports from another demo that starts while one of them is free for a moment, as the
    service's is during a takeover.
    Raises Refused: fifty in a row are taken.
    """
    addresses = [*LAN.values(), *CROSS.values()]
    return Ports(
        _free(held, "heartbeats", 15405, socket.SOCK_DGRAM, addresses),
        _free(held, "SNMP", 1161, socket.SOCK_DGRAM, list(LAN.values())),
        _free(held, "HTTP", 8080, socket.SOCK_STREAM, list(SERVED.values())),
        _free(held, "traps", 1162, socket.SOCK_DGRAM, [RECEIVER]),
    )


def _free(held: list[socket.socket], what: str, first: int, kind: socket.SocketKind, addresses: list[str]) -> int:
    problem = ""
    for port in range(first, first + 50):
        # An abstract name: no file to leave behind, and gone with the process (unix(7)).
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0hasnmp-demo-{what}-{port}")
            for address in addresses:
                with socket.socket(socket.AF_INET, kind) as trial:
                    if kind is socket.SOCK_STREAM:
                        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind((address, port))
        except OSError as error:
            claim.close()
            problem = f"{port}: {error.strerror}"
            continue
        held.append(claim)
        return port
    raise Refused(Code.BUSY, f"no free port for {what} from {first} to {first + 49} ({problem}); end what uses them")


class Stage:
    """The folder, with the secrets in files of mode 600, and both nodes. Use as a context: its end leaves nothing."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self.ports = free_ports(self._held)
        self.folder = Path(tempfile.mkdtemp(prefix="hasnmp-demo-"))  # mode 700
        self.operator = secrets.token_hex(8), secrets.token_hex(8)  # passphrases: authentication, privacy
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._secret("heartbeat.key", secrets.token_hex(32))
        self._secret("operator.auth", self.operator[0])
        self._secret("operator.priv", self.operator[1])
        self._secret("community", "public")
        for node in NODES:
            (self.folder / node).mkdir()
            self.config(node).write_text(self._text(node))

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for node in NODES:
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)
        for claim in self._held:
            claim.close()

    def config(self, node: str) -> Path:
        return self.folder / f"{node}.yaml"

    def control(self, node: str) -> str:
        return str(self.folder / node / "control.sock")

    def log(self, node: str) -> Path:
        return self.folder / f"{node}.log"

    def agent(self, node: str) -> str:
        return f"{LAN[node]}:{self.ports.snmp}"

    def url(self, group: str) -> str:
        return f"http://{SERVED[group]}:{self.ports.http}/"

    def _secret(self, name: str, text: str) -> None:
        file = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(file, "w") as opened:
            opened.write(text + "\n")

    def _text(self, node: str) -> str:
        """The two nodes' files differ only in what two machines would have twice: folders, and the agent's address."""
        web = Path(__file__).with_name("web.py")
        groups = "".join(f"""
  {group}:
    nodes: [{", ".join(nodes)}]
    services:
      - name: {group}-server
        agent: exec
        options: {{command: ["{sys.executable}", -I, -S, "{web}", {SERVED[group]}, "{self.ports.http}", {group}, {node}]}}
        check: {{type: http, url: "{self.url(group)}", expect: "{group} served by", every_ms: 1000, timeout_ms: 800}}
        start_timeout_ms: 5000
        stop_timeout_ms: 3000"""
            for group, nodes in GROUPS.items()
        )  # fmt: skip
        links = "".join(f"\n  {name}: {{links: {{lan: {LAN[name]}, cross: {CROSS[name]}}}}}" for name in NODES)
        return f"""# Made by `hasnmp demo`.
cluster: demo
nodes:{links}
heartbeat:
  port: {self.ports.heartbeat}
  interval_ms: 100
  late_after_ms: 300
  dead_after_ms: {DEAD_AFTER_MS}
  startup_wait_ms: 3000
  key_files: ["{self.folder}/heartbeat.key"]
arbiter: {{type: disk, device: "{self.folder}/lease.img", lease_ms: 2000, io_timeout_ms: 500}}
groups:{groups}
recovery: manual
snmp:
  listen: ["{self.agent(node)}"]
  users:
    - {{name: operator, auth: sha256, auth_file: "{self.folder}/operator.auth", priv: aes128,
       priv_file: "{self.folder}/operator.priv", access: operate}}
  communities:
    - {{name_file: "{self.folder}/community", access: read, from: [127.0.0.0/8]}}
  notify:
    - {{to: "{RECEIVER}:{self.ports.trap}", version: 2c, community_file: "{self.folder}/community", type: trap}}
  throttle: {{same_within_ms: 0}}
state_dir: "{self.folder}/{node}"
run_dir: "{self.folder}/{node}"
log: {{format: json}}
"""

    # ------------------------------------------------------------------------------------------------------ the nodes

    def start(self, node: str) -> None:
        """Start the node's daemon, in a session of its own: Ctrl-C at the terminal is not for it."""
        with self.log(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [sys.executable, "-m", "hasnmp.runtime.daemon", "--config", str(self.config(node)), "--node", node],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, MARK: self._mark(node)},
            )  # fmt: skip

    def ended(self, node: str) -> int | None:
        """The exit status of the node's daemon; None while it runs."""
        return self._processes[node].poll()

    def _mark(self, node: str) -> str:
        return f"{self.folder}/{node}"

    def pids(self, node: str) -> list[int]:
        """Every process of the node that lives: daemon, agents and services."""
        wanted = f"{MARK}={self._mark(node)}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    environment = Path("/proc", name, "environ").read_bytes()
                except OSError:
                    continue  # ended, or another user's
                if wanted in environment.split(b"\0"):
                    found.append(int(name))
        return found

    def kill(self, node: str) -> int:
        """Like a power cut: SIGKILL to every process of the node, services too. Returns how many there were."""
        killed: set[int] = set()
        deadline = time.monotonic() + 5
        while (pids := self.pids(node)) and time.monotonic() < deadline:
            # Stopped first, all of them, so that none sees another one's end and tidies up.
            for how in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    try:
                        os.kill(pid, how)
                    except ProcessLookupError:
                        continue
            killed.update(pids)
            time.sleep(0.002)
        if node in self._processes:
            self._processes[node].wait()
        return len(killed)

    def stop(self) -> dict[str, int | None]:
        """End both daemons in order, together, so that neither waits to hand its groups to the other.

        Returns their exit statuses; None: it did not end in time (and is killed at the end of the stage).
        """
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
        return {node: process.poll() for node, process in self._processes.items()}
