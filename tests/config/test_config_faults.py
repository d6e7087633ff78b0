"""Every fault that a configuration can have, as text in and text out (faults.txt).

A case is a line `## title`, its input, a line `----`, and the faults that must come of it, without the file's name.
Input lines `OLD => NEW` replace text of base.yaml, with \\n for a line's end; input that begins with a line `|` is a whole
file. After a change: REWRITE=1 pytest tests/config, then read the difference before keeping it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasnmp.config import parse
from hasnmp.errors import ConfigError

TABLE = Path(__file__).with_name("faults.txt")

BASE = Path(__file__).with_name("base.yaml").read_text()


def cases() -> dict[str, tuple[str, str]]:
    """Title -> (input, expected)."""
    found = {}
    for block in TABLE.read_text().split("## ")[1:]:
        title, _, rest = block.partition("\n")
        given, _, expected = rest.partition("----\n")
        assert title not in found, f"two cases are called {title!r}"
        found[title] = (given, expected.strip("\n"))
    return found


def text_of(given: str) -> str:
    if given.startswith("|\n"):
        return given[2:]
    text = BASE
    for line in given.splitlines():
        old, arrow, new = line.partition(" => ")
        old, new = old.replace("\\n", "\n"), new.replace("\\n", "\n")
        assert arrow and text.count(old) == 1, f"{old!r} is {text.count(old)} times in base.yaml"
        text = text.replace(old, new)
    return text


def faults_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "FILE", "/etc/hasnmp", strict_files=False)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.faults), "a fault takes more than a line"
    assert [f.line for f in caught.value.faults] == sorted(f.line for f in caught.value.faults)
    return "\n".join(line.removeprefix("FILE:") for line in lines)


CASES = cases()


def test_the_base_has_no_fault() -> None:
    assert parse(BASE, "FILE", "/", strict_files=False).cluster == "bank"


@pytest.mark.parametrize("title", CASES)
def test_fault(title: str) -> None:
    given, expected = CASES[title]
    assert faults_of(text_of(given)) == expected


@pytest.mark.skipif("REWRITE" not in os.environ, reason="writes faults.txt anew; REWRITE=1 asks for it")
def test_rewrite() -> None:
    blocks = [f"## {title}\n{given}----\n{faults_of(text_of(given))}\n" for title, (given, _) in CASES.items()]
    TABLE.write_text(TABLE.read_text().split("## ")[0] + "\n".join(blocks))
