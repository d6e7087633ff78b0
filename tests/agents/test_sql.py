"""The check `sql`: a real checker process, real databases and servers that are none."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp import settings
from hasnmp.agents import sql
from hasnmp.config import parse
from hasnmp.core.events import Action, Outcome
from hasnmp.errors import ConfigError
from hasnmp.runtime import messages
from tests.agents.bench import Bench, service
from tests.ticks import Ticks

BASE = (Path(__file__).parents[1] / "config" / "base.yaml").read_text()
SLEEP = ("sleep", "60")


def asked(url: str, query: str = "select 1", timeout_ms: int = 5000, **more: str | bytes) -> settings.Service:
    check = settings.Check("sql", url=url, query=query, timeout_ms=timeout_ms, **more)  # type: ignore[arg-type]
    return service("db", check=check, command=SLEEP)


def verdict(url: str, query: str = "select 1", timeout_ms: int = 5000, **more: str | bytes) -> tuple[Outcome, str]:
    """What one question comes to; nothing of the checker is left."""
    told = asked(url, query, timeout_ms, **more)

    async def whole() -> tuple[Outcome, str]:
        bench = Bench(told)
        checker = sql.SqlChecker(told, bench.host)
        try:
            return await checker.ask(timeout_ms)
        finally:
            program = checker._program
            await checker.close()
            assert program is None or not program.alive
            await bench.close()

    return asyncio.run(whole())


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "ledger") as made:
        made.execute("create table account (name text, open text)")
        made.execute("insert into account values ('10%', '9:30:00'), (':name', 'never')")
    made.close()
    return f"sqlite:///{tmp_path}/ledger"


@pytest.mark.parametrize(
    ("query", "expect", "outcome", "text"),
    [
        ("select count(*) from account", "", Outcome.OK, "answers the query"),
        ("select count(*) from account", "2", Outcome.OK, "answered as expected"),
        ("select count(*) from account", "1", Outcome.FAILED, "expected '1', got '2'"),
        # What SQLAlchemy or a driver takes for parameters elsewhere are characters here.
        ("select name from account where open = '9:30:00' and name like '%:%' or name = '10%'", "10%", Outcome.OK, "expected"),
        ("select name from account where open = 'today'", "x", Outcome.FAILED, "expected 'x', got no row"),
        ("select * from acount", "", Outcome.FAILED, "no such table: acount"),
        ("insert into account values ('new', '')", "", Outcome.OK, "answers the query"),
    ],
)  # fmt: skip
def test_what_a_database_says(ledger: str, query: str, expect: str, outcome: Outcome, text: str) -> None:
    found, message = verdict(ledger, query, expect=expect)
    assert found is outcome and text in message and message.startswith(f"{ledger}: "), message


def test_a_statement_is_committed(ledger: str) -> None:
    verdict(ledger, "update account set open = 'now'")
    assert verdict(ledger, "select count(*) from account where open = 'now'", expect="2")[0] is Outcome.OK


def test_a_driver_that_is_not_there_is_missing_and_named() -> None:
    outcome, message = verdict("mysql+mysqldb://ha@127.0.0.1/bank")
    assert outcome is Outcome.MISSING and "MySQLdb" in message
    outcome, message = verdict("nonesuch://ha@127.0.0.1/bank")
    assert outcome is Outcome.MISSING and "nonesuch" in message


class Pretender:
    """Listens as PostgreSQL does; what it does with a connection is `serve`'s."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql+psycopg://ha@127.0.0.1:{self.listener.getsockname()[1]}/bank?sslmode=disable&gssencmode=disable"
        self.heard = b""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            self.serve(line)

    def serve(self, line: socket.socket) -> None:
        """Silent: it accepts, and that is all."""
        self.line = line


@pytest.fixture
def pretender() -> Iterator[Pretender]:
    made = Pretender()
    yield made
    made.listener.close()


def test_a_server_that_hangs_costs_its_time_limit_and_no_more(pretender: Pretender) -> None:
    async def whole() -> None:
        told = asked(pretender.url, timeout_ms=1000)
        bench = Bench(told)
        checker = sql.SqlChecker(told, bench.host)
        try:
            checker.begin()
            await bench.until(lambda: checker._loading is not None and checker._loading.done())
            first = checker._program
            with Ticks() as ticks:
                outcome, message = await checker.ask(1000)
                assert ticks.at_most(2000)
            assert outcome is Outcome.TIMED_OUT and message.endswith("no answer to 'select 1' within 950 ms")
            assert first is not None
            await bench.until(lambda: not first.alive)  # it hung: nothing but its end ends it
            await bench.until(lambda: checker._loading is not None and checker._loading.done())
            assert checker._program is not None and checker._program.alive, "the next one is loaded before it is asked"
        finally:
            await checker.close()
            await bench.close()

    asyncio.run(whole())


def test_the_password_goes_to_the_server_and_into_no_message(pretender: Pretender) -> None:
    def serve(line: socket.socket) -> None:
        """Ask for the password in clear text, and put it into the error (PostgreSQL 15, 55.7)."""
        size = struct.unpack("!i", line.recv(4))[0]
        line.recv(size - 4)
        line.sendall(b"R" + struct.pack("!ii", 8, 3))
        pretender.heard = line.recv(1000)
        fields = b"SFATAL\0C28P01\0Mit was " + pretender.heard[5:-1] + b"\0\0"
        line.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)
        line.close()

    pretender.serve = serve  # type: ignore[method-assign]
    outcome, message = verdict(pretender.url, password=b"s3cret-w\xc3\xb6rd")
    assert pretender.heard[5:-1] == b"s3cret-w\xc3\xb6rd"
    assert outcome is Outcome.FAILED and "it was ..." in message and "s3cret" not in message


def test_nobody_else_can_pretend_to_be_the_checker(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"known-{os.getpid()}"
    monkeypatch.setattr(sql.secrets, "token_hex", lambda size: name)

    async def whole() -> None:
        told = asked(ledger, "select 7", expect="7")
        bench = Bench(told)
        checker = sql.SqlChecker(told, bench.host)
        with socket.socket(socket.AF_UNIX) as stranger:
            try:
                checker.begin()
                await bench.until(lambda: not stranger.connect_ex(f"\0hasnmp-sql-{name}"))
                stranger.sendall(b'{"ok": false, "text": "forged"}\n')
                outcome, message = await checker.ask(5000)
                assert outcome is Outcome.OK, message
            finally:
                await checker.close()
                await bench.close()

    asyncio.run(whole())


def test_a_checker_that_dies_is_a_failed_check_and_the_next_one_answers(ledger: str) -> None:
    async def whole() -> None:
        told = asked(ledger)
        bench = Bench(told)
        checker = sql.SqlChecker(told, bench.host)
        try:
            assert (await checker.ask(5000))[0] is Outcome.OK
            assert checker._program is not None
            program = checker._program
            os.kill(program.pid, signal.SIGKILL)
            await bench.until(lambda: not program.alive)
            outcome, message = await checker.ask(5000)
            assert outcome is Outcome.FAILED and "signal 9" in message, message
            assert (await checker.ask(5000))[0] is Outcome.OK
        finally:
            await checker.close()
            await bench.close()

    asyncio.run(whole())


def test_the_checker_ends_when_its_engine_is_gone(ledger: str) -> None:
    """Even where no guardian is left to end it."""

    async def whole() -> None:
        told = asked(ledger)
        bench = Bench(told)
        checker = sql.SqlChecker(told, bench.host)
        try:
            assert (await checker.ask(5000))[0] is Outcome.OK
            assert checker._loading is not None and checker._program is not None
            program = checker._program
            checker._loading.result().close()  # as the kernel does at the engine's end
            await bench.until(lambda: not program.alive)
            assert program.exited.result().code == 0
        finally:
            await bench.close()

    asyncio.run(whole())


def test_a_service_is_up_when_its_database_answers_and_its_stop_ends_the_checker(tmp_path: Path) -> None:
    """The start waits for the table, which comes later; the same checker then serves every check."""
    url = f"sqlite:///{tmp_path}/late"

    async def whole() -> None:
        bench = Bench(asked(url, "select count(*) from account"))
        try:
            starting = asyncio.create_task(bench.act("db", Action.START, 10_000))
            await bench.until(lambda: (tmp_path / "late").exists(), 10)
            with sqlite3.connect(tmp_path / "late") as made:
                made.execute("create table account (name text)")
            made.close()
            assert (await starting).outcome is Outcome.OK
            checkers = [pid for pid in bench.alive() if pid != starting.result().pid]
            assert len(checkers) == 1
            for _ in range(3):
                assert (await bench.act("db", Action.CHECK, 5000)).outcome is Outcome.OK
            assert [pid for pid in bench.alive() if pid != starting.result().pid] == checkers
            assert (await bench.act("db", Action.STOP, 5000)).outcome is Outcome.OK
            assert bench.alive() == []
        finally:
            await bench.close()

    asyncio.run(whole())


def test_a_start_that_fails_is_stopped_and_leaves_no_checker(ledger: str) -> None:
    async def whole() -> None:
        bench = Bench(asked(ledger, "select * from nowhere", 400))
        try:
            for limit_ms in (
                1500,
                6000,
                24_000,
            ):  # a busy machine may need more than the first to load what it asks with
                started = await bench.act("db", Action.START, limit_ms)
                assert started.outcome is Outcome.TIMED_OUT
                if "no such table: nowhere" in started.message:
                    break
            assert "no such table: nowhere" in started.message
            assert (await bench.act("db", Action.STOP, 5000)).outcome is Outcome.OK
            assert bench.alive() == []
        finally:
            await bench.close()

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://ha@192.0.2.1/bank", ""),
        ("sqlite:////srv/bank", ""),
        ("mysql://ha@192.0.2.1/bank", "needs the driver MySQLdb, which is not installed; run: PIP install mysqlclient"),
        ("sybase+pyodbc://ha@bank", "needs the dialect sybase+pyodbc, which is not installed; run: PIP install sqlalchemy-sybase"),
        ("informix://ha@192.0.2.1/bank", "run: PIP install IfxAlchemy"),
        ("nonesuch://ha@192.0.2.1/bank", "names nonesuch, which no installed package brings; SQLAlchemy itself has postgresql, "),
    ],
)  # fmt: skip
def test_what_a_url_needs_is_looked_for(tmp_path: Path, url: str, says: str) -> None:
    file = tmp_path / "hasnmp.yaml"
    for name in ("heartbeat.key", "noc.auth", "noc.priv", "community"):
        (tmp_path / name).write_text("x" * 40)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "word").write_text("open sesame\n")
    (tmp_path / "word").chmod(0o600)
    check = f'type: sql, query: select 1, password_file: word, url: "{url}"'
    text = BASE.replace("type: tcp, host: 127.0.0.1, port: 80", check)
    if says:
        with pytest.raises(ConfigError) as caught:
            parse(text, str(file), str(tmp_path), strict_files=True)
        [fault] = caught.value.faults
        assert (
            says.replace("PIP", f"{sys.executable} -m pip") in fault.text
            and fault.key == "groups.web.services.www.check.url"
        )
    else:
        config = parse(text, str(file), str(tmp_path), strict_files=True)
        [www] = [s for s in config.services() if s.name == "www"]
        assert www.check.password == b"open sesame" and www.check.url == url and "sesame" not in repr(www)


def test_a_checker_that_loads_slowly_is_waited_for(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is starting everything at once: the time limit of a check is no limit for what it is asked by."""
    slow = ("sh", "-c", f"sleep 2; exec {' '.join(sql.CHECKER)}")
    monkeypatch.setattr(sql, "CHECKER", slow)

    async def whole() -> None:
        bench = Bench(asked(ledger, timeout_ms=1500))
        try:
            assert (await bench.act("db", Action.START, 30_000)).outcome is Outcome.OK
            assert (
                len([m for m in bench.sent if isinstance(m, messages.Run) and m.purpose is messages.Purpose.CHECK]) == 1
            )
        finally:
            await bench.close()

    asyncio.run(whole())
