"""The lease disk: a block device or file that every node reaches, with one place for each (group, node).

    block 0, 1   the header and its second copy (4 KiB each, written one after the other, so that one is always whole)
    block 2..    the slots, 4 KiB each: row x STRIDE + place of the node; the header says which row a group has

A node writes only its own slots (design rule 3; the exception is `clear` in admin.py, the administrator's word). A slot's payload is
one 512-octet sector, the unit that a disk writes whole or not at all. Nothing here is ever guessed to be free: what was
not written as a slot of this disk, this cluster, this group and this node is an error with its reason.

Reads and writes go past the page cache (O_DIRECT) and are durable when they return (O_DSYNC). Where a file system has no
O_DIRECT, the cached pages are dropped before each read: good for one machine, which is all that such a file can serve.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from hasnmp.errors import Code, Refused, WireError
from hasnmp.wire import (
    SLOT_PAYLOAD,
    SLOT_SIZE,
    Slot,
    slot_from_bytes,
    slot_to_bytes,
    uuid_from_bytes,
    uuid_to_bytes,
)

VERSION = 1
STRIDE = 16  # places of a row: the most nodes that one lease disk can serve
FIRST = 2  # the block of the first slot
HEADER_NS = 400_000_000  # a header that was read longer ago is read again: a wiped or exchanged disk shows there first
LOST = "bring it back, or make it anew (`hasnmp arbiter init --force`) and restart hasnmpd node by node"

_HEAD = struct.Struct("!8sBBHHHQ16sQ")  # magic, version, 0, stride, nodes, groups, generation, uuid, made at (Unix ms)
_MAGIC = b"HAsnLEAS"
_ROOM = SLOT_SIZE - 4  # the rest is the CRC-32


@dataclass(frozen=True, slots=True)
class Header:
    """What a lease disk says of itself. nodes: in the order of their places. groups: name -> row."""

    uuid: str
    cluster: str
    nodes: tuple[str, ...]
    groups: dict[str, int]
    generation: int = 1  # rises with each change of the header
    made_wall_ms: int = 0
    stride: int = STRIDE

    def block(self, group: str, node: str) -> int:
        """Raises WireError `unknown group` or `unknown node`: the disk has no place for it yet."""
        if group not in self.groups:
            raise WireError("unknown group", f"the lease disk has no place for {group}; run `hasnmp arbiter init`")
        if node not in self.nodes:
            raise WireError("unknown node", f"the lease disk has no place for {node}; run `hasnmp arbiter init`")
        return FIRST + self.groups[group] * self.stride + self.nodes.index(node)


def header_to_bytes(header: Header) -> bytes:
    """Raises Refused: too many names for one block."""
    octets = _HEAD.pack(
        _MAGIC, VERSION, 0, header.stride, len(header.nodes), len(header.groups), header.generation,
        uuid_to_bytes(header.uuid), header.made_wall_ms,
    )  # fmt: skip
    for name in (header.cluster, *header.nodes):
        octets += bytes((len(name.encode()),)) + name.encode()
    for name, row in header.groups.items():
        octets += bytes((len(name.encode()),)) + name.encode() + struct.pack("!H", row)
    if len(octets) > _ROOM:
        raise Refused(Code.UNSUPPORTED, f"the names of nodes and groups need {len(octets)} octets; {_ROOM} are there")
    octets = octets.ljust(_ROOM, b"\0")
    return octets + struct.pack("!L", zlib.crc32(octets))


def header_from_bytes(octets: bytes) -> Header:
    """Raises WireError: zeroes, crc (it bears our mark but is damaged), malformed (not a lease disk), version."""
    if not any(octets):
        raise WireError("zeroes", "no lease disk was made here; run `hasnmp arbiter init`")
    if len(octets) != SLOT_SIZE or octets[: len(_MAGIC)] != _MAGIC:
        raise WireError("malformed", "this is no lease disk")
    if zlib.crc32(octets[:_ROOM]) != struct.unpack_from("!L", octets, _ROOM)[0]:
        raise WireError("crc", "the header's checksum is wrong")
    _, version, _, stride, nodes, groups, generation, uuid, made_wall_ms = _HEAD.unpack_from(octets)
    if version != VERSION:
        raise WireError("version", f"version {version}; this one reads {VERSION}")
    at = _HEAD.size
    names: list[str] = []
    rows: dict[str, int] = {}
    try:
        for index in range(1 + nodes + groups):
            name = octets[at + 1 : at + 1 + octets[at]].decode()
            at += 1 + octets[at]
            if index <= nodes:
                names.append(name)
            else:
                rows[name] = struct.unpack_from("!H", octets, at)[0]
                at += 2
    except (IndexError, UnicodeDecodeError, struct.error):
        raise WireError("malformed", "the header's names do not add up") from None
    if nodes > min(stride, STRIDE):
        raise WireError("malformed", f"{nodes} nodes; this version serves at most {min(stride, STRIDE)}")
    return Header(uuid_from_bytes(uuid), names[0], tuple(names[1:]), rows, generation, made_wall_ms, stride)


class Blocks:
    """Whole 4 KiB blocks of a file or block device, past the page cache where the file system can. Raises OSError."""

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        self._buffer = mmap.mmap(-1, SLOT_SIZE * STRIDE)  # page-aligned, as O_DIRECT wants it
        flags |= os.O_CLOEXEC | os.O_DSYNC
        self.direct = True
        try:
            self.fd = os.open(path, flags | os.O_DIRECT)
            try:
                self._refuse_others(path)
                self.read(0)  # some file systems refuse O_DIRECT only here
            except OSError:
                os.close(self.fd)
                raise
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self.fd = os.open(path, flags)
            self.direct = False
            try:
                self._refuse_others(path)
            except OSError:
                os.close(self.fd)
                raise

    def _refuse_others(self, path: str) -> None:
        mode = os.fstat(self.fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OSError(errno.ENOTBLK, "neither a file nor a block device", path)

    def close(self) -> None:
        os.close(self.fd)
        self._buffer.close()

    def same_as(self, path: str) -> bool:
        """Is what we hold open still what the path names? Raises FileNotFoundError: it names nothing any more."""
        return identity(os.fstat(self.fd)) == identity(os.stat(path))

    def size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, block: int, count: int = 1) -> bytes:
        """At most STRIDE blocks, fewer at the end of a file."""
        if not self.direct:
            os.posix_fadvise(self.fd, block * SLOT_SIZE, count * SLOT_SIZE, os.POSIX_FADV_DONTNEED)
        with memoryview(self._buffer)[: count * SLOT_SIZE] as view:
            got = os.preadv(self.fd, [view], block * SLOT_SIZE)
            return bytes(view[:got])

    def write(self, block: int, payload: bytes) -> None:
        """One write of one block, zeroes after the payload. Durable when it returns."""
        self._buffer[:SLOT_SIZE] = payload.ljust(SLOT_SIZE, b"\0")
        with memoryview(self._buffer)[:SLOT_SIZE] as view:
            if os.pwritev(self.fd, [view], block * SLOT_SIZE) != SLOT_SIZE:
                raise OSError(errno.EIO, "the disk took only part of a block")

    def header(self) -> Header:
        """Raises WireError as header_from_bytes. Only a damaged first copy lets the second speak: a disk whose first
        block holds something else altogether was overwritten by somebody and is not ours any more."""
        try:
            return header_from_bytes(self.read(0))
        except WireError as error:
            if error.reason != "crc":
                raise
            return header_from_bytes(self.read(1))


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells one file or device from another. A device's node may be made anew by udev: its number counts."""
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev,)
    return (status.st_dev, status.st_ino)


class LeaseDisk:
    """The lease disk as one running process uses it. It stays with the UUID that it saw first: an exchanged disk is
    an error until the process is started anew, for what stood on the old one is not known to be over. A thread needs
    one of its own; known: shared between those of a process, which stay with one UUID together."""

    def __init__(
        self, path: str, cluster: str, flags: int = os.O_RDWR, known: dict[str, str] | None = None
    ) -> None:  # fmt: skip
        self.path = path
        self.cluster = cluster
        self._flags = flags
        self._known = {} if known is None else known
        self._blocks: Blocks | None = None
        self._header: Header | None = None
        self._looked_ns = 0  # when the header was read last, CLOCK_MONOTONIC

    @property
    def uuid(self) -> str:
        """ "": none was seen yet."""
        return self._known.get("uuid", "")

    def open(self) -> Header:
        """The header of what the path names now. Raises OSError; WireError, also `foreign cluster`, `foreign uuid`."""
        if self._blocks is not None and self._header is not None and self._blocks.same_as(self.path):
            if time.monotonic_ns() - self._looked_ns < HEADER_NS:
                return self._header
        else:
            self.close()
            self._blocks = Blocks(self.path, self._flags)
        return self._read_header()

    def close(self) -> None:
        """Let go of the device; the next use opens it anew."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = self._header = None

    def read_slots(self, group: str) -> dict[str, Slot | str]:
        """Every node's slot of the group, or the reason why it can't be used. Raises as open, `unknown group`."""
        header, rows = self.read_row(group)
        slots = {node: self._slot(octets, group, node) for node, octets in zip(header.nodes, rows, strict=True)}
        if "foreign uuid" in slots.values():
            self.close()  # made anew in place? The next use reads the header again, before anything is written
        return slots

    def write_slot(self, slot: Slot) -> None:
        """Durable when it returns. Raises as open; `unknown group`, `unknown node`. The caller sees to it that the
        slot is its own, and that no other write of it is under way."""
        self.write_place(slot.group, slot.node, lambda header: slot_to_bytes(slot, header.uuid, self.cluster))

    def read_row(self, group: str) -> tuple[Header, list[bytes | OSError]]:
        """The blocks of a row, in the order of the header's nodes, each as it is or why it can't be read. Raises as open,
        `unknown group`."""
        try:
            blocks, header = self._place(group)
            return header, _row(blocks, FIRST + header.groups[group] * header.stride, len(header.nodes))
        except OSError:
            self.close()
            raise

    def write_place(self, group: str, node: str, payload: Callable[[Header], bytes]) -> None:
        """As write_slot, whatever the place holds."""
        try:
            blocks, header = self._place(group)
            blocks.write(header.block(group, node), payload(header))
        except OSError:
            self.close()
            raise

    def _place(self, group: str) -> tuple[Blocks, Header]:
        header = self.open()
        if group not in header.groups:
            header = self._read_header()  # a group may have been given its place since
            if group not in header.groups:
                header.block(group, "")
        assert self._blocks is not None
        return self._blocks, header

    def _read_header(self) -> Header:
        assert self._blocks is not None
        self._header = None
        try:
            header = self._blocks.header()
        except WireError as error:
            if self.uuid:
                raise WireError(error.reason, f"its header was overwritten: {LOST}") from None
            raise
        if header.cluster != self.cluster:
            raise WireError("foreign cluster", f"{self.path} belongs to the cluster {header.cluster}")
        if self._known.setdefault("uuid", header.uuid) != header.uuid:  # one step: of two threads one is first
            raise WireError("foreign uuid", f"exchanged (was {self.uuid[:8]}): {LOST}")
        self._looked_ns = time.monotonic_ns()
        self._header = header
        return header

    def _slot(self, octets: bytes | OSError, group: str, node: str) -> Slot | str:
        if isinstance(octets, OSError):
            return f"unreadable: {octets.strerror}"
        try:
            return slot_from_bytes(octets[:SLOT_PAYLOAD], self.uuid, self.cluster, group, node)
        except WireError as error:
            return error.reason


def _row(blocks: Blocks, first: int, count: int) -> list[bytes | OSError]:
    """The blocks of one row, by one read; one by one if that fails, for a bad sector must not hide the good ones."""
    octets = b""
    try:
        octets = blocks.read(first, count)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    if len(octets) == count * SLOT_SIZE:
        return [octets[at : at + SLOT_SIZE] for at in range(0, len(octets), SLOT_SIZE)]
    found: list[bytes | OSError] = []
    for block in range(first, first + count):
        try:
            found.append(blocks.read(block))
        except OSError as error:
            found.append(error)
    if all(isinstance(one, OSError) for one in found):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return found
