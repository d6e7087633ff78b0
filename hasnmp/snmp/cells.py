"""Every object that the agent serves, sorted by OID, each value kept encoded until it may have changed.

A request names objects in raw BER octets, and they are looked up as such: a column's octets in one dict, a row's in
another. Only a name that is not an instance is taken apart, to bisect. A scalar is a column with the one row `.0`, so
the whole agent is one sorted list of columns. A changed row drops its own encoded cells; where rows come or go, the table is
listed again at the first request after it: a change that nobody asks about costs next to nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from itertools import chain, compress, pairwise
from operator import attrgetter, ne
from typing import Any, Protocol, cast

from hasnmp.model import View
from hasnmp.snmp import ber
from hasnmp.snmp.objects import Column, Reader, Scalar, TableDef

Oid = tuple[int, ...]


class Rows:
    """The instances of one table (or the single one of a scalar), which its columns share."""

    __slots__ = (
        "by_field", "by_row", "columns", "define", "dirty", "fields", "holes", "index", "key", "keys", "places", "rows",
        "suffixes",
    )  # fmt: skip

    def __init__(
        self, define: Callable[[View], Iterable[tuple[Oid, Any]]], key: Callable[[Any], Oid] | None = None
    ) -> None:
        self.define = define
        self.key = key
        self.places: dict[Oid, int] = {}  # a row's key -> position; only where `key` tells a changed row's
        self.columns: list[Cells] = []
        self.by_field: list[Cells] = []  # columns that rest on one field of the row alone
        self.by_row: list[Cells] = []  # columns that rest on any of them
        self.fields: attrgetter[tuple[Any, ...]] | None = None  # those of by_field
        self.holes = False  # has an instance had no value since the rows were listed?
        self.dirty = True
        self.keys: list[Oid] = []  # sorted
        self.rows: list[Any] = []
        self.suffixes: list[bytes] = []  # the keys in BER
        self.index: dict[bytes, int] = {}  # suffix -> position

    def refresh(self, view: View) -> None:
        """List the rows as they are now and forget every encoded cell."""
        found = sorted(self.define(view), key=_key)
        keys = [key for key, _ in found]
        if keys != self.keys:
            self.keys = keys
            self.suffixes = [ber.encode_subids(key) for key in keys]
            self.index = {suffix: at for at, suffix in enumerate(self.suffixes)}
            if self.key is not None:
                self.places = {key: at for at, key in enumerate(keys)}
        self.rows = [row for _, row in found]
        for column in self.columns:
            column.cells = [None] * len(keys)
        self.dirty = self.holes = False

    def add(self, column: Cells) -> None:
        self.columns.append(column)
        if column.volatile:
            return
        if column.field is None:
            self.by_row.append(column)
        elif column.field:
            self.by_field.append(column)
            names = [cast(str, one.field) for one in self.by_field]
            self.fields = attrgetter(*names, names[-1])  # of two names or more, for that gives a tuple always

    def replace(self, changed: Iterable[Any]) -> list[bytes] | None:
        """These rows have other values now, which costs as much as they are many.

        Returns: the questions whose answers are over. None: which instances there are may be another matter, too, for a row
        is new, or some had no value; so all is dirty.
        """
        over: list[bytes] = []
        if self.dirty:
            return over  # what was known is forgotten, and nothing was asked for since
        for row in changed:
            at = None if self.key is None or self.holes else self.places.get(self.key(row))
            if at is None:
                self.dirty = True
                return None
            others: Iterable[Cells] = self.by_row
            if self.fields is not None:
                others = chain(compress(self.by_field, map(ne, self.fields(self.rows[at]), self.fields(row))), others)
            self.rows[at] = row
            for column in others:
                if column.cells[at] is not None:
                    column.cells[at] = None
                    over.append(question(column.raw + self.suffixes[at]))
        return over


def _key(item: tuple[Oid, Any]) -> Oid:
    return item[0]


class Cells:
    """One column, or one scalar."""

    __slots__ = ("cells", "encode", "field", "following", "oid", "raw", "read", "rows", "syntax", "target", "volatile")

    def __init__(self, target: Scalar | Column, oid: Oid, rows: Rows, read: Callable[[Reader, Any], Any]) -> None:
        self.target = target
        self.oid = oid
        self.raw = ber.encode_oid(oid)
        self.rows = rows
        self.read = read
        self.syntax = int(target.syntax)
        self.encode = ber.encoder(self.syntax)
        self.volatile = target.volatile
        self.field = target.field if isinstance(target, Column) else None
        self.cells: list[bytes | None] = []  # encoded variable bindings; None: not encoded yet, or no such instance
        self.following: Cells | None = None
        rows.add(self)


Cursor = tuple[Cells, int]

AHEAD = 32  # instances that are looked up at once for a GETNEXT
KEPT = 20_000  # answers that a window remembers of each kind, of 200 octets or so

_HEADS = [bytes((ber.SEQUENCE, size)) for size in range(0x80)]
_NAMES = [bytes((ber.OID, size)) for size in range(0x80)]
ASKED = 0x7A  # octets that a name in a question is shorter than
_ASKED = [bytes((size + 4, ber.OID, size)) for size in range(ASKED)]


def question(raw: bytes) -> bytes:
    """A name as a request's variable binding has it, between the tag of that and its NULL; b"" for a long one."""
    return _ASKED[len(raw)] + raw if len(raw) < ASKED else b""


class Scope(Protocol):
    """A MIB view (RFC 3415 section 2.4): which variables somebody may see, or may set."""

    def covers(self, prefix: Oid) -> bool | None:
        """True: everything below this OID is in the view; False: nothing; None: has() must be asked."""

    def has(self, oid: Oid) -> bool:
        """Is this variable in the view?"""


class Window:
    """A view over a store's columns: most are in it or not, and are asked for only once.

    A console asks for the same again and again, and nothing is as quick as one look into a dict:
    found: question() of an instance -> its variable binding, until its value may have changed;
    after: question() of a name -> that of the instance after it, until instances may have come or gone.
    """

    __slots__ = ("_counter64", "_known", "_scope", "after", "found")

    def __init__(self, scope: Scope | None, counter64: bool) -> None:
        self.found: dict[bytes, bytes] = {}
        self.after: dict[bytes, bytes] = {}
        self._scope = scope
        self._counter64 = counter64
        self._known: dict[Cells, bool | None] = {}

    def forget(self) -> None:
        self.found.clear()
        self.after.clear()

    def keep(self, asked: bytes, column: Cells, varbind: bytes) -> None:
        """Remember the answer to a question for an instance of this column."""
        if asked and not column.volatile and len(self.found) < KEPT:
            self.found[asked] = varbind

    def keep_after(self, asked: bytes, instance: bytes) -> None:
        if asked and instance and len(self.after) < KEPT:
            self.after[asked] = instance

    def of(self, column: Cells) -> bool | None:
        """True, False: all its instances are seen, or none; None: some are."""
        if column not in self._known:
            if column.syntax == ber.COUNTER64 and not self._counter64:
                self._known[column] = False
            else:
                self._known[column] = True if self._scope is None else self._scope.covers(column.oid)
        return self._known[column]

    def shows(self, column: Cells, at: int) -> bool:
        """Is this instance seen?"""
        seen = self.of(column)
        if seen is None:
            assert self._scope is not None  # else of() knows
            return self._scope.has(column.oid + column.rows.keys[at])
        return seen


class Store:
    """The agent's objects. make_reader is called at most once a request, and only if a value must be read."""

    def __init__(
        self, scalars: Iterable[Scalar], tables: Iterable[TableDef], make_reader: Callable[[], Reader]
    ) -> None:
        self._make_reader = make_reader
        self.twins: list[Store] = []  # stores of the same view for other readers; they are told of every change too
        self._reader: Reader | None = None
        self._by_view_table: dict[str, list[Rows]] = {}
        self._all: list[Rows] = []
        columns: list[Cells] = []
        for scalar in scalars:
            rows = self._rows(_scalar_row, scalar.view_tables, _scalar_key)
            columns.append(Cells(scalar, scalar.oid, rows, _scalar_read(scalar)))
        for table in tables:
            rows = self._rows(table.rows, table.view_tables, table.key)
            for column in table.columns:
                columns.append(Cells(column, (*table.entry_oid, column.number), rows, column.read))
        columns.sort(key=lambda column: column.oid)
        self.columns = columns
        for one, following in pairwise(columns):
            if one.oid == following.oid[: len(one.oid)]:
                raise ValueError(f"{following.target.name} lies below {one.target.name}")
            one.following = following
        self._oids = [column.oid for column in columns]
        self._by_raw = {column.raw: column for column in columns}
        self._lengths = sorted({len(column.raw) for column in columns}, reverse=True)
        self._windows: dict[tuple[Scope | None, bool], Window] = {}

    def window(self, scope: Scope | None, counter64: bool = True) -> Window:
        """What is seen of this store through a view; scope None: all of it. counter64 False: SNMPv1, which has none."""
        found = self._windows.get((scope, counter64))
        if found is None:
            found = self._windows[scope, counter64] = Window(scope, counter64)
        return found

    def _forget(self) -> None:
        for window in self._windows.values():
            window.forget()

    def _rows(
        self,
        define: Callable[[View], Iterable[tuple[Oid, Any]]],
        view_tables: Iterable[str],
        key: Callable[[Any], Oid] | None = None,
    ) -> Rows:
        rows = Rows(define, key)
        self._all.append(rows)
        for name in view_tables:
            self._by_view_table.setdefault(name, []).append(rows)
        return rows

    def changed(self, view_tables: Iterable[str]) -> None:
        """Rows of these view tables changed: what rests on them is read anew when it is asked for."""
        names = tuple(view_tables)
        known = [rows for name in names for rows in self._by_view_table.get(name, ()) if not rows.dirty]
        if known:  # else nobody has asked for them since they changed last
            self._forget()
        for rows in known:
            rows.dirty = True
        for twin in self.twins:
            twin.changed(names)

    def changed_rows(self, view_table: str, changed: Collection[Any]) -> None:
        """These rows of a view table are new or have other values; none is gone."""
        for rows in self._by_view_table.get(view_table, ()):
            over = rows.replace(changed)
            if over is None:
                self._forget()
                continue
            for window in self._windows.values():
                for asked in over:
                    window.found.pop(asked, None)
        for twin in self.twins:
            twin.changed_rows(view_table, changed)

    def changed_all(self) -> None:
        """Everything may have changed: a snapshot came, or what is known became stale."""
        self._forget()
        for rows in self._all:
            rows.dirty = True
        for twin in self.twins:
            twin.changed_all()

    def begin(self) -> None:
        """A request begins: one moment in time for all its values."""
        self._reader = None

    def reader(self) -> Reader:
        """What this request's values are read from."""
        if self._reader is None:
            self._reader = self._make_reader()
        return self._reader

    def column(self, raw: bytes) -> Cells | None:
        """The object whose OID these octets begin with."""
        for length in self._lengths:
            column = self._by_raw.get(raw[:length])
            if column is not None:
                return column
        return None

    def has_row(self, column: Cells, raw: bytes) -> bool:
        """Is the row of this instance of the column there now?"""
        if column.rows.dirty:
            column.rows.refresh(self.reader().view)
        return raw[len(column.raw) :] in column.rows.index

    def varbind(self, column: Cells, at: int) -> bytes | None:
        """The encoded variable binding of one instance; None: that row has no such value now. The rows are fresh.

        Raises: whatever the object's `read` raises; ValueError: its value isn't of its syntax.
        """
        cell = column.cells[at]
        if cell is None:
            value = column.read(self.reader(), column.rows.rows[at])
            if value is None:
                column.rows.holes = True
                return None
            name = column.raw + column.rows.suffixes[at]
            size = len(name)
            try:
                encoded = column.encode(value)
            except ber.BerError as error:  # not to be taken for octets of a request that are none
                raise ValueError(f"{column.target.name}: {error}") from None
            if size + len(encoded) < 0x7E:
                cell = _HEADS[size + len(encoded) + 2] + _NAMES[size] + name + encoded
            else:
                cell = ber.encode(ber.SEQUENCE, ber.encode(ber.OID, name) + encoded)
            if not column.volatile:
                column.cells[at] = cell
        return cell

    def find(self, raw: bytes, window: Window | None = None) -> bytes | None:
        """The encoded variable binding of this instance; None: there is none, or it is not seen.

        Raises: as varbind().
        """
        column = self.column(raw)
        if column is None:
            return None
        rows = column.rows
        if rows.dirty:
            rows.refresh(self.reader().view)
        at = rows.index.get(raw[len(column.raw) :])
        if at is None or (window is not None and not window.shows(column, at)):
            return None
        found = column.cells[at] or self.varbind(column, at)
        if window is not None and found is not None:
            window.keep(question(raw), column, found)
        return found

    def missing(self, raw: bytes, window: Window | None = None) -> bytes:
        """The variable binding that a GET answers of a name that find() has nothing for (RFC 3416 4.2.1).

        Raises: BerError: the octets are no OID.
        """
        ber.decode_oid(raw)  # what is no instance has not been checked yet: it must at least be an OID
        column = self.column(raw)
        if column is None or (window is not None and window.of(column) is False):
            return exception(raw, ber.NO_SUCH_OBJECT)
        return exception(raw, ber.NO_SUCH_INSTANCE)

    def after(self, raw: bytes) -> Cursor | None:
        """Where the first instance after this name may be: settle() finds it.

        Raises: BerError: the octets are no OID.
        """
        column = self.column(raw)
        if column is not None:
            if column.rows.dirty:
                column.rows.refresh(self.reader().view)
            at = column.rows.index.get(raw[len(column.raw) :])
            if at is not None:
                return column, at + 1
        oid = ber.decode_oid(raw)
        if column is not None:
            return column, bisect_right(column.rows.keys, oid[len(column.oid) :])
        at = bisect_right(self._oids, oid)
        return (self.columns[at], 0) if at < len(self.columns) else None

    def settle(self, cursor: Cursor | None, window: Window | None = None) -> tuple[bytes, Cells, int] | None:
        """The first instance at or after the cursor that is seen: its variable binding and place; None: the end of the MIB.

        Raises: as varbind().
        """
        if cursor is None:
            return None
        column: Cells | None = cursor[0]
        at = cursor[1]
        while column is not None:
            seen = True if window is None else window.of(column)
            if seen is not False:
                if column.rows.dirty:
                    column.rows.refresh(self.reader().view)
                for place in range(at, len(column.cells)):
                    if window is None or seen or window.shows(column, place):
                        found = column.cells[place] or self.varbind(column, place)
                        if found is not None:
                            return found, column, place
            column, at = column.following, 0
        return None

    def next(self, raw: bytes, window: Window, asked: bytes) -> bytes | None:
        """The variable binding of the first instance after this name; None: the end of the MIB. asked: the name's question.

        Raises: as varbind(); BerError: the octets are no OID.
        """
        cursor = self.after(raw)
        run = None if cursor is None else self.run(cursor, AHEAD, window)
        if run is not None:  # who asks for one will ask for those after it
            for found in run[0]:
                instance = question(found[4 : 4 + found[3]]) if found[1] < 0x80 else b""
                window.keep_after(asked, instance)
                asked = instance
            return run[0][0]
        place = self.settle(cursor, window)
        if place is None:
            return None
        found, column, at = place
        instance = question(self.name(column, at))
        window.keep_after(asked, instance)
        window.keep(instance, column, found)
        return found

    def run(self, cursor: Cursor, count: int, window: Window | None = None) -> tuple[list[bytes], Cells, int] | None:
        """The next `count` variable bindings from the cursor on, and the place of the last one, where that is simple.

        None: it is not; settle() step by step gives the same. Raises: as varbind().
        """
        column: Cells | None = cursor[0]
        at = cursor[1]
        out: list[bytes | None] = []  # by its end without None
        while column is not None:
            if window is not None:
                seen = window.of(column)
                if seen is None:
                    return None
                if not seen:
                    column, at = column.following, 0
                    continue
            if column.rows.dirty:
                column.rows.refresh(self.reader().view)
            part: list[bytes | None] = column.cells[at : at + count - len(out)]
            if not all(part):
                for place, cell in enumerate(part):
                    found = cell or self.varbind(column, at + place)
                    if found is None:
                        return None
                    part[place] = found
            out = out + part if out else part
            if len(out) >= count:
                return cast(list[bytes], out), column, at + len(part) - 1
            column, at = column.following, 0
        return None

    def name(self, column: Cells, at: int) -> bytes:
        """The OID's octets of one instance."""
        return column.raw + column.rows.suffixes[at]


def exception(raw: bytes, value: bytes) -> bytes:
    """A variable binding that carries noSuchObject, noSuchInstance or endOfMibView."""
    return ber.encode(ber.SEQUENCE, ber.encode(ber.OID, raw) + value)


def _scalar_row(_view: View) -> Iterable[tuple[Oid, Any]]:
    return (((0,), None),)


def _scalar_key(_row: Any) -> Oid:
    return (0,)


def _scalar_read(scalar: Scalar) -> Callable[[Reader, Any], Any]:
    read = scalar.read
    return lambda reader, _row: read(reader)
