"""The console's side of the demo: reads and writes by SNMP, and receives the traps.

Net-SNMP's own tools where they are installed: the lines that the demo shows are the lines that it runs. Else pysnmp.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from hasnmp.demo.stage import RECEIVER, Stage
from hasnmp.errors import HasnmpError
from hasnmp.model import Kind
from hasnmp.snmp import ber
from hasnmp.snmp.ha_objects import SCALARS, TABLES
from hasnmp.snmp.notices import NOTICES
from hasnmp.snmp.objects import Oid, text_index
from hasnmp.snmp.oids import ROOT

# What HASNMP-MIB imports from; Debian has these texts only in its erlang-snmp package (with another file name).
BASE_MIBS = ("SNMPv2-SMI", "SNMPv2-TC", "SNMPv2-CONF", "SNMP-FRAMEWORK-MIB", "INET-ADDRESS-MIB")
MIB_FOLDERS = ("/usr/share/snmp/mibs", "/usr/share/mibs/ietf", "/usr/share/snmp/mibs/ietf", "/var/lib/snmp/mibs/ietf",
               "/usr/lib/erlang/lib")  # fmt: skip
TIMEOUT_S = 10
T = TypeVar("T")

OIDS: dict[str, Oid] = {scalar.name: (*scalar.oid, 0) for scalar in SCALARS} | {
    column.name: (*table.entry_oid, column.number) for table in TABLES for column in table.columns
}
NAMES: dict[Oid, str] = {oid: name for name, oid in OIDS.items()}


class ManagerError(HasnmpError):
    """An answer that is none, or an error of the agent; the text is the tool's."""


def instance(name: str, row: str = "") -> Oid:
    """The OID of a scalar, or of a column in the row that a name indexes."""
    return (*OIDS[name], *text_index(row)) if row else OIDS[name]


def dotted(oid: Oid) -> str:
    return ".".join(map(str, oid))


class NetSnmp:
    """snmpget, snmpset and snmpwalk. `setup` is the line that lets a reader run the same in another terminal."""

    name = "Net-SNMP"

    def __init__(self, stage: Stage) -> None:
        folder = stage.folder / "snmp"
        folder.mkdir()
        self.names = _collect_mibs(folder / "mibs")
        auth, priv = stage.operator
        lines = [
            "defVersion 3", "defSecurityName operator", "defSecurityLevel authPriv",
            f"defAuthType SHA-256\ndefAuthPassphrase {auth}", f"defPrivType AES\ndefPrivPassphrase {priv}",
            f"mibdirs {folder / 'mibs'}" if self.names else "", "mibs HASNMP-MIB" if self.names else "mibs :",
        ]  # fmt: skip
        (folder / "snmp.conf").write_text("\n".join(lines) + "\n")
        (folder / "snmp.conf").chmod(0o600)
        self.setup = f"export SNMPCONFPATH={folder}"
        self._environment = {**os.environ, "SNMPCONFPATH": str(folder), "SNMP_PERSISTENT_DIR": str(folder)}

    def _word(self, name: str, row: str) -> str:
        if not self.names:
            return dotted(instance(name, row))
        return f'HASNMP-MIB::{name}."{row}"' if row else f"HASNMP-MIB::{name}.0"

    def get_line(self, agent: str, name: str, row: str = "") -> str:
        return shlex.join(["snmpget", agent, self._word(name, row)])

    def set_line(self, agent: str, name: str, value: int, row: str = "") -> str:
        return shlex.join(["snmpset", agent, self._word(name, row), "i", str(value)])

    def walk_line(self, agent: str) -> str:
        return shlex.join(["snmpwalk", "-v2c", "-c", "public", agent,
                           "HASNMP-MIB::hasnmpMIB" if self.names else dotted(ROOT)])  # fmt: skip

    def get(self, agent: str, name: str, row: str = "") -> str:
        """A value as text; an enumeration as its number. Raises ManagerError."""
        return _value(self._run(self.get_line(agent, name, row)))

    def set(self, agent: str, name: str, value: int, row: str = "") -> None:
        """Raises ManagerError: not accepted."""
        self._run(self.set_line(agent, name, value, row))

    def walk(self, agent: str) -> int:
        """How many objects the agent shows to a reader."""
        lines = self._run(self.walk_line(agent)).splitlines()
        return sum(" = " in line for line in lines)

    def close(self) -> None:
        """Nothing is open."""

    def _run(self, line: str) -> str:
        try:
            ran = subprocess.run(shlex.split(line), env=self._environment, capture_output=True, timeout=TIMEOUT_S,
                                 stdin=subprocess.DEVNULL)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ManagerError(f"{line}: no end within {TIMEOUT_S} s") from None
        text = ran.stdout.decode(errors="replace")
        if ran.returncode or "No Such" in text[:400]:
            raise ManagerError(f"{line}: {(ran.stderr.decode(errors='replace') or text).strip()}")
        return text


def _value(text: str) -> str:
    """'HASNMP-MIB::haRole.0 = INTEGER: primary(1)' -> '1'; the text of a string without its quotes."""
    value = text.split(" = ", 1)[-1].strip()
    value = value.split(": ", 1)[-1] if ": " in value else value
    enumeration = re.fullmatch(r"\w+\((\d+)\)", value)
    return enumeration[1] if enumeration else value.strip('"')


def _collect_mibs(folder: Path) -> bool:
    """Put HASNMP-MIB and what it imports into a folder under the names that Net-SNMP looks for. False: some are missing."""
    folder.mkdir()
    for place in MIB_FOLDERS:
        for name in BASE_MIBS:
            if not (folder / f"{name}.txt").exists():
                for file in [p for pattern in (name, f"{name}.txt", f"{name}.mib", f"snmp-*/mibs/{name}.mib")
                             for p in Path(place).glob(pattern)][:1]:  # fmt: skip
                    (folder / f"{name}.txt").symlink_to(file)
    package = Path(__file__).parent.parent
    own = next(
        (p for p in (package.parent / "mibs/HASNMP-MIB.txt", package / "mibs/HASNMP-MIB.txt") if p.exists()), None
    )
    if own is None or any(not (folder / f"{name}.txt").exists() for name in BASE_MIBS):
        return False
    (folder / "HASNMP-MIB.txt").symlink_to(own)
    return True


class PySnmp:
    """The same by the pysnmp library, where Net-SNMP is not installed.

    In a thread of its own: Ctrl-C is raised in the main thread, between any two instructions there, and neither asyncio nor
    pysnmp is made for that (a task that is interrupted before its first step can be neither run nor closed).
    """

    name = "pysnmp (Net-SNMP is not installed: apt-get install snmp)"
    setup = ""

    def __init__(self, stage: Stage) -> None:
        from pysnmp.hlapi.v3arch import asyncio as hlapi  # where Net-SNMP is installed nobody waits for this import

        self._hlapi = hlapi
        self._auth, self._priv = stage.operator
        self._user = hlapi.UsmUserData("operator", self._auth, self._priv, authProtocol=hlapi.USM_AUTH_HMAC192_SHA256,
                                       privProtocol=hlapi.USM_PRIV_CFB128_AES)  # fmt: skip
        self._engine = hlapi.SnmpEngine()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def get_line(self, agent: str, name: str, row: str = "") -> str:
        return f"snmpget {self._options()} {agent} {dotted(instance(name, row))}"

    def set_line(self, agent: str, name: str, value: int, row: str = "") -> str:
        return f"snmpset {self._options()} {agent} {dotted(instance(name, row))} i {value}"

    def walk_line(self, agent: str) -> str:
        return f"snmpwalk -v2c -c public {agent} {dotted(ROOT)}"

    def _options(self) -> str:
        return f"-v3 -l authPriv -u operator -a SHA-256 -A {self._auth} -x AES -X {self._priv}"

    def get(self, agent: str, name: str, row: str = "") -> str:
        return self._run(lambda: self._ask(agent, instance(name, row), None))

    def set(self, agent: str, name: str, value: int, row: str = "") -> None:
        self._run(lambda: self._ask(agent, instance(name, row), value))

    def walk(self, agent: str) -> int:
        return self._run(lambda: self._walk(agent))

    def close(self) -> None:
        """End what pysnmp still waits for, also in the middle of a question; else the interpreter's end tells of it on stderr."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._engine.close_dispatcher()
        self._runner.close()  # cancels what is still asked

    def _run(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have it asked by the thread, where the coroutine is made, too: of one that is dropped unbegun stderr would tell."""
        # Not concurrent.futures: a Condition that Ctrl-C interrupts may keep its lock for ever. This queue has none.
        answers: SimpleQueue[asyncio.Task[T]] = SimpleQueue()

        def answered(task: asyncio.Task[T]) -> None:
            if not task.cancelled():  # that only close() does: nobody waits any more
                task.exception()  # looked at here, in case that nobody waits: else asyncio tells of it on stderr
                answers.put(task)

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(ask()).add_done_callback(answered))
        return answers.get().result()

    async def _ask(self, agent: str, oid: Oid, value: int | None) -> str:
        hlapi = self._hlapi
        target = await hlapi.UdpTransportTarget.create(_address(agent), timeout=2, retries=2)
        name = hlapi.ObjectIdentity(dotted(oid))
        if value is None:
            variable = hlapi.ObjectType(name)
            asked = hlapi.get_cmd(self._engine, self._user, target, hlapi.ContextData(), variable)
        else:
            variable = hlapi.ObjectType(name, hlapi.Integer32(value))
            asked = hlapi.set_cmd(self._engine, self._user, target, hlapi.ContextData(), variable)
        trouble, status, _, variables = await asked
        if trouble or status:
            raise ManagerError(f"{agent} {dotted(oid)}: {trouble or status.prettyPrint()}")
        return str(variables[0][1].prettyPrint())

    async def _walk(self, agent: str) -> int:
        hlapi = self._hlapi
        target = await hlapi.UdpTransportTarget.create(_address(agent), timeout=2, retries=2)
        start = hlapi.ObjectType(hlapi.ObjectIdentity(dotted(ROOT)))
        count = 0
        async for trouble, status, _, variables in hlapi.bulk_walk_cmd(
            self._engine, hlapi.CommunityData("public"), target, hlapi.ContextData(), 0, 25, start,
            lexicographicMode=False,
        ):  # fmt: skip
            if trouble or status:
                raise ManagerError(f"{agent}: {trouble or status.prettyPrint()}")
            count += len(variables)
        return count


def _address(agent: str) -> tuple[str, int]:
    host, _, port = agent.rpartition(":")
    return host, int(port)


Manager = NetSnmp | PySnmp


def manager(stage: Stage) -> Manager:
    tools = ("snmpget", "snmpset", "snmpwalk")
    return NetSnmp(stage) if all(shutil.which(tool) for tool in tools) else PySnmp(stage)


# -------------------------------------------------------------------------------------------------------------- traps


@dataclass(frozen=True, slots=True)
class Trap:
    """A notification that came: its kind, and its variables by the names of the MIB."""

    kind: Kind
    variables: dict[str, str]


def decode_trap(data: bytes) -> Trap:
    """An SNMPv2c trap of ours. Raises ber.BerError: anything else. Source: RFC 3416 section 4.2.6, RFC 3584."""
    position, end = ber.expect(data, 0, len(data), 0x30)
    version, position = ber.integer(data, position, end)
    _, position = ber.octets(data, position, end)
    position, end = ber.expect(data, position, end, 0xA7)
    for _ in range(3):  # request-id, error-status, error-index
        _, position = ber.integer(data, position, end)
    position, end = ber.expect(data, position, end, 0x30)
    values: dict[Oid, ber.Value] = {}
    while position < end:
        start, stop = ber.expect(data, position, end, 0x30)
        name_start, name_stop = ber.expect(data, start, stop, 0x06)
        tag, value_start, value_stop = ber.tlv(data, name_stop, stop)
        values[ber.decode_oid(data[name_start:name_stop])] = ber.decode_value(tag, data[value_start:value_stop])
        position = stop
    trap_oid = values.get((1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0))
    kind = next((kind for kind, oid in NOTICES.items() if oid == trap_oid), None)
    if version != 1 or kind is None:
        raise ber.BerError("not an SNMPv2c trap of HASNMP-MIB")
    named = {}
    for oid, value in values.items():
        # A column's instance is the event's number, one sub-identifier; a scalar's name ends in its .0.
        name = NAMES.get(oid) or NAMES.get(oid[:-1])
        if name:
            named[name] = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return Trap(kind, named)


class TrapReceiver:
    """Listens in a thread of its own and hands each trap on."""

    def __init__(self, port: int, take: Callable[[Trap], None]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((RECEIVER, port))
        self._socket.settimeout(0.2)
        self._take = take
        self._ending = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while not self._ending:
            try:
                self._take(decode_trap(self._socket.recv(65535)))
            except (TimeoutError, ber.BerError):
                continue
            except OSError:
                return

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self._socket.close()
