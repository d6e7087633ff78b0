"""The durable state of a node: the process that writes it, the engine's side of that process, and how it is read.

Writing means waiting for a disk, so the engine leaves it to a process of its own. The two talk over a Unix
SOCK_SEQPACKET pair; a document is handed over as a memfd (a packet would be too small, and a stream could be cut in
the middle by a restart):

    engine -> store   {"version": n}   with the descriptor of a memfd that holds the document as JSON
    store -> engine   {"persisted": n, "ok": bool, "text": why not}
                      {"ready": true}   at its start: what was handed to a process before it is to be sent again

The file is two lines of JSON: {"hasnmp": "state", "format": 1, "version", "octets", "sha256"}, then the document. The
generation before stays beside it as <file>.1; a damaged file is put aside as <file>.bad.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hasnmp.runtime import event_log

if TYPE_CHECKING:
    import asyncio

FORMAT = 1
EVENTS = ".events"  # beside the state: the whole ring, see event_log.py
MAX_PACKET = 4096


# ------------------------------------------------------------------------------------------------------- the process


def main(sock: socket.socket, path: str) -> int:
    """Write what comes, the newest first and only, until the other end closes. Returns the exit status, 0."""
    sock.setblocking(True)
    events = event_log.EventLog(path + EVENTS)
    try:
        sock.send(b'{"ready": true}')
        while True:
            packet, document = _receive(sock)
            if not packet:
                return 0
            sock.setblocking(False)
            try:
                while (newer := _receive(sock))[0]:
                    packet, document = newer
            except BlockingIOError:
                pass
            sock.setblocking(True)
            version = json.loads(packet)["version"]
            ok, text = True, ""
            try:
                save(path, version, document)
            except OSError as error:
                ok, text = False, f"{error.strerror or error}: {path}{_room(path, len(document))}"
            sock.send(json.dumps({"persisted": version, "ok": ok, "text": text}).encode())
            events.take(json.loads(document))
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the engine is gone; what it handed over is written


def _room(path: str, octets: int) -> str:
    """How much there was to write, and how much room its file system has, for the message of a failure."""
    try:
        room = os.statvfs(os.path.dirname(path) or ".")
    except OSError:
        return ""
    mode = ", mounted read-only" if room.f_flag & os.ST_RDONLY else ""
    return f" ({octets} octets to write, {room.f_bavail * room.f_frsize} free and {room.f_favail} inodes free{mode})"


def _receive(sock: socket.socket) -> tuple[bytes, bytes]:
    """One packet and the content of its memfd. Raises BlockingIOError: there is none (a non-blocking socket)."""
    packet, descriptors, _, _ = socket.recv_fds(sock, MAX_PACKET, 1)
    if not descriptors:
        return packet, b""
    with open(descriptors[0], "rb") as memory:
        memory.seek(0)
        return packet, memory.read()


def save(path: str, version: int, document: bytes) -> None:
    """Replace the file at once and for good: after a power cut it is the old or the new one. Raises OSError."""
    digest = hashlib.sha256(document).hexdigest()
    head = {"hasnmp": "state", "format": FORMAT, "version": version, "octets": len(document), "sha256": digest}
    draft, before = path + ".new", path + ".1"
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(json.dumps(head).encode() + b"\n" + document + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.unlink(draft)  # on a full disk a part of a file only takes room
            raise
        # A second name for the old file, not a rename: `path` itself never ceases to exist.
        spare = path + ".old"
        with suppress(FileNotFoundError):
            os.unlink(spare)
        with suppress(FileNotFoundError):  # the first time there is no old one
            os.link(path, spare)
            os.rename(spare, before)
        os.rename(draft, path)
        os.fsync(folder)
    finally:
        os.close(folder)


# ------------------------------------------------------------------------------------------------------- reading


def load(path: str) -> tuple[dict[str, Any] | None, str]:
    """The document at `path` and what was wrong ("" for nothing). Never raises.

    A file that can't be used is put aside as <path>.bad, and the generation before it is given with a text that says
    so: its tokens may be lower than what was already used, so the caller must not trust them alone. (None, "") is a
    node that never had a state; (None, text) one that has lost it.
    """
    problems: list[str] = []
    for name in (path, path + ".1"):
        try:
            with open(name, "rb") as file:
                octets = file.read()
        except FileNotFoundError:
            if name == path and os.path.exists(path + ".1"):
                problems.append(f"{name} is missing")
            continue
        except OSError as error:
            problems.append(f"{name} can't be read: {error.strerror}")
            continue
        document, fault = parse(octets)
        if document is not None:
            if problems:
                problems.append(f"the generation before it is used, {name}")
            event_log.merge(path + EVENTS, document)
            return document, "; ".join(problems)
        problems.append(f"{name} {fault}{_put_aside(name, name + '.bad')}")
    return None, "; ".join(problems)


def parse(octets: bytes) -> tuple[dict[str, Any] | None, str]:
    """The document in a file's octets, or what is wrong with them. Never raises."""
    first, _, rest = octets.partition(b"\n")
    try:
        head = json.loads(first)
        if not isinstance(head, dict) or head.get("hasnmp") != "state":
            return None, "is not a state of hasnmp"
        if head.get("format") != FORMAT:
            return None, f"has format {head.get('format')}; this version reads {FORMAT}"
        content = rest[: int(head["octets"])]
        if len(content) != head["octets"] or hashlib.sha256(content).hexdigest() != head["sha256"]:
            return None, "is damaged: its checksum is wrong"
        document = json.loads(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "is damaged: it can't be parsed"
    return (document, "") if isinstance(document, dict) else (None, "is damaged: it holds no document")


def _put_aside(name: str, aside: str) -> str:
    try:
        os.rename(name, aside)
    except OSError as error:
        return f" (and can't be put aside: {error.strerror})"
    return f"; it was put aside as {aside}"


# ------------------------------------------------------------------------------------------------- the engine's side


class StoreClient:
    """Hands documents to the store, one at a time: while one is being written only the newest waits.

    persisted(version, ok, text) is called for what was written or failed; versions that were overtaken are not told
    of, for a newer one speaks for them. It is never called from within persist() itself. With the process gone every
    version fails; a new process on the same socket is given the newest again.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, persisted: Callable[[int, bool, str], None]
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._persisted = persisted
        self._handed: tuple[int, bytes] | None = None
        self._waiting: tuple[int, bytes] | None = None
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def persist(self, version: int, document: dict[str, Any]) -> None:
        """Never blocks. The document is turned into octets here and now: what changes in it later is not written.
        Raises TypeError, ValueError: it can't be JSON."""
        octets = json.dumps(document, separators=(",", ":"), default=list).encode()
        if self._sock is None:
            self._fail(version, "the store's process is gone")
            return
        self._waiting = (version, octets)
        if self._handed is None:
            self._hand_over()

    def idle(self) -> bool:
        """Is nothing being written, and does nothing wait?"""
        return self._handed is None and self._waiting is None

    def close(self) -> None:
        """Nothing is told from here on. What was handed over is still written."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _fail(self, version: int, text: str) -> None:
        self._loop.call_soon(self._persisted, version, False, text)

    def _hand_over(self) -> None:
        if self._waiting is None or self._sock is None:
            return
        version, octets = self._waiting
        self._waiting = None
        try:
            with open(os.memfd_create("hasnmp-state"), "wb", buffering=0) as memory:
                memory.write(octets)
                socket.send_fds(self._sock, [json.dumps({"version": version}).encode()], [memory.fileno()])
        except OSError as error:
            self._fail(version, f"the store's process can't be reached: {error.strerror or error}")
            return
        self._handed = (version, octets)

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                packet = self._sock.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._ended()
                return
            answer = json.loads(packet)
            if "ready" in answer:
                if self._waiting is None:
                    self._waiting = self._handed
                self._handed = None
                self._hand_over()
            elif self._handed is not None and answer["persisted"] == self._handed[0]:
                self._handed = None
                self._hand_over()
                self._persisted(answer["persisted"], answer["ok"], answer["text"])

    def _ended(self) -> None:
        newest = self._waiting or self._handed
        self._handed = self._waiting = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        if newest is not None:
            self._persisted(newest[0], False, "the store's process ended")
