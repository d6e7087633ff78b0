"""What `hasnmp arbiter init|show|clear` does to the lease disk of disk.py. Run by an administrator, never by a daemon."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
import uuid as uuids
from dataclasses import replace
from typing import Any

from hasnmp.arbiters.disk import FIRST, STRIDE, Blocks, Header, LeaseDisk, header_to_bytes
from hasnmp.arbiters.pills import ROW, Acks, PillKind, PillRow, rows
from hasnmp.errors import Code, Refused, WireError
from hasnmp.wire import SLOT_PAYLOAD, SLOT_SIZE, Slot, SlotState, slot_from_bytes, slot_to_bytes

GUARDED = 1 << 20  # octets looked at before a disk counts as empty: every usual superblock lies within them
LONGEST_WATCH_MS = 10_000
NOBODY = "0" * 16


def init(
    path: str, cluster: str, groups: tuple[str, ...], nodes: tuple[str, ...], force: bool = False, pills: bool = False
) -> str:
    """Make a lease disk, or give new groups and nodes their places on the one that is there; says what it did.

    The same call on every node is right: the second one finds the work done. force makes a new disk (a new UUID) over
    whatever is there, which is only safe while hasnmpd runs nowhere. pills: with places for poison pills (pills.py).
    Raises: Refused (foreign content, a mounted device, too small, too many nodes), OSError.
    """
    if len(nodes) > STRIDE:
        raise Refused(Code.UNSUPPORTED, f"a lease disk serves at most {STRIDE} nodes; {len(nodes)} are configured")
    if pills:
        groups += rows(nodes)
    if not os.path.exists(path):
        if path.startswith("/dev/") and not path.startswith("/dev/shm/"):
            # In devtmpfs a file would be made, too: another one on each node, each gone at the next boot.
            raise Refused(
                Code.ARBITER_LOST, f"{path} does not exist: no such device is attached to this node; see lsblk"
            )
        text = _create_file(path, cluster, groups, nodes)
        if text:
            return text
    blocks = Blocks(path)
    try:
        fcntl.flock(blocks.fd, fcntl.LOCK_EX)  # against an init of another node on this machine
        try:
            header = blocks.header()
        except WireError as error:
            if not force and (error.reason != "zeroes" or not _is_empty(blocks, len(groups))):
                raise Refused(
                    Code.NOT_ALLOWED,
                    f"{path} holds foreign data ({error}); nothing was written. If it may be lost, add --force",
                ) from None
        else:
            if not force:
                return _extend(blocks, path, header, cluster, groups, nodes)
        _refuse_mounted(path)
        return _format(blocks, path, cluster, groups, nodes)
    finally:
        blocks.close()


def describe(path: str) -> dict[str, Any]:
    """{path, uuid, cluster, generation, made_wall_ms, direct, nodes, groups: {group: {node: Slot or reason}}, pills: lines}.

    Raises: OSError, WireError (no lease disk).
    """
    blocks = Blocks(path, os.O_RDONLY)
    try:
        header, direct = blocks.header(), blocks.direct
    finally:
        blocks.close()
    disk = LeaseDisk(path, header.cluster, os.O_RDONLY)
    try:
        groups = {group: disk.read_slots(group) for group in header.groups if not group.startswith(ROW)}
    finally:
        disk.close()
    return {
        "path": path, "uuid": header.uuid, "cluster": header.cluster, "generation": header.generation,
        "made_wall_ms": header.made_wall_ms, "direct": direct, "nodes": header.nodes, "groups": groups,
        "pills": _pills(path, header),
    }  # fmt: skip


def show(path: str) -> list[str]:
    """describe() as text, within 80 columns where the names allow it. Raises as describe."""
    found = describe(path)
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["made_wall_ms"] / 1000))
    lines = [
        f"lease disk  {path}",
        f"cluster     {found['cluster']}",
        f"uuid        {found['uuid']}",
        f"made        {made}, {'past' if found['direct'] else 'through'} the page cache",
        "",
        f"{'group':<16}{'node':<16}{'state':<7}{'token':>7}{'sequence':>15}  holder",
    ]
    for group, slots in found["groups"].items():
        for node, slot in slots.items():
            if isinstance(slot, str):
                lines.append(f"{group:<15} {node:<15} unusable: {slot}")
            else:
                state = slot.state.name.lower()
                lines.append(f"{group:<15} {node:<15} {state:<7}{slot.token:>7}{slot.seq:>15}  {slot.holder}")
    return [*lines, "", *found["pills"]] if found["pills"] else lines


def _pills(path: str, header: Header) -> list[str]:
    """A line for each node that can be sent a poison pill, and for each pill that it has not acknowledged."""
    lines = []
    for victim in (row.removeprefix(ROW) for row in header.groups if row.startswith(ROW)):
        row = PillRow(path, header.cluster, victim, os.O_RDONLY)
        try:
            pills, acks = row.read()
        finally:
            row.close()
        now = f"holder {acks.holder}" if isinstance(acks, Acks) else f"no word of it: {acks}"
        lines.append(f"pills for   {victim}: {now}")
        for pill in pills.values():
            if pill.kind is not PillKind.NONE and not (isinstance(acks, Acks) and acks.of(pill)):
                lines.append(f"    of {pill.attacker}, for holder {pill.holder}: not acknowledged")
    return lines


def clear(path: str, cluster: str, group: str, node: str = "", *, force: bool = False) -> str:
    """End the record of a node that is known to be down, so that its group may be taken; says what it did.

    node: "" for every node whose record stands. A node that is named is also written down as gone where its record rests:
    that ends the promise which another node left it when it stopped in order. A record that stands (or can't be read) is ended only with force, the
    administrator's statement that the node is powered off; and not even then if it is seen being renewed. The token
    stays, for tokens only rise. Raises: Refused, OSError, WireError (no lease disk, another cluster's).
    """
    disk = LeaseDisk(path, cluster)
    try:
        header = disk.open()
        known = [name for name in header.groups if not name.startswith(ROW)]
        if group not in known:
            raise Refused(Code.NOT_FOUND, f"no group {group} on {path}; it has {', '.join(known) or 'none'}")
        if node and node not in header.nodes:
            raise Refused(Code.NOT_FOUND, f"no node {node} on {path}; it has {', '.join(header.nodes)}")
        found = disk.read_slots(group)
        standing = {
            name: slot
            for name, slot in found.items()
            if node in ("", name) and (node or isinstance(slot, str) or slot.state is not SlotState.IDLE)
        }
        if not standing:
            return f"group {group}: no record of {node or 'any node'} stands on {path}; nothing was written"
        what = "; ".join(f"{name}: {_in_words(slot)}" for name, slot in standing.items())
        if not force:
            raise Refused(
                Code.NOT_ALLOWED,
                f"group {group} on {path}: {what}. If that node still runs, clearing lets the group run twice; "
                "power it off, then add --force",
            )
        watch_ms = max((slot.duration_ms for slot in standing.values() if isinstance(slot, Slot)), default=0)
        time.sleep(min(watch_ms, LONGEST_WATCH_MS) * 1.01 / 1000)
        now = disk.read_slots(group)
        for name, slot in standing.items():
            if now[name] != slot:
                raise Refused(
                    Code.BUSY, f"group {group}: node {name} is alive: its record changed within {watch_ms} ms; nothing was written"
                )  # fmt: skip
        token = max((slot.token for slot in now.values() if isinstance(slot, Slot)), default=0)
        for name, slot in standing.items():
            if isinstance(slot, Slot):
                seq = max(slot.seq + 1, time.time_ns() // 1_000_000)
                ended = replace(slot, seq=seq, state=SlotState.IDLE, holder=NOBODY, duration_ms=0)
            else:
                # Its sequence is lost, and the peers take a lower one than they saw for an error: Unix time in
                # milliseconds is above any count of writes.
                ended = Slot(group, name, time.time_ns() // 1_000_000, SlotState.IDLE, NOBODY, token, 0)
            disk.write_slot(ended)
        return (
            f"group {group} on {path}: cleared by the administrator's word: {what}. "
            "A promise that another node left it when it stopped in order ends with this"
        )
    finally:
        disk.close()


def _in_words(slot: Slot | str) -> str:
    if isinstance(slot, str):
        return f"a record that can't be used ({slot})"
    return f"{slot.state.name.lower()}, token {slot.token}, sequence {slot.seq}, for {slot.duration_ms} ms"


def _blocks_needed(rows: int) -> int:
    return FIRST + rows * STRIDE


def _is_empty(blocks: Blocks, groups: int) -> bool:
    """Is there nothing but zeroes where we would write, and where any other use would have left its mark?"""
    last = max(GUARDED // SLOT_SIZE, _blocks_needed(groups))
    return not any(any(blocks.read(block, STRIDE)) for block in range(0, last, STRIDE))


def _refuse_mounted(path: str) -> None:
    """O_EXCL on a block device without O_CREAT: the kernel refuses it while a file system or another driver holds it."""
    if stat.S_ISBLK(os.stat(path).st_mode):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Refused(Code.BUSY, f"{path} is in use on this machine (mounted?); nothing was written") from None


def _create_file(path: str, cluster: str, groups: tuple[str, ...], nodes: tuple[str, ...]) -> str:
    """A new file appears whole or not at all; "" if another node's init made one meanwhile."""
    draft = f"{path}.{uuids.uuid4().hex[:8]}.new"  # not our pid: another machine may have the same
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        blocks = Blocks(draft)
        try:
            text = _format(blocks, path, cluster, groups, nodes, "made as a new file")
        finally:
            blocks.close()
        try:
            os.link(draft, path)
        except FileExistsError:
            return ""
    finally:
        os.unlink(draft)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return text


def _format(
    blocks: Blocks, path: str, cluster: str, groups: tuple[str, ...], nodes: tuple[str, ...], made: str = "made"
) -> str:
    rows = {group: row for row, group in enumerate(groups)}
    header = Header(str(uuids.uuid4()), cluster, nodes, rows, made_wall_ms=time.time_ns() // 1_000_000)
    octets = header_to_bytes(header)  # refused before anything is written
    _make_room(blocks, path, len(rows))
    for group in groups:
        for node in nodes:
            _write_idle(blocks, header, group, node)
    _write_header(blocks, octets)
    own = [group for group in groups if not group.startswith(ROW)]
    return f"lease disk {path} {made} for cluster {cluster}: uuid {header.uuid}, {len(nodes)} nodes, {len(own)} groups"


def _extend(
    blocks: Blocks, path: str, old: Header, cluster: str, groups: tuple[str, ...], nodes: tuple[str, ...]
) -> str:
    if old.cluster != cluster:
        raise Refused(
            Code.NOT_ALLOWED, f"{path} is foreign: it is the lease disk {old.uuid} of the cluster {old.cluster}"
        )
    new_nodes = tuple(node for node in nodes if node not in old.nodes)
    new_groups = tuple(group for group in groups if group not in old.groups)
    if not new_nodes and not new_groups:
        return f"lease disk {path} is already initialised for cluster {cluster}: uuid {old.uuid}"
    if len(old.nodes) + len(new_nodes) > old.stride:
        raise Refused(Code.UNSUPPORTED, f"{path} has places for {old.stride} nodes; with {new_nodes} it would be more")
    rows = dict(old.groups)
    for group in new_groups:
        rows[group] = max(rows.values(), default=-1) + 1
    header = replace(old, nodes=old.nodes + new_nodes, groups=rows, generation=old.generation + 1)
    octets = header_to_bytes(header)
    _make_room(blocks, path, len(rows))
    for group in rows:
        for node in header.nodes:
            if group in new_groups or node in new_nodes:
                _write_idle(blocks, header, group, node)
    _write_header(blocks, octets)
    added = ", ".join(name.replace(ROW, "pills for ") for name in (*new_groups, *new_nodes))
    return f"lease disk {path} of cluster {cluster}: uuid {old.uuid}, places added for {added}"


def _make_room(blocks: Blocks, path: str, rows: int) -> None:
    need = _blocks_needed(rows) * SLOT_SIZE
    if blocks.size() >= need:
        return
    if stat.S_ISBLK(os.fstat(blocks.fd).st_mode):
        raise Refused(Code.UNSUPPORTED, f"{path} has {blocks.size()} octets; {rows} groups need {need}")
    os.posix_fallocate(blocks.fd, 0, need)


def _write_idle(blocks: Blocks, header: Header, group: str, node: str) -> None:
    """A place that was never written is an error, so a new one says idle. One that already speaks of this group and
    node on this disk is left alone: another node's init was here a moment ago, and its daemon may run already."""
    block = header.block(group, node)
    try:
        slot_from_bytes(blocks.read(block)[:SLOT_PAYLOAD], header.uuid, header.cluster, group, node)
    except WireError:
        idle = Slot(group, node, 1, SlotState.IDLE, NOBODY, 0, 0)
        blocks.write(block, slot_to_bytes(idle, header.uuid, header.cluster))


def _write_header(blocks: Blocks, octets: bytes) -> None:
    """The second copy first: whenever the power fails, one of the two is whole."""
    blocks.write(1, octets)
    blocks.write(0, octets)
    os.fsync(blocks.fd)
