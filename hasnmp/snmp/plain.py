"""Requests of a form that is known, answered without being taken apart.

A console asks the same all the time. What changes from one request to the next is the request-id, and the names, most of
which were asked for before. What is around them is the request's *form*; the full parser takes it apart once.

    octets     30 L 02 01 v 04 L community A0 L 02 n | request-id | 02 01 00 02 01 00 30 L | 30 | L 06 L name | 05 00 ...
    form       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    question                                                                                     ^^^^^^^^^^^^^

A request of a known form is split at its NULLs, and each question is looked up as it is. Its lengths are in it: so whatever
is found was asked for in just these octets, and the split fell where a parser would have cut. What is not of a known form,
or asks for what has no value, is the responder's full parser's (tests/snmp/test_snmp_plain.py holds the two together).
"""

from __future__ import annotations

from hasnmp.snmp import ber
from hasnmp.snmp.cells import ASKED, Store, Window
from hasnmp.snmp.pdus import Requests

BETWEEN = b"\5\0\x30"  # the end of one variable binding without a value, the tag of the next
MIDDLE = 11  # octets after a request-id that belong to the form: two numbers of one octet, a header, a tag
FORMS = 2000  # that are remembered at once
HEADERS = 1500  # octets of an answer whose headers are kept ready

GET, NEXT, RESPONSE, BULK = 0xA0, 0xA1, 0xA2, 0xA5

Heads = dict[int, tuple[bytes, bytes]]


class Form:
    """size: octets of the request. skip: from the end of its request-id to its first question. heads: of answers to it, by
    the size of their variable bindings; prefix: what goes before their PDU; id_size: octets of the request-id."""

    __slots__ = ("first", "heads", "id_size", "prefix", "second", "size", "skip", "tag", "window")

    def __init__(
        self, size: int, tag: int, first: int, second: int, skip: int, window: Window, prefix: bytes, id_size: int,
        heads: Heads,
    ) -> None:  # fmt: skip
        self.size, self.tag, self.first, self.second, self.skip = size, tag, first, second, skip
        self.window, self.prefix, self.id_size, self.heads = window, prefix, id_size, heads

    def head(self, size: int) -> tuple[bytes, bytes]:
        """What an answer with so many octets of variable bindings has before its request-id, and after it."""
        after = b"\2\1\0\2\1\0" + ber.header(ber.SEQUENCE, size)
        contents = 2 + self.id_size + len(after) + size
        pdu = ber.header(RESPONSE, contents)
        message = ber.header(ber.SEQUENCE, len(self.prefix) + len(pdu) + contents)
        found = message + self.prefix + pdu + bytes((ber.INTEGER, self.id_size)), after
        if size < HEADERS:
            self.heads[size] = found
        return found


class Forms:
    """The forms of requests that were taken apart, and the answers to requests of these forms. who: whose a form is, apart
    from what is in its octets."""

    def __init__(self, store: Store, requests: Requests) -> None:
        self._store = store
        self._requests = requests
        self._forms: dict[tuple[object, bytes], Form] = {}
        self._heads: dict[tuple[bytes, int], Heads] = {}

    def answer(self, who: object, data: bytes, at: int, room: int) -> bytes | None:
        """The answer to a request, without what is sealed around it. None: nothing was done.

        data[at]: its PDU's length. room: octets that the variable bindings may take. Raises: IndexError: octets are missing.
        """
        size = data[at]
        at += 2 if size < 0x80 else 3 if size == 0x81 else 4
        start = at + 1
        end = start + data[at]
        form = self._forms.get((who, data[:start] + data[end : end + MIDDLE]))
        if form is None or form.size != len(data) or data[-2:] != b"\5\0":
            return None
        lead = data[start]
        if (lead == 0 or lead == 0xFF) and end - start > 1 and data[start + 1] ^ lead < 0x80:
            return None  # a number that has a shorter form, which the answer must have
        asked = data[end + form.skip : -2].split(BETWEEN)
        window = form.window
        try:
            if form.tag == GET:
                values = b"".join(map(window.found.get, asked))  # type: ignore[arg-type]
            elif form.tag == NEXT:
                values = b"".join(map(window.found.get, map(window.after.get, asked)))  # type: ignore[arg-type]
            else:
                values = self._find(form, asked, room)
        except TypeError:  # something is not known
            values = self._find(form, asked, room)
        size = len(values)
        if not size or size > room:
            return None
        head, middle = form.heads.get(size) or form.head(size)
        return b"".join((head, data[start:end], middle, values))

    def learn(
        self, who: object, data: bytes, at: int, tag: int, first: int, second: int, bindings: int, window: Window,
        prefix: bytes,
    ) -> None:  # fmt: skip
        """Remember the form of a request that the full parser took apart, where it is one that answer() can read.

        at: as there. bindings: where its variable bindings begin. prefix: what an answer has before its PDU.
        """
        _, number, stop = ber.tlv(data, at - 1, len(data))
        _, end = ber.integer(data, number, stop)
        start = number + 2
        skip = bindings + 1 - end
        if (
            number - at > 3 or end - start != data[number + 1] or stop != len(data) or skip > MIDDLE
            or tag not in (GET, NEXT, BULK) or not 0 <= first < 0x80 or not 0 <= second < 0x80
            or data[end : end + 7] != bytes((2, 1, first, 2, 1, second, ber.SEQUENCE))
            or data[bindings : bindings + 1] != b"\x30"
        ):  # fmt: skip
            return
        if len(self._forms) >= FORMS:
            self._forms.clear()
        heads = self._heads.setdefault((prefix, end - start), {})
        form = Form(len(data), tag, first, second, skip, window, prefix, end - start, heads)
        self._forms[who, data[:start] + data[end : end + MIDDLE]] = form

    def _find(self, form: Form, asked: list[bytes], room: int) -> bytes:
        """The variable bindings of an answer without error. Empty: there is none, or it needs the long way."""
        store, window = self._store, form.window
        found: list[bytes] = []
        names: list[bytes] = []
        for one in asked:
            size = len(one) - 3
            if not 0 < size < ASKED or one[0] != size + 4 or one[1] != ber.OID or one[2] != size:
                return b""
            names.append(one[3:])
        store.begin()
        try:
            if form.tag == GET:
                for one, raw in zip(asked, names, strict=True):
                    kept = window.found.get(one) or store.find(raw, window)
                    if kept is None:
                        return b""
                    found.append(kept)
            elif form.tag == NEXT:
                for one, raw in zip(asked, names, strict=True):
                    known = window.after.get(one)
                    kept = (known and store.find(known[3:], window)) or store.next(raw, window, one)
                    if kept is None:
                        return b""
                    found.append(kept)
            else:
                self._requests.walk(names, form.first, form.second, window, room, found)
        except Exception:  # a name that is none, or a value that can't be read: the long way tells which
            return b""
        return b"".join(found)
