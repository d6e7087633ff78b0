"""The client's library, hasnmp-run and reports against real daemons: planned moves, a crash, a cut-off former owner."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasnmp.client import Client, Cluster, Link, Moved, NotRunning, now_ns
from hasnmp.client_async import AsyncClient, AsyncLink
from hasnmp.client_snmp import SnmpClient
from hasnmp.errors import HasnmpError
from hasnmp.model import ServiceRow, ServiceState, Verb
from hasnmp.snmp.manager import Credentials
from tests.client.pair import ROOT, Pair, wait_for

pytestmark = pytest.mark.serial
RUN = [sys.executable, "-m", "hasnmp.client_run"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("c"), 91) as made:
        yield made


@pytest.fixture(autouse=True)
def at_home(pair: Pair) -> None:
    """Every test begins with both nodes up and the group on a."""
    for node in pair.NODES:
        pair.signal(node, signal.SIGCONT)
        if pair.processes[node].poll() is not None:
            pair.start(node)

    def home() -> bool:
        if (owner := pair.owner("web")) == "b":
            try:
                pair.command("b", Verb.FAILOVER, "web", "a")
            except HasnmpError:
                return False
        return owner == "a"

    wait_for(home, 30, pair.why)


@pytest.fixture
def client(pair: Pair) -> Client:
    return Client.load(str(pair.folder / "apps.yaml"))


def echo(link: Link) -> tuple[str, int]:
    """Who answers one line, and with which token; only what counts."""
    link.sock.settimeout(20)
    link.sock.sendall(b"hello\n")
    answer = b""
    while not answer.endswith(b"\n"):
        came = link.sock.recv(100)
        if not came:
            raise ConnectionError("closed")
        answer += came
    link.confirm()
    node, token, _ = answer.decode().split()
    return node, int(token)


def test_who_runs_it_where_and_for_how_long(pair: Pair, client: Client) -> None:
    for name in ("echo", "web"):
        place = client.wait(name, 10)
        assert (place.node, place.group) == ("a", "web")
        assert place.host == pair.address["a"] and place.port == (pair.port if name == "echo" else 0)
        assert 0 < place.until_ns - now_ns() <= 2000 * 1_000_000 and place.token > 0
    with pytest.raises(NotRunning, match="no service and no group nfs"):
        client.find("nfs")


def test_a_wrong_key_gets_no_answer(pair: Pair) -> None:
    pair.secret("wrong", "another key than the nodes have, of this length")
    (pair.folder / "wrong.yaml").write_text((pair.folder / "apps.yaml").read_text().replace("apps.key", "wrong.key"))
    with pytest.raises(NotRunning, match=r"a .*: no answer; b .*: no answer; .*requests_refused"):
        Client.load(str(pair.folder / "wrong.yaml")).find("echo", 0.5)


def test_a_connection_lives_while_the_lease_is_renewed_and_ends_when_it_moves(pair: Pair, client: Client) -> None:
    with client.connect("echo", 10) as link:
        assert echo(link)[0] == "a"
        first = link.place
        wait_for(lambda: link.place.until_ns > first.until_ns, 10)  # asked again, by itself
        token = echo(link)[1]
        assert token == first.token
        assert pair.command("a", Verb.FAILOVER, "web", "b").code == 0
        with pytest.raises((OSError, Moved)):
            for _ in range(1000):
                echo(link)
                time.sleep(0.01)
    with client.connect("echo", 10) as link:
        node, later = echo(link)
        assert node == "b" and later > token


def test_run_goes_on_with_the_next_owner_after_a_crash(pair: Pair, client: Client) -> None:
    answers: list[tuple[str, int]] = []
    lost_ns = back_ns = 0

    def use(link: Link) -> None:
        nonlocal lost_ns, back_ns
        while True:
            answers.append(echo(link))
            if answers[-1][0] == "a" and not lost_ns:
                lost_ns = time.monotonic_ns()
                pair.kill("a")
            elif answers[-1][0] == "b":
                back_ns = time.monotonic_ns()
                return

    client.run("echo", use, 30)
    print(f"back {(back_ns - lost_ns) / 1e6:.0f} ms after the crash (dead_after_ms 1500)")
    assert {node for node, _ in answers} == {"a", "b"}
    assert [token for _, token in answers] == sorted(token for _, token in answers)


def test_a_frozen_former_owner_is_not_believed_beyond_its_lease(pair: Pair, client: Client) -> None:
    """All of it stops, as a machine that is paused; its socket still takes octets. Then it goes on, and says what it has."""
    with client.connect("echo", 10, watch=False) as link:
        token = echo(link)[1]
        pair.signal("a", signal.SIGSTOP)
        link.sock.sendall(b"late\n")
        wait_for(lambda: client.wait("echo", 30).node == "b", 30, pair.why)
        assert client.find("echo").token > token
        pair.signal("a", signal.SIGCONT)  # what it had under way goes out now, and its own guardian ends it
        link.sock.settimeout(3)
        try:
            link.sock.recv(100)
        except OSError:
            pass
        with pytest.raises(Moved):
            link.confirm()
    with client.connect("echo", 10) as link:
        assert echo(link)[0] == "b"


def test_asyncio_goes_on_with_the_next_owner(pair: Pair) -> None:
    async def story() -> list[tuple[str, int]]:
        client = AsyncClient.load(str(pair.folder / "apps.yaml"))
        answers: list[tuple[str, int]] = []
        moved = False

        async def use(link: AsyncLink) -> None:
            nonlocal moved
            while True:
                link.writer.write(b"hello\n")
                line = await asyncio.wait_for(link.reader.readline(), 5)
                if not line:
                    raise ConnectionError("closed")
                await link.confirm()
                node, token, _ = line.decode().split()
                answers.append((node, int(token)))
                if node == "a" and not moved:
                    moved = True
                    row = await asyncio.to_thread(pair.command, "a", Verb.FAILOVER, "web", "b")
                    assert row.code == 0
                elif node == "b":
                    return
                await asyncio.sleep(0.01)

        await client.run("echo", use, 30)
        with pytest.raises(NotRunning):
            await client.find("nfs")
        return answers

    answers = asyncio.run(story())
    assert {node for node, _ in answers} == {"a", "b"}
    assert [token for _, token in answers] == sorted(token for _, token in answers)


def test_keys_roll_and_the_section_comes_and_goes_by_reload(pair: Pair, client: Client) -> None:
    text = {node: pair.config(node).read_text() for node in pair.NODES}

    def reload(change: Callable[[str], str]) -> None:
        for node in pair.NODES:
            pair.config(node).write_text(change(text[node]))
            row = pair.reload(node)
            assert row.code == 0, row.text

    token = client.wait("echo", 10).token
    pair.secret("next", "the key that follows, for this test")
    (pair.folder / "next.yaml").write_text((pair.folder / "apps.yaml").read_text().replace("apps.key", "next.key"))
    after = Client.load(str(pair.folder / "next.yaml"))
    both = f'key_files: ["{pair.folder}/next.key", "{pair.folder}/apps.key"]'
    try:
        with pytest.raises(NotRunning):
            after.find("echo", 0.3)
        reload(lambda old: old.replace(f'key_files: ["{pair.folder}/apps.key"]', both))
        assert client.wait("echo", 10).token == after.wait("echo", 10).token == token
        reload(
            lambda old: old.replace(
                f'key_files: ["{pair.folder}/apps.key"]', both.replace(f', "{pair.folder}/apps.key"', "")
            )
        )
        assert after.wait("echo", 10).token == token
        with pytest.raises(NotRunning):
            client.find("echo", 0.3)
        reload(lambda old: old[: old.index("clients:")] + old[old.index("snmp:") :])
        wait_for(lambda: not any(comm(pid) == "hasnmp-clients" for node in pair.NODES for pid in pair.pids(node)), 10)
    finally:
        reload(lambda old: old)
    assert client.wait("echo", 10).token == token


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_killed_engine_and_a_handover_take_no_answer_away(pair: Pair, client: Client) -> None:
    """The lease is the guardian's to know, and it outlives both; the same connection goes on."""
    with client.connect("echo", 10) as link:
        token = echo(link)[1]
        [engine] = [pid for pid in pair.pids("a") if comm(pid) == "hasnmp-engine"]
        os.kill(engine, signal.SIGKILL)
        assert client.find("web", 10).token == token or client.wait("web", 10).token == token
        words = [
            sys.executable,
            "-m",
            "hasnmp.runtime.daemon",
            "--config",
            str(pair.config("a")),
            "--node",
            "a",
            "--handover",
        ]
        wrong, over = [], threading.Event()

        def ask() -> None:
            while not over.wait(0.005):
                try:
                    client.find("web", 5)
                except NotRunning as problem:
                    wrong.append(str(problem))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=90)
        finally:
            over.set()
            asking.join()
        assert done.returncode == 0, done.stdout + done.stderr
        assert not wrong, "nobody said at any moment that it holds no lease"
        place = client.wait("echo", 20)
        assert (place.node, place.token) == ("a", token)
        assert not link.moved
        assert echo(link) == ("a", token)


def test_over_snmp_by_the_same_rules(pair: Pair) -> None:
    nodes = {node: (address, pair.snmp) for node, address in pair.address.items()}
    client = SnmpClient(Cluster("pair", nodes, "", b""), Credentials(community=b"public"))
    place = client.wait("echo", 20, pair.port)
    assert (place.node, place.group, place.host, place.port) == ("a", "web", pair.address["a"], pair.port)
    assert place.until_ns - now_ns() < 1500 * 1_000_000  # less than the promises' own time
    assert pair.command("a", Verb.FAILOVER, "web", "b").code == 0
    wait_for(lambda: client.wait("web", 20).node == "b", 20)
    assert client.find("web", 10).token > place.token
    with pytest.raises(NotRunning, match="shows no service and no group nfs"):
        client.find("nfs", 0.1)
    with pytest.raises(NotRunning, match=r"a .*: .*no answer; .* b .*no answer"):
        SnmpClient(client.cluster, Credentials(community=b"wrong"), 0.2).find("echo", 0.1)


# ------------------------------------------------------------------------------------------------------ hasnmp-run


def run(pair: Pair, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RUN, "--config", str(pair.folder / "apps.yaml"), *words], text=True, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_hasnmp_run_says_where_it_runs(pair: Pair) -> None:
    out, err = run(pair, "--service", "echo").communicate(timeout=30)
    assert f"echo runs on a: {pair.address['a']}:{pair.port}, token" in out, err


@pytest.mark.parametrize("restart", [[], ["--restart"]])
def test_hasnmp_run_tells_the_program_and_gives_its_status(pair: Pair, restart: list[str]) -> None:
    script = 'echo "$HASNMP_SERVICE $HASNMP_GROUP $HASNMP_NODE $HASNMP_HOST:$HASNMP_PORT $0"; exit 7'
    process = run(pair, "--service", "echo", *restart, "--", "sh", "-c", script, "at={host}:{port}/{node}")
    out, err = process.communicate(timeout=30)
    where = f"{pair.address['a']}:{pair.port}"
    assert (process.returncode, out) == (7, f"echo web a {where} at={where}/a\n"), err
    process = run(pair, "--service", "echo", *restart, "--", "/nowhere/at/all")
    assert process.communicate(timeout=30)[1].startswith("hasnmp-run: /nowhere/at/all: ") and process.returncode == 127
    process = run(pair, "--service", "echo", *restart, "--", "sh", "-c", "kill -9 $$")
    process.communicate(timeout=30)
    assert process.returncode == (137 if restart else -9)  # without, the program has taken hasnmp-run's place


def test_hasnmp_run_waits_only_so_long_and_refuses_a_faulty_file(pair: Pair) -> None:
    process = run(pair, "--service", "nothing", "--wait", "0.5", "--", "true")
    assert "no service and no group nothing" in process.communicate(timeout=30)[1] and process.returncode == 69
    bad = pair.folder / "bad.yaml"
    bad.write_text("cluster: pair\nnodes: {a: nowhere}\nkeey: apps\n")
    done = subprocess.run([*RUN, "--service", "x", "--config", str(bad)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert f"{bad}:3: keey: unknown key" in done.stderr and f"{bad}:2: nodes.a: " in done.stderr


def test_hasnmp_run_begins_the_program_again_where_the_service_is(pair: Pair, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f'echo "$HASNMP_NODE $HASNMP_TOKEN" >> {log}; exec sleep 600'
    process = run(pair, "--service", "echo", "--restart", "--", "sh", "-c", script)
    try:
        wait_for(lambda: log.exists() and log.read_text().startswith("a "), 20)
        assert pair.command("a", Verb.FAILOVER, "web", "b").code == 0
        wait_for(lambda: len(log.read_text().splitlines()) == 2, 20, log.read_text)
        (one, first), (other, second) = (line.split() for line in log.read_text().splitlines())
        assert (one, other) == ("a", "b") and int(second) > int(first)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


# --------------------------------------------------------------------------------------------------------- reports


def feed(pair: Pair, node: str = "a") -> ServiceRow:
    view = pair.view(node)
    assert view
    row = view.tables["services"]["feed"]
    assert isinstance(row, ServiceRow)
    return row


def test_a_report_from_another_host_reaches_the_owner(pair: Pair) -> None:
    reporter = Client.load(str(pair.folder / "feeder.yaml"))
    owner = pair.owner("feeds")
    assert reporter.report("feed", True, "12 lines a second") == "a"  # the first of the file; it passes it on
    wait_for(lambda: feed(pair, owner).message == "12 lines a second")
    reporter.report("feed", False, "the line is silent")
    wait_for(lambda: feed(pair, owner).state is ServiceState.FAILED, 10, pair.why)
    assert "the line is silent" in feed(pair, owner).message
    reporter.report("feed", True, "it is back")
    wait_for(lambda: feed(pair, owner).state is ServiceState.RUNNING, 10, pair.why)


def test_a_report_that_is_not_its_reporters_to_make_is_refused(pair: Pair, client: Client) -> None:
    reporter = Client.load(str(pair.folder / "feeder.yaml"))
    with pytest.raises(NotRunning, match=r"key feeder may not report on other"):
        reporter.report("other", True)
    with pytest.raises(NotRunning, match=r"key apps may not report on feed"):
        client.report("feed", True)
