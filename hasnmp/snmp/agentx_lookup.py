"""What an AgentX Get, GetNext or GetBulk finds (RFC 2741 section 7.2.3), in the store that the responder uses too.

The store holds everything in BER. A name below our region is translated by its last octets alone: nearly all
sub-identifiers are below 128, and of those BER has just that octet.
"""

from __future__ import annotations

from hasnmp.snmp import ber
from hasnmp.snmp.agentx_pdu import BIG, Kind, Order, Range, packed, read_name, subids, value_of_ber, write_binding
from hasnmp.snmp.ber import Oid
from hasnmp.snmp.cells import Cells, Store
from hasnmp.snmp.error_status import ErrorStatus

# Octets of an answer's variable bindings. A GetBulk gives as many as fit (section 7.2.3.3 allows fewer than asked).
ROOM = 60_000


_SIZES = tuple(size.to_bytes(4, "big") for size in range(0x80))
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class LookupFailed(Exception):
    """One search range could not be answered: its index from 1, and why."""

    def __init__(self, index: int, error: int, cause: Exception | None) -> None:
        super().__init__(f"search range {index}: {cause!r}")
        self.index, self.error, self.cause = index, error, cause


class Lookup:
    """Answers search ranges from a store all of whose objects are below `root`."""

    def __init__(self, store: Store, root: Oid) -> None:
        self._store = store
        self._root = packed(root)
        self._size = len(self._root)
        self._raw_root = ber.encode_oid(root)
        self._raw_size = len(self._raw_root)
        self._heads: dict[int, bytes] = {}

    def answer(self, kind: int, ranges: list[Range], order: Order, once: int = 0, repetitions: int = 0) -> bytes:
        """The variable bindings of the answer. once, repetitions: of a GetBulk.

        Raises: LookupFailed: an object that can't be read, or an answer beyond ROOM.
        """
        self._store.begin()
        if kind == Kind.BULK:
            return self._bulk(ranges, order, min(once, len(ranges)), repetitions)
        find = self._get if kind == Kind.GET else self._next
        out: list[bytes] = []
        size = 0
        for index, wanted in enumerate(ranges, 1):
            try:
                found = find(wanted, order)[1]
            except Exception as error:
                raise LookupFailed(index, ErrorStatus.GEN_ERR, error) from error
            size += len(found)
            if size > ROOM:
                raise LookupFailed(index, ErrorStatus.TOO_BIG, None)
            out.append(found)
        return b"".join(out)

    def raw(self, name: bytes) -> bytes | None:
        """A name in BER; None: it is not in our region."""
        return self._raw(name) if name.startswith(self._root) else None

    def _raw(self, name: bytes) -> bytes:
        """A name below the root in BER."""
        rest = name[self._size :]
        low = rest[3::4]
        if low.isascii() and _spread(low) == rest:
            return self._raw_root + low
        return self._raw_root + ber.encode_subids(subids(rest))

    def _translated(self, varbind: bytes, order: Order) -> tuple[int, bytes]:
        """A variable binding of the store: its tag, and how AgentX writes it.

        What nearly every one is goes by the short way: one-octet lengths, sub-identifiers below 128, the network's order.
        """
        if varbind[1] < 0x80 and order.big:
            stop = 4 + varbind[3]
            rest = varbind[4 + self._raw_size : stop]
            if rest.isascii():
                tag, size = varbind[stop], varbind[stop + 1]
                contents = varbind[stop + 2 :]
                low = bytearray(4 * len(rest))
                low[3::4] = rest
                if tag == ber.OCTETS:
                    return tag, self._head(tag, len(rest)) + low + _SIZES[size] + contents + _PADDING[size & 3]
                if tag == ber.COUNTER32 or tag == ber.UNSIGNED32 or tag == ber.TIMETICKS:
                    return tag, self._head(tag, len(rest)) + low + contents[-4:].rjust(4, b"\0")
                return tag, self._head(tag, len(rest)) + low + value_of_ber(tag, contents, order)
        end = len(varbind)
        inner, _ = ber.expect(varbind, 0, end, ber.SEQUENCE)
        start, stop = ber.expect(varbind, inner, end, ber.OID)
        name = packed(ber.decode_oid(varbind[start:stop]))
        tag, start, stop = ber.tlv(varbind, stop, end)
        return tag, write_binding(name, tag, value_of_ber(tag, varbind[start:stop], order), order)

    def _head(self, tag: int, count: int) -> bytes:
        """What a variable binding begins with whose name has so many sub-identifiers below the root."""
        head = self._heads.get(tag << 8 | count)
        if head is None:
            whole = write_binding(self._root + bytes(4 * count), tag, b"", BIG)
            head = self._heads[tag << 8 | count] = whole[: len(whole) - 4 * count]
        return head

    def _get(self, wanted: Range, order: Order) -> tuple[int, bytes]:
        """The tag and the variable binding of exactly this name, an exception included."""
        name = wanted[0]
        if not name.startswith(self._root) or name == self._root:
            return 0x80, write_binding(name, 0x80, b"", order)
        raw = self._raw(name)
        return self._translated(self._store.find(raw) or self._store.missing(raw), order)

    def _next(self, wanted: Range, order: Order) -> tuple[bytes, bytes, Cells | None, int]:
        """The first instance in the range: (name, variable binding, its place in the store). None: there is none."""
        start, include, end = wanted
        if include:
            tag, found = self._get(wanted, order)
            if tag < 0x80 and not (end and start >= end):
                # It has no place in the store that is known; a GetBulk goes on from its name.
                return start, found, None, 0
        if start.startswith(self._root):
            place = self._store.settle(self._store.after(self._raw(start)))
        elif start < self._root:
            place = self._store.settle(self._store.after(self._raw_root))
        else:
            place = None
        return self._bounded(place, wanted, order)

    def _bounded(
        self, place: tuple[bytes, Cells, int] | None, wanted: Range, order: Order
    ) -> tuple[bytes, bytes, Cells | None, int]:
        """What is there if it lies before the range's end, else endOfMibView with an empty name."""
        if place is not None:
            _, found = self._translated(place[0], order)
            name = found[8 : 8 + 4 * found[4]] if order.big else read_name(found, 4, len(found), order)[0]
            if not wanted[2] or name < wanted[2]:
                return name, found, place[1], place[2]
        return b"", write_binding(wanted[0], 0x82, b"", order), None, 0

    def _bulk(self, ranges: list[Range], order: Order, once: int, repetitions: int) -> bytes:
        """GetBulk: the answer may end anywhere, but for the first binding."""
        out: list[bytes] = []
        size = 0
        cursors: list[tuple[Range, Cells | None, int]] = [(wanted, None, 0) for wanted in ranges[once:]]
        index = 0
        try:
            for wanted in ranges[:once]:
                index += 1
                found = self._next(wanted, order)[1]
                size += len(found)
                if size > ROOM:
                    return b"".join(out)
                out.append(found)
            ended: list[bytes] = [b""] * len(cursors)
            for _ in range(repetitions if cursors else 0):
                running = False
                for which, (wanted, column, at) in enumerate(cursors):
                    index = once + which + 1
                    found = ended[which]
                    if not found:
                        if column is None:
                            name, found, column, at = self._next(wanted, order)
                        else:
                            place = self._store.settle((column, at + 1))
                            name, found, column, at = self._bounded(place, wanted, order)
                        if name:
                            cursors[which] = ((name, False, wanted[2]), column, at)
                            running = True
                        else:
                            ended[which] = found
                    size += len(found)
                    if size > ROOM:
                        return b"".join(out)
                    out.append(found)
                if not running:
                    break
        except Exception as error:
            raise LookupFailed(index, ErrorStatus.GEN_ERR, error) from error
        return b"".join(out)


def _spread(low: bytes) -> bytes:
    """Sub-identifiers below 256, an octet each, as a name's octets."""
    out = bytearray(4 * len(low))
    out[3::4] = low
    return bytes(out)
