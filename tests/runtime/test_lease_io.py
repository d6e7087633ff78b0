"""The lease i/o process and its client, with a real process behind a real socket; the disk's faults are played."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from hasnmp.arbiters.admin import init
from hasnmp.arbiters.disk import Blocks, LeaseDisk
from hasnmp.core.events import ArbiterAnswer, ArbiterCall
from hasnmp.runtime import lease_io
from hasnmp.runtime.lease_io import LeaseIoClient, now_ns
from hasnmp.runtime.processes import SOFTWARE
from hasnmp.settings import Arbiter, Config, Group, Heartbeat, NodeSettings
from hasnmp.wire import Slot, SlotState

SECOND = 1_000_000_000
CLAIM = Slot("nfs", "a", 2, SlotState.CLAIM, "00112233445566ff", 1, 3000)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    device = str(tmp_path / "lease")
    init(device, "bank", ("nfs", "db"), ("a", "b"))
    return Config(
        "bank",
        tuple(NodeSettings(name, {}) for name in ("a", "b")),
        Heartbeat(),
        Arbiter("disk", device=device),
        tuple(Group(name, ("a", "b"), ()) for name in ("nfs", "db")),
    )


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    for sock in (ours, theirs):
        if sock.fileno() >= 0:
            sock.close()


class Process:
    """The process, forked as the guardian does it."""

    def __init__(self, sock: socket.socket, config: Config, others: tuple[socket.socket, ...] = ()) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                for other in others:
                    other.close()
                status = lease_io.main(sock, config, "a")
            finally:
                os._exit(status)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def run(
    sock: socket.socket, test: Callable[[LeaseIoClient, asyncio.Queue[ArbiterAnswer]], Awaitable[None]], ms: int = 3000
) -> None:
    async def body() -> None:
        answers: asyncio.Queue[ArbiterAnswer] = asyncio.Queue()
        client = LeaseIoClient(asyncio.get_running_loop(), sock, ms, answers.put_nowait)
        try:
            await asyncio.wait_for(test(client, answers), 10)
            assert answers.empty(), "every call is answered exactly once"
        finally:
            client.close()

    asyncio.run(body())


def call(attempt: int, slot: Slot | None = None, group: str = "nfs", not_after_ns: int | None = None) -> ArbiterCall:
    return ArbiterCall(attempt, group, slot, now_ns() + SECOND if not_after_ns is None else not_after_ns)


def slots(config: Config, group: str = "nfs") -> dict[str, Slot | str]:
    disk = LeaseDisk(config.arbiter.device, config.cluster)
    try:
        return disk.read_slots(group)
    finally:
        disk.close()


def test_a_call_writes_and_then_reads(config: Config, pair: tuple[socket.socket, socket.socket]) -> None:
    process = Process(pair[1], config, (pair[0],))
    pair[1].close()

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        before_ns = now_ns()
        client.call(call(1, CLAIM))
        assert client.busy("nfs")
        answer = await answers.get()
        assert not client.busy("nfs")
        assert (answer.attempt, answer.group, answer.error) == (1, "nfs", "")
        assert answer.slots["a"] == CLAIM
        other = answer.slots["b"]
        assert isinstance(other, Slot)
        assert other.state is SlotState.IDLE
        assert before_ns < answer.read_at_ns < now_ns()
        assert len(answer.uuid) == 36
        assert 0 < answer.took_us < 1_000_000
        client.call(call(2, group="nfs"))
        client.call(call(3, group="db"))
        assert sorted([(await answers.get()).attempt for _ in range(2)]) == [2, 3]

    run(pair[0], test)
    assert process.wait() == 0, "the process ends when the engine's end is closed"


def test_what_waited_past_its_limit_is_not_written(config: Config, pair: tuple[socket.socket, socket.socket]) -> None:
    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, CLAIM, not_after_ns=now_ns() + 20_000_000))
        await asyncio.sleep(0.03)  # the condition itself: it lies in the socket for longer than it may
        process = Process(pair[1], config, (pair[0],))
        pair[1].close()
        answer = await answers.get()
        assert answer.error.startswith("too late")
        assert answer.slots == {}
        client.call(call(2, CLAIM, not_after_ns=0))
        assert (await answers.get()).error.startswith("too late")
        client.call(call(3, None, not_after_ns=0))
        assert (await answers.get()).error == "", "a read has no limit"
        client.close()
        process.wait()

    run(pair[0], test)
    assert slots(config)["a"] != CLAIM


def test_only_its_own_slot_is_written(config: Config, pair: tuple[socket.socket, socket.socket]) -> None:
    process = Process(pair[1], config, (pair[0],))
    pair[1].close()
    before = slots(config)

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, Slot("nfs", "b", 2, SlotState.CLAIM, "0" * 16, 1, 3000)))
        assert (await answers.get()).error.startswith("not mine")
        client.call(call(2, Slot("db", "a", 2, SlotState.CLAIM, "0" * 16, 1, 3000), group="nfs"))
        assert (await answers.get()).error.startswith("not mine")

    run(pair[0], test)
    process.wait()
    assert slots(config) == before


def test_a_disk_that_is_gone_exchanged_or_lacks_a_group_is_an_error(
    config: Config, pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    process = Process(pair[1], config, (pair[0],))
    pair[1].close()
    device = config.arbiter.device

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        attempts = iter(range(1, 100))  # as an engine's, each has a number of its own: by that the client knows it

        async def error(group: str = "nfs", slot: Slot | None = None) -> str:
            client.call(call(next(attempts), slot, group))
            answer = await answers.get()
            assert answer.slots == {} or not answer.error
            return answer.error

        assert await error() == ""
        assert (await error("web")).startswith("unknown group")
        os.rename(device, device + ".away")
        assert await error(slot=CLAIM) == f"No such file or directory: {device}"
        init(device, "bank", ("nfs", "db"), ("a", "b"))
        assert (await error(slot=CLAIM)).startswith("foreign uuid")
        os.rename(device + ".away", device)
        assert await error() == ""

    run(pair[0], test)
    process.wait()


class FakeProcess:
    """The process's end of the socket, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(20)

    def request(self) -> dict[str, object]:
        found = json.loads(self.sock.recv(65536))
        assert isinstance(found, dict)
        return found

    def answer(self, attempt: int, group: str = "nfs") -> None:
        answer = {"attempt": attempt, "group": group, "read_at_ns": 1, "slots": {"b": "crc"}, "error": ""}
        self.sock.send(json.dumps({**answer, "uuid": "u", "took_us": 5}).encode())

    def say(self, **message: object) -> None:
        self.sock.send(json.dumps(message).encode())

    async def eventually_request(self) -> dict[str, object]:
        """The next request, of a client that must be given its turns to make it."""
        self.sock.setblocking(False)
        return json.loads(await asyncio.get_running_loop().sock_recv(self.sock, 65536))  # type: ignore[no-any-return]


def test_a_frozen_disk_times_out_then_is_busy_until_its_io_returns(pair: tuple[socket.socket, socket.socket]) -> None:
    fake = FakeProcess(pair[1])

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        begun = time.monotonic()
        client.call(call(1, CLAIM))
        assert fake.request()["attempt"] == 1
        client.call(call(2, CLAIM))
        assert (await answers.get()).error == "busy: the disk hangs, the i/o of attempt 1 has not returned"
        answer = await answers.get()
        assert (answer.attempt, answer.error) == (1, "no answer within 100 ms")
        assert 0.09 < time.monotonic() - begun < 2
        client.call(call(3, CLAIM))
        assert (await answers.get()).error.startswith("busy")
        client.call(call(4, group="db"))
        assert fake.request()["attempt"] == 4, "another group is asked for all the same"
        fake.answer(4, "db")
        assert (await answers.get()).attempt == 4
        assert client.busy("nfs")
        fake.answer(1)
        fake.say(ready=True)
        assert await fake.eventually_request() == {"ping": 1}  # so it has read what came before
        assert not client.busy("nfs")
        client.call(call(5))
        assert (await fake.eventually_request())["attempt"] == 5, "nothing but 1, 4 and 5 was ever asked of the process"
        fake.answer(1)
        fake.answer(5)
        fake.say(pong=1, under_way=[])
        answer = await answers.get()
        assert (answer.attempt, answer.slots, answer.took_us) == (5, {"b": "crc"}, 5)

    run(pair[0], test, ms=100)


def test_a_frozen_process_writes_nothing_when_it_thaws(
    config: Config, pair: tuple[socket.socket, socket.socket]
) -> None:
    process = Process(pair[1], config, (pair[0],))
    pair[1].close()

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1))
        assert (await answers.get()).error == ""
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # noqa: ASYNC222 - it stops at once
        client.call(call(2, CLAIM, not_after_ns=now_ns() + 50_000_000))
        assert (await answers.get()).error == "no answer within 1000 ms"
        assert client.busy("nfs")
        os.kill(process.pid, signal.SIGCONT)
        client.call(call(3, group="db"))
        assert (await answers.get()).error == ""
        while client.busy("nfs"):  # noqa: ASYNC110 - until the answer to 2, of which the client tells nobody
            await asyncio.sleep(0.002)

    run(pair[0], test, ms=1000)
    assert process.wait() == 0
    assert slots(config)["a"] != CLAIM


def test_a_process_started_anew_frees_what_the_old_one_had(pair: tuple[socket.socket, socket.socket]) -> None:
    fake = FakeProcess(pair[1])

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, CLAIM))
        assert fake.request()["attempt"] == 1  # and then it dies
        client.call(call(2, group="db"))
        fake.say(ready=True)
        assert fake.request()["attempt"] == 2
        assert await fake.eventually_request() == {"ping": 1}
        fake.say(ready=True)  # it dies again, before it could answer anything
        assert await fake.eventually_request() == {"ping": 2}
        client.call(call(3, group="web"))
        assert await fake.eventually_request() != {}
        fake.say(pong=1, under_way=[])
        fake.answer(2, "db")
        fake.say(pong=2, under_way=[])
        fake.answer(3, "web")
        got = [await answers.get() for _ in range(3)]
        assert [(answer.attempt, answer.error) for answer in got] == [
            (2, ""),
            (1, "the lease i/o process was started anew"),
            (3, ""),
        ]
        assert not client.busy("nfs")

    run(pair[0], test)


def test_what_a_new_process_has_in_hand_is_not_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    """Answers come in any order, so a pong may overtake one: its process names what it still has."""
    fake = FakeProcess(pair[1])

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, CLAIM))
        assert fake.request()["attempt"] == 1  # and then it dies
        client.call(call(2, group="db"))  # the next one finds it in the socket
        fake.say(ready=True)
        assert fake.request()["attempt"] == 2
        assert await fake.eventually_request() == {"ping": 1}
        fake.say(pong=1, under_way=[2])
        answer = await answers.get()
        assert (answer.attempt, answer.error) == (1, "the lease i/o process was started anew")
        assert client.busy("db") and not client.busy("nfs")
        client.call(call(3, group="db"))
        assert (await answers.get()).error.startswith("busy"), "never two writes in flight to a slot"
        fake.answer(2, "db")
        assert (await answers.get()).attempt == 2

    run(pair[0], test)


@pytest.fixture
def many(tmp_path: Path) -> Config:
    groups = tuple(f"g{number:02}" for number in range(32))
    device = str(tmp_path / "many")
    init(device, "bank", groups, ("a", "b"))
    nodes = tuple(NodeSettings(name, {}) for name in ("a", "b"))
    members = tuple(Group(name, ("a", "b"), ()) for name in groups)
    return Config("bank", nodes, Heartbeat(), Arbiter("disk", device=device), members)


def test_groups_do_not_wait_for_each_other_on_a_slow_disk(
    many: Config, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 groups, each a claim at the same moment, on a disk of 20 ms an i/o: all within the usual time limit."""
    read, write = Blocks.read, Blocks.write

    def slow_read(self: Blocks, block: int, count: int = 1) -> bytes:
        time.sleep(0.02)  # the condition itself
        return read(self, block, count)

    def slow_write(self: Blocks, block: int, payload: bytes) -> None:
        time.sleep(0.02)  # the condition itself
        write(self, block, payload)

    monkeypatch.setattr(Blocks, "read", slow_read)
    monkeypatch.setattr(Blocks, "write", slow_write)
    process = Process(pair[1], many, (pair[0],))
    pair[1].close()
    claims = [Slot(group.name, "a", 2, SlotState.CLAIM, "0" * 16, 1, 3000) for group in many.groups]

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        for round in range(2):  # the first also opens the disk
            for number, claim in enumerate(claims):
                client.call(call(100 * round + number, claim, claim.group))
            errors = [(await answers.get()).error for _ in claims]
            assert errors == [""] * len(claims), "32 x 40 ms one after the other is 1280 ms"

    run(pair[0], test, ms=1000)
    assert process.wait() == 0


def test_a_frozen_group_holds_up_no_other_and_keeps_its_order(
    many: Config, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, written = threading.Event(), list[int]()
    write = LeaseDisk.write_slot

    def hanging(self: LeaseDisk, slot: Slot) -> None:
        if slot.group == "g00":
            assert frozen.wait(10)
            written.append(slot.seq)
        write(self, slot)

    monkeypatch.setattr(LeaseDisk, "write_slot", hanging)
    thread = threading.Thread(target=lease_io.main, args=(pair[1], many, "a"))
    thread.start()
    # Two engines, one after the other, on one socket: the second does not know what the first has under way.
    for attempt in (1, 2):
        slot = {
            "group": "g00",
            "node": "a",
            "seq": attempt,
            "state": 2,
            "holder": "0" * 16,
            "token": 1,
            "duration_ms": 1,
        }
        request = {"attempt": attempt, "group": "g00", "slot": slot, "not_after_ns": now_ns() + 10 * SECOND}
        pair[0].send(json.dumps(request).encode())

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        for attempt in range(3, 34):
            client.call(call(attempt, None, f"g{attempt - 2:02}"))
        assert sorted([(await answers.get()).attempt for _ in range(31)]) == list(range(3, 34))
        assert threading.active_count() <= before + 1 + len(many.groups)
        assert written == []
        client.call(call(40, group="g00"))
        frozen.set()
        assert (await answers.get()).attempt == 40
        assert written == [1, 2], "what was asked first is done first"

    before = threading.active_count() - 1
    run(pair[0], test)
    thread.join(30)
    assert not thread.is_alive()


def test_an_exchanged_disk_is_an_error_to_every_group(
    config: Config, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Of two threads one saw the first disk, and both stay with it."""
    process = Process(pair[1], config, (pair[0],))
    pair[1].close()
    device = config.arbiter.device

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, group="nfs"))
        assert (await answers.get()).error == ""
        os.rename(device, device + ".away")
        init(device, "bank", ("nfs", "db"), ("a", "b"))
        client.call(call(2, Slot("db", "a", 2, SlotState.CLAIM, "0" * 16, 1, 3000), "db"))
        assert (await answers.get()).error.startswith("foreign uuid")

    run(pair[0], test)
    assert process.wait() == 0
    assert slots(config, "db")["a"] == Slot("db", "a", 1, SlotState.IDLE, "0" * 16, 0, 0), "nothing was written"


def test_a_defect_in_one_groups_thread_ends_the_process(
    config: Config, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its group would wait for ever; a new process is there within milliseconds."""
    monkeypatch.setattr(LeaseDisk, "read_slots", lambda self, group: {}["no such key"])
    process = Process(pair[1], config, (pair[0],))
    pair[1].close()

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1))
        assert (await answers.get()).error == "the lease i/o process ended"

    run(pair[0], test)
    assert process.wait() == SOFTWARE


def test_a_process_that_ended_fails_every_call(pair: tuple[socket.socket, socket.socket]) -> None:
    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, CLAIM))
        pair[1].close()
        assert (await answers.get()).error == "the lease i/o process ended"
        client.call(call(2, CLAIM))
        assert (await answers.get()).error == "the lease i/o process is gone"

    run(pair[0], test)


def test_requests_made_before_the_process_runs_are_served(
    config: Config, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, CLAIM))
        client.call(call(2, group="db"))
        thread = threading.Thread(target=lease_io.main, args=(pair[1], config, "a"))
        thread.start()
        assert [(await answers.get()).error for _ in range(2)] == ["", ""]
        client.close()
        thread.join(30)
        assert not thread.is_alive()

    run(pair[0], test)


@pytest.mark.parametrize("group", ["nfs", "db"])
def test_read_follows_write_and_never_the_other_way(
    config: Config, group: str, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    write, read = LeaseDisk.write_slot, LeaseDisk.read_slots

    def written(self: LeaseDisk, slot: Slot) -> None:
        write(self, slot)
        steps.append("written")

    def reading(self: LeaseDisk, name: str) -> dict[str, Slot | str]:
        steps.append("read")
        return read(self, name)

    monkeypatch.setattr(LeaseDisk, "write_slot", written)
    monkeypatch.setattr(LeaseDisk, "read_slots", reading)
    thread = threading.Thread(target=lease_io.main, args=(pair[1], config, "a"))
    thread.start()

    async def test(client: LeaseIoClient, answers: asyncio.Queue[ArbiterAnswer]) -> None:
        client.call(call(1, Slot(group, "a", 2, SlotState.CLAIM, "0" * 16, 1, 3000), group))
        assert (await answers.get()).error == ""

    run(pair[0], test)
    thread.join(30)
    assert steps == ["written", "read"]
