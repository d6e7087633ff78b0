"""Octets <-> values: the datagrams between nodes and the lease slots on the disk. Pure.

Every datagram is signed: HMAC-SHA-256 (RFC 2104, RFC 6234) over the cluster's name, the sender's and the receiver's names
and the octets, so that nothing of another cluster, and nothing meant for another node, can be taken for ours.

    octet  0..3   magic "HAsn"
           4      lowest: every version from this one on can read this datagram, and is read by its sender
           5      highest: the newest version that its sender understands
           6      kind (DatagramKind)
           7      number of group entries
           8..    CRC-32 of the cluster's name: only so that a neighbour's datagram is counted as foreign, not as forged
          12..    incarnation, seq, echo_incarnation, echo_seq: four unsigned 64-bit integers, network order
          44..    holder: 8 octets; digest: 8 octets; flags: 16 bits; ack: 32 bits; stream: 32 bits
          70..    length of the payload and of the extension: 16 bits each
          74..    the sender's and the receiver's names, each with a length octet; the group entries (name with a length
                  octet, flags 16 bits, token 64 bits, duration_ms 32 bits); the payload; the extension: fields of a
                  type (8 bits), a length (16 bits) and so many octets, none of which this version knows
     last 32      HMAC-SHA-256

Versions live together. A reader takes every datagram whose `lowest` is not above its own version, and leaves alone what it
does not know: extension fields, flags, kinds, keys of the exchange. What a reader must not miss needs a higher `lowest`.
Magic, the first two octets after it, the cluster's tag, the place of the names and the signature are the same in every
version, so that a node can say of a peer that it can't understand who it is. tests/wire/recorded keeps what each version wrote.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from hasnmp.errors import WireError

MAX_DATAGRAM = 1200  # octets: below every path's MTU, so that a heartbeat is never a fragment
MAX_PAYLOAD = 900  # octets of one exchange message
VERSION = 1  # of datagrams and slots: the newest that this code understands
LOWEST = 1  # the oldest version that it understands, and that can read what it writes
MAGIC = b"HAsn"
SLOT_SIZE = 4096
SLOT_PAYLOAD = 512  # one sector: the unit that a disk writes whole or not at all


class DatagramKind(IntEnum):
    HEARTBEAT = 1  # periodic, over every link; asks for its groups
    ANSWER = 2  # to one heartbeat, over the link it came by; promises, and (without PROMISE) numbers that are too low to be promised
    EXCHANGE = 3  # carries one message of the ordered stream between two incarnations, or only acknowledges


class NodeFlag(IntFlag):
    # Single flags are asked for all day long: `flags & ONE` is a plain number, a tenth of the price. In each class itself: to
    # one that inherits it, enum gives its own again.
    __and__ = int.__and__  # type: ignore[assignment]

    STARTING = 1  # still listening: acquires nothing
    STANDBY = 2  # drained by the administrator
    RECOVERING = 4  # waits for the administrator's word
    LEAVING = 8  # stopping in order: promises for ever what it does not own
    INHIBITED = 16


class GroupFlag(IntFlag):
    __and__ = int.__and__  # type: ignore[assignment]

    OWNER = 1  # the sender holds the lease of (group, token)
    ASK = 2  # the sender asks for a promise of (group, token), for itself
    PROMISE = 4  # the sender promises (group, token) to the receiver's holder, for duration_ms
    ABLE = 8  # the sender could run the group now
    RELEASED = 16  # the sender gave (group, token) up: promises for it are void
    HANDOVER = 32  # with RELEASED: given up for the receiver of this datagram to take
    FOREVER = 64  # with PROMISE: durable, until the promiser has heard the holder again (it is leaving)
    CLEAN = 128  # nothing of the group runs on the sender, by its guardian's word


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """What a datagram says of one group. token: of the lease asked for, owned, promised or released, else the
    highest that the sender knows of. duration_ms: of the promise, 0 without one."""

    group: str
    flags: GroupFlag
    token: int
    duration_ms: int = 0


@dataclass(frozen=True, slots=True)
class Datagram:
    """One authenticated datagram. echo_*: the newest that the sender has heard of the receiver, 0 for nothing.

    stream, payload: position (from 1) and octets of one exchange message; 0 and b"" when it carries none.
    ack: the position up to which the sender has the receiver's stream. lowest, highest: versions, see above.
    """

    kind: DatagramKind
    sender: str
    receiver: str
    incarnation: int
    seq: int
    echo_incarnation: int = 0
    echo_seq: int = 0
    holder: str = "0" * 16
    digest: str = "0" * 16
    flags: NodeFlag = NodeFlag(0)
    groups: tuple[GroupEntry, ...] = ()
    stream: int = 0
    ack: int = 0
    payload: bytes = b""
    lowest: int = LOWEST
    highest: int = VERSION


class SlotState(IntEnum):
    IDLE = 1  # nothing of the group runs on the writer: it never had it, or its guardian confirmed that all has stopped
    CLAIM = 2
    HELD = 3
    RESTING = 4  # it runs the group by promises: nobody needs to wait for this record, but it has not stopped


@dataclass(frozen=True, slots=True)
class Slot:
    """One node's place for one group on the lease disk; only that node writes it. duration_ms counts from the moment a
    reader first saw this seq."""

    group: str
    node: str
    seq: int
    state: SlotState
    holder: str
    token: int
    duration_ms: int


# ------------------------------------------------------------------------------------------------- datagrams <-> octets

_HEAD = struct.Struct("!4sBBBBLQQQQ8s8sHLLHH")
_ENTRY = struct.Struct("!HQL")
_FIELD = struct.Struct("!BH")  # of an extension: type, length
_TAG = 32  # octets of the signature
_LEAST = _HEAD.size + 4 + _TAG  # two names of one octet each, nothing else
_DOMAIN = b"hasnmp datagram 1"  # nothing else that these keys may ever sign begins like this
_KINDS = {int(kind): kind for kind in DatagramKind}
# Looked up, not called: an IntFlag's constructor costs more than the rest of an entry. A bit of a later version is
# dropped here, never taken for a known one.
_GROUP_FLAGS = tuple(GroupFlag(value) for value in range(max(GroupFlag) * 2))
_NODE_FLAGS = tuple(NodeFlag(value) for value in range(max(NodeFlag) * 2))
_GROUP_MASK = len(_GROUP_FLAGS) - 1
_NODE_MASK = len(_NODE_FLAGS) - 1


def _named(name: str) -> bytes:
    """A name with its length octet. Raises WireError malformed: empty, or longer than 255 octets of UTF-8."""
    octets = name.encode()
    if not 0 < len(octets) < 256:
        raise WireError("malformed", f"a name of {len(octets)} octets; 1 to 255 are allowed")
    return bytes((len(octets),)) + octets


def fingerprint(key: bytes) -> str:
    """What nodes may tell each other of a key that they hold: 8 hex digits, which say nothing of the key itself."""
    return hmac.digest(key, b"fingerprint", "sha256").hex()[:8]


class Hmac:
    """HMAC (RFC 2104) with one key; the hash states that the key alone gives are made once and copied, a third of what
    hmac.digest costs. make: the hash; block: octets that it works on; size: octets of the digest that count."""

    __slots__ = ("_inner", "_outer", "size")

    def __init__(
        self, key: bytes, make: Callable[[bytes], Any] = hashlib.sha256, block: int = 64, size: int = _TAG
    ) -> None:
        self.size = size
        padded = (key if len(key) <= block else make(key).digest()).ljust(block, b"\0")
        self._inner = make(bytes(octet ^ 0x36 for octet in padded))
        self._outer = make(bytes(octet ^ 0x5C for octet in padded))

    def __call__(self, message: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(message)
        outer = self._outer.copy()
        outer.update(inner.digest())
        digest: bytes = outer.digest()[: self.size]
        return digest


class Signer:
    """Turns datagrams into signed octets and back. keys: the first signs, every one is accepted, so that keys roll."""

    def __init__(self, cluster: str, keys: tuple[bytes, ...]) -> None:
        """Raises ValueError: no key, or an empty one (anybody could sign with that)."""
        if not keys or not all(keys):
            raise ValueError("a Signer needs at least one key, and none may be empty")
        self._keys = tuple(Hmac(key) for key in keys)
        self._tag = zlib.crc32(cluster.encode())
        self._cluster = _DOMAIN + _named(cluster)

    def encode(self, datagram: Datagram) -> bytes:
        """Raises WireError: oversize (above MAX_DATAGRAM or MAX_PAYLOAD), malformed (a value that has no octets)."""
        d = datagram
        if len(d.payload) > MAX_PAYLOAD:
            raise WireError("oversize", f"a payload of {len(d.payload)} octets; the limit is {MAX_PAYLOAD}")
        try:
            names = _named(d.sender) + _named(d.receiver)
            parts = [
                _HEAD.pack(
                    MAGIC, d.lowest, d.highest, d.kind, len(d.groups), self._tag,
                    d.incarnation, d.seq, d.echo_incarnation, d.echo_seq,
                    _eight(d.holder), _eight(d.digest), d.flags, d.ack, d.stream, len(d.payload), 0,
                ),
                names,
            ]  # fmt: skip
            for entry in d.groups:
                parts.append(_named(entry.group))
                parts.append(_ENTRY.pack(entry.flags, entry.token, entry.duration_ms))
        except (struct.error, ValueError, TypeError) as error:
            raise WireError("malformed", str(error)) from None
        parts.append(d.payload)
        octets = b"".join(parts)
        if len(octets) + _TAG > MAX_DATAGRAM:
            raise WireError("oversize", f"a datagram of {len(octets) + _TAG} octets; the limit is {MAX_DATAGRAM}")
        return octets + self._keys[0](self._cluster + names + octets)

    def decode(self, octets: bytes, me: str) -> Datagram:
        """The datagram that was signed for the node `me`. Total: any octets give a Datagram or a WireError.

        Raises: WireError version, foreign (another cluster's, not for me, or my own come back), signature, malformed.
        Only the head and the two names are looked at before the signature is known to be good. A `version` whose
        signature is good names its sender (WireError.peer): somebody has to say that the two can't talk.
        """
        end = len(octets) - _TAG
        if not _LEAST - _TAG <= end <= MAX_DATAGRAM - _TAG:
            raise WireError("malformed", f"{len(octets)} octets")
        if octets[:4] != MAGIC:
            raise WireError("malformed", "another magic number")
        (
            _, lowest, highest, kind, entries, tag, incarnation, seq, echo_incarnation, echo_seq, holder, digest, flags, ack, stream,
            payload_size, extension_size,
        ) = _HEAD.unpack_from(octets)  # fmt: skip
        if tag != self._tag:
            raise WireError("foreign", "another cluster")
        try:
            sender, at = _name_at(octets, _HEAD.size, end)
            receiver, at = _name_at(octets, at, end)
        except UnicodeDecodeError:
            raise WireError("malformed", "a name that is not UTF-8") from None
        if receiver != me or sender == me:
            raise WireError("foreign", "not for this node")

        signed = self._cluster + octets[_HEAD.size : at] + octets[:end]
        signature = octets[end:]
        good = False
        for key in self._keys:
            good |= hmac.compare_digest(key(signed), signature)
        if not good:
            raise WireError("signature", "none of our keys made it")

        if lowest > VERSION or highest < LOWEST:
            spoken = f"it speaks versions {lowest} to {highest}, this node {LOWEST} to {VERSION}"
            raise WireError("version", spoken, peer=sender)
        if kind not in _KINDS:
            raise WireError("version" if highest > VERSION else "malformed", f"kind {kind}")
        groups: list[GroupEntry] = []
        try:
            for _ in range(entries):
                group, at = _name_at(octets, at, end - _ENTRY.size)
                bits, token, duration_ms = _ENTRY.unpack_from(octets, at)
                at += _ENTRY.size
                groups.append(GroupEntry(group, _GROUP_FLAGS[bits & _GROUP_MASK], token, duration_ms))
        except UnicodeDecodeError:
            raise WireError("malformed", "a group's name that is not UTF-8") from None
        if len({entry.group for entry in groups}) != len(groups):
            raise WireError("malformed", "a group named twice")
        if payload_size > MAX_PAYLOAD or at + payload_size + extension_size != end:
            raise WireError("malformed", "its lengths do not add up")
        if extension_size:
            _read_extension(octets[end - extension_size : end])
        return Datagram(
            _KINDS[kind], sender, receiver, incarnation, seq, echo_incarnation, echo_seq,
            holder.hex(), digest.hex(), _NODE_FLAGS[flags & _NODE_MASK], tuple(groups), stream, ack,
            octets[at : at + payload_size], lowest, highest,
        )  # fmt: skip


def _read_extension(octets: bytes) -> dict[int, bytes]:
    """type -> value of an extension's fields; of one type the last. Raises WireError malformed: they do not add up."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(octets):
        if at + _FIELD.size > len(octets):
            raise WireError("malformed", "an extension that ends within a field's head")
        kind, size = _FIELD.unpack_from(octets, at)
        at += _FIELD.size + size
        if at > len(octets):
            raise WireError("malformed", "an extension's field that runs over its end")
        fields[kind] = octets[at - size : at]
    return fields


def _eight(digits: str) -> bytes:
    """16 hex digits as 8 octets. Raises ValueError."""
    octets = bytes.fromhex(digits)
    if len(octets) != 8:
        raise ValueError(f"{digits!r}: 16 hex digits are needed")
    return octets


def _name_at(octets: bytes, at: int, end: int) -> tuple[str, int]:
    """The name at `at` and where it ends. Raises WireError malformed: it is empty, or doesn't end before `end`."""
    after = at + 1
    if after < end:
        after += octets[at]
    if not at + 1 < after <= end:
        raise WireError("malformed", "a name that is empty or runs over the end")
    return octets[at + 1 : after].decode(), after


# ----------------------------------------------------------------------------------------------- lease slots <-> octets

# One sector: magic, the lowest version that can read it, state, length of the extension, UUID of the disk, holder, seq, token, duration_ms; the
# names of cluster, group and node, each with a length octet; the extension (as a datagram's, ignored here); zeroes;
# and in the last four octets the CRC-32 of all before.
_SLOT = struct.Struct("!4sBBH16s8sQQL")
_SLOT_MAGIC = b"HAsl"
_CRC = struct.Struct("!L")
_SLOT_ROOM = SLOT_PAYLOAD - _CRC.size
_ZEROES = bytes(SLOT_PAYLOAD)
_STATES = {int(state): state for state in SlotState}


def uuid_to_bytes(uuid: str) -> bytes:
    """The 16 octets of a UUID in its usual text form. Raises ValueError."""
    octets = bytes.fromhex(uuid.replace("-", ""))
    if len(octets) != 16:
        raise ValueError(f"{uuid!r} is not a UUID")
    return octets


def uuid_from_bytes(octets: bytes) -> str:
    """The usual text form, with its four hyphens."""
    digits = octets.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def slot_to_bytes(slot: Slot, uuid: str, cluster: str) -> bytes:
    """The sector that holds this slot. Raises WireError: oversize (the three names together), malformed."""
    try:
        octets = _SLOT.pack(
            _SLOT_MAGIC, LOWEST, slot.state, 0, uuid_to_bytes(uuid), _eight(slot.holder), slot.seq, slot.token,
            slot.duration_ms,
        )  # fmt: skip
        octets += _named(cluster) + _named(slot.group) + _named(slot.node)
    except (struct.error, ValueError, TypeError) as error:
        raise WireError("malformed", str(error)) from None
    if len(octets) > _SLOT_ROOM:
        raise WireError("oversize", f"a slot of {len(octets)} octets; its names must be shorter")
    octets = octets.ljust(_SLOT_ROOM, b"\0")
    return octets + _CRC.pack(zlib.crc32(octets))


def slot_from_bytes(octets: bytes, uuid: str, cluster: str, group: str, node: str) -> Slot:
    """The slot in a sector that was read at the place of (group, node). Total, as Signer.decode is.

    Raises: WireError zeroes, crc, version, foreign uuid, foreign cluster, wrong place (it is another group's or
    node's: the disk mixed up its sectors), malformed. None of them ever means that the group is free.
    """
    if len(octets) != SLOT_PAYLOAD:
        raise WireError("malformed", f"{len(octets)} octets; a slot has {SLOT_PAYLOAD}")
    if octets == _ZEROES:
        raise WireError("zeroes", "it was never written, or was wiped")
    if zlib.crc32(octets[:_SLOT_ROOM]) != _CRC.unpack_from(octets, _SLOT_ROOM)[0]:
        raise WireError("crc", "its checksum is wrong")
    magic, version, state, extension_size, disk, holder, seq, token, duration_ms = _SLOT.unpack_from(octets)
    if magic != _SLOT_MAGIC:
        raise WireError("malformed", "another magic number")
    if version > VERSION:
        raise WireError("version", f"it needs a reader of version {version}; this one is of version {VERSION}")
    if disk != uuid_to_bytes(uuid):
        raise WireError("foreign uuid", f"it belongs to the lease disk {uuid_from_bytes(disk)}")
    try:
        its_cluster, at = _name_at(octets, _SLOT.size, _SLOT_ROOM)
        its_group, at = _name_at(octets, at, _SLOT_ROOM)
        its_node, at = _name_at(octets, at, _SLOT_ROOM)
    except UnicodeDecodeError:
        raise WireError("malformed", "a name that is not UTF-8") from None
    if its_cluster != cluster:
        raise WireError("foreign cluster", f"it belongs to the cluster {its_cluster}")
    if (its_group, its_node) != (group, node):
        raise WireError("wrong place", f"it belongs to group {its_group} and node {its_node}")
    if state not in _STATES or at + extension_size > _SLOT_ROOM:
        raise WireError("malformed", "a state or a length that can't be")
    return Slot(group, node, seq, _STATES[state], holder.hex(), token, duration_ms)
