"""Coverage-guided fuzzing of everything that decodes a stranger's octets: python -m tests.hostile.fuzz [libFuzzer's options]

Atheris watches which code of hasnmp.snmp an input reaches and goes on from inputs that reach more. An input is an octet that
says what the rest is - a whole datagram, or a part that is wrapped up well, so that digests and communities are no wall -
and must be survived: no exception, at most one answer, within its bounds, well formed, and the same whichever parser read it.
The same octets are what an AgentX master might send, too (RFC 2741).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["hasnmp.snmp"]):
    from hasnmp.snmp import agentx_pdu, ber
    from hasnmp.snmp.agentx_lookup import Lookup
    from tests.snmp.differential import ROOT, WORD, Ours

from hasnmp.snmp.agentx_pdu import BIG, LITTLE, AgentxError, Kind, Order
from hasnmp.snmp.usm import AUTH as AUTH_LEVEL
from hasnmp.snmp.usm import PRIV, Incoming, Report
from tests.snmp.snmp_lab import BULK, GET, NEXT, SET, Answer, a_pdu, binding

AGENT = Ours()
LOOKUP = Lookup(AGENT.store, ROOT)
NOC, PLAIN = AGENT.engine.users[b"noc"], AGENT.engine.users[b"plain"]


def wrapped(kind: int, data: bytes) -> bytes:
    """A datagram of an input."""
    match kind % 6:
        case 0:
            return data
        case 1 | 2:  # a PDU of v1, v2c
            return ber.encode(0x30, bytes((2, 1, kind % 6 - 1, 4, len(WORD))) + WORD + data)
        case 3:  # a PDU in an encrypted message
            return AGENT.engine.send(Incoming(7, 1500, True, PRIV, NOC), data, PRIV)
        case 4:  # and in one that takes no more than the least
            return AGENT.engine.send(Incoming(7, 484, True, AUTH_LEVEL, PLAIN), data, AUTH_LEVEL)
        case _:  # the message after its version
            return ber.encode(0x30, b"\2\1\3" + data)


def one(data: bytes) -> None:
    if not data:
        return
    message = wrapped(data[0], data[1:])
    answer = AGENT.raw(message)
    known = AGENT.raw(message)  # its form is known now, if it has one
    AGENT.responder._forms._forms.clear()
    if data[0] % 6 in (1, 2):  # what goes out by v3 is never the same twice
        assert known == AGENT.raw(message) == answer
    assert not AGENT.failures, AGENT.failures
    if answer is not None:
        assert len(answer) <= 65507
        opened(answer)
    agree(data[1:])
    master(data[1:])


def opened(message: bytes) -> None:
    """Raises: what we send is not what we would take."""
    start, end = ber.expect(message, 0, len(message), ber.SEQUENCE)
    assert end == len(message)
    version, start = ber.integer(message, start, end)
    if version < 3:
        answer = Answer(message)
    else:
        try:
            came = AGENT.engine.receive(message, start, end)
        except Report as report:  # a Report to nobody: the answer's own user is empty
            assert report.counter == "usm_unknown_users"
            return
        assert came is not None
        start = ber.octets(came.data, came.start, came.stop)[1]
        answer = Answer.of_pdu(came.data, ber.octets(came.data, start, came.stop)[1], came.stop)
    assert answer.tag in (0xA2, 0xA8)
    assert 0 <= answer.status <= 18 and 0 <= answer.index <= max(len(answer.names), 1)


def agree(data: bytes) -> None:
    """The decoders of values by themselves."""
    try:
        oid = ber.decode_oid(data)
    except ber.BerError:
        pass
    else:
        assert ber.encode_oid(oid) == data
    for tag in ber.VALUES:
        try:
            value = ber.decode_value(tag, data)
        except ber.BerError:
            continue
        if tag < 0x80:
            again = ber.encode_value(tag, value)
            assert len(again) <= len(ber.encode(tag, data))
            assert ber.decode_value(tag, again[len(again) - len(contents(again)) :]) == value


def master(data: bytes) -> None:
    """What a master agent sends: read as any PDU, in either byte order, it ends in AgentxError or in values that are answered."""
    if len(data) >= agentx_pdu.HEADER:
        try:
            header = agentx_pdu.parse_header(data)
            agentx_pdu.read_context(header, data, agentx_pdu.HEADER, len(data))
        except AgentxError:
            pass
    for order in (BIG, LITTLE):
        for read in (bindings, ranges, agentx_pdu.read_response, agentx_pdu.read_octets):
            try:
                read(data, 0, len(data), order)
            except AgentxError:
                continue
    try:
        agentx_pdu.read_reason(data, 0, len(data))
    except AgentxError:
        pass


def bindings(data: bytes, pos: int, end: int, order: Order) -> None:
    """Each is the same after it was written and read again."""
    for name, tag, value in agentx_pdu.read_bindings(data, pos, end, order):
        LOOKUP.raw(name)
        try:
            octets = b"" if tag >= 0x80 else agentx_pdu.write_value(tag, value, order)
        except ber.BerError:  # an object identifier that BER has no octets for
            continue
        again = agentx_pdu.write_binding(name, tag, octets, order)
        assert agentx_pdu.read_bindings(again, 0, len(again), order) == [(name, tag, value)]


def ranges(data: bytes, pos: int, end: int, order: Order) -> None:
    """Each kind of request for them is answered, and the answer is what we would read."""
    once, repetitions, wanted = agentx_pdu.read_bulk(data, pos, end, order)
    for kind in (Kind.GET, Kind.NEXT, Kind.BULK):
        answer = LOOKUP.answer(kind, wanted, order, once, min(repetitions, 20))
        found = agentx_pdu.read_bindings(answer, 0, len(answer), order)
        assert kind is Kind.BULK or len(found) == len(wanted)


def contents(element: bytes) -> bytes:
    _, start, stop = ber.tlv(element, 0, len(element))
    return element[start:stop]


def seeds(folder: Path) -> None:
    """What to begin from: a request of each kind."""
    names = [binding((*ROOT, 1, 2, 0)), binding((*ROOT, 2, 1, 3, 127))]
    pdus = [a_pdu(tag, names) for tag in (GET, NEXT)]
    pdus += [a_pdu(BULK, names, 1, 9), a_pdu(SET, [binding((*ROOT, 1, 2, 0), b"\4\2hi")])]
    for number, pdu in enumerate(pdus):
        for kind in range(1, 5):
            whole = wrapped(kind, pdu)
            (folder / f"{number}-{kind}").write_bytes(bytes((kind,)) + pdu)
            (folder / f"{number}-{kind}-whole").write_bytes(b"\0" + whole)
            if kind > 2:
                start, _ = ber.expect(whole, 0, len(whole), ber.SEQUENCE)
                (folder / f"{number}-{kind}-header").write_bytes(b"\5" + whole[start + 3 :])
    name = agentx_pdu.packed((*ROOT, 2, 1))
    for order in (BIG, LITTLE):
        wanted = order.pair.pack(0, 3) + agentx_pdu.write_name(name, order, True) + agentx_pdu.NO_END
        written = agentx_pdu.write_binding(name, ber.OCTETS, agentx_pdu.write_octets(b"hi", order), order)
        for what, payload in (("ranges", wanted), ("bindings", written)):
            (folder / f"agentx-{order.big}-{what}").write_bytes(b"\0" + payload)
            (folder / f"agentx-{order.big}-{what}-whole").write_bytes(
                b"\0" + agentx_pdu.write_pdu(5, 1, 2, 3, payload, order)
            )


def main(arguments: list[str]) -> Any:
    with tempfile.TemporaryDirectory(prefix="hasnmp-fuzz-") as name:
        seeds(Path(name))
        atheris.Setup([sys.argv[0], name, "-max_len=2000", "-timeout=20", *arguments], one)
        return atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
