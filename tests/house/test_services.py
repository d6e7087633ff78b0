"""docs/services.md and conf/services belong together: every file is explained, is good, and is what a test runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hasnmp.config import parse

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "services.md"
FILES = sorted((ROOT / "conf" / "services").iterdir())


def test_every_file_is_explained_and_every_one_linked_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", DOCUMENT.read_text())
    assert [link for link in links if not (DOCUMENT.parent / link).exists()] == []
    assert {file.name for file in FILES} <= {Path(link).name for link in links}


@pytest.mark.parametrize("file", [x for x in FILES if x.suffix == ".yaml"], ids=lambda path: path.name)
def test_a_group_is_good_in_the_example(file: Path) -> None:
    example = (ROOT / "conf" / "hasnmp.yaml").read_text()
    before, _, rest = example.partition("\ngroups:")
    _, _, after = rest.partition("\nrecovery:")
    _, _, groups = file.read_text().partition("\ngroups:\n")
    text = f"{before}\ngroups:\n{groups}\nrecovery:{after}"
    config = parse(text, file.name, "/etc/hasnmp", strict_files=False)
    assert all({*group.nodes} == {"primary-a", "secondary-a"} for group in config.groups)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_test_runs_it(file: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "cluster").glob("test_*.py"))
    assert f'"{file.name}"' in tests
