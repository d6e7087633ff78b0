"""A desk with a clock, leases and a picture that a test sets, and what it answers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from hasnmp import wire_clients as wire
from hasnmp.model import Condition, GroupRow, GroupState, ServiceRow, ServiceState
from hasnmp.runtime.desk import Desk, Done
from hasnmp.runtime.lease_board import LeaseBoard
from hasnmp.settings import Arbiter, ClientKey, Clients, Config, Group, Heartbeat, NodeSettings, Service

MS = 1_000_000
APPS, OLD, FEED = b"a" * 32, b"b" * 32, b"c" * 32
NOW = 50_000 * MS

CONFIG = Config(
    "bank",
    (NodeSettings("a", {"lan": "192.0.2.11"}), NodeSettings("b", {"lan": "192.0.2.12"})),
    Heartbeat(),
    Arbiter("none"),
    (
        Group("db", ("a", "b"), (
            Service("address", "db", "address", {"ip": "192.0.2.100/24", "interface": "eth0"}),
            Service("postgres", "db", "exec", {}, endpoint_port=5432),
        )),
        Group("other", ("a", "b"), (Service("feed", "other", "passive", {}), Service("feed2", "other", "passive", {}))),
    ),
    clients=Clients(("127.0.0.1:5406",), (
        ClientKey("apps", (OLD, APPS)),
        ClientKey("feeder", (FEED,), ("192.0.2.0/24", "2001:db8::/32"), ("feed",)),
    )),
)  # fmt: skip


@dataclass
class Lab:
    """node a's desk. reports: what it handed to the engine, each with its call back."""

    now_ns: int = NOW
    reports: list[tuple[wire.Report, str, Done]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.board = LeaseBoard()
        self.desk = Desk(CONFIG, "a", self.board, lambda *report: self.reports.append(report), lambda: self.now_ns)
        self.picture("a", 7)
        self.desk.mirror.complete = True

    def picture(self, owner: str, token: int, state: ServiceState = ServiceState.RUNNING) -> None:
        view = self.desk.mirror.view
        view.now_ns = self.now_ns
        view.tables["groups"]["db"] = GroupRow("db", GroupState.RUNNING, Condition.OK, owner, token)
        view.tables["services"]["postgres"] = ServiceRow("postgres", "db", owner, "exec", state)

    def hold(self, for_ms: int, token: int = 7) -> None:
        self.board.show("db", token, self.now_ns + for_ms * MS)

    def raw(self, octets: bytes, host: str = "192.0.2.50") -> list[bytes]:
        """What is answered at once."""
        before = len(self.sent)
        self.desk.handle(octets, host, self.sent.append)
        return self.sent[before:]

    def ask(self, request: wire.Request, key: bytes = APPS, host: str = "192.0.2.50") -> wire.Answer:
        [octets] = self.raw(wire.encode(request, key), host)
        return opened(octets, key)

    def find(self, name: str = "postgres", **more: str) -> wire.Found:
        answer = self.ask(wire.Find("apps", nonce(), more.get("cluster", "bank"), name))
        assert isinstance(answer, wire.Found), answer
        return answer

    def challenge(self, key: str = "feeder", secret: bytes = FEED) -> wire.Given:
        answer = self.ask(wire.Challenge(key, nonce(), "bank"), secret)
        assert isinstance(answer, wire.Given)
        return answer


def nonce() -> str:
    return secrets.token_hex(16)


def opened(octets: bytes, key: bytes) -> wire.Answer:
    assert len(octets) <= wire.REQUEST
    envelope = wire.open_envelope(octets)
    assert envelope.signed_by((key,)) == key
    return wire.answer(envelope)
