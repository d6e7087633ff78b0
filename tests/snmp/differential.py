"""One generated request after another to our responder and to Debian's snmpd over the same rows, and to a plain reading of
the RFCs: python -m tests.snmp.differential [--seed N] [--requests N]

The reading (`Oracle`) is what our answer must be, always. Where snmpd's is another one, KNOWN must have the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasnmp.model import View
from hasnmp.settings import Community, Snmp, SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.access import Communities
from hasnmp.snmp.cells import Store
from hasnmp.snmp.objects import Column, Index, Reader, Scalar, Syntax, TableDef
from hasnmp.snmp.pdus import Requests
from hasnmp.snmp.responder import Responder
from hasnmp.snmp.setting import Done, SetRequest
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import AUTH as AUTH_LEVEL
from hasnmp.snmp.usm import PRIV as PRIV_LEVEL
from hasnmp.snmp.usm import Engine, Incoming
from tests.snmp.snmp_lab import (
    AUTH,
    BULK,
    ENVIRONMENT,
    GET,
    NEXT,
    PRIV,
    SET,
    Answer,
    a_pdu,
    binding,
    free_port,
    wait_for,
)  # fmt: skip

Name = tuple[int, ...]

ROOT = (1, 3, 6, 1, 4, 1, 99999, 1)
WORD = b"touch"
USERS = (
    SnmpUser("noc", "sha256", "aes128", "operate", AUTH.encode(), PRIV.encode()),
    SnmpUser("plain", "sha", "", "operate", AUTH.encode()),
)
SYNTAXES = {
    "integer": Syntax.INTEGER32, "string": Syntax.OCTETS, "gauge": Syntax.UNSIGNED32, "counter": Syntax.COUNTER32,
    "timeticks": Syntax.TIMETICKS, "objectid": Syntax.OID, "ipaddress": Syntax.IPADDRESS, "counter64": Syntax.COUNTER64,
}  # fmt: skip
KEYS = [(1,), (2,), (127,), (128,), (300,), (16383,), (16384,), (70000,), (2**31,), (2**32 - 1,)]

# (OID, type, value, what may be written). Two scalars, a table of four columns, one of which has holes, more scalars.
ROWS: list[tuple[Name, str, Any, Any]] = [
    ((*ROOT, 1, 1, 0), "integer", -129, None),
    ((*ROOT, 1, 2, 0), "string", "text", {"size": 8}),
    ((*ROOT, 1, 3, 0), "integer", 2, {"choices": [1, 2, 3]}),
    *(((*ROOT, 2, 1, 2, *key), "gauge", key[0], None) for key in KEYS),
    *(((*ROOT, 2, 1, 3, *key), "string", f"row {key[0]}", None) for key in KEYS if key[0] != 300),
    *(((*ROOT, 2, 1, 4, *key), "counter64", key[0] * 2**31, None) for key in KEYS),
    *(((*ROOT, 2, 1, 5, *key), "counter", key[0], None) for key in KEYS),
    ((*ROOT, 3, 1, 0), "timeticks", 2**32 - 1, None),
    ((*ROOT, 3, 2, 0), "objectid", (1, 3, 6, 1, 2**32 - 1), None),
    ((*ROOT, 3, 3, 0), "ipaddress", "192.0.2.1", None),
    ((*ROOT, 3, 4, 0), "counter64", 2**40, None),
]  # fmt: skip


def encoded(kind: str, value: Any) -> bytes:
    if kind == "string":
        value = value.encode()
    elif kind == "ipaddress":
        value = bytes(map(int, value.split(".")))
    return ber.encode_value(int(SYNTAXES[kind]), value)


VALUES = {oid: encoded(kind, value) for oid, kind, value, _ in ROWS}
OBJECTS = sorted({oid[:-1] for oid in VALUES})


@dataclass(frozen=True)
class Request:
    version: int
    tag: int
    bindings: tuple[tuple[Name, bytes], ...]
    first: int = 0
    second: int = 0
    level: int = PRIV_LEVEL

    def pdu(self, number: int) -> bytes:
        return a_pdu(self.tag, [binding(name, value) for name, value in self.bindings], self.first, self.second, number)


@dataclass(frozen=True)
class Reply:
    """None in place of one: no answer."""

    status: int
    index: int
    bindings: tuple[tuple[Name, bytes], ...]


# ------------------------------------------------------------------------------------------------------- the reading


class Oracle:
    """RFC 3416 section 4.2 and RFC 3584 sections 4.2.2.1 and 4.4, slowly, over a sorted list."""

    V1 = {7: 3, 8: 3, 9: 3, 10: 3, 12: 3, 6: 2, 11: 2, 16: 2, 17: 2, 18: 2, 13: 5, 14: 5, 15: 5}

    def __init__(self) -> None:
        self.names = sorted(VALUES)
        self.narrow = [name for name in self.names if VALUES[name][0] != ber.COUNTER64]
        self.writable = {oid: writable for oid, _, _, writable in ROWS if writable}
        self.columns = {(*ROOT, 2, 1, number) for number in (2, 3, 4, 5)} | {
            name[:-1] for name in self.names if name[-1] == 0
        }

    def answer(self, request: Request) -> Reply:
        if request.tag == SET:
            return self.set(request)
        if request.tag == BULK:
            return Reply(0, 0, tuple(self.bulk(request)))
        out = []
        for index, (name, _) in enumerate(request.bindings, 1):
            found = self.get(name) if request.tag == GET else self.next(name, request.version)
            if request.version == 0 and (found[1][0] in (0x80, 0x81, 0x82) or found[1][0] == ber.COUNTER64):
                return Reply(2, index, request.bindings)
            out.append(found)
        return Reply(0, 0, tuple(out))

    def get(self, name: Name) -> tuple[Name, bytes]:
        if name in VALUES:
            return name, VALUES[name]
        known = any(name[: len(column)] == column for column in self.columns)
        return name, b"\x81\0" if known else b"\x80\0"

    def next(self, name: Name, version: int) -> tuple[Name, bytes]:
        names = self.names if version else self.narrow
        at = bisect_right(names, name)
        return (names[at], VALUES[names[at]]) if at < len(names) else (name, b"\x82\0")

    def bulk(self, request: Request) -> Iterator[tuple[Name, bytes]]:
        names = [name for name, _ in request.bindings]
        once = min(max(request.first, 0), len(names))
        for name in names[:once]:
            yield self.next(name, 1)
        names = names[once:]
        for _ in range(max(request.second, 0) if names else 0):
            row = [self.next(name, 1) for name in names]
            yield from row
            names = [name for name, _ in row]
            if all(value == b"\x82\0" for _, value in row):
                return  # the rest of the repetitions may be left out

    def set(self, request: Request) -> Reply:
        for index, (name, value) in enumerate(request.bindings, 1):
            status = self.may(name, value)
            if status:
                return Reply(self.V1[status] if request.version == 0 else status, index, request.bindings)
        names = [name for name, _ in request.bindings]
        for index, name in enumerate(names, 1):
            if name in names[: index - 1]:  # said of nothing in the RFC: a variable can't become two things at once
                return Reply(3 if request.version == 0 else 12, index, request.bindings)
        return Reply(0, 0, request.bindings)

    def may(self, name: Name, value: bytes) -> int:
        if name[:4] != (1, 3, 6, 1):
            return 6  # outside of every view that a requester is given
        column = next((oid[:-1] for oid in self.writable if name[: len(oid) - 1] == oid[:-1]), None)
        if column is None:
            return 17
        limits = self.writable[(*column, 0)]
        if value[0] != (ber.OCTETS if "size" in limits else ber.INTEGER):
            return 7
        if "size" in limits and len(value) - 2 > limits["size"]:
            return 8
        if "choices" in limits and int.from_bytes(value[2:], "big", signed=True) not in limits["choices"]:
            return 10
        return 0 if name == (*column, 0) else 11


# ------------------------------------------------------------------------------------------------------------- ours


class Ours:
    def __init__(self) -> None:
        kinds = {oid: (kind, value, writable) for oid, kind, value, writable in ROWS}

        def value(oid: Name) -> Any:
            kind, found, _ = kinds[oid]
            if kind == "string":
                return found.encode()
            return bytes(map(int, found.split("."))) if kind == "ipaddress" else found

        def scalar(oid: Name) -> Scalar:
            kind, _, writable = kinds[oid]
            limits = writable or {}
            return Scalar(
                ".".join(map(str, oid)), oid[:-1], SYNTAXES[kind], "read-write" if writable else "read-only",
                lambda _: value(oid), (), allowed=tuple(limits.get("choices", ())), size=limits.get("size", 0),
            )  # fmt: skip

        def column(number: int) -> Column:
            kind = next(kind for oid, kind, _, _ in ROWS if oid[: len(ROOT) + 3] == (*ROOT, 2, 1, number))
            return Column(
                f"column{number}", number, SYNTAXES[kind], "read-only",
                lambda _, key: value((*ROOT, 2, 1, number, *key)) if (*ROOT, 2, 1, number, *key) in kinds else None,
            )  # fmt: skip

        table = TableDef(
            "rows", (*ROOT, 2, 1), (Index("index", 1, Syntax.UNSIGNED32),), lambda _: [(key, key) for key in KEYS],
            tuple(column(number) for number in (2, 3, 4, 5)), (),
        )  # fmt: skip
        store = self.store = Store(
            [scalar(oid) for oid in kinds if oid[-1] == 0], (table,), lambda: Reader(View(), 0, 1)
        )
        settings = Snmp(users=USERS, communities=(Community("operate", (), WORD),), allow_insecure_set=True)
        self.counters = Counters()
        self.engine = Engine(b"\x80\0~\xd9\5different", 1, lambda: 100, USERS, self.counters)
        self.failures: list[Exception] = []
        self.responder = Responder(
            store, Requests(store, self.failures.append), Communities(settings), self.engine, self.counters, self.set,
            lambda: 0.0, lambda _: None,
        )  # fmt: skip

    @staticmethod
    def set(request: SetRequest, done: Done) -> None:
        """What the agent's own SET desk does with a variable that stands twice."""
        names = [(a.target.name, a.index) for a in request.assignments]
        twice = next((at for at, name in enumerate(names, 1) if name in names[: at - 1]), 0)
        done(12 if twice else 0, twice)

    def raw(self, message: bytes) -> bytes | None:
        answers: list[bytes] = []
        self.responder.handle(message, "127.0.0.1", answers.append)
        assert len(answers) <= 1
        return answers[0] if answers else None


# ------------------------------------------------------------------------------------------------------------ snmpd


class Snmpd:
    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(("127.0.0.1", port))
        self.engine: Engine | None = None

    def raw(self, message: bytes, seconds: float = 2.0) -> bytes | None:
        self.socket.settimeout(seconds)
        self.socket.send(message)
        try:
            return self.socket.recv(65535)
        except OSError:
            return None

    def discover(self) -> None:
        probe = ber.encode(0x30, b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\3\0\xff\xe3\4\1\4\2\1\3")
                           + ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
                           + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))  # fmt: skip
        while self.raw(b"\0", 0.2):
            pass  # answers that came late
        said = self.raw(probe)
        assert said is not None
        start, end = ber.expect(said, 0, len(said), 0x30)
        start, end = ber.expect(said, ber.expect(said, start + 3, end, 0x30)[1], end, 4)
        start, end = ber.expect(said, start, end, 0x30)
        engine_id, start = ber.octets(said, start, end)
        boots, start = ber.integer(said, start, end)
        seconds, start = ber.integer(said, start, end)
        self.engine = Engine(engine_id, boots, lambda: seconds, USERS, Counters())


@contextlib.contextmanager
def snmpd(folder: Path) -> Iterator[Snmpd]:
    """Debian's snmpd, which shows the rows and nothing else."""
    port = free_port()
    rows = folder / "rows.json"
    rows.write_text(json.dumps([[oid, kind, shown(kind, value), writable] for oid, kind, value, writable in ROWS]))
    script = Path(__file__).with_name("pass_rows.py")
    root = ".".join(map(str, ROOT))
    users = "".join(f"rwuser {user.name} {'priv' if user.priv else 'auth'} -V rows\n" for user in USERS)
    created = "".join(
        f"createUser {user.name} {'SHA-256' if user.auth == 'sha256' else 'SHA'} {AUTH}"
        f"{f' AES {PRIV}' if user.priv else ''}\n"
        for user in USERS
    )
    settings = folder / "snmpd.conf"
    settings.write_text(
        f"agentaddress udp:127.0.0.1:{port}\nview rows included .{root}\nrwcommunity {WORD.decode()} default -V rows\n"
        f"{users}{created}pass_persist .{root} {sys.executable} -S {script} {rows}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["snmpd", "-f", "-Lo", "-I", "-smux,mteTrigger,mteTriggerConf", "-C", "-c", str(settings)],
            stdout=log, stderr=log, env={**ENVIRONMENT, "SNMP_PERSISTENT_DIR": str(folder)},
        )  # fmt: skip
        other = Snmpd(port)
        try:
            first = ber.encode(0x30, b"\2\1\1" + ber.encode(4, WORD) + a_pdu(NEXT, [binding((1, 3))]))
            wait_for(lambda: other.raw(first, 0.2))
            other.discover()
            yield other
        finally:
            process.terminate()
            process.wait(10)


def shown(kind: str, value: Any) -> Any:
    return "." + ".".join(map(str, value)) if kind == "objectid" else value


# ------------------------------------------------------------------------------------------------------ the requests


def a_name(dice: random.Random) -> Name:
    name = dice.choice(list(VALUES)) if dice.random() < 0.7 else dice.choice(OBJECTS)
    match dice.randrange(8):
        case 0:
            return name[: dice.randrange(2, len(name) + 1)]
        case 1:
            return (*name, dice.choice((0, 1, 300, 2**32 - 1)))
        case 2:
            return (*name[:-1], max(name[-1] + dice.choice((-1, 1)), 0) & 0xFFFFFFFF)
        case 3:
            return dice.choice(((0, 0), (1, 3), (2, 999), (*ROOT,), (*ROOT[:-1], 2), (*ROOT, 2, 1, 9), (*ROOT, 9)))
        case _:
            return name


A_VALUE = (
    b"\2\1\1", b"\2\1\2", b"\2\1\x09", b"\2\1\xff", b"\4\2hi", b"\4\x0elonger than 8!", b"\4\0", b"\x42\1\1",
    b"\x41\1\1", b"\x43\1\1", b"\x40\4\xc0\0\2\1", b"\6\1\x2b",
)  # fmt: skip


def a_request(dice: random.Random) -> Request:
    version = dice.choice((0, 1, 1, 3))
    level = dice.choice((AUTH_LEVEL, PRIV_LEVEL))
    tag = dice.choice((GET, NEXT, SET, BULK) if version else (GET, NEXT, SET))
    count = dice.choice((1, 1, 2, 3, 8, 20)) if tag != SET else dice.choice((1, 1, 2, 3))
    if tag == SET:
        names = [
            dice.choice(((*ROOT, 1, 2, 0), (*ROOT, 1, 3, 0))) if dice.random() < 0.8 else a_name(dice)
            for _ in range(count)
        ]
        good = {(*ROOT, 1, 2, 0): b"\4\2hi", (*ROOT, 1, 3, 0): b"\2\1\3"}
        bindings = tuple(
            (name, good.get(name, b"\4\2hi") if dice.random() < 0.6 else dice.choice(A_VALUE)) for name in names
        )
        return Request(version, tag, bindings, level=level)
    value = dice.choice((b"\5\0", b"\5\0", b"\5\0", b"\2\1\7", b"\4\3abc"))
    bindings = tuple((a_name(dice), value) for _ in range(count))
    if tag == BULK:
        return Request(
            version, tag, bindings, dice.choice((-1, 0, 0, 1, 2, 30)), dice.choice((-1, 0, 1, 2, 5, 12)), level
        )
    return Request(version, tag, bindings, level=level)


def message(request: Request, number: int, engine: Engine) -> bytes:
    pdu = request.pdu(number)
    if request.version < 3:
        return ber.encode(0x30, ber.encode_integer(request.version) + ber.encode(4, WORD) + pdu)
    user = engine.users[b"noc" if request.level == PRIV_LEVEL else b"plain"]
    return engine.send(Incoming(number, 65507, True, request.level, user), pdu, request.level)


def reply(octets: bytes | None, request: Request, number: int, engine: Engine) -> Reply | None:
    if octets is None:
        return None
    if request.version < 3:
        answer = Answer(octets)
    else:
        start, end = ber.expect(octets, 0, len(octets), 0x30)
        came = engine.receive(octets, start + 3, end)
        assert came is not None and came.msg_id == number
        start = ber.octets(came.data, came.start, came.stop)[1]
        answer = Answer.of_pdu(came.data, ber.octets(came.data, start, came.stop)[1], came.stop)
    assert (answer.tag, answer.request_id) == (0xA2, number), answer.tag
    pairs = zip(answer.names, answer.raw, strict=True)
    return Reply(answer.status, answer.index, tuple(pairs))


_END = b"\x82\0"
_ORACLE = Oracle()


def _no_objects(request: Request, right: Reply, said: Reply) -> bool:
    return request.tag == GET and len(right.bindings) == len(said.bindings) and all(
        one == other or (one[0] == other[0] and (one[1], other[1]) == (b"\x80\0", b"\x81\0"))
        for one, other in zip(right.bindings, said.bindings, strict=True)
    )  # fmt: skip


def _another_name(request: Request, right: Reply, said: Reply) -> bool:
    if request.version or request.tag == SET or (right.status, said.status) != (2, 2):
        return False
    blamed = request.bindings[said.index - 1][0]
    found = _ORACLE.get(blamed)[1] if request.tag == GET else _ORACLE.next(blamed, 0)[1]
    return found[0] in (0x80, 0x81, 0x82, ber.COUNTER64) and right.bindings == said.bindings


def _another_fault(request: Request, right: Reply, said: Reply) -> bool:
    if request.tag != SET or not right.status or not said.status or right.bindings != said.bindings:
        return False
    fault = _ORACLE.may(*request.bindings[said.index - 1])
    # It has no rows that could be made, and by its view no access outside of the subtree.
    open_to_it = {fault, 17 if fault in (7, 8, 10, 11) else fault, 6 if fault == 17 else fault}
    return fault != 0 and said.status in ({Oracle.V1[one] for one in open_to_it} if not request.version else open_to_it)


def _twice(request: Request, right: Reply, said: Reply) -> bool:
    names = [name for name, _ in request.bindings]
    return request.tag == SET and said == Reply(0, 0, request.bindings) and len(set(names)) < len(names)


def _bulk_names(request: Request, right: Reply, said: Reply) -> bool:
    return request.tag == BULK and all(
        one == other or (one[1], other[1]) == (_END, _END)
        for one, other in zip(right.bindings, said.bindings, strict=False)
    )


def _bulk_end(request: Request, right: Reply, said: Reply) -> bool:
    once = min(max(request.first, 0), len(request.bindings))
    width = len(request.bindings) - once
    size = len(said.bindings)
    whole = size < len(right.bindings) and width > 0 and (size - once) % width == 0
    return _bulk_names(request, right, said) and whole and any(value == _END for _, value in said.bindings[-width:])


def _bulk_cut(request: Request, right: Reply, said: Reply) -> bool:
    once = min(max(request.first, 0), len(request.bindings))
    width, size = len(request.bindings) - once, len(said.bindings)
    most = size == 100 or (width > 0 and (size - once) % width == 0 and size <= 100 < size + width)
    return _bulk_names(request, right, said) and most and size < len(right.bindings)


def _bulk_name(request: Request, right: Reply, said: Reply) -> bool:
    return _bulk_names(request, right, said) and len(said.bindings) == len(right.bindings)


# Why snmpd answers otherwise, each with what the RFC says.
KNOWN: dict[str, Callable[[Request, Reply, Reply], bool]] = {
    "noSuchInstance for noSuchObject: to its pass_persist the whole subtree is one object (RFC 3416 4.2.1)": _no_objects,
    "v1: of several names that are not there it blames another; RFC 1157 4.1.2 lets it": _another_name,
    "SET: of several faults it tells another; RFC 3416 4.2.5 orders those of one variable, and pass_persist can't "
    "tell some of them": _another_fault,
    "SET of one variable twice: pass_persist is not told of the other": _twice,
    "GETBULK: at most 100 bindings (its maxGetbulkResponses); RFC 3416 4.2.3 lets it cut anywhere": _bulk_cut,
    "GETBULK: it ends once one variable has ended; RFC 3416 4.2.3 lets it when all have": _bulk_end,
    "GETBULK: endOfMibView under another name than the variable's own last one (RFC 3416 4.2.3)": _bulk_name,
}


def explained(request: Request, ours: Reply, theirs: Reply | None) -> str | None:
    if theirs is None:
        return None
    return next((reason for reason, told in KNOWN.items() if told(request, ours, theirs)), None)


@dataclass
class Findings:
    requests: int
    wrong: list[str]  # ours is not what the RFCs say
    known: Counter[str]
    unexplained: list[str]


def compare(other: Snmpd, seed: int, count: int) -> Findings:
    dice = random.Random(seed)
    ours, oracle = Ours(), Oracle()
    assert other.engine is not None
    found = Findings(count, [], Counter(), [])
    for number in range(1, count + 1):
        request = a_request(dice)
        wanted = oracle.answer(request)
        mine = reply(ours.raw(message(request, number, ours.engine)), request, number, ours.engine)
        if mine != wanted:
            found.wrong.append(f"{request}\n  RFCs {wanted}\n  ours {mine}")
        said = reply(other.raw(message(request, number, other.engine)), request, number, other.engine)
        if said != wanted:
            reason = explained(request, wanted, said)
            if reason is None:
                found.unexplained.append(f"{request}\n  RFCs {wanted}\n  snmpd {said}")
            else:
                found.known[reason] += 1
    assert not ours.failures, ours.failures
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.snmp.differential")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--requests", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="hasnmp-differential-") as folder, snmpd(Path(folder)) as other:
        found = compare(other, arguments.seed, arguments.requests)
    for line in found.wrong[:20] + found.unexplained[:20]:
        print(line)
    print(
        f"{found.requests} requests; {len(found.wrong)} answered wrong, {len(found.unexplained)} differences unexplained"
    )
    for reason, times in found.known.most_common():
        print(f"  {times} times snmpd differs: {reason}")
    return 1 if found.wrong or found.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
