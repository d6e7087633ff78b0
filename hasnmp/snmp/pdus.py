"""What GET, GETNEXT, GETBULK and SET do with variables (RFC 3416 section 4.2), apart from any message.

Names come as raw BER octets, values go out as encoded variable bindings. Whoever asks - a message's sender, or a master
agent - comes with a Window: what it sees of the store. An error is a Refused with the error-status and error-index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from hasnmp.snmp import ber, sets
from hasnmp.snmp.ber import BerError
from hasnmp.snmp.cells import Cursor, Scope, Store, Window, exception
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.sets import Assignment, SetError

BLOCK = 64  # repetitions of a GETBULK that are looked up at once: no more than one datagram mostly takes

Binding = tuple[bytes, int, bytes]  # a name's octets; a value's tag and contents


class Refused(Exception):
    """A request that fails as a whole. index: of the variable binding at fault, from 1; 0 = of none."""

    def __init__(self, status: ErrorStatus, index: int = 0) -> None:
        super().__init__(f"{status.name} at variable {index}")
        self.status, self.index = status, index


class Requests:
    """The operations on one store. failed: told of an object whose read raised, so that a fault of ours is seen as more
    than a genErr.

    room: octets that the variable bindings of an answer may take. Every method may raise BerError: a name is no OID.
    """

    def __init__(self, store: Store, failed: Callable[[Exception], None]) -> None:
        self._store = store
        self._failed = failed

    def get(
        self, names: Sequence[bytes], window: Window | None, room: int, exceptions: bool = True
    ) -> list[bytes]:  # fmt: skip
        """GetRequest (4.2.1). exceptions False: SNMPv1, which fails with noSuchName instead (RFC 3584 section 4.2.2.1).

        Raises: Refused.
        """
        store = self._store
        found: list[bytes] = []
        try:
            for raw in names:
                varbind = store.find(raw, window)
                if varbind is None:
                    varbind = store.missing(raw, window)
                    if not exceptions:
                        raise self._refused(names, ErrorStatus.NO_SUCH_NAME, len(found) + 1)
                found.append(varbind)
        except (BerError, Refused):
            raise
        except Exception as error:
            self._failed(error)
            raise self._refused(names, ErrorStatus.GEN_ERR, len(found) + 1) from error
        if sum(map(len, found)) > room:
            raise Refused(ErrorStatus.TOO_BIG)
        return found

    def next(self, names: Sequence[bytes], window: Window | None, room: int, exceptions: bool = True) -> list[bytes]:
        """GetNextRequest (4.2.2). Raises: Refused; with exceptions False noSuchName at the end of the MIB."""
        store = self._store
        found: list[bytes] = []
        try:
            for raw in names:
                place = store.settle(store.after(raw), window)
                if place is None and not exceptions:
                    raise self._refused(names, ErrorStatus.NO_SUCH_NAME, len(found) + 1)
                found.append(exception(raw, ber.END_OF_MIB_VIEW) if place is None else place[0])
        except (BerError, Refused):
            raise
        except Exception as error:
            self._failed(error)
            raise self._refused(names, ErrorStatus.GEN_ERR, len(found) + 1) from error
        if sum(map(len, found)) > room:
            raise Refused(ErrorStatus.TOO_BIG)
        return found

    def bulk(
        self, names: Sequence[bytes], non_repeaters: int, repetitions: int, window: Window | None, room: int
    ) -> list[bytes]:
        """GetBulkRequest (4.2.3): as many of the bindings, from the front, as there is room for. Raises: Refused."""
        found: list[bytes] = []
        try:
            self.walk(names, non_repeaters, repetitions, window, room, found)
        except BerError:
            raise
        except Exception as error:
            self._failed(error)
            # Its place in the request, whatever repetition it was in.
            once = min(max(non_repeaters, 0), len(names))
            done, width = len(found), len(names) - once
            index = done if done < once else once + (done - once) % width
            raise self._refused(names, ErrorStatus.GEN_ERR, index + 1) from error
        return found

    @staticmethod
    def _refused(names: Sequence[bytes], status: ErrorStatus, index: int) -> Refused:
        for raw in names:
            ber.decode_oid(raw)  # a message of which a part is none gets no answer, whatever else is wrong with it
        return Refused(status, index)

    def walk(
        self, names: Sequence[bytes], non_repeaters: int, repetitions: int, window: Window | None, room: int,
        found: list[bytes],
    ) -> None:  # fmt: skip
        """As bulk(), into `found`, and raises whatever reading a value does."""
        once = min(max(non_repeaters, 0), len(names))
        store = self._store
        for raw in names[:once]:
            place = store.settle(store.after(raw), window)
            varbind = exception(raw, ber.END_OF_MIB_VIEW) if place is None else place[0]
            room -= len(varbind)
            if room < 0:
                return
            found.append(varbind)
        cursors = [store.after(raw) for raw in names[once:]]  # also where nothing is repeated: each must be a name
        last = list(names[once:])
        if not cursors:
            return
        while repetitions > 0:
            block = min(repetitions, BLOCK)
            used = self._block(cursors, last, block, window, room, found)
            if used is None:
                used = self._steps(cursors, last, block, window, room, found)
            if used is None:
                return
            room -= used
            repetitions -= block

    def _block(
        self, cursors: list[Cursor | None], last: list[bytes], count: int, window: Window | None, room: int,
        found: list[bytes],
    ) -> int | None:  # fmt: skip
        """Repetitions of which nothing ends, fails or is cut off, all at once. Returns their size; None: do it in steps."""
        runs: list[list[bytes]] = []
        ends = []
        size = 0
        try:
            for cursor in cursors:
                run = self._store.run(cursor, count, window) if cursor is not None else None
                if run is None:
                    return None
                size += sum(map(len, run[0]))
                if size > room:  # before the next is looked up: a request may have thousands of names
                    return None
                runs.append(run[0])
                ends.append(run)
        except Exception:  # by steps it is found out which, and whether it is reached at all
            return None
        found += runs[0] if len(runs) == 1 else chain.from_iterable(zip(*runs, strict=True))
        for which, (_, column, at) in enumerate(ends):
            cursors[which] = (column, at + 1)
            last[which] = self._store.name(column, at)
        return size

    def _steps(
        self, cursors: list[Cursor | None], last: list[bytes], count: int, window: Window | None, room: int,
        found: list[bytes],
    ) -> int | None:  # fmt: skip
        """Repetitions one by one. Returns their size; None: the answer ends here."""
        store = self._store
        ended: list[bytes | None] = [None] * len(cursors)
        left = room
        for _ in range(count):
            running = False
            for which, cursor in enumerate(cursors):
                varbind = ended[which] or b""
                if not varbind:
                    place = store.settle(cursor, window)
                    if place is None:
                        varbind = ended[which] = exception(last[which], ber.END_OF_MIB_VIEW)
                        cursors[which] = None
                    else:
                        varbind, column, at = place
                        cursors[which] = (column, at + 1)
                        last[which] = store.name(column, at)
                        running = True
                left -= len(varbind)
                if left < 0:
                    return None
                found.append(varbind)
            if not running:  # every further repetition would say endOfMibView again; it may be left out
                return None
        return room - left

    def assignments(self, bindings: Sequence[Binding], writes: Scope | None) -> list[Assignment]:
        """What a SetRequest asks for (4.2.5), each variable binding tested for itself, in order and in the RFC's order.

        How they go together, and with the state, is sets.plan()'s. Raises: SetError: the first that can't be done.
        """
        names = [ber.decode_oid(raw) for raw, _, _ in bindings]
        out = []
        for position, (raw, tag, contents) in enumerate(bindings, 1):
            oid = names[position - 1]
            if writes is not None and not writes.has(oid):
                raise SetError(position, ErrorStatus.NO_ACCESS, "not in the view of what this requester may set")
            column = self._store.column(raw)
            if column is None or not column.target.write:
                raise SetError(position, ErrorStatus.NOT_WRITABLE, "nothing here can be written")
            if tag != column.syntax:
                name = f"{column.target.name} takes {column.target.syntax.name}"
                raise SetError(position, ErrorStatus.WRONG_TYPE, f"{name}, not what has tag 0x{tag:02x}")
            try:
                value = ber.decode_value(tag, contents)
            except BerError as error:
                raise SetError(position, ErrorStatus.WRONG_ENCODING, str(error)) from None
            assert value is not None  # no object is of a syntax that decodes to None
            assignment = Assignment(column.target, oid[len(column.oid) :], tag, value)
            sets.test_form(position, assignment, partial(self._store.has_row, column, raw))
            out.append(assignment)
        return out
