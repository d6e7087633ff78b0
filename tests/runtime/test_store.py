"""The durable state: what was said to be on the disk is there, and damage is recognised and never believed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from hasnmp.runtime import store
from hasnmp.runtime.store import StoreClient, load, parse, save

Done = tuple[int, bool, str]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.json")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    for sock in (ours, theirs):
        if sock.fileno() >= 0:
            sock.close()


def octets(document: object) -> bytes:
    return json.dumps(document).encode()


def run(sock: socket.socket, test: Callable[[StoreClient, asyncio.Queue[Done]], Awaitable[None]]) -> None:
    async def body() -> None:
        done: asyncio.Queue[Done] = asyncio.Queue()
        client = StoreClient(
            asyncio.get_running_loop(), sock, lambda version, ok, text: done.put_nowait((version, ok, text))
        )
        try:
            await asyncio.wait_for(test(client, done), 10)
            assert done.empty()
        finally:
            client.close()

    asyncio.run(body())


# ------------------------------------------------------------------------------------------------------ the file


def test_what_was_saved_is_loaded_and_the_generation_before_stays(path: str) -> None:
    assert load(path) == (None, "")
    save(path, 1, octets({"token": 1}))
    assert load(path) == ({"token": 1}, "")
    assert not os.path.exists(path + ".1")
    save(path, 2, octets({"token": 2}))
    save(path, 3, octets({"token": 3}))
    assert load(path) == ({"token": 3}, "")
    assert load(path + ".1") == ({"token": 2}, "")
    assert sorted(os.listdir(os.path.dirname(path))) == ["state.json", "state.json.1"]
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_every_damaged_octet_of_the_file_is_noticed(path: str) -> None:
    save(path, 7, octets({"token": 12, "name": "nfs"}))
    good = Path(path).read_bytes()
    for at in range(len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 0x10
        found, text = parse(bytes(bad))
        # What a flipped bit turns into another number of the version is not part of the document.
        assert (found is None and text) or found == {"token": 12, "name": "nfs"}, at
    for size in range(len(good) - 1):
        assert parse(good[:size])[0] is None, size


def test_a_damaged_file_is_put_aside_and_the_one_before_used_with_a_word(path: str) -> None:
    save(path, 1, octets({"token": 1}))
    save(path, 2, octets({"token": 2}))
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"9")
    bad = Path(path).read_bytes()
    document, text = load(path)
    assert document == {"token": 1}
    assert "its checksum is wrong" in text
    assert f"the generation before it is used, {path}.1" in text
    assert Path(path + ".bad").read_bytes() == bad
    save(path, 3, octets({"token": 3}))
    assert load(path) == ({"token": 3}, "")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"{}\n{}", b"[1]\n", b'{"hasnmp": "state", "format": 1}\n{}', b"\xff\xfe", b"[" * 100_000],
)
def test_rubbish_is_a_lost_state_with_a_word(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    document, text = load(path)
    assert document is None
    assert path in text
    assert "put aside" in text


def test_a_later_versions_state_is_not_read(path: str) -> None:
    Path(path).write_bytes(b'{"hasnmp": "state", "format": 2}\n{}\n')
    assert load(path)[0] is None
    assert (
        "has format 2; this version reads 1"
        in Path(path + ".bad").read_text() + parse(Path(path + ".bad").read_bytes())[1]
    )


def test_a_missing_file_beside_an_older_one_is_told(path: str) -> None:
    save(path, 1, octets({"token": 1}))
    save(path, 2, octets({"token": 2}))
    os.unlink(path)
    document, text = load(path)
    assert document == {"token": 1}
    assert text.startswith(f"{path} is missing")


def test_a_state_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    document, text = load(str(tmp_path))
    assert document is None
    assert "can't be read: Is a directory" in text


def test_at_every_step_of_saving_a_power_cut_leaves_a_good_state(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving is stopped before each of its changes in turn: the old document or the new one is always there."""
    save(path, 1, octets({"token": 1}))
    calls = ("fsync", "unlink", "link", "rename")
    for stop in range(10):
        counted = 0
        with monkeypatch.context() as patch:
            for name in calls:
                real = getattr(os, name)

                def step(
                    *args: object, real: Callable[..., object] = real, stop: int = stop, **kwargs: object
                ) -> object:
                    nonlocal counted
                    counted += 1
                    if counted > stop:
                        raise RuntimeError("power cut")
                    return real(*args, **kwargs)

                patch.setattr(os, name, step)
            try:
                save(path, 2, octets({"token": 2}))
                whole = True
            except RuntimeError:
                whole = False
        document, text = load(path)
        assert document in ({"token": 1}, {"token": 2})
        assert text == ""
        if whole:
            assert document == {"token": 2}
            return
        save(path, 1, octets({"token": 1}))
    pytest.fail("saving takes more steps than this test knows")


# ------------------------------------------------------------------------------------------- the process and its client


def test_a_document_larger_than_any_packet_gets_there(path: str, pair: tuple[socket.socket, socket.socket]) -> None:
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            pair[0].close()
            status = store.main(pair[1], path)
        finally:
            os._exit(status)
    pair[1].close()
    large = {"rows": {str(n): ["x" * 40, n] for n in range(20_000)}}

    async def test(client: StoreClient, done: asyncio.Queue[Done]) -> None:
        client.persist(1, {"token": 1})
        assert await done.get() == (1, True, "")
        client.persist(2, large)
        assert not client.idle()
        assert await done.get() == (2, True, "")
        assert client.idle()

    run(pair[0], test)
    assert load(path) == (large, "")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Fake:
    """The process's end of the socket, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(20)

    def receive(self) -> tuple[int, object]:
        packet, document = store._receive(self.sock)
        return json.loads(packet)["version"], json.loads(document)

    def answer(self, version: int, ok: bool = True, text: str = "") -> None:
        self.sock.send(json.dumps({"persisted": version, "ok": ok, "text": text}).encode())


def test_only_the_newest_waits_while_one_is_written(pair: tuple[socket.socket, socket.socket]) -> None:
    fake = Fake(pair[1])

    async def test(client: StoreClient, done: asyncio.Queue[Done]) -> None:
        document = {"token": 1}
        for version in range(1, 5):
            document["token"] = version
            client.persist(version, document)
        document["token"] = 99  # what changes later is not written
        assert fake.receive() == (1, {"token": 1})
        fake.answer(1)
        assert await done.get() == (1, True, "")
        assert fake.receive() == (4, {"token": 4})
        fake.answer(4, False, "No space left on device")
        assert await done.get() == (4, False, "No space left on device")
        assert client.idle()

    run(pair[0], test)


def test_a_process_started_anew_is_given_the_newest_again(pair: tuple[socket.socket, socket.socket]) -> None:
    fake = Fake(pair[1])

    async def test(client: StoreClient, done: asyncio.Queue[Done]) -> None:
        client.persist(1, {"token": 1})
        assert fake.receive()[0] == 1  # and then it dies
        pair[1].send(b'{"ready": true}')
        await readable(pair[1])
        assert fake.receive() == (1, {"token": 1})
        client.persist(2, {"token": 2})
        pair[1].send(b'{"ready": true}')
        await readable(pair[1])
        assert fake.receive() == (2, {"token": 2})
        fake.answer(1)
        fake.answer(2)
        assert await done.get() == (2, True, "")

    run(pair[0], test)


async def readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    await ready.wait()
    loop.remove_reader(sock)


def test_without_a_process_nothing_is_said_to_be_durable(pair: tuple[socket.socket, socket.socket]) -> None:
    async def test(client: StoreClient, done: asyncio.Queue[Done]) -> None:
        client.persist(1, {})
        client.persist(2, {})
        pair[1].close()
        assert await done.get() == (2, False, "the store's process ended")
        client.persist(3, {})
        assert await done.get() == (3, False, "the store's process is gone")

    run(pair[0], test)


def test_a_full_disk_is_told_and_the_next_one_is_tried(
    path: str, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    full = True

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    thread = threading.Thread(target=store.main, args=(pair[1], path))
    thread.start()

    async def test(client: StoreClient, done: asyncio.Queue[Done]) -> None:
        nonlocal full
        client.persist(1, {"token": 1})
        version, ok, text = await done.get()
        told = re.fullmatch(r"No space left on device: (.+) \(11 octets to write, \d+ free and \d+ inodes free\)", text)
        assert (version, ok) == (1, False) and told is not None and told[1] == path, text
        assert os.listdir(os.path.dirname(path)) == [], "the part of a file does not stay on the full disk"
        full = False
        client.persist(2, {"token": 2})
        assert await done.get() == (2, True, "")

    run(pair[0], test)
    thread.join(30)
    assert not thread.is_alive()
    assert load(path) == ({"token": 2}, "")


def test_a_state_folder_that_is_missing_is_told(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    thread = threading.Thread(target=store.main, args=(pair[1], str(tmp_path / "no" / "state.json")))
    thread.start()

    async def test(client: StoreClient, done: asyncio.Queue[Done]) -> None:
        client.persist(1, {})
        version, ok, text = await done.get()
        assert (version, ok) == (1, False)
        assert text.startswith("No such file or directory")

    run(pair[0], test)
    thread.join(30)


def test_of_what_is_queued_only_the_newest_is_written(path: str, pair: tuple[socket.socket, socket.socket]) -> None:
    for version in (1, 2, 3):
        with open(os.memfd_create("test"), "wb", buffering=0) as memory:
            memory.write(octets({"token": version}))
            socket.send_fds(pair[0], [json.dumps({"version": version}).encode()], [memory.fileno()])
    pair[0].shutdown(socket.SHUT_WR)
    assert store.main(pair[1], path) == 0
    assert pair[0].recv(100) == b'{"ready": true}'
    assert json.loads(pair[0].recv(100)) == {"persisted": 3, "ok": True, "text": ""}
    assert load(path) == ({"token": 3}, "")
    assert load(path + ".1") == (None, "")
