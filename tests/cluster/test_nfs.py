"""NFS by nfs-ganesha on a shared disk: a client reads, writes and creates through planned moves and a crash, without an error."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import HERE, PROJECT
from tests.cluster.served import TICKLE, Client, Stage, group, needs

pytestmark = needs("ganesha.nfsd (nfs-ganesha)", "rpcbind", "rpcinfo (rpcbind)", libraries=("libnfs.so.13 (libnfs13)",))
MOST_MS = 10_000  # far more than it takes: the benchmark measures it against its goal


def fill(disk: Path) -> None:
    shutil.copy(PROJECT / "conf" / "services" / "ganesha.conf", disk)
    (disk / "export").mkdir(mode=0o777)
    (disk / "export").chmod(0o777)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(group("nfs.yaml", TICKLE), fill=fill) as made:
        yield made


def nfs_client(stage: Stage) -> Client:
    url = f"nfs://{stage.group.ip}/srv/nfs/export?version=3"
    return Client(stage.pair.lab, str(HERE / "nfs_client.py"), url)


def test_a_client_of_nfs_version_3_has_nothing_but_delay(stage: Stage) -> None:
    with nfs_client(stage) as client:
        moves = [stage.move("a", "b", client), stage.move("b", "a", client), stage.crash("a", "b", client)]
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
    assert all(move.outage_ms < MOST_MS for move in moves), moves
