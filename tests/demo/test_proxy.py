"""conf/snmpd-hasnmp.conf: Debian's snmpd passes HASNMP-MIB on to our agent, as the comment in that file says."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hasnmp.demo.manager import dotted, instance
from hasnmp.demo.stage import Stage
from tests.ports import free_port

pytestmark = pytest.mark.serial
FRAGMENT = (Path(__file__).parent.parent.parent / "conf/snmpd-hasnmp.conf").read_text()


def ask(port: int, *words: str, seconds: int = 10) -> str:
    command = [words[0], "-v2c", "-c", "outside", "-Oqv", f"-t{seconds}", "-r0", f"127.0.0.1:{port}", *words[1:]]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "MIBS": ""})
    return ran.stdout.strip()


def until(true: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_snmpd_passes_it_on(tmp_path: Path) -> None:
    port = free_port()
    with Stage() as stage:
        fragment = FRAGMENT.replace("hasnmp-local", "public").replace("127.0.0.1:1161", stage.agent("node-a"))
        config = tmp_path / "snmpd.conf"
        config.write_text(
            fragment + "\nrocommunity outside 127.0.0.1 -V systemonly\nview systemonly included .1.3.6.1.2.1.1\n"
        )
        stage.start("node-a")
        command = [
            "snmpd",
            "-f",
            "-Lf",
            str(tmp_path / "log"),
            "-C",
            "-c",
            str(config),
            "-p",
            str(tmp_path / "pid"),
            f"udp:127.0.0.1:{port}",
        ]
        env = {**os.environ, "SNMP_PERSISTENT_DIR": str(tmp_path), "MIBS": ""}
        with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL) as snmpd:
            try:
                name = dotted(instance("haNodeName"))
                assert until(lambda: "node-a" in ask(port, "snmpget", name, seconds=1)), (tmp_path / "log").read_text()
                # snmpd answers for itself too, and a walk through it crosses from one to the other.
                assert ask(port, "snmpget", "1.3.6.1.2.1.1.5.0") != ""
                assert len(ask(port, "snmpwalk", "1.3.6.1.4.1.32473.1992.1.1").splitlines()) >= 10
            finally:
                snmpd.terminate()
                snmpd.wait(10)
