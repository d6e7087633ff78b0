"""hasnmp.client for asyncio: the same questions, and the same rules for what is believed.

client = AsyncClient.load()
async with await client.connect("db") as link:
    link.writer.write(b"...")
    answer = await link.reader.readline()
    await link.confirm()                       # raises Moved: the answer may be of a former owner
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from hasnmp.client import RESEND_S, Client, Cluster, Moved, NotRunning, Place, Search, address_of, now_ns, pauses

T = TypeVar("T")


class _Inbox(asyncio.DatagramProtocol):
    def __init__(self, search: Search, news: asyncio.Event) -> None:
        self._search, self._news = search, news

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self._search.take(data):
            self._news.set()


class AsyncLink:
    """A TCP connection to where a service runs, as client.Link: a task asks the node again, and ends it when it has moved."""

    def __init__(
        self, client: AsyncClient, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watch: bool
    ) -> None:
        self._client, self.place, self.reader, self.writer = client, place, reader, writer
        self.moved = ""
        self._watcher = asyncio.get_running_loop().create_task(self._watch()) if watch else None

    async def __aenter__(self) -> AsyncLink:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def confirm(self, timeout_s: float = 1.0) -> Place:
        """As Link.confirm. Raises Moved."""
        if self.moved:
            raise Moved(self.moved)
        if not self.place.holds():
            try:
                self._take(await self._client.again(self.place, timeout_s))
            except Moved as moved:
                self._end(str(moved))
                raise
        return self.place

    def _take(self, place: Place) -> None:
        if place.until_ns > self.place.until_ns:
            self.place = place

    def _end(self, why: str) -> None:
        self.moved = why
        self.writer.transport.abort()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(max(0.02, (self.place.until_ns - now_ns()) / 3e9))
            try:
                self._take(await self._client.again(self.place, max(0.1, (self.place.until_ns - now_ns()) / 1e9)))
            except Moved as moved:
                self._end(str(moved))
                return


class AsyncClient:
    """One object for all tasks: it keeps the highest token of each group."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._memory = Client(cluster)

    @classmethod
    def load(cls, path: str = "") -> AsyncClient:
        """From a client's file (see Cluster.load). Raises ConfigError."""
        return cls(Cluster.load(path))

    async def find(self, name: str, timeout_s: float = 1.0, port: int = 0) -> Place:
        """As Client.find. Raises NotRunning."""
        search = Search(self.cluster, name, self._memory.floor(name), port)
        if place := await self._look(search, timeout_s):
            return self._memory.believe(place)
        raise NotRunning(f"nobody is known to run {name}: {search.why()}")

    async def again(self, place: Place, timeout_s: float) -> Place:
        """As Client.again. Raises Moved."""
        search = Search(self.cluster, place.name, place.token, place.port, only=place.node)
        newer = await self._look(search, timeout_s)
        if newer is None or newer.token != place.token:
            raise Moved(f"{place.name} is not known to run on {place.node} any more: {search.why()}")
        return replace(newer, host=place.host)

    @staticmethod
    async def _look(search: Search, timeout_s: float) -> Place | None:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        deadline = loop.time() + timeout_s
        ways: dict[str, asyncio.DatagramTransport] = {}
        try:
            for question in search.questions:
                own = "::" if ":" in question.address[0] else "0.0.0.0"
                if own not in ways:
                    with contextlib.suppress(OSError):
                        ways[own], _ = await loop.create_datagram_endpoint(lambda: _Inbox(search, news), (own, 0))
            tries = 0
            while loop.time() < deadline:
                for question in search.questions:
                    way = ways.get("::" if ":" in question.address[0] else "0.0.0.0")
                    if way is not None:
                        way.sendto(search.ask(question), question.address)
                resend_at = min(deadline, loop.time() + RESEND_S[min(tries, len(RESEND_S) - 1)])
                tries += 1
                while (left_s := resend_at - loop.time()) > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left_s):
                            await news.wait()
                    news.clear()
                    if place := search.best():
                        return place
                    if search.all_answered():
                        return None
        finally:
            for way in ways.values():
                way.close()
        return None

    async def wait(self, name: str, timeout_s: float = 60.0, port: int = 0) -> Place:
        """As Client.wait. Raises NotRunning."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        for pause_s in pauses():
            left_s = deadline - loop.time()
            try:
                return await self.find(name, max(0.1, min(1.0, left_s)), port)
            except NotRunning:
                if left_s <= pause_s:
                    raise
            await asyncio.sleep(pause_s)
        raise NotRunning(name)

    async def connect(self, name: str, timeout_s: float = 60.0, port: int = 0, watch: bool = True) -> AsyncLink:
        """As Client.connect. Raises NotRunning, ValueError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        for pause_s in pauses():
            left_s = deadline - loop.time()
            place = await self.wait(name, max(0.1, left_s), port)
            try:
                async with asyncio.timeout(max(0.1, min(5.0, left_s))):
                    reader, writer = await asyncio.open_connection(*address_of(place))
            except (OSError, TimeoutError) as error:
                if left_s <= pause_s:
                    raise NotRunning(f"{name} runs on {place.node}, but {place.host}:{place.port} refuses a connection: "
                                     f"{error}") from None  # fmt: skip
                await asyncio.sleep(pause_s)
                continue
            return AsyncLink(self, place, reader, writer, watch)
        raise NotRunning(name)

    async def run(
        self, name: str, use: Callable[[AsyncLink], Awaitable[T]], timeout_s: float = 60.0, port: int = 0
    ) -> T:
        """As Client.run. Raises NotRunning, and what use() raises."""
        for pause_s in pauses():
            async with await self.connect(name, timeout_s, port) as link:
                try:
                    return await use(link)
                except (OSError, Moved, asyncio.IncompleteReadError):
                    pass
            await asyncio.sleep(pause_s)
        raise NotRunning(name)
