"""Two engines that start anew around each other: what each acknowledges is of the conversation with the other's present life."""

from __future__ import annotations

import json

from hasnmp.core.context import MS
from hasnmp.core.engine import Engine
from hasnmp.core.events import Received, Send, Started
from hasnmp.wire import Datagram, DatagramKind
from tests.core.driver import BOOT, WALL, holder_of, make_config

CONFIG = make_config(["a", "b"], {})


def said(engine: Engine, seq: int, **more: object) -> Datagram:
    """What node b says to it."""
    words = {"kind": DatagramKind.HEARTBEAT, "incarnation": 1, "echo_seq": 0} | more
    return Datagram(
        sender="b", receiver="a", seq=seq, echo_incarnation=engine.state.incarnation, holder=holder_of("b"),
        digest=CONFIG.digest, **words,
    )  # type: ignore[arg-type]  # fmt: skip


def answers(engine: Engine, datagram: Datagram) -> list[Datagram]:
    return [e.datagram for e in engine.step(Received("lan", datagram), BOOT + MS) if isinstance(e, Send)]


def test_what_a_former_life_said_acknowledges_nothing_to_the_next() -> None:
    """The next one would take it for its own first message's, which would then be sent to nobody, nor would any later."""
    engine = Engine(CONFIG, "a", "1.0")
    sent = [e.datagram for e in engine.step(Started(7, holder_of("a"), "boot", 1, WALL), BOOT) if isinstance(e, Send)]
    payload = json.dumps([["r/inhibit/nfs", [1, "b", "why"]]]).encode()
    took = answers(
        engine, said(engine, 1, kind=DatagramKind.EXCHANGE, echo_seq=sent[-1].seq, stream=1, payload=payload)
    )
    assert [d.ack for d in took if d.receiver == "b"][-1] == 1
    bare = [d for d in answers(engine, said(engine, 1, incarnation=2)) if d.kind is DatagramKind.ANSWER]
    assert [(d.echo_incarnation, d.ack) for d in bare] == [(2, 0)]
