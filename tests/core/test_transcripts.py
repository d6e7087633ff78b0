"""Every file of transcripts/ is played and compared. REWRITE=1 pytest writes down what the engine does now instead: read
that diff against the rules before it is kept, for a transcript says what is right, not what is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.core.driver import Driver

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def play(text: str) -> str:
    """The file with every expectation replaced by what the engine did."""
    driver = Driver()
    blocks = []
    for block in text.strip().split("\n\n"):
        said, dashes, _ = f"{block}\n".partition("\n----\n")
        if not dashes:
            assert all(line.startswith("#") for line in block.splitlines()), f"a block without ----:\n{block}"
            blocks.append(block)
            continue
        blocks.append(f"{said}\n----\n{driver.run(said)}")
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    played = play(text)
    if os.environ.get("REWRITE"):
        path.write_text(played)
    else:
        assert played == text


def test_every_rule_has_a_transcript() -> None:
    """Rules 1 to 12 of design.md's "Leases"; 5 and 12 are not this engine's to hold."""
    rules = {path.name.partition("-")[0] for path in FILES}
    assert rules >= {f"{n:02}" for n in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)}
