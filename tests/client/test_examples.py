"""The examples of conf/examples run as they are, against real daemons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hasnmp.config import load
from hasnmp.config_clients import CLIENT_FORM
from hasnmp.config_read import Context, read_section
from hasnmp.config_yaml import compose
from hasnmp.model import ServiceRow, ServiceState
from tests.client.pair import ROOT, Pair, wait_for

EXAMPLES = ROOT / "conf/examples"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("e"), 93) as made:
        yield made


def feed(pair: Pair) -> ServiceRow:
    view = pair.view(pair.owner("feeds") or "a")
    assert view
    row = view.tables["services"]["feed"]
    assert isinstance(row, ServiceRow)
    return row


def test_the_clients_file_has_known_keys_and_the_cluster_of_the_other_example() -> None:
    context = Context("client.yaml", str(EXAMPLES), False)
    top = compose((EXAMPLES / "client.yaml").read_text(), context.fault)
    assert top is not None
    root = read_section(top, "", context, CLIENT_FORM)
    assert context.faults == [] and set(root.lines) == {key.name for key in CLIENT_FORM}
    config = load(str(ROOT / "conf/hasnmp.yaml"), strict_files=False)
    assert root["cluster"] == config.cluster and set(root["nodes"].values()) == set(config.clients.listen)
    assert root["key"] in {key.name for key in config.clients.keys}


@pytest.mark.serial
def test_the_reporter_in_python(pair: Pair) -> None:
    words = [sys.executable, str(EXAMPLES / "report.py"), "feed", str(pair.folder / "feeder.yaml")]
    where = {**os.environ, "PYTHONPATH": str(ROOT), "ONCE": "1"}
    for script, state, text in (
        ("echo it hangs; exit 1", ServiceState.FAILED, "reported down: it hangs"),
        ("echo all is well", ServiceState.RUNNING, "all is well"),
    ):
        done = subprocess.run([*words, "sh", "-c", script], env=where, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: (feed(pair).state, feed(pair).message) == (state, text), 10, lambda: feed(pair))  # noqa: B023


@pytest.mark.serial
def test_the_reporter_in_shell(pair: Pair) -> None:
    for program in ("openssl", "socat"):
        assert shutil.which(program), "make test installs it"
    where = f"{pair.address['b']}:{pair.clients}"

    def report(*words: str, key: str = "feeder", file: str = "feeder") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(EXAMPLES / "report.sh"), where, "pair", key, str(pair.folder / f"{file}.key"), *words],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = report("feed", "down", "line", "4", "is silent")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: feed(pair).state is ServiceState.FAILED, 10, lambda: feed(pair))
    assert feed(pair).message == "reported down: line 4 is silent"
    assert report("feed", "up").returncode == 0
    wait_for(lambda: feed(pair).state is ServiceState.RUNNING, 10, lambda: feed(pair))
    done = report("other", "up")
    assert done.returncode == 1 and "not taken: 28 key feeder may not report on other" in done.stderr
    done = report("feed", "up", file="apps")
    assert done.returncode == 1 and "no answer from" in done.stderr and "refuses this key" in done.stderr
    assert report("feed").returncode == 2
    # A key that is longer than the digest's block is used by its own digest (RFC 2104).
    pair.secret("feeder", "x" * 100)
    for node in pair.NODES:
        assert pair.reload(node).code == 0
    assert report("feed", "up", "a longer key").returncode == 0
    wait_for(lambda: feed(pair).message == "a longer key", 10, lambda: feed(pair))
