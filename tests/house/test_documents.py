"""What the documents say is true: their configuration loads, and every command, file and object that they name is there."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hasnmp import cli
from hasnmp.config import load, parse
from hasnmp.snmp.ha_objects import SCALARS, TABLES

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(ROOT.glob("*.md"))


def verbs() -> set[str]:
    [action] = [action for action in cli.parser()._actions if action.metavar == "COMMAND"]
    return set(action.choices or ())


def test_the_readmes_configuration_is_good() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [config] = [parse(block, "README.md", "/etc/hasnmp", strict_files=False) for block in blocks]
    assert [group.name for group in config.groups] == ["web"] and config.snmp.users[0].access == "operate"


def test_the_example_is_good() -> None:
    assert len(load(str(ROOT / "conf/hasnmp.yaml"), strict_files=False).nodes) == 2


def test_every_command_is_in_the_readme_and_every_one_named_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Commands") : text.index("## The MIB")]
    assert {verb for verb in verbs() if verb not in section} == {"version"}
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^    |`)hasnmp ([a-z][a-z-]+)", document.read_text(), re.MULTILINE))
        assert named <= verbs(), document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_linked_is_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing == []


def test_every_object_named_is_in_the_mib() -> None:
    mib = (ROOT / "mibs/HASNMP-MIB.txt").read_text()
    known = {scalar.name for scalar in SCALARS} | {t.name for t in TABLES} | {c.name for t in TABLES for c in t.columns}
    for name in set(re.findall(r"\bha[A-Z]\w+", (ROOT / "README.md").read_text())):
        assert name in known or re.search(rf"^{name}\s+OBJECT", mib, re.MULTILINE), name


def test_every_make_target_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for target in set(re.findall(r"\bmake (run|demo|test|lint|bench|sim|setup|clean)\b", document.read_text())):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs Debian's package systemd")
    text = (ROOT / "conf/hasnmpd.service").read_text()
    for unit, faults in ((text, False), (text.replace("Type=notify", "Type=tells"), True)):
        file = tmp_path / "hasnmpd.service"
        file.write_text(re.sub(r"/opt/hasnmp/bin/\w+", sys.executable, unit))  # hasnmp is not installed here
        told = subprocess.run([analyze, "verify", "--man=no", str(file)], capture_output=True, text=True)
        found = [line for line in told.stderr.splitlines() if "hasnmpd.service" in line]
        assert bool(found) is faults, told.stderr


def test_unit_starts_the_daemon_as_it_wants_to_be_started() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "conf/hasnmpd.service")
    program, *arguments = unit["Service"]["ExecStart"].split()
    assert program.endswith("/hasnmpd") and unit["Service"]["Type"] == "notify"
    told = subprocess.run(
        [sys.executable, "-m", "hasnmp.runtime.daemon", *arguments, "--help"], capture_output=True, text=True
    )
    assert told.returncode == 0
    assert all(word in told.stdout for word in arguments if word.startswith("--"))
    reload = unit["Service"]["ExecReload"].split()
    assert reload == [program.removesuffix("d"), "reload"]  # it waits for the outcome, which a signal would not tell
    # A machine that shuts down stops units of groups over the bus, and uses the lease disk, until the daemon has left.
    assert {"dbus.service", "remote-fs.target", "network-online.target"} <= set(unit["Unit"]["After"].split())
    for code in ("2", "75"):
        assert code in unit["Service"]["RestartPreventExitStatus"].split()
