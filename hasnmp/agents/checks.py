"""The checks that ask a service whether it works: tcp, http, command and sql. Each gives a Verdict and never blocks.

Every one of them is bounded: what is read by MAX_ANSWER octets, and how long it takes by the caller, who cancels it at
its time limit (acting.py). Names are never looked up, for a look-up would need a thread or would block the engine. What a driver
of a database does is beyond any such bound: that is asked in a process of its own (sql.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hasnmp import settings
from hasnmp.agents.host import Host, NotRun, how_it_ended
from hasnmp.agents.sql import SqlChecker
from hasnmp.core.events import Outcome
from hasnmp.runtime.messages import Purpose

MAX_ANSWER = 64 * 1024  # octets that a check reads before it gives up: a flood is not an answer
SHOWN = 120  # characters of an unexpected answer that a message quotes


class Verdict(NamedTuple):
    """What a check found. message: a line for the administrator, with the numbers it rests on. killed: as in AgentResult."""

    outcome: Outcome
    message: str
    pid: int = 0
    killed: str = ""


def glance(check: settings.Check) -> Verdict | None:
    """The verdict of a check that is a mere connection, if it is there (or refused) at once, as from this machine it is.

    None: it takes its time, or the check wants more. A tenth of what it costs to wait for it in the loop.
    """
    if check.type != "tcp" or check.send or check.expect:
        return None
    place = f"{check.host}:{check.port}"
    try:
        family, at = _place(check.host, check.port)
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            error = _connected(sock, at)
    except (OSError, ValueError) as problem:
        return Verdict(Outcome.FAILED, f"{place}: {_why(problem)}")
    if error in (errno.EINPROGRESS, errno.EALREADY):
        return None
    if error:
        return Verdict(Outcome.FAILED, f"{place}: {os.strerror(error)}")
    return Verdict(Outcome.OK, f"{place} accepts connections")


def _connected(sock: socket.socket, place: tuple[Any, ...]) -> int:
    """Begin to connect. 0: done; EINPROGRESS or EALREADY: it takes its time; else the error."""
    error = sock.connect_ex(place)
    if error == errno.EINPROGRESS:  # on one machine all of the handshake is done by now: ask what came of it
        error = sock.connect_ex(place)
    return error


def _place(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Where to connect to, as a socket wants it: one of IPv6 does not look at the zone of fe80::1%eth0 (RFC 4007, 11) by itself.

    Raises ValueError: host is not an IP address; OSError: there is no such interface now.
    """
    address = _parsed(host)
    if address.version == 4:
        return socket.AF_INET, (host, port)
    zone = address.scope_id
    index = 0 if zone is None else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return socket.AF_INET6, (host.partition("%")[0], port, 0, index)


_parsed = functools.cache(ipaddress.ip_address)


class Asker:
    """Does one service's own check."""

    def __init__(self, service: settings.Service, host: Host) -> None:
        self._service, self._host = service, host
        self._sql = SqlChecker(service, host) if service.check.type == "sql" else None

    def begin(self) -> None:
        """The service is about to be started: load what its check needs meanwhile."""
        if self._sql is not None:
            self._sql.begin()

    async def ask(self, timeout_ms: int) -> Verdict:
        """Cancel it at the time limit; timeout_ms is for programs, which are ended by force."""
        match self._service.check.type:
            case "tcp":
                return await tcp(self._service.check)
            case "http":
                return await http(self._service.check)
            case "command":
                return await command(self._service, self._host, timeout_ms)
            case "sql" if self._sql is not None:
                return Verdict(*await self._sql.ask(timeout_ms))
            case other:
                return Verdict(Outcome.OK, f"{other}: nothing to ask")

    @contextlib.asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """While the service is stopped: end what it keeps running, too. The group is given up only when nothing is left."""
        closing = asyncio.get_running_loop().create_task(self._sql.close()) if self._sql is not None else None
        try:
            yield
        finally:
            if closing is not None:
                await closing


async def command(service: settings.Service, host: Host, timeout_ms: int) -> Verdict:
    """Run the check's command, as the guardian runs everything: exit status 0 is good."""
    name = service.check.command[0]
    # The guardian's limit comes first, so that the answer has the program's last output.
    limit_ms = max(10, timeout_ms - 50)
    try:
        exited = await host.output(service, service.check.command, Purpose.CHECK, limit_ms)
    except NotRun as error:
        return Verdict(error.outcome, f"{name}: {error}")
    if exited.timed_out:
        return Verdict(Outcome.TIMED_OUT, f"{name}: no end within {limit_ms} ms: {how_it_ended(exited)}")
    if exited.code or exited.signal:
        return Verdict(Outcome.FAILED, f"{name}: {how_it_ended(exited)}")
    return Verdict(Outcome.OK, f"{name}: exit status 0")


class _Connection:
    """A TCP connection, without asyncio's streams: those cost three times as much for a check each second."""

    def __init__(self, host: str, port: int) -> None:
        """Raises ValueError: host is not an IP address; OSError: no socket can be had."""
        family, self._place = _place(host, port)
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    async def __aenter__(self) -> _Connection:
        """Raises OSError: no connection."""
        try:
            if _connected(self._sock, self._place):  # it takes its time, or fails: this says why
                await self._loop.sock_connect(self._sock, self._place)
        except BaseException:
            self._sock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def read(self, most: int) -> bytes:
        """At least one octet; b"" at the end."""
        return await self._loop.sock_recv(self._sock, most)

    async def read_until(self, wanted: bytes) -> bytes:
        """All that comes until `wanted` is in it, the peer has closed, or MAX_ANSWER octets were read."""
        data = b""
        while wanted not in data and len(data) < MAX_ANSWER:
            chunk = await self.read(MAX_ANSWER - len(data))
            if not chunk:
                break
            data += chunk
        return data


def _shown(data: bytes) -> str:
    """The start of an answer, printable, for a message."""
    return ascii(data[:SHOWN].decode("utf-8", "replace"))


async def tcp(check: settings.Check) -> Verdict:
    """Connect, send what is to be sent, and wait for what is expected. A connection alone is enough if nothing is."""
    place = f"{check.host}:{check.port}"
    try:
        async with _Connection(check.host, check.port) as connection:
            await connection.send(check.send.encode())
            if not check.expect:
                return Verdict(Outcome.OK, f"{place} accepts connections")
            wanted = check.expect.encode()
            answer = await connection.read_until(wanted)
    except (OSError, ValueError) as error:
        return Verdict(Outcome.FAILED, f"{place}: {_why(error)}")
    if wanted in answer:
        return Verdict(Outcome.OK, f"{place} answered as expected")
    return Verdict(
        Outcome.FAILED,
        f"{place}: expected {check.expect!r}, got {_shown(answer)} ({len(answer)} octets)",
    )


async def http(check: settings.Check) -> Verdict:
    """One GET (RFC 9110, RFC 9112), without redirects. The status must be `status`, or any of 200..399 if that is 0."""
    url = urlsplit(check.url)
    host = "127.0.0.1" if url.hostname == "localhost" else url.hostname or ""
    if url.scheme != "http":
        return Verdict(Outcome.FAILED, f"{check.url}: this version checks http:// only")
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\nUser-Agent: hasnmp\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    )
    try:
        async with _Connection(host, url.port or 80) as connection:
            await connection.send(request.encode())
            head = await connection.read_until(b"\r\n\r\n")
            status = _status(head)
            wanted = check.status or 0
            if status != wanted and (wanted or not 200 <= status <= 399):
                limit = str(wanted) if wanted else "200..399"
                return Verdict(Outcome.FAILED, f"{check.url}: status {status}, wanted {limit}")
            if not check.expect:
                return Verdict(Outcome.OK, f"{check.url}: status {status}")
            body = await _body(connection, head, check.expect.encode())
    except (OSError, ValueError) as error:
        return Verdict(Outcome.FAILED, f"{check.url}: {_why(error)}")
    if check.expect.encode() in body:
        return Verdict(Outcome.OK, f"{check.url}: status {status}, answered as expected")
    return Verdict(Outcome.FAILED, f"{check.url}: status {status}, but {check.expect!r} is not in {len(body)} octets")


def _status(head: bytes) -> int:
    """The status code of a response's head. Raises ValueError: it is none (RFC 9112 section 4)."""
    line = head.split(b"\r\n", 1)[0]
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit() or len(parts[1]) != 3:
        raise ValueError(f"not an HTTP/1 answer: {_shown(line)}")
    return int(parts[1])


async def _body(connection: _Connection, head: bytes, wanted: bytes) -> bytes:
    """The body as far as it is needed: until `wanted` is in it, or it ends."""
    head, _, data = head.partition(b"\r\n\r\n")
    fields = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return await _chunked(connection, data, wanted)
    length = fields.get(b"content-length", b"")
    limit = min(MAX_ANSWER, int(length)) if length.isdigit() else MAX_ANSWER
    while wanted not in data and len(data) < limit:
        more = await connection.read(limit - len(data))
        if not more:
            break
        data += more
    return data


async def _chunked(connection: _Connection, data: bytes, wanted: bytes) -> bytes:
    """The joined chunks (RFC 9112 section 7.1), each taken in once: a body sent octet by octet costs no more."""
    body, total = b"", len(data)
    while wanted not in body:
        line, found, rest = data.partition(b"\r\n")
        size = _chunk_size(line) if found else 0
        if found and size == 0:
            break
        if found and len(rest) >= size + 2:
            body, data = body + rest[:size], rest[size + 2 :]
            continue
        more = await connection.read(MAX_ANSWER - total) if total < MAX_ANSWER else b""
        if not more:
            break
        data, total = data + more, total + len(more)
    return body


def _chunk_size(line: bytes) -> int:
    """Raises ValueError: not a chunk's first line."""
    digits = line.split(b";", 1)[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise ValueError(f"a chunk's size is {_shown(digits)}")
    return int(digits, 16)


def _why(error: Exception) -> str:
    """The system's words, without those that asyncio puts around a refused connection."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)
