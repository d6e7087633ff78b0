"""`hasnmp simulate`: every file of what_if/*.txt says a configuration and faults, and below ---- what is printed for them.

REWRITE=1 pytest writes what is printed now instead; read that difference before it is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasnmp import cli
from hasnmp.config import load
from hasnmp.simulator.spoken import FORMS, Grammar, UnknownFault, milliseconds
from hasnmp.simulator.what_if import foresee

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(__file__).parent / "what_if"
FILES = sorted(FOLDER.glob("*.txt"))
PAIR = "conf/hasnmp.yaml"


def words(text: str) -> list[str]:
    """The arguments of the command line that the head of a file says: a configuration, options, and a fault on each line."""
    lines = [line for line in text.partition("\n----\n")[0].splitlines() if not line.startswith("#")]
    options = [word for line in lines if line.startswith("--") for word in line.split()]
    return [*options, lines[0], *(line for line in lines[1:] if not line.startswith("--"))]


def simulate(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[int, str, str]:
    try:
        status = cli.main(["simulate", *given])
    except SystemExit as left:
        status = int(str(left.code))
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    status, out, err = simulate(capsys, *words(text))
    played = f"{text.partition('----')[0]}----\n{out}{err}exit status {status}\n"
    if os.environ.get("REWRITE"):
        path.write_text(played)
    else:
        assert played == text


def test_real_command_line() -> None:
    """In processes of their own, where every hash of a string differs: the same octets; and the same picture as JSON."""

    def run(seed: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hasnmp.cli", "simulate", *options, PAIR, "primary-a off"]
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    one, two, data = run("1"), run("2"), run("3", "--json")
    assert (one.returncode, one.stderr) == (0, "") and one.stdout == two.stdout
    assert "group web is not served any more" in one.stdout
    report = json.loads(data.stdout)
    web = report["faults"][0]["groups"][0]
    assert report["served"] and (web["name"], web["node"]) == ("web", "secondary-a")
    assert 900 < web["outage_ms"] < 1600 and web["outages"] == [[0, web["outage_ms"]]]
    assert {each["kind"] for each in report["faults"][0]["timeline"]} >= {"fault", "nodeLost", "takeoverCompleted"}


def test_start_times_count(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(PAIR, strict_files=False)

    def outage(start_ms: dict[str, int]) -> int:
        return int(foresee(config, ["primary-a off"], start_ms)["faults"][0]["groups"][0]["outage_ms"])

    assert 4700 < outage({"web-server": 5000}) - outage({"web-server": 100}) <= 4900
    assert simulate(capsys, PAIR, "--start-ms", "web-srver=9")[0::2] == (
        10, "hasnmp: no service 'web-srver'; did you mean web-server? [NOT_FOUND=10]\n",
    )  # fmt: skip
    status, _, said = simulate(capsys, PAIR, "--start-ms", "web-server=soon")
    assert status == 2 and "is not SERVICE=MS" in said


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("primary-b off", "fault 'primary-b off': no node 'primary-b' in this configuration; did you mean primary-a? "
                          "nodes: primary-a, secondary-a"),
        ("lan to primry-a cut", "fault 'lan to primry-a cut': no node 'primry-a' in this configuration; did you mean "
                                "primary-a? nodes: primary-a, secondary-a"),
        ("wan cut", "fault 'wan cut': no node or link 'wan' in this configuration; did you mean lan? nodes: primary-a, "
                    "secondary-a; links: lan, cross"),
        ("wait long", "fault 'wait long': 'long' is no time: say 300ms, 30s or 5min, at most 60min"),
        ("wait 2s + lan cut", "fault 'wait 2s + lan cut': a wait stands alone, between faults"),
        ("failover nfs", "fault 'failover nfs': no group 'nfs' in this configuration; groups: web, db"),
        ("primary-a explodes", "fault 'primary-a explodes' is not known"),
        ("", "fault '' is not known"),
    ],
)  # fmt: skip
def test_a_fault_that_is_not_known(fault: str, text: str) -> None:
    with pytest.raises(UnknownFault) as refused:
        Grammar(load(str(ROOT / PAIR), strict_files=False)).read(fault)
    assert str(refused.value) == text
    assert bool(refused.value.known) == text.endswith("is not known")


def test_what_is_known_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    status, out, said = simulate(capsys, PAIR, "primary-a explodes")
    assert (status, out) == (2, "")
    assert all(f"\n  {form.pattern} " in said for form in FORMS)
    split = str(FOLDER / "split.yaml")
    assert simulate(capsys, split, "disk lost")[2] == (
        "hasnmp: fault 'disk lost': the arbiter of this configuration is none: no lease disk\n"
    )
    assert "disk lost" not in simulate(capsys, split, "?")[2]
    assert simulate(capsys, "nowhere.yaml")[0] == 1


def test_every_form_is_carried_out() -> None:
    """All of them in a row, a second apart, on three nodes: each is told in the timeline, and in the end all is mended."""
    texts = []
    for form in FORMS:
        names = {"NODE": iter(("ada", "bob")), "LINK": iter(("lan",)), "GROUP": iter(("db",)), "SERVICE": iter(("db",))}
        said = [next(names[w]) if w in names else "1s" if w == "TIME" else w for w in form.pattern.split()]
        texts += [" ".join(said), "wait 1s"]
    config = load(str(FOLDER / "three.yaml"), strict_files=False)
    clear = [
        "everything mended",
        "wait 5s",
        "online ada + recover ada + permit + thaw db + service clear db + service start db",
    ]
    report = foresee(config, [*texts, *clear])
    told = [each["text"] for step in report["faults"] for each in step["timeline"] if each["kind"] == "fault"]
    assert told[: len(FORMS) - 1] == texts[:-2:2]
    assert report["served"] and report["faults"][-1]["settled_ms"] is not None
    assert [group["state"] for group in report["faults"][-1]["groups"]] == ["running", "running"]


@pytest.mark.parametrize(("text", "ms"), [("300ms", 300), ("1.5s", 1500), ("5min", 300_000), ("60min", 3_600_000),
                                          ("61min", 0), ("5", 0), ("s", 0), ("-1s", 0), ("1e3s", 0)])  # fmt: skip
def test_times(text: str, ms: int) -> None:
    assert milliseconds(text) == ms
