"""Debian's snmpd as the master of the agent process, and a master made of a socket for what no real one would send."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from hasnmp.snmp import agentx_pdu as pdu
from hasnmp.snmp.agentx_pdu import BIG, Header, Kind, Order
from tests.snmp.snmp_lab import ENVIRONMENT, free_port, wait_for

COMMUNITY, WRITER = ["-v2c", "-c", "master-look"], ["-v2c", "-c", "master-touch"]


class Snmpd:
    """A real master on a private socket and a port of 127.0.0.1; it serves its own system group and its subagents' rows."""

    def __init__(self, folder: Path, *lines: str, socket_name: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.socket = socket_name or str(folder / "master")
        self._settings = folder / "snmpd.conf"
        self._settings.write_text(
            "\n".join((
                "master agentx", "rocommunity master-look 127.0.0.1", "rwcommunity master-touch 127.0.0.1",
                "agentXTimeout 3",
                "dontLogTCPWrappersConnects yes", *lines,
            )) + "\n"
        )  # fmt: skip
        self.log = folder / "snmpd.log"
        (folder / "snmpd").mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                ["snmpd", "-f", "-Lo", "-C", "-c", str(self._settings), "-x", self.socket, "-I", "-smux",
                 f"udp:127.0.0.1:{self.port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**ENVIRONMENT, "SNMP_PERSISTENT_DIR": str(self.folder / "snmpd")},
            )  # fmt: skip
        wait_for(lambda: self.run("snmpget", COMMUNITY, "1.3.6.1.2.1.1.3.0").returncode == 0, 20)

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    def run(self, tool: str, auth: list[str], *words: str, seconds: float = 0.7) -> subprocess.CompletedProcess[str]:
        line = [tool, "-r3", f"-t{seconds}", "-On", *auth, f"127.0.0.1:{self.port}", *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)

    def ask(self, tool: str, auth: list[str], *words: str) -> str:
        """As run(), and it must succeed; its output, stripped."""
        result = self.run(tool, auth, *words)
        assert result.returncode == 0, (result.stdout, result.stderr, self.log.read_text())
        return result.stdout.strip()


@contextlib.contextmanager
def snmpd(folder: Path, *lines: str, socket_name: str = "") -> Iterator[Snmpd]:
    master = Snmpd(folder, *lines, socket_name=socket_name)
    try:
        yield master
    finally:
        master.stop()


class FakeMaster:
    """A master that says whatever a test wants said. up: its sysUpTime in TimeTicks."""

    def __init__(self, path: Path, up: int = 0, order: Order = BIG) -> None:
        self.up = up
        self.order = order
        self.session = 77
        self._packet = 1000
        self.seen: list[tuple[Header, bytes]] = []  # what the subagent asked, its Responses left out
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(4)
        self._server.settimeout(10)
        self.client: socket.socket | None = None

    def accept(self, refuse: dict[int, int] | None = None) -> None:
        """Take a connection, answer Open, Register and AddAgentCaps; refuse: by PDU type, with which error."""
        self.client, _ = self._server.accept()
        self.client.settimeout(10)
        for kind in (Kind.OPEN, Kind.REGISTER, Kind.ADD_CAPABILITIES):
            header, _ = self.take()
            assert header.kind == kind
            error = (refuse or {}).get(kind, 0)
            self.answer(header, error)
            if error and kind != Kind.ADD_CAPABILITIES:
                return

    def receive(self) -> tuple[Header, bytes]:
        """The next PDU."""
        assert self.client is not None
        head = self._exactly(pdu.HEADER)
        header = pdu.parse_header(head)
        return header, self._exactly(header.size)

    def take(self) -> tuple[Header, bytes]:
        """The next PDU that is no Response."""
        header, payload = self.receive()
        assert header.kind != Kind.RESPONSE
        self.seen.append((header, payload))
        return header, payload

    def answer(self, header: Header, error: int = 0) -> None:
        assert self.client is not None
        header.session = self.session
        self.client.sendall(pdu.write_response(header, error, 0, up=self.up))

    def ask(
        self, kind: int, payload: bytes = b"", *, flags: int = 0, session: int | None = None, transaction: int = 5,
        order: Order | None = None,
    ) -> int:  # fmt: skip
        """Send a request; its packet number."""
        assert self.client is not None
        self._packet += 1
        order = order or self.order
        self.client.sendall(
            order.header.pack(
                pdu.VERSION, kind, order.flag | flags, 0, self.session if session is None else session, transaction,
                self._packet, len(payload),
            ) + payload
        )  # fmt: skip
        return self._packet

    def get(self, kind: int, payload: bytes = b"", **more: object) -> tuple[int, int, list[pdu.Binding]]:
        """Send a request and take its Response: error, index, variable bindings."""
        packet = self.ask(kind, payload, **more)  # type: ignore[arg-type]
        while True:
            header, body = self.receive()
            if header.kind == Kind.RESPONSE:
                break
            self.seen.append((header, body))
            self.answer(header)
        assert header.packet == packet
        assert header.order is (more.get("order") or self.order)
        _, error, index = pdu.read_response(body, 0, len(body), header.order)
        return error, index, pdu.read_bindings(body, 8, len(body), header.order)

    def raw(self, octets: bytes) -> None:
        assert self.client is not None
        self.client.sendall(octets)

    def drop(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def close(self) -> None:
        self.drop()
        self._server.close()

    def _exactly(self, size: int) -> bytes:
        assert self.client is not None
        data = b""
        while len(data) < size:
            more = self.client.recv(size - len(data))
            if not more:
                raise ConnectionResetError("the subagent closed the connection")
            data += more
        return data


def ranges(*wanted: tuple[tuple[int, ...], tuple[int, ...]], include: bool = False, order: Order = BIG) -> bytes:
    """A SearchRangeList."""
    return b"".join(
        pdu.write_name(pdu.packed(start), order, include) + pdu.write_name(pdu.packed(end), order)
        for start, end in wanted
    )


def bindings(*values: tuple[tuple[int, ...], int, object], order: Order = BIG) -> bytes:
    """A VarBindList."""
    return b"".join(
        pdu.write_binding(pdu.packed(oid), tag, pdu.write_value(tag, value, order), order)  # type: ignore[arg-type]
        for oid, tag, value in values
    )


def bulk(once: int, repetitions: int, searched: bytes, order: Order = BIG) -> bytes:
    return struct.pack(">HH" if order.big else "<HH", once, repetitions) + searched


class OtherSubagent:
    """Another subagent of the same master: it has one object, whose SET passes the test and fails to be committed."""

    OBJECT = (1, 3, 6, 1, 4, 1, 32473, 77, 1, 0)

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self.phases: list[int] = []
        root = pdu.write_name(pdu.packed(self.OBJECT[:-2]), BIG)
        self._say(Kind.OPEN, 0, 1, bytes(4) + root + pdu.write_octets(b"other", BIG))
        self._session = self._take()[0].session
        self._say(Kind.REGISTER, self._session, 2, bytes((0, 127, 0, 0)) + root)
        assert pdu.read_response(self._take()[1], 0, 8, BIG)[1] == 0
        self._socket.settimeout(None)
        threading.Thread(target=self._serve, daemon=True).start()

    def _say(self, kind: int, session: int, packet: int, payload: bytes) -> None:
        self._socket.sendall(pdu.write_pdu(kind, session, 0, packet, payload))

    def _take(self) -> tuple[Header, bytes]:
        head = self._socket.recv(pdu.HEADER, socket.MSG_WAITALL)
        if len(head) < pdu.HEADER:
            raise ConnectionResetError
        header = pdu.parse_header(head)
        return header, self._socket.recv(header.size, socket.MSG_WAITALL) if header.size else b""

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                header, _ = self._take()
                self.phases.append(header.kind)
                if header.kind == Kind.COMMIT_SET:
                    self._socket.sendall(pdu.write_response(header, 14, 1))
                elif header.kind in (Kind.TEST_SET, Kind.UNDO_SET):
                    self._socket.sendall(pdu.write_response(header, 0, 0))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
