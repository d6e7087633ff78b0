"""What a node answers its clients by UDP (wire_clients.py): who runs a service, and what became of a report.

Who holds a lease comes from the guardian's own hand (lease_board.py), at the moment of the answer; the rest from the picture
that the engine gives its clients, whose age stands in the answer. Nothing here waits, and a stranger costs little: an octet
string that is no datagram of ours costs a comparison, one with a wrong signature at most eight digests, and of those only so
many a second. Nobody unauthenticated is ever answered.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hasnmp import wire_clients as wire
from hasnmp.errors import Code, WireError
from hasnmp.model import GroupRow, ServiceRow
from hasnmp.protocol import Mirror
from hasnmp.runtime.lease_board import LeaseBoard
from hasnmp.settings import ClientKey, Config

MS = 1_000_000
STALE_MS = 2500  # the engine tells of itself each second: a picture older than this vouches for no state
CHALLENGE_MS = 10_000  # how long a challenge is good
USED = 4096  # reports whose outcome is kept for a repetition: more within CHALLENGE_MS are refused
REFUSED_A_SECOND = 1000  # datagrams with a wrong signature that are looked at; then only known senders are
KNOWN = 4096  # senders that have shown a good signature, the latest
Send = Callable[[bytes], None]
Done = Callable[[int, str], None]  # code, text


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Counters:
    answered: int = 0
    malformed: int = 0
    signature: int = 0  # an unknown key, one that may not be used from there, or a wrong signature
    dropped: int = 0  # not looked at: too many wrong ones in this second


class Desk:
    """report: hands an outside agent's word to the engine, and calls back once. now_ns: CLOCK_BOOTTIME."""

    def __init__(
        self,
        config: Config,
        node: str,
        board: LeaseBoard,
        report: Callable[[wire.Report, str, Done], None],
        now_ns: Callable[[], int] = boottime_ns,
    ) -> None:
        self.mirror = Mirror()
        self.counters = Counters()
        self.refused = ""  # the last that was refused for its key: from where, and why
        self._cluster, self._node, self._board, self._report, self._now_ns = config.cluster, node, board, report, now_ns
        self._keys = {key.name: key for key in config.clients.keys}
        self._networks = {k.name: [ipaddress.ip_network(n) for n in k.networks] for k in config.clients.keys}
        self._services = {s.name: s for s in config.services()}
        self._groups = {g.name: g for g in config.groups}
        self._secret = secrets.token_bytes(32)  # of this process: another one's challenges are not ours
        # challenge -> until when it is kept, what was reported by it, the answer
        self._used: OrderedDict[str, tuple[int, wire.Report, bytes]] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._second, self._wrong = 0, 0

    # --------------------------------------------------------------------------------------------------- who asks

    def handle(self, octets: bytes, host: str, send: Send) -> None:
        """One datagram from a host; send() answers it, at once or later, or never."""
        try:
            envelope = wire.open_envelope(octets, least=wire.REQUEST)
        except WireError:
            self.counters.malformed += 1
            return
        second = self._now_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._wrong = second, 0
        if self._wrong >= REFUSED_A_SECOND and host not in self._known:
            self.counters.dropped += 1
            return
        key = self._keys.get(envelope.key)
        secret = envelope.signed_by(key.secrets) if key is not None and self._from(key, host) else b""
        if key is None or not secret:
            self._wrong += 1
            self.counters.signature += 1
            why = (
                "no key of this name" if key is None
                else "the signature is wrong" if self._from(key, host)
                else "it may not be used from there"
            )  # fmt: skip
            self.refused = f"{host}, key {envelope.key[:32]!r}: {why}"
            return
        self._known[host] = None
        self._known.move_to_end(host)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        try:
            request = wire.request(envelope)
        except WireError:
            self.counters.malformed += 1
            return

        def answer(message: wire.Answer) -> bytes:
            datagram = wire.encode(message, secret)
            self.counters.answered += 1
            send(datagram)
            return datagram

        if request.cluster != self._cluster:
            answer(self._result(request, Code.NOT_FOUND, f"this is cluster {self._cluster}, not {request.cluster}"))
            return
        match request:
            case wire.Find():
                answer(self.find(request))
            case wire.Challenge(name, nonce):
                answer(
                    wire.Given(
                        name, nonce, self._cluster, self._node, self._challenge(name, nonce, self._now_ns() // MS)
                    )
                )
            case wire.Report():
                self._take_report(request, key, host, answer, send)

    def _from(self, key: ClientKey, host: str) -> bool:
        networks = self._networks[key.name]
        if not networks:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in networks)

    def _result(self, request: wire.Request, code: Code, text: str = "") -> wire.Result:
        return wire.Result(request.key, request.nonce, self._cluster, self._node, int(code), text)

    # --------------------------------------------------------------------------------------------- who runs what

    def find(self, asked: wire.Find) -> wire.Answer:
        service = self._services.get(asked.name)
        group = self._groups.get(service.group if service else asked.name)
        if group is None:
            names = ", ".join([*self._services][:8])
            return self._result(asked, Code.NOT_FOUND, f"no service and no group {asked.name}; services: {names}")
        view = self.mirror.view
        now = self._now_ns()  # before the lease is looked at: what passes in between is lost to the asker, not won
        token, until_ns = self._board.read(group.name)
        lease_ms = max(0, until_ns - now) // MS
        age_ms = max(0, now - view.now_ns) // MS
        row, state, owner = view.tables["groups"].get(group.name), "unknown", ""
        if isinstance(row, GroupRow) and age_ms <= STALE_MS:
            owner = row.owner
            known = view.tables["services"].get(asked.name)
            word = known.state if service and isinstance(known, ServiceRow) else row.state
            # The lease is of this moment and the picture may be of the one before: only of the same lease do they tell
            # the same.
            if not lease_ms or (owner, row.token) == (self._node, token):
                state = word.name.lower().replace("_", "-")
        if lease_ms:
            owner = self._node
        elif owner == self._node:
            owner = ""
        address = next((s.ip for s in group.services if s.ip), "")  # of several the first one counts
        return wire.Found(
            asked.key, asked.nonce, self._cluster, self._node, asked.name, group.name, owner,
            token if lease_ms else row.token if isinstance(row, GroupRow) else 0, lease_ms, state,
            min(age_ms, 10**12), address, service.endpoint_port if service else 0,
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------------- reports

    def _challenge(self, key: str, nonce: str, at_ms: int) -> str:
        """Kept nowhere: it says itself when and for whom it was given, and that it was given here."""
        proof = hmac.digest(self._secret, f"{key} {nonce} {at_ms}".encode(), "sha256").hex()[:32]
        return f"{at_ms:x}.{proof}"

    def _take_report(
        self, report: wire.Report, key: ClientKey, host: str, answer: Callable[[wire.Answer], bytes], send: Send
    ) -> None:
        def refuse(code: Code, text: str) -> None:
            answer(self._result(report, code, text))

        now_ms = self._now_ns() // MS
        try:
            at_ms = int(report.challenge.partition(".")[0], 16)
        except ValueError:
            at_ms = -1
        if not hmac.compare_digest(self._challenge(report.key, report.nonce, at_ms), report.challenge):
            refuse(
                Code.NOT_ALLOWED, f"this challenge was not given by {self._node}, or not to this asker; ask it for one"
            )
            return
        if now_ms - at_ms > CHALLENGE_MS:
            refuse(
                Code.TIMED_OUT, f"the challenge is {now_ms - at_ms} ms old (limit {CHALLENGE_MS} ms); ask for another"
            )
            return
        if report.challenge in self._used:
            # A repetition, whoever sends it: it counts for nothing, and its answer was of the first.
            _, first, said = self._used[report.challenge]
            if report != first:
                refuse(
                    Code.NOT_ALLOWED,
                    "another report was made by this challenge, which is good for one; ask for another",
                )
            elif said:
                send(said)
            return
        while self._used and next(iter(self._used.values()))[0] < now_ms:
            self._used.popitem(last=False)
        if len(self._used) >= USED:
            refuse(Code.BUSY, f"{USED} reports came within {CHALLENGE_MS} ms; report less often")
            return
        until_ms = now_ms + CHALLENGE_MS
        self._used[report.challenge] = (until_ms, report, b"")
        if report.service not in key.report:
            refuse(
                Code.NOT_ALLOWED,
                f"key {key.name} may not report on {report.service}; see clients.keys.{key.name}.report",
            )
            return

        def done(code: int, text: str) -> None:
            result = wire.Result(report.key, report.nonce, self._cluster, self._node, code, text)
            said = answer(result)
            if report.challenge in self._used:
                self._used[report.challenge] = (until_ms, report, said)

        self._report(report, host, done)
