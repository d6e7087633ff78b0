"""The checks, against servers that answer well, badly, endlessly, or not at all."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hasnmp import settings
from hasnmp.agents import checks
from hasnmp.agents.checks import Verdict
from hasnmp.core.events import Action, Outcome
from hasnmp.runtime import messages
from tests.agents.bench import Bench, service
from tests.ticks import Ticks

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(data: bytes, *more: bytes) -> Handler:
    """A server that reads something, then says each part with a little pause between, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for part in (data, *more):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    return handle


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536)
        await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def test_a_mere_connection_is_seen_at_a_glance() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        check = settings.Check("tcp", host="127.0.0.1", port=port)
        assert checks.glance(check) == Verdict(Outcome.FAILED, f"127.0.0.1:{port}: Connection refused")
        listener.listen(0)
        assert checks.glance(check) == Verdict(Outcome.OK, f"127.0.0.1:{port} accepts connections")
        full = []
        while (verdict := checks.glance(check)) is not None:  # its queue is full: that has to be waited for
            full.append(verdict.outcome)
            assert len(full) < 10
        assert set(full) <= {Outcome.OK}
        assert checks.glance(settings.Check("tcp", host="127.0.0.1", port=port, expect="+OK")) is None
    named = checks.glance(settings.Check("tcp", host="localhost", port=port))
    assert named is not None and named.outcome is Outcome.FAILED


ZONED = """
import asyncio, socket
from hasnmp import settings
from hasnmp.agents import checks
listener = socket.socket(socket.AF_INET6)
listener.bind(("::", 8000))
listener.listen()
for host, port in (("fe80::1%lo", 8000), ("fe80::1%1", 8000), ("fe80::1%lo", 8001), ("fe80::1%nowhere", 8000)):
    print(checks.glance(settings.Check("tcp", host=host, port=port)).message)
async def waits():
    async with checks._Connection("fe80::1%lo", 8000):
        return "connected"
print(asyncio.run(waits()))
"""


def test_an_address_of_a_link_is_looked_for_on_its_link() -> None:
    """fe80::1%eth0, which means nothing without its zone (RFC 4007, section 11). In a network namespace of its own."""
    make = 'ip link set lo up && ip addr add fe80::1/64 dev lo nodad && exec "$0" -c "$1"'
    ran = subprocess.run(
        ["unshare", "-rn", "sh", "-c", make, sys.executable, ZONED], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == [
        "fe80::1%lo:8000 accepts connections",
        "fe80::1%1:8000 accepts connections",
        "fe80::1%lo:8001: Connection refused",
        "fe80::1%nowhere:8000: no interface with this name",
        "connected",
    ]


async def ask(kind: str, handler: Handler, timeout_s: float = 3.0, **wanted: object) -> Verdict:
    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass

    server = await asyncio.start_server(quiet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    place: dict[str, object] = {"host": "127.0.0.1", "port": port}
    if kind == "http":
        place = {"url": f"http://127.0.0.1:{port}/health?deep=1"}
    check = settings.Check(kind, **place, **wanted)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(timeout_s):
            return await (checks.http(check) if kind == "http" else checks.tcp(check))
    finally:
        server.close()


@pytest.mark.parametrize(
    ("handler", "wanted", "outcome", "message"),
    [
        (silent, {}, Outcome.OK, "accepts connections"),
        (says(b"PO", b"NG\r\n"), {"send": "PING\r\n", "expect": "PONG"}, Outcome.OK, "answered as expected"),
        (says(b"-ERR\r\n"), {"send": "PING\r\n", "expect": "PONG"}, Outcome.FAILED, "got '-ERR\\r\\n' (6 octets)"),
        (floods, {"send": "PING", "expect": "PONG"}, Outcome.FAILED, "(65536 octets)"),
    ],
)
def test_tcp(handler: Handler, wanted: dict[str, object], outcome: Outcome, message: str) -> None:
    verdict = asyncio.run(ask("tcp", handler, **wanted))
    assert verdict.outcome is outcome and message in verdict.message


def test_tcp_refused_says_so_without_pythons_words() -> None:
    verdict = asyncio.run(checks.tcp(settings.Check("tcp", host="127.0.0.1", port=1)))
    assert verdict == Verdict(Outcome.FAILED, "127.0.0.1:1: Connection refused")


def test_a_name_is_never_looked_up() -> None:
    verdict = asyncio.run(checks.tcp(settings.Check("tcp", host="db.example", port=1)))
    assert verdict.outcome is Outcome.FAILED and "db.example" in verdict.message


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("handler", "wanted", "outcome", "message"),
    [
        (says(b"HTTP/1.1 204 No Content\r\n\r\n"), {}, Outcome.OK, "status 204"),
        (says(b"HTTP/1.0 302 Found\r\n\r\n"), {}, Outcome.OK, "status 302"),
        (says(b"HTTP/1.1 503 Busy\r\n\r\n"), {}, Outcome.FAILED, "status 503, wanted 200..399"),
        (says(b"HTTP/1.1 200 OK\r\n\r\n"), {"status": 201}, Outcome.FAILED, "status 200, wanted 201"),
        (says(b"HTTP/1.1 404 No\r\n\r\n"), {"status": 404}, Outcome.OK, "status 404"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"al", b"ive"), {"expect": "alive"}, Outcome.OK, "expected"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndeadalive"), {"expect": "dear"}, Outcome.FAILED, "not in"),
        (says(CHUNKED, b"3\r\nali\r\n2\r\nve\r\n0\r\n\r\n"), {"expect": "alive"}, Outcome.OK, "expected"),
        (says(CHUNKED, b"3\r\nali\r\n", b"2;x=y\r", b"\nv", b"e\r\n"), {"expect": "alive"}, Outcome.OK, "expected"),
        (says(CHUNKED + b"zz\r\n"), {"expect": "alive"}, Outcome.FAILED, "chunk"),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n"), {}, Outcome.FAILED, "not an HTTP/1 answer: 'SSH-2.0"),
        (says(b""), {}, Outcome.FAILED, "not an HTTP/1 answer: ''"),
        (floods, {"expect": "alive"}, Outcome.FAILED, "is not in"),
    ],
)  # fmt: skip
def test_http(handler: Handler, wanted: dict[str, object], outcome: Outcome, message: str) -> None:
    verdict = asyncio.run(ask("http", handler, **wanted))
    assert verdict.outcome is outcome and message in verdict.message


def test_the_request_is_one_that_servers_understand() -> None:
    heard = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    assert asyncio.run(ask("http", handle)).outcome is Outcome.OK
    first, *fields = heard.decode().split("\r\n")
    assert first == "GET /health?deep=1 HTTP/1.1"
    assert "Connection: close" in fields and any(f.startswith("Host: 127.0.0.1:") for f in fields)


def test_https_is_of_a_later_version() -> None:
    verdict = asyncio.run(checks.http(settings.Check("http", url="https://127.0.0.1/")))
    assert verdict.outcome is Outcome.FAILED and "this version" in verdict.message


def run(*services: settings.Service, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        bench = Bench(*services)
        try:
            await story(bench)
        finally:
            await bench.close()

    asyncio.run(whole())


def test_a_check_that_hangs_ends_at_its_time_limit_and_delays_nothing() -> None:
    async def story(bench: Bench) -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        check = settings.Check("tcp", host="127.0.0.1", port=port, send="?", expect="!")
        agent: Any = bench.agents._agents["web"]
        agent._service = service(command=("sleep", "60"), check=check)
        agent._asker = checks.Asker(agent._service, bench.host)
        with Ticks() as ticks:
            result = await bench.act("web", Action.CHECK, timeout_ms=200)
            assert ticks.at_most(260)
        server.close()
        assert result.outcome is Outcome.TIMED_OUT and 190_000 < result.took_us
        assert result.message == "check took longer than 200 ms"

    async def started(bench: Bench) -> None:
        assert (await bench.act("web", Action.START)).outcome is Outcome.OK
        await story(bench)

    run(service(command=("sleep", "60")), story=started)


@pytest.mark.parametrize(
    ("argv", "outcome", "message"),
    [
        (("true",), Outcome.OK, "true: exit status 0"),
        (("sh", "-c", "echo 3 replicas behind; exit 2"), Outcome.FAILED, "exit status 2"),
        (("sh", "-c", "kill -9 $$"), Outcome.FAILED, "signal 9"),
        (("/nowhere/check",), Outcome.MISSING, "No such file"),
        (("sleep", "60"), Outcome.TIMED_OUT, "no end within 250 ms"),
    ],
)
def test_command(argv: tuple[str, ...], outcome: Outcome, message: str) -> None:
    async def story(bench: Bench) -> None:
        one = service(command=("sleep", "60"), check=settings.Check("command", command=argv))
        verdict = await checks.Asker(one, bench.host).ask(300 if outcome is Outcome.TIMED_OUT else 30_000)
        assert verdict.outcome is outcome and message in verdict.message
        asked = bench.sent[0]
        assert isinstance(asked, messages.Run) and asked.purpose is messages.Purpose.CHECK

    run(story=story)


def test_a_cancelled_command_is_ended() -> None:
    async def story(bench: Bench) -> None:
        one = service(command=("sleep", "60"), check=settings.Check("command", command=("sleep", "60")))
        task = asyncio.create_task(checks.Asker(one, bench.host).ask(5000))
        await bench.until(lambda: bench.host._programs)
        task.cancel()
        await bench.until(lambda: not bench.host._programs)
        assert isinstance(bench.sent[-1], messages.End)

    run(story=story)


def test_passive_asks_nothing_of_anybody() -> None:
    async def story(bench: Bench) -> None:
        for action in Action:
            assert (await bench.act("feed", action)).outcome is Outcome.OK
        assert bench.sent == []

    run(service("feed", "passive", settings.Check("report")), story=story)
