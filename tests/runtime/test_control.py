"""The control socket: what readers see, and what readers and commanders can't do to the engine."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from hasnmp import protocol
from hasnmp.core.events import CommandIn, Notify, Reply
from hasnmp.model import (
    AlarmRow,
    CommandRow,
    EventRow,
    GroupRow,
    GroupState,
    Kind,
    Severity,
    StatisticsRow,
    SystemRow,
    Verb,
    View,
)
from hasnmp.runtime import control
from hasnmp.runtime.control import Server, Users
from hasnmp.runtime.picture import Picture
from tests.ticks import Ticks


def an_event(number: int, message: str = "peer silent for 1000 ms") -> EventRow:
    return EventRow(number, Kind.NODE_LOST, Severity.MAJOR, 1, 2, "node-a", message, alarm="nodeLost/node-b")


class Bench:
    """A server over a picture that the test changes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.view = View()
        self.views = 0
        self.commands: list[CommandIn] = []
        self.server = Server(self._view, self._why, self._command, structlog.get_logger())
        self.put("system", "", SystemRow("bank", "node-a", "0"))
        self.put("groups", "web", GroupRow("web", GroupState.RUNNING, owner="node-a"))
        self._number = 0

    async def left(self, count: int) -> None:
        """Wait until so many clients are left."""
        deadline = time.monotonic() + 20
        while len(self.server.clients) > count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    def put(self, table: str, key: str, row: Any, announced: bool = True) -> None:
        if announced:
            self.server.changed()
        self.view.tables[table][key] = row

    def _view(self) -> View:
        self.views += 1
        self._number += 1
        return View(time.monotonic_ns(), 0, 0, {t: dict(rows) for t, rows in self.view.tables.items()})

    def _why(self, group: str) -> tuple[str, ...]:
        if group != "web":
            raise KeyError(group)
        return ("node-a owns web", "it may move to node-b")

    def _command(self, command: CommandIn) -> None:
        self.commands.append(command)
        row = CommandRow(
            1, command.requester, command.address, command.verb, command.target, command.to, command.reason
        )
        self.server.reply(Reply(command.reply, row))

    async def reader(self) -> Reader:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 24)
        return Reader(reader, writer)


class Reader:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.mirror = protocol.Mirror()
        self.heard: list[dict[str, Any]] = []

    async def next(self, seconds: float = 20.0) -> dict[str, Any]:
        line = await asyncio.wait_for(self.reader.readline(), seconds)
        assert line, "the connection ended"
        message = protocol.decode(line)
        self.mirror.apply(message)
        self.heard.append(message)
        return message

    async def until(self, kind: str) -> dict[str, Any]:
        while (message := await self.next())["type"] != kind:
            pass
        return message

    def say(self, **message: Any) -> None:
        self.writer.write(protocol.encode(message))


def play(tmp_path: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        bench = Bench(str(tmp_path / "control.sock"))
        await bench.server.open(bench.path, "")
        try:
            await story(bench)
        finally:
            bench.server.close()

    asyncio.run(whole())


def test_a_snapshot_then_deltas_make_the_same_picture(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        assert stat.S_IMODE(os.stat(bench.path).st_mode) == 0o660
        one = await bench.reader()
        first = await one.next()
        assert first["type"] == "snapshot" and one.mirror.complete
        assert one.mirror.view.tables == bench.view.tables
        bench.put("groups", "web", GroupRow("web", GroupState.STOPPING, owner="node-a"))
        bench.put("groups", "db", GroupRow("db"))
        with Ticks() as ticks:
            delta = await one.until("delta")
            assert ticks.at_most(150), "a change of state is told within 100 ms"
        assert set(delta["rows"]) == {"groups"}
        del bench.view.tables["groups"]["web"]
        bench.server.changed()
        delta = await one.until("delta")
        assert delta["gone"] == {"groups": ["web"]}
        assert one.mirror.view.tables == bench.view.tables
        numbers = [m["number"] for m in one.heard]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        two = await bench.reader()
        await two.next()
        assert two.mirror.view.tables == bench.view.tables

    play(tmp_path, story)


def test_the_snapshot_is_what_the_protocol_says() -> None:
    view = View(5, 6, 0)
    view.tables["events"]["7"] = an_event(7, 'a "quoted" name')
    view.tables["statistics"][""] = StatisticsRow(failovers=3)
    picture = Picture()
    picture.delta(view, volatile=True, empty=True)
    view.number = picture.number
    assert json.loads(picture.snapshot()) == json.loads(protocol.encode(protocol.snapshot(view)))


def test_counters_and_times_alone_wait_for_a_second(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        await one.next()
        end_s, count = time.monotonic() + 2.5, 0

        async def count_up() -> None:
            nonlocal count
            while time.monotonic() < end_s:
                count += 1
                bench.put("statistics", "", StatisticsRow(heartbeats_sent=count))
                bench.put("groups", "web", GroupRow("web", GroupState.RUNNING, owner="node-a", lease_until_ns=count))
                await asyncio.sleep(0.01)

        task = asyncio.create_task(count_up())
        deltas = 0
        while time.monotonic() < end_s - 0.3:
            await one.next()
            deltas += 1
        await task
        assert 2 <= deltas <= 4, "the first statistics, and then one a second; not one each 100 ms"

    play(tmp_path, story)


def test_a_change_that_nobody_announced_is_told_all_the_same(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        await one.next()
        bench.put("groups", "web", GroupRow("web", GroupState.FAILED), announced=False)
        with Ticks() as ticks:
            while one.mirror.view.tables["groups"]["web"].state is not GroupState.FAILED:  # type: ignore[union-attr]
                await one.next()
            assert ticks.at_most(1200)

    play(tmp_path, story)


def test_an_idle_engine_still_says_once_a_second_how_old_the_picture_is(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        await one.next()
        before_ns = one.mirror.view.now_ns
        began_s = time.monotonic()
        with Ticks() as ticks:
            delta = await one.next()
            assert ticks.at_most(1300)
        assert (delta["rows"], delta["gone"]) == ({}, {}) and 0.7 < time.monotonic() - began_s
        assert one.mirror.view.now_ns > before_ns

    play(tmp_path, story)


def test_without_a_client_nothing_is_compared(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        before = bench.views
        await asyncio.sleep(0.3)
        assert bench.views == before
        one = await bench.reader()
        await one.next()
        one.writer.close()
        await bench.left(0)
        before = bench.views
        await asyncio.sleep(0.25)
        assert bench.views == before

    play(tmp_path, story)


def test_an_event_is_told_at_once_and_once(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        await one.next()
        event = an_event(7)
        alarm = AlarmRow("nodeLost/node-b", event.kind, event.severity, "node-a", "node-b", 1, 1, 7, event.message)
        bench.put("events", "7", event)
        bench.put("alarms", alarm.key, alarm)
        bench.server.notify(Notify(event, alarm, ""))
        with Ticks() as ticks:
            message = await one.next()
            assert message["type"] == "event" and ticks.at_most(50)
        assert one.mirror.view.tables == bench.view.tables
        two = await bench.reader()
        await two.next()
        assert two.mirror.view.tables == bench.view.tables, "a snapshot between deltas has the event too"
        cleared = replace(an_event(8), kind=Kind.NODE_JOINED, severity=Severity.CLEARED)
        bench.put("events", "8", cleared)
        del bench.view.tables["alarms"][alarm.key]
        bench.server.notify(Notify(cleared, None, alarm.key))
        await one.until("event")
        delta = await one.until("delta")
        assert "events" not in delta["rows"] and "alarms" not in delta["gone"], "a delta repeats no event"
        assert one.mirror.view.tables == bench.view.tables

    play(tmp_path, story)


def test_commands_bear_the_name_of_who_is_connected(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        one.say(type="command", id=5, verb=int(Verb.FAILOVER), target="web", to="node-b", reason="test\n\x1b[31m")
        reply = await one.until("reply")
        assert reply["id"] == 5
        command = bench.commands[0]
        assert (command.verb, command.target, command.to) == (Verb.FAILOVER, "web", "node-b")
        assert command.reason == "test  [31m", "nothing in it can write on a terminal"
        assert command.requester == Users().name(os.geteuid()) and command.address == "local"
        # The snmp agent, which has our own user id, says for whom it speaks.
        one.say(type="command", id="x", verb=5, target="web", requester="noc", address="192.0.2.9")
        await one.until("reply")
        assert (bench.commands[1].requester, bench.commands[1].address) == ("noc", "192.0.2.9")

    play(tmp_path, story)


def test_another_user_can_not_speak_in_a_name_that_is_not_his(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        await one.next()
        (client,) = bench.server.clients
        client.uid, client.user = 65534, "nobody"
        one.say(type="command", id=1, verb=5, target="web", requester="root", address="192.0.2.9")
        await one.until("reply")
        assert (bench.commands[0].requester, bench.commands[0].address) == ("nobody", "local")

    play(tmp_path, story)


def test_a_file_is_handed_in_in_parts_for_apply_alone(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        for part, size in (("abc", 3), ("def", 6)):
            one.say(type="stage", id=1, part=part)
            assert (await one.until("stage"))["size"] == size
        one.say(type="command", id=2, verb=int(Verb.APPLY))
        await one.until("reply")
        one.say(type="command", id=3, verb=int(Verb.APPLY))
        await one.until("reply")
        assert [command.document for command in bench.commands] == ["abcdef", ""], (
            "used up by the command that follows it"
        )
        one.say(type="stage", id=4, part="abc")
        one.say(type="command", id=5, verb=int(Verb.INHIBIT))
        await one.until("reply")
        assert bench.commands[2].document == ""
        assert "abcdef" not in repr(bench.commands[0])
        for part in ("x" * 9000, "x" * 9000):
            for _ in range(7):
                one.say(type="stage", id=6, part=part)
                await one.until("stage")
        for bad in ("x" * 15_000, "\u00e9", 5, None):
            one.say(type="stage", id=7, part=bad)
            assert "part: not a text" in (await one.until("error"))["text"], bad

    play(tmp_path, story)


def test_only_root_may_exchange_the_configuration(tmp_path: Path) -> None:
    """It says what the daemon runs, and as whom: a member of control.group would become root by it."""

    async def story(bench: Bench) -> None:
        one = await bench.reader()
        await one.next()
        (client,) = bench.server.clients
        client.uid, client.user = 65534, "nobody"
        one.say(type="stage", id=1, part="abc")
        one.say(type="command", id=2, verb=int(Verb.APPLY))
        assert "only root" in (await one.until("error"))["text"]
        one.say(type="command", id=3, verb=int(Verb.RELOAD))
        await one.until("reply")
        assert [command.verb for command in bench.commands] == [Verb.RELOAD]

    play(tmp_path, story)


def test_why(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        one.say(type="why", id=1, group="web")
        assert (await one.until("why"))["lines"] == ["node-a owns web", "it may move to node-b"]
        one.say(type="why", id=2, group="nfs")
        error = await one.until("error")
        assert (error["id"], error["text"]) == (2, "no group 'nfs'")

    play(tmp_path, story)


def test_garbage_is_answered_and_the_connection_lives(tmp_path: Path) -> None:
    garbage = [
        b"what\n", b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"type": 5}\n', b'{"type": "reboot"}\n', b"\n", b"[" * 5000 + b"\n",
        b'{"type": "command"}\n', b'{"type": "command", "verb": true}\n', b'{"type": "command", "verb": 99}\n',
        b'{"type": "command", "verb": "failover"}\n', b'{"type": "command", "verb": 2, "target": 7}\n',
        b'{"type": "command", "verb": 2, "up": "yes"}\n', b'{"type": "command", "verb": 2, "id": {}}\n',
        b'{"type": "command", "verb": 2, "reason": "' + b"x" * 2000 + b'"}\n', b'{"type": "why", "group": []}\n',
        b'{"type": "command", "verb": 1e400}\n', b'{"type": "command", "verb": ' + b"9" * 5000 + b"}\n",
    ]  # fmt: skip

    async def story(bench: Bench) -> None:
        one = await bench.reader()
        for line in garbage:
            one.writer.write(line)
            error = await one.until("error")
            assert error["text"], line
        assert bench.commands == []
        one.say(type="command", id=1, verb=2, target="\ud800")
        await one.until("reply")
        assert bench.commands[0].target == " "

    play(tmp_path, story)


def test_a_line_without_an_end_ends_the_connection(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.reader()
        one.writer.write(b"x" * (protocol.MAX_LINE + 2))
        assert f"more than {protocol.MAX_LINE}" in (await one.until("error"))["text"]
        assert await asyncio.wait_for(one.reader.read(), 20) == b""
        assert not bench.server.clients

    play(tmp_path, story)


def test_too_many_connections_are_refused_and_the_first_ones_stay(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        readers = [await bench.reader() for _ in range(control.CLIENTS)]
        for one in readers:
            await one.next()
        extra = await bench.reader()
        assert "64" in (await extra.next())["text"]
        assert await asyncio.wait_for(extra.reader.read(), 20) == b""
        await readers[0].until("delta")
        readers[1].writer.close()
        await bench.left(control.CLIENTS - 1)
        assert (await (await bench.reader()).next())["type"] == "snapshot"

    play(tmp_path, story)


def test_a_reader_that_sleeps_is_resynchronised_and_holds_up_nobody(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        sleeper = socket.socket(socket.AF_UNIX)
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sleeper.connect(bench.path)
        other = await bench.reader()
        await other.next()
        waited = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        for number in range(1, 4001):
            event = an_event(number, "x" * 255)
            bench.put("events", str(number), event)
            bench.view.tables["events"].pop(str(number - 1000), None)
            bench.server.notify(Notify(event))
            if number % 200 == 0:
                await asyncio.sleep(0)
        waited = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - waited
        assert waited < 40, "it never waits for anybody"
        waiting = max(c._transport.get_write_buffer_size() for c in bench.server.clients if c._transport)
        assert waiting < 2 * control.BUFFER_LIMIT, "what nobody reads is not kept without bound"
        while "4000" not in other.mirror.view.tables["events"]:
            await other.next()
        # It wakes up, reads what lay there, and then gets a picture without a gap.
        sleeper.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sleeper, limit=1 << 24)
        awake = Reader(reader, writer)
        while len(awake.mirror.view.tables["events"]) != 1000 or "4000" not in awake.mirror.view.tables["events"]:
            await awake.next()
        assert [m["type"] for m in awake.heard].count("snapshot") == 2
        bench.put("groups", "web", GroupRow("web", GroupState.FAILED))
        while awake.mirror.view.tables != bench.view.tables:  # the first delta may be the one that each second brings
            await awake.next()
        assert awake.mirror.view.tables["groups"] == bench.view.tables["groups"]

    play(tmp_path, story)


@pytest.mark.serial
@pytest.mark.alone
def test_a_flood_of_lines_leaves_the_loop_its_time(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        flooders = []
        for _ in range(8):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            one.connect(bench.path)
            flooders.append(one)
        deep = b'{"type":"why","group":"web","x":' + b"[" * 900 + b"]" * 900 + b"}\n"
        gc.collect()
        gc.freeze()  # as the engine does: a whole test run's heap is not what a collection in the engine walks through
        tries: list[float] = []
        while min(tries, default=1.0) >= 0.05 and len(tries) < 5:  # the machine may be slow for a while, not each time
            worst_s, end_s = 0.0, time.monotonic() + 1.0
            while time.monotonic() < end_s:
                for one in flooders:
                    try:
                        one.send(deep * 20)
                        one.recv(65536)
                    except BlockingIOError:
                        pass
                before_s = time.thread_time()  # what the loop itself took, whatever else this machine does
                await asyncio.sleep(0.005)
                worst_s = max(worst_s, time.thread_time() - before_s)
            tries.append(worst_s)
        gc.unfreeze()
        for one in flooders:
            one.close()
        assert min(tries) < 0.05, f"the loop worked for {tries} s between two timers"

    play(tmp_path, story)


def test_a_socket_that_an_earlier_daemon_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "control.sock"))
    left.close()

    async def story(bench: Bench) -> None:
        assert (await (await bench.reader()).next())["type"] == "snapshot"

    play(tmp_path, story)
    assert not (tmp_path / "control.sock").exists(), "and it is removed at the end"


def test_user_names_come_from_the_file_only(tmp_path: Path) -> None:
    users = tmp_path / "passwd"
    users.write_text("root:x:0:0:::\nop:x:1000:1000:::\nbroken\nx:y:z\n")
    names = Users(str(users))
    assert (names.name(0), names.name(1000), names.name(7)) == ("root", "op", "uid 7")
    users.write_text("new:x:7:7:::\n")
    os.utime(users, ns=(1, 1))
    assert names.name(7) == "new"
    assert Users(str(tmp_path / "absent")).name(3) == "uid 3"
