"""The agent under more than it can take: floods, a loop that hangs, sockets that give trouble."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hasnmp import protocol
from hasnmp.model import PartState, Role
from hasnmp.snmp import ha_objects
from hasnmp.snmp.agent import Agent
from hasnmp.snmp.listener import Addresses, Listener, _send, _send_from
from hasnmp.snmp.record import AT_ONCE
from hasnmp.snmp.responder import SetOutcome
from tests.snmp.snmp_lab import (
    GET,
    READ,
    SET,
    Answer,
    a_config,
    a_pdu,
    a_view,
    binding,
    free_port,
    now_ns,
    v2c,
    wait_for,
)

NAMES = {scalar.name: (*scalar.oid, 0) for scalar in ha_objects.SCALARS}
REFUSED_SET = v2c(a_pdu(SET, [binding(NAMES["haInhibit"], b"\2\1\1")]), READ)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    config = a_config(tmp_path)
    return Agent(config, "alpha", config.control.socket, warm=False)


def in_a_thread(what: Callable[[], object]) -> None:
    """Done by a listener's thread, as it were, while this one, the loop's, does nothing else."""
    thread = threading.Thread(target=what)
    thread.start()
    thread.join()


def test_a_flood_of_refused_sets_while_the_loop_is_busy_loses_no_signal_and_nothing_else(agent: Agent) -> None:
    done: list[int] = []
    stopped, finished = asyncio.Event(), asyncio.Event()
    accepted = SetOutcome("noc", "192.0.2.7", b"\x2b", 1, 0)

    def flood() -> None:
        for _ in range(3000):
            agent._handle(REFUSED_SET, "192.0.2.7", lambda _: None)
        soon = agent._in_loop(done.append)
        for number in range(50):
            soon(number)
        agent._audit_soon(accepted)
        agent._in_loop(finished.set)()

    async def run() -> None:
        loop = agent._loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
        try:
            in_a_thread(flood)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stopped.wait(), 10)
            await asyncio.wait_for(finished.wait(), 10)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    with capture_logs() as log:
        asyncio.run(run())
    assert done == list(range(50))
    said = [line for line in log if line["event"] == "set_answered"]
    refused = [line for line in said if line["result"] == "authorization_error"]
    assert AT_ONCE <= len(refused) < 2 * AT_ONCE
    assert [line["requester"] for line in said if line["result"] == "no_error"] == ["noc"]
    # Of the others there is the number, those that did not even wait among them.
    agent._record._filled_s -= 60.0
    with capture_logs() as log:
        agent._audit(SetOutcome("tom", "192.0.2.7", b"\x2b", 1, 6))
    assert [line["result"] for line in log] == ["no_access"]
    counts = [line.get("refused_before_and_not_logged", 0) for line in (*refused, *log)]
    assert sum(counts) == 3000 - len(refused) and counts[-1] > 0


def test_what_one_call_raises_stops_no_other(agent: Agent) -> None:
    finished = asyncio.Event()

    def broken() -> None:
        raise RuntimeError("broken")

    async def run() -> None:
        agent._loop = asyncio.get_running_loop()
        in_a_thread(lambda: (agent._in_loop(broken)(), agent._in_loop(finished.set)()))
        await asyncio.wait_for(finished.wait(), 10)

    with capture_logs() as log:
        asyncio.run(run())
    assert [(line["event"], line["error"]) for line in log] == [("request_failed", "RuntimeError('broken')")]


def test_states_are_unknown_in_time_while_the_loop_hangs(agent: Agent) -> None:
    """Nothing runs the loop here at all: the listener's thread must see for itself how old its picture is."""
    (listener,) = agent._listeners
    where = ("127.0.0.1", int(listener.text.rpartition(":")[2]))
    request = v2c(a_pdu(GET, [binding(NAMES["haRole"]), binding(NAMES["haEngineState"])]), READ)

    def snapshot() -> dict[str, Any]:
        view = a_view()
        view.now_ns = now_ns()
        return protocol.decode(protocol.encode(protocol.snapshot(view)))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)

        def asked() -> list[Any]:
            sock.sendto(request, where)
            return list(Answer(sock.recv(65535)).values)

        listener.open()
        try:
            agent._link._take_in(snapshot())
            agent._link.judge()
            assert agent._link.fresh
            wait_for(lambda: asked() == [Role.UNKNOWN, PartState.DOWN])
            # The loop goes on: it sees, too, that the engine was away, and believes the next word of it.
            assert agent._link._lost_ns == 0
            agent._link.judge()
            assert agent._link._lost_ns == agent._link.view.now_ns
            agent._link._take_in(snapshot())
            agent._link.judge()
            assert agent._link.fresh and agent._link._lost_ns == 0
            # Or it is here again before it has noticed anything.
            agent._link.fresh = False
            agent._link.judge()
            assert agent._link.fresh
        finally:
            listener.close()


# --------------------------------------------------------------------------------------------------------- sockets


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A blocking datagram socket, and where it can send nothing more to."""
    path = str(tmp_path / "receiver")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(path)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"x", socket.MSG_DONTWAIT, path)
        yield sender, path


@pytest.mark.parametrize("wildcard", [False, True])
def test_an_answer_that_finds_no_room_in_the_sockets_buffer_waits_for_none(
    full: tuple[socket.socket, str], wildcard: bool
) -> None:
    sock, target = full
    where: Any = target
    send = (lambda: _send_from(sock, [], where, b"answer")) if wildcard else (lambda: _send(sock, where, b"answer"))
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_thread_that_outlives_its_listeners_close_ends_though_that_was_opened_anew(host: str) -> None:
    port = free_port()
    handled: list[bytes] = []
    held, go_on = threading.Event(), threading.Event()

    def handle(data: bytes, _: str, reply: Callable[[bytes], None]) -> None:
        handled.append(data)
        if data == b"slow":
            held.set()
            go_on.wait(60)
        reply(data)

    failures: list[Exception] = []
    listener = Listener(f"{host}:{port}", handle, threading.RLock(), failures.append)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        listener.open()
        try:
            first = listener._thread
            sock.sendto(b"slow", ("127.0.0.1", port))
            assert held.wait(10)
            listener.close()
            listener.open()
            go_on.set()
            assert first is not None
            first.join(10)
            assert not first.is_alive()
            sock.sendto(b"next", ("127.0.0.1", port))
            assert sock.recv(100) == b"next"
        finally:
            go_on.set()
            listener.close()
    assert handled == [b"slow", b"next"] and not failures


def test_trouble_with_the_socket_that_tells_of_addresses_ends_nothing() -> None:
    async def run(error: int) -> None:
        addresses = Addresses()
        addresses.close()

        class Overrun(socket.socket):
            def recv(self, *_: Any) -> bytes:
                raise OSError(error, os.strerror(error))

        with Overrun(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            addresses._socket = sock
            await addresses.changed(0.05)

    asyncio.run(run(errno.ENOBUFS))
    began = time.monotonic()
    asyncio.run(run(errno.EBADF))
    assert time.monotonic() - began > 0.04  # it would be the same at once again
