"""The policy of bounds.py, on tests in a folder of their own, as `make test` runs them: in turn, and two files at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.bounds import MEASURED_TWICE
from tests.cluster.lab import PROJECT

LATE = "tests.cluster.bounds.TooLate: 1250 ms, 250 more than the bound of 1000; outage"
CONFTEST = """
import pytest
from tests.cluster.bounds import MEASURED_TWICE, within
from tests.conftest import pytest_terminal_summary

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(MEASURED_TWICE)

@pytest.fixture(scope="module")
def pair():
    return []

@pytest.fixture
def scene(pair, request):
    pair.append(request.node.name)
    yield pair
    assert "two_owners" not in request.node.name, "two owners"

@pytest.fixture
def late(request, tries={}):
    'One that is late the first n times.'
    def late(times):
        name = request.node.nodeid
        tries[name] = tries.get(name, 0) + 1
        within(1250.4 if tries[name] <= times else 900, 1000, lambda: "outage")
        return tries[name]
    return late
"""
TESTS = """
import pytest

def test_in_time(late):
    assert late(0) == 1

def test_late_once(scene, late):
    assert late(1) == 2
    assert len(scene) > 1, "the module's pair is another one"

def test_late_twice(scene, late):
    late(2)

def test_wrong(scene, late, tries=[]):
    tries.append(1)
    assert len(tries) > 1, "two owners"

def test_late_once_and_two_owners_in_the_teardown(scene, late):
    late(1)

def test_wrong_on_the_way_out_of_too_late(scene, late):
    try:
        late(1)
    finally:
        assert late(0) == 1, "two owners"

@pytest.fixture
def broken(tries=[]):
    tries.append(1)
    assert len(tries) > 1, "no pair"

def test_broken(broken):
    pass

@pytest.mark.alone
def test_the_last_of_its_file_is_late_once(scene, late):
    assert late(1) == 2
    assert len(scene) > 1
"""


def outcomes(folder: Path, *options: str) -> tuple[dict[str, list[str]], str]:
    """test -> what became of it, try by try; and all that is told."""
    (folder / "conftest.py").write_text(CONFTEST)
    for name in ("one", "two"):
        (folder / f"test_{name}.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = alone: as there\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options, "."], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=300,
    )  # fmt: skip
    assert ran.returncode == ("-m" not in options or "not alone" in options), ran.stdout
    found: dict[str, list[str]] = {}
    for line in ran.stdout.partition("= FAILURES =")[0].partition("= ERRORS =")[0].splitlines():
        words = [word for word in line.split() if "::" in word or word in ("PASSED", "FAILED", "ERROR", "RERUN")]
        if len(words) == 2:
            (name, outcome) = words if "::" in words[0] else words[::-1]
            found.setdefault(name, []).append(outcome)
    return found, ran.stdout


TWICE = ["RERUN", "PASSED"]
EXPECTED = {
    "test_in_time": ["PASSED"],
    "test_late_once": TWICE,
    "test_late_twice": ["RERUN", "FAILED"],
    "test_wrong": ["FAILED"],
    "test_late_once_and_two_owners_in_the_teardown": ["FAILED", "ERROR"],
    "test_wrong_on_the_way_out_of_too_late": ["FAILED"],
    "test_broken": ["ERROR"],
    "test_the_last_of_its_file_is_late_once": TWICE,
}


def test_only_what_was_too_late_is_measured_again(tmp_path: Path) -> None:
    for options in ((), ("-n", "2", "--dist", "loadfile", "-m", "not alone"), ("-m", "alone")):
        expected = {
            f"test_{file}.py::{name}": outcome
            for file in ("one", "two")
            for name, outcome in EXPECTED.items()
            if not options or ("not alone" in options) != name.startswith("test_the_last")
        }
        found, told = outcomes(tmp_path, *options)
        assert found == expected, told
        loud = told.partition("MEASURED TWICE, FOR THEY WERE TOO LATE: ")[2]
        assert int(loud.split()[0]) == sum("RERUN" in outcome for outcome in expected.values()), told
        for name, outcome in expected.items():
            if "RERUN" in outcome:
                then = "in time" if outcome == TWICE else "failed"
                assert f"{name}\n    first {LATE}\n    then  {then}\n" in loud, told


def test_every_test_of_whole_machines_is_measured_so(request: pytest.FixtureRequest) -> None:
    here = Path(__file__).parent
    items = [item for item in request.session.items if here in item.path.parents]
    assert request.node in items
    assert all(item.get_closest_marker("flaky") is MEASURED_TWICE.mark for item in items)
    flaky = [item for item in request.session.items if item not in items and item.get_closest_marker("flaky")]
    assert not flaky, "what is no bound on a time of whole machines has one chance"
