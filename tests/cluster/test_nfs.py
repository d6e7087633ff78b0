"""NFS by nfs-ganesha on a shared disk: a client reads, writes and creates through planned moves and a crash, without an error."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.bounds import within
from tests.cluster.lab import HERE, PROJECT, STATE, wait_for
from tests.cluster.served import TICKLE, Client, Stage, group
from tests.cluster.served import missing as not_here

GRACE = "Grace_Period = 5;"
LOG = {"/dev/stdout]": f"{STATE}/ganesha.log]"}
MOST_MS = 10_000  # far more than it takes: the benchmark measures it against its goal


def fill(disk: Path) -> None:
    text = (PROJECT / "conf" / "services" / "ganesha.conf").read_text()
    assert GRACE in text
    (disk / "ganesha.conf").write_text(text.replace(GRACE, "Grace_Period = 120;"))  # no test waits for its end
    (disk / "export").mkdir(mode=0o777)
    (disk / "export").chmod(0o777)


def missing() -> list[str]:
    return not_here(
        "ganesha.nfsd (nfs-ganesha)", "rpcbind", "rpcinfo (rpcbind)", libraries=("libnfs.so.13 (libnfs13)",)
    )


def made() -> Stage:
    return Stage(group("nfs.yaml", {**TICKLE, **LOG}), fill=fill)


def ask(stage: Stage) -> Client:
    """NFSv3 over TCP: writes, reads and creates, one after the other."""
    return Client(stage.pair.lab, str(HERE / "nfs_client.py"), f"nfs://{stage.group.ip}/srv/nfs/export?version=3")


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with made() as stage:
        yield stage


def test_a_client_of_nfs_version_3_has_nothing_but_delay(stage: Stage) -> None:
    with ask(stage) as client:
        moves = [stage.move("a", "b", client), stage.move("b", "a", client)]
        # A client of version 4 has a state, so the next server has a grace period, by what it finds on the disk, for it never comes
        # back: files are made in it.
        url = f"nfs://{stage.group.ip}/export?version=4"
        with Client(stage.pair.lab, str(HERE / "nfs_client.py"), url, "--hold") as other:
            other.goes_on(0)
            held = stage.pair.lab["a"].path("/srv/nfs/.ganesha")
            assert [*held.rglob("*Libnfs*")], "the server wrote down who has a state"
            fault_ns = time.monotonic_ns()
            moves.append(stage.crash("a", "b", client))
        wait_for(
            lambda: any(x.what == "create" and x.began_ns > fault_ns for x in client.requests), 20, "a file is made"
        )
        assert [*stage.pair.lab["b"].path("/srv/nfs/.ganesha").rglob("*Libnfs*")], "the next server knows it"
        said = (stage.pair.lab["b"].state / "ganesha.log").read_text()
        assert said.rfind("Now IN GRACE, duration 120") > said.rfind("Now NOT IN GRACE"), (
            f"it was in its grace period:\n{said}"
        )
        client.goes_on(time.monotonic_ns())
    for move in moves:
        print(move)
    assert not client.errors()
    export = stage.pair.lab["b"].path("/srv/nfs/export")
    log = (export / "log").read_bytes()
    for request in client.requests:
        if request.what == "write":
            assert struct.unpack_from("<Q", log, request.number * 64)[0] == request.number, f"lost: {request}"
        elif request.what == "create":
            assert (export / f"file-{request.number}").stat().st_size == 64, f"lost: {request}"
    assert {"write", "read", "create"} <= {request.what for request in client.requests}
    within(max(move.outage_ms for move in moves), MOST_MS, str(moves))
