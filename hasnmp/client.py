"""The client's side of failover: who runs a service now, a connection to it, and another one when it has moved.

    from hasnmp.client import Client

    client = Client.load("/etc/hasnmp/client.yaml")
    with client.connect("db", timeout_s=30) as link:         # waits until db runs somewhere
        link.sock.sendall(b"...")
        answer = link.sock.recv(4096)
        link.confirm()                                       # raises Moved: the answer may be of a former owner

    client.run("db", use)                                    # use(link) again and again, until it returns

hasnmp.client_async has the same for asyncio, and `hasnmp-run` for whole programs.

What is believed, and for how long. A node is believed about itself alone: that it holds the group's lease now, with a token
that is no lower than one that was believed before. It is believed for what its lease has left, counted from when the
*question was sent*, less 1 % for clocks of different speed: the answer may have lain on the way, and a node that is cut off
serves no longer than its lease. Everything else that is answered (who is thought to be the owner, whose state) only says
where to look. So no answer of a service counts that came from a former owner after a takeover, if it is confirmed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hasnmp import wire_clients as wire
from hasnmp.errors import HasnmpError, WireError

DEFAULT_FILE = "/etc/hasnmp/client.yaml"
DRIFT = 0.99  # how far clocks may differ in speed (design rule 2)
RESEND_S = (0.1, 0.2)  # every node is asked again after this, then as the last, until one runs it or all have answered
BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # between two searches; then as the last
STALE_MS = 2500  # a picture that is older says nothing of a state
RUNS = ("running", "degraded")  # degraded: of a group; some service of it has failed
T = TypeVar("T")


SILENT = "no answer"
REFUSED = "; nor does a node answer a key or an address that it refuses: its log says so (requests_refused)"


class NotRunning(HasnmpError):
    """Nobody proved within the time to run it. str() has what each node said."""


class Moved(HasnmpError):
    """The node that was connected to does not hold the lease any more, or can't be asked whether it does."""


def now_ns() -> int:
    """CLOCK_BOOTTIME: it goes on during suspend, so that no belief outlives one."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service runs. until_ns (CLOCK_BOOTTIME): so long it may be believed without asking again."""

    name: str
    group: str
    node: str
    host: str
    port: int
    token: int
    until_ns: int

    def holds(self) -> bool:
        return now_ns() < self.until_ns


@dataclass(slots=True)
class Question:
    """One service, asked of one node. sent_ns: when a nonce went out."""

    node: str
    address: tuple[str, int]
    sent_ns: dict[str, int] = field(default_factory=dict)  # nonce -> when; an answer counts from its own question
    answered: bool = False  # since it was asked last
    said: str = SILENT


class Search:
    """One look for a service, without any I/O: what to send, and what is learned from what comes.

    floor: the highest token believed so far; a lower one is of a former owner.
    """

    def __init__(self, cluster: Cluster, name: str, floor: int, port: int = 0, only: str = "") -> None:
        """only: ask this node alone, and only whether it holds the lease. Raises KeyError: there is no such node."""
        nodes = {only: cluster.nodes[only]} if only else cluster.nodes
        self.cluster, self.name, self._floor, self._port = cluster, name, floor, port
        self._lease_only = bool(only)
        self.questions = [Question(node, address) for node, address in nodes.items()]
        self.place: Place | None = None

    def ask(self, question: Question) -> bytes:
        """A datagram to send right now."""
        nonce = secrets.token_hex(16)
        datagram = wire.encode(wire.Find(self.cluster.key, nonce, self.cluster.name, self.name), self.cluster.secret)
        question.sent_ns[nonce], question.answered = now_ns(), False
        while len(question.sent_ns) > 8:
            del question.sent_ns[next(iter(question.sent_ns))]
        return datagram

    def all_answered(self) -> bool:
        return all(question.answered for question in self.questions)

    def take(self, octets: bytes) -> bool:
        """A datagram that came, from wherever. True: it answers one of the questions, for the first time."""
        try:
            envelope = wire.open_envelope(octets, most=wire.REQUEST)
            if envelope.key != self.cluster.key or not envelope.signed_by((self.cluster.secret,)):
                return False
            answer = wire.answer(envelope)
        except WireError:
            return False
        question = next((q for q in self.questions if answer.nonce in q.sent_ns), None)
        if question is None:
            return False
        sent_ns, question.answered = question.sent_ns.pop(answer.nonce), True
        if answer.cluster != self.cluster.name or answer.node != question.node:
            question.said = f"it is node {answer.node} of cluster {answer.cluster}"
        elif isinstance(answer, wire.Result):
            question.said = answer.text or f"refused with code {answer.code}"
        elif isinstance(answer, wire.Found) and answer.name == self.name:
            self.learn(question, answer, sent_ns)
        return True

    def learn(self, question: Question, found: wire.Found, sent_ns: int) -> None:
        """A node's word on itself, asked for at sent_ns."""
        if not found.lease_ms:
            where = f"; {found.owner} has it, it says" if found.owner else ""
            question.said = f"does not hold group {found.group}{where}"
            return
        if found.token < self._floor:
            question.said = (
                f"holds it with token {found.token}, and {self._floor} was seen before; if the cluster was set up anew, "
                "start this client again"
            )
            return
        if not self._lease_only and (found.state not in RUNS or found.age_ms > STALE_MS):
            question.said = f"holds group {found.group}; {self.name} is {found.state}"
            return
        host, port = self.cluster.places.get(self.name, ("", 0))
        place = Place(
            self.name, found.group, found.node, host or found.address or question.address[0], self._port or port or found.port,
            found.token, sent_ns + int(found.lease_ms * 1_000_000 * DRIFT),
        )  # fmt: skip
        question.said = "runs it"
        if self.place is None or place.token >= self.place.token:
            self.place = place

    def best(self) -> Place | None:
        """The place that may be believed at this moment."""
        return self.place if self.place is not None and self.place.holds() else None

    def why(self) -> str:
        said = "; ".join(f"{q.node} ({q.address[0]}:{q.address[1]}): {q.said}" for q in self.questions)
        return said + REFUSED * all(q.said == SILENT for q in self.questions)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Whom to ask, and with which key. places: service -> (host, port) where they are not as the nodes tell."""

    name: str
    nodes: dict[str, tuple[str, int]]
    key: str
    secret: bytes = field(repr=False)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str = "") -> Cluster:
        """From a client's file; default: HASNMP_CLIENT, else /etc/hasnmp/client.yaml. Raises ConfigError."""
        from hasnmp.config_clients import load_client
        from hasnmp.config_kinds import split_endpoint

        file = load_client(path or os.environ.get("HASNMP_CLIENT", DEFAULT_FILE))
        nodes = {
            name: (host, int(port)) for name, (host, port) in ((n, split_endpoint(a)) for n, a in file.nodes.items())
        }
        return cls(file.cluster, nodes, file.key, file.secret, file.places)


class Sockets:
    """One UDP socket for each family that is needed."""

    def __init__(self) -> None:
        self._by_family: dict[int, socket.socket] = {}

    def send(self, octets: bytes, address: tuple[str, int]) -> str:
        """Returns why it could not be sent, "" if it was."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            if family not in self._by_family:
                sock = self._by_family[family] = socket.socket(family, socket.SOCK_DGRAM)
                sock.setblocking(False)
            self._by_family[family].sendto(octets, address)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def receive(self, seconds: float) -> list[bytes]:
        """What is there, or comes within the time."""
        found = []
        poll = select.poll()  # not select(2): a program with more than a thousand open files has descriptors beyond it
        by_number = {sock.fileno(): sock for sock in self._by_family.values()}
        for number in by_number:
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(max(0.0, seconds) * 1000):
            sock = by_number[number]
            for _ in range(64):
                try:
                    found.append(sock.recv(65535))
                except OSError:  # nothing more there; or an ICMP error, which says no more than silence does
                    break
        return found

    def close(self) -> None:
        for sock in self._by_family.values():
            sock.close()


class Link:
    """A TCP connection to where a service runs. Use as a context manager.

    While it is open a thread asks the node again before its lease has run out; when the node does not hold the lease any more,
    or can't be asked, the connection is shut down, so that whoever waits for its octets waits no longer. `moved` then says
    why.
    """

    def __init__(self, client: Client, place: Place, sock: socket.socket, watch: bool = True) -> None:
        self._client, self._place, self.sock = client, place, sock
        self.moved = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"hasnmp {place.name}", daemon=True)
        if watch:
            self._watcher.start()

    @property
    def place(self) -> Place:
        return self._place

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()
        self.sock.close()

    def confirm(self, timeout_s: float = 1.0) -> Place:
        """That node has held the lease without a break since this connection was made, up to now: what has come over the
        connection counts. At no cost while the last answer is believed, else by asking again. Raises Moved."""
        if self.moved:
            raise Moved(self.moved)
        place = self._place
        if not place.holds():
            try:
                self._take(self._client.again(place, timeout_s))
            except Moved as moved:
                self._end(str(moved))
                raise
        return self._place

    def _take(self, place: Place) -> None:
        with self._lock:
            if place.until_ns > self._place.until_ns:
                self._place = place

    def _end(self, why: str) -> None:
        self.moved = why
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        while True:
            left_s = (self._place.until_ns - now_ns()) / 1e9
            # Each third of what is left: two questions may be lost before the last answer is used up.
            if self._closed.wait(max(0.02, left_s / 3)):
                return
            try:
                self._take(self._client.again(self._place, max(0.1, (self._place.until_ns - now_ns()) / 1e9)))
            except Moved as moved:
                if not self._closed.is_set():
                    self._end(str(moved))
                return


class Client:
    """What an application asks. One object for all its threads: it keeps the highest token of each group."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._floors: dict[str, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str = "") -> Client:
        """From a client's file (see Cluster.load). Raises ConfigError."""
        return cls(Cluster.load(path))

    def floor(self, name: str) -> int:
        return self._floors.get(name, 0)

    def believe(self, place: Place) -> Place:
        """From here on no lower token of that group counts."""
        with self._lock:
            self._floors[place.name] = max(place.token, self._floors.get(place.name, 0))
        return place

    # ------------------------------------------------------------------------------------------------------- find

    def find(self, name: str, timeout_s: float = 1.0, port: int = 0) -> Place:
        """Who runs this service (or group) now. Raises NotRunning: nobody proved it within the time."""
        search = Search(self.cluster, name, self.floor(name), port)
        if place := self._look(search, timeout_s):
            return self.believe(place)
        raise NotRunning(f"nobody is known to run {name}: {search.why()}")

    def again(self, place: Place, timeout_s: float) -> Place:
        """Ask the node whether it still holds that very lease; gives the place with what is left of it. Raises Moved."""
        search = Search(self.cluster, place.name, place.token, place.port, only=place.node)
        newer = self._look(search, timeout_s)
        if newer is None or newer.token != place.token:
            raise Moved(f"{place.name} is not known to run on {place.node} any more: {search.why()}")
        return replace(newer, host=place.host)

    def _look(self, search: Search, timeout_s: float) -> Place | None:
        """Ask, and ask again; until one proves to run it, or all have answered that they don't, or the time is over."""
        deadline = time.monotonic() + timeout_s
        sockets = Sockets()
        try:
            tries = 0
            while time.monotonic() < deadline:
                for question in search.questions:
                    if why := sockets.send(search.ask(question), question.address):
                        question.said = why
                resend_at = min(deadline, time.monotonic() + RESEND_S[min(tries, len(RESEND_S) - 1)])
                tries += 1
                while (left_s := resend_at - time.monotonic()) > 0:
                    for octets in sockets.receive(left_s):
                        search.take(octets)
                    if place := search.best():
                        return place
                    if search.all_answered():
                        return None
        finally:
            sockets.close()
        return None

    def wait(self, name: str, timeout_s: float = 60.0, port: int = 0) -> Place:
        """As find, again and again until it runs somewhere. Raises NotRunning: with the last answers."""
        deadline = time.monotonic() + timeout_s
        for pause_s in pauses():
            left_s = deadline - time.monotonic()
            try:
                return self.find(name, max(0.1, min(1.0, left_s)), port)
            except NotRunning:
                if left_s <= pause_s:
                    raise
            time.sleep(pause_s)
        raise NotRunning(name)

    # ---------------------------------------------------------------------------------------------------- connect

    def connect(self, name: str, timeout_s: float = 60.0, port: int = 0, watch: bool = True) -> Link:
        """A TCP connection to where the service runs; waits until it does. port: if the nodes don't tell it.

        Raises NotRunning. ValueError: nobody tells the port.
        """
        deadline = time.monotonic() + timeout_s
        for pause_s in pauses():
            left_s = deadline - time.monotonic()
            place = self.wait(name, max(0.1, left_s), port)
            try:
                sock = socket.create_connection(address_of(place), timeout=max(0.1, min(5.0, left_s)))
            except OSError as error:
                if left_s <= pause_s:
                    raise NotRunning(f"{name} runs on {place.node}, but {place.host}:{place.port} refuses a connection: "
                                     f"{error.strerror or error}") from None  # fmt: skip
                time.sleep(pause_s)
                continue
            sock.settimeout(None)
            return Link(self, place, sock, watch)
        raise NotRunning(name)

    def run(self, name: str, use: Callable[[Link], T], timeout_s: float = 60.0, port: int = 0) -> T:
        """Call use(link), with another connection each time that the one it had is lost (OSError, Moved); its result.

        timeout_s: how long at most without a connection. What use() had under way when the connection was lost may have been
        done or not: whether it is to be done again only the application can know. Raises NotRunning, and what use() raises.
        """
        for pause_s in pauses():
            with self.connect(name, timeout_s, port) as link:
                try:
                    return use(link)
                except (OSError, Moved):
                    pass
            time.sleep(pause_s)
        raise NotRunning(name)

    # ------------------------------------------------------------------------------------------------------ report

    def report(self, service: str, up: bool, text: str = "", timeout_s: float = 2.0) -> str:
        """Report a passive service up or down; any node passes it on to the owner. Returns the node that took it.

        Raises NotRunning: no node took it; str() has what each said.
        """
        why, silent = [], True
        for node, address in self.cluster.nodes.items():
            said = self._report(node, address, service, up, text, timeout_s / max(1, len(self.cluster.nodes)))
            if not said:
                return node
            why.append(f"{node}: {said}")
            silent &= said == SILENT
        raise NotRunning(f"the report on {service} was not taken: {'; '.join(why)}{REFUSED * silent}")

    def _report(self, node: str, address: tuple[str, int], service: str, up: bool, text: str, timeout_s: float) -> str:
        """Why this node did not take it, "" if it did."""
        deadline = time.monotonic() + timeout_s
        nonce, key, cluster = secrets.token_hex(16), self.cluster.key, self.cluster.name
        given = self._ask(address, wire.Challenge(key, nonce, cluster), deadline)
        if isinstance(given, wire.Given) and (given.node, given.cluster) == (node, cluster):
            # Sent again as it is where its answer was lost: the node counts it once.
            given = self._ask(address, wire.Report(key, nonce, cluster, given.challenge, service, up, text), deadline)
        if isinstance(given, wire.Result):
            return "" if given.code == 0 else f"{given.text} [{given.code}]"
        return SILENT if given is None else f"it is node {given.node} of cluster {given.cluster}"

    def _ask(
        self, address: tuple[str, int], request: wire.Challenge | wire.Report, deadline: float
    ) -> wire.Answer | None:
        octets = wire.encode(request, self.cluster.secret)
        wanted = (wire.Given, wire.Result) if isinstance(request, wire.Challenge) else (wire.Result,)
        sockets = Sockets()
        try:
            while time.monotonic() < deadline:
                if why := sockets.send(octets, address):
                    return wire.Result(request.key, request.nonce, request.cluster, "-", 1, why)
                resend_at = min(deadline, time.monotonic() + RESEND_S[0])
                while (left_s := resend_at - time.monotonic()) > 0:
                    for came in sockets.receive(left_s):
                        with contextlib.suppress(WireError):
                            envelope = wire.open_envelope(came, most=wire.REQUEST)
                            if envelope.key == request.key and envelope.signed_by((self.cluster.secret,)):
                                answer = wire.answer(envelope)
                                if answer.nonce == request.nonce and isinstance(answer, wanted):
                                    return answer
        finally:
            sockets.close()
        return None


def pauses() -> Iterator[float]:
    """The waits between two tries, without end: short at first, and none alike."""
    number = 0
    while True:
        pause_s = BACKOFF_S[min(number, len(BACKOFF_S) - 1)]
        yield pause_s * (0.75 + secrets.randbelow(512) / 1024)
        number += 1


def address_of(place: Place) -> tuple[str, int]:
    """Raises ValueError: nobody tells the port."""
    if not place.port:
        raise ValueError(
            f"the port of {place.name} is not known: give it, or `endpoint: {{port: N}}` in the nodes' file"
        )
    return place.host, place.port


def place_environment(place: Place) -> dict[str, str]:
    """What a program is told of a place."""
    values: dict[str, Any] = {
        "SERVICE": place.name, "GROUP": place.group, "NODE": place.node, "HOST": place.host, "PORT": place.port or "",
        "TOKEN": place.token,
    }  # fmt: skip
    return {f"HASNMP_{name}": str(value) for name, value in values.items()}
