"""hasnmp-tickle between two network namespaces: a crashed machine's clients learn it from the next, and ghosts are gone."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.agents import neighbours, tickle
from tests.runtime.netns import Cable, inside, ip

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")
ADDRESS = {4: "192.0.2.100", 6: "2001:db8::100"}
LENGTH = {4: "24", 6: "64"}
PORT = 2049


@pytest.fixture
def cable() -> Iterator[Cable]:
    one = Cable()
    try:
        yield one
    finally:
        one.remove()


def put(cable: Cable, verb: str, version: int) -> None:
    words = ["nodad"] if version == 6 and verb == "add" else []
    ip("-n", cable.server, "addr", verb, f"{ADDRESS[version]}/{LENGTH[version]}", "dev", "srv0", *words)


def listen(cable: Cable, mapped: bool = False, version: int = 4) -> socket.socket:
    """mapped: one socket of the other family for both, as many servers have it."""
    with inside(cable.server):
        family = socket.AF_INET6 if mapped or version == 6 else socket.AF_INET
        return socket.create_server(("", PORT), family=family, dualstack_ipv6=mapped)


def connect(cable: Cable, version: int = 4, own_port: int = 0) -> socket.socket:
    with inside(cable.client):
        sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(20)
        sock.bind(("", own_port))
        sock.connect((ADDRESS[version], PORT))
        return sock


def start(cable: Cable, file: Path, version: int = 4, owner: str = "") -> subprocess.Popen[bytes]:
    """owner: "a 3", the node and its lease's token, as hasnmp tells them."""
    argv = [sys.executable, "-I", "-S", tickle.__file__, ADDRESS[version], str(file)]
    names = dict(zip(("HASNMP_NODE", "HASNMP_TOKEN"), owner.split(), strict=False))
    return subprocess.Popen(
        ["ip", "netns", "exec", cable.server, *argv], stdout=subprocess.PIPE, env={**os.environ, **names}
    )


def until(true: object, what: str, seconds: float = 20) -> None:
    end_s = time.monotonic() + seconds
    while not (callable(true) and true()):
        assert time.monotonic() < end_s, what
        time.sleep(0.005)


def stop(process: subprocess.Popen[bytes]) -> str:
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    return said.decode()


@pytest.mark.parametrize(
    ("version", "mapped", "late"), [(4, False, False), (4, True, False), (6, False, False), (4, False, True)]
)
def test_a_client_that_only_waits_learns_that_its_server_crashed(
    cable: Cable, tmp_path: Path, version: int, mapped: bool, late: bool
) -> None:
    """late: it starts when the next owner has the address already."""
    file = tmp_path / "clients"
    put(cable, "add", version)
    with listen(cable, mapped, version) as server, connect(cable, version) as client:
        peer, _ = server.accept()
        before = start(cable, file, version, "a 3")
        own_port = client.getsockname()[1]
        until(
            lambda: any(port == own_port for _, _, port in tickle.read(str(file))[1]), "the connection is on the list"
        )
        assert {port for port, _, _ in tickle.read(str(file))[1]} == {PORT}
        assert stop(before) == "0 clients are told\n"
        # The crash: the address is gone, and with it whatever knew of the connection. No word of it reaches the client.
        put(cable, "del", version)
        ip("-n", cable.server, "link", "set", "srv0", "down")
        with inside(cable.server):
            assert tickle.Sockets(ADDRESS[version]).destroy() == 1
        ip("-n", cable.server, "link", "set", "srv0", "up")
        with inside(cable.server):  # before that the kernel throws frames away
            until(lambda: neighbours.interface("srv0").running, "the cable is in")
        peer.close()
        assert select.select([client], [], [], 0.2)[0] == [], "the client knows nothing yet"
        # The next owner.
        if late:
            put(cable, "add", version)
        after = start(cable, file, version, "b 4")
        if not late:
            put(cable, "add", version)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        until(lambda: tickle.read(str(file))[1] == set(), "it is on the list no more")
        assert stop(after) == "1 clients are told\n"


def test_a_client_that_comes_back_from_the_same_port_meets_no_ghost(cable: Cable, tmp_path: Path) -> None:
    put(cable, "add", 4)
    server = listen(cable)
    client = connect(cable, own_port=900)
    peer, _ = server.accept()
    put(cable, "del", 4)  # a planned move: the address goes, then the server ends, and nobody hears of it
    peer.send(b"lost")
    peer.close()
    server.close()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with inside(cable.server):
        assert len(list(tickle.Sockets(ADDRESS[4])._dump(tickle.ALL))) == 1, "the ghost is there"
    process = start(cable, tmp_path / "clients")
    assert process.stdout and b"1 former connections" in process.stdout.readline()
    put(cable, "add", 4)
    with listen(cable), connect(cable, own_port=900):
        pass
    assert process.stdout.readline() == b"0 clients are told\n"
    stop(process)


@pytest.mark.parametrize("owner", ["a 3", ""])
def test_nobody_is_disturbed_where_it_is_restarted_in_place(cable: Cable, tmp_path: Path, owner: str) -> None:
    """Connections live on, whatever an old list says of them. Without hasnmp's word on the owner the address tells it."""
    put(cable, "add", 4)
    file = tmp_path / "clients"
    with listen(cable) as server, connect(cable) as client:
        peer, _ = server.accept()
        tickle.write(str(file), "a 3", {(PORT, *client.getsockname())})
        written = os.stat(file).st_ino
        process = start(cable, file, owner=owner)
        until(lambda: os.stat(file).st_ino != written, "the list is written anew")
        client.send(b"x")
        assert peer.recv(1) == b"x"
        assert stop(process) == ""
        peer.close()


def test_a_client_whose_answer_went_astray_is_told_again_at_once(cable: Cable, tmp_path: Path) -> None:
    """It knew the former owner's MAC only, when it was told first; it does not wait for half a second then."""
    put(cable, "add", 4)
    with listen(cable) as server, connect(cable) as client:
        peer, _ = server.accept()
        own = (PORT, *client.getsockname())
        silent = "table ip silent { chain out { type filter hook output priority 0; tcp flags rst drop; }; }"
        with inside(cable.server):
            subprocess.run(["nft", silent], check=True)
            assert tickle.Sockets(ADDRESS[4]).destroy() == 1
            tickle.tickle(ADDRESS[4], {own})  # answered, and nothing comes of that
            time.sleep(0.02)
            subprocess.run(["nft", "delete table ip silent"], check=True)
            tickle.tickle(ADDRESS[4], {own})
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        peer.close()


def test_the_list_outlives_an_orderly_stop_in_which_the_address_goes_first(cable: Cable, tmp_path: Path) -> None:
    """Clients that listen only are told by the next owner: nothing else tells them that the server's end cost their connections."""
    put(cable, "add", 4)
    file = tmp_path / "clients"
    with listen(cable) as server, connect(cable) as client:
        peer, _ = server.accept()
        process = start(cable, file, owner="a 3")
        own = (PORT, *client.getsockname())
        until(lambda: own in tickle.read(str(file))[1], "the connection is on the list")
        put(cable, "del", 4)
        peer.close()
        with inside(cable.server):
            until(lambda: not tickle.Sockets(ADDRESS[4]).connections(), "the server has closed it")
        time.sleep(3 * tickle.EVERY_S)  # it looks meanwhile
        stop(process)
        assert tickle.read(str(file)) == ("a 3", {own})


def test_a_damaged_list_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "clients"
    file.write_bytes(b"2049 192.0.2.2 700\nnonsense\n2049 nobody 1\n\xff\xfe 1 2\n2049 2001:db8::2 701\n")
    assert tickle.read(str(file)) == ("", {(2049, "192.0.2.2", 700), (2049, "2001:db8::2", 701)})
    assert tickle.read(str(tmp_path / "none")) == ("", set())


def test_usage() -> None:
    done = subprocess.run([sys.executable, tickle.__file__, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: hasnmp-tickle ADDRESS FILE")
    done = subprocess.run(
        [sys.executable, tickle.__file__, "192.0.2.999", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("hasnmp-tickle: 192.0.2.999 is no IP address")
