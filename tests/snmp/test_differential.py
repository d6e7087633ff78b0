"""Thousands of generated requests of every kind: our answers are what the RFCs say, and Debian's snmpd's differ for known reasons."""

from __future__ import annotations

import random
from pathlib import Path

from hasnmp.snmp import ber
from tests.snmp.differential import Ours, a_request, compare, message, reply, snmpd
from tests.snmp.snmp_lab import GET, a_pdu, binding


def test_beside_snmpd(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    with snmpd(tmp_path) as other:
        found = compare(other, seed, 4000)
    assert not found.wrong, (seed, found.wrong[:3])
    assert not found.unexplained, (seed, found.unexplained[:3])
    # It was no walk past each other: most of what the two said was the same.
    assert sum(found.known.values()) < found.requests / 3, found.known


MALFORMED = {
    "indefinite length": lambda m: b"\x30\x80" + m[2:] + b"\0\0",
    "octets missing": lambda m: m[:-1],
    "a version that is none": lambda m: m.replace(b"\2\1\1", b"\2\1\x07", 1),
    "a PDU that is none": lambda m: m.replace(b"\xa0", b"\xaf", 1),
    "a constructed community": lambda m: m.replace(b"\4\5touch", b"\x24\5touch", 1),
    "a response": lambda m: m.replace(b"\xa0", b"\xa2", 1),
    "nothing but a header": lambda m: m[:2],
}


def test_what_is_no_request_is_answered_by_neither(tmp_path: Path) -> None:
    ours = Ours()
    good = ber.encode(0x30, b"\2\1\1\4\5touch" + a_pdu(GET, [binding((1, 3, 6, 1, 4, 1, 99999, 1, 1, 2, 0))]))
    with snmpd(tmp_path) as other:
        for what, change in MALFORMED.items():
            broken = change(good)
            assert ours.raw(broken) is None, what
            # The next answer is to the next request, under its own number.
            assert other.engine is not None
            other.socket.send(broken)
            request = a_request(random.Random(5))
            assert reply(other.raw(message(request, 4242, other.engine)), request, 4242, other.engine) is not None, what
