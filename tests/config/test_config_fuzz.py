"""Whatever the text is, the answer is a configuration or a ConfigError with a fault or more: never another exception."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hasnmp import config_yaml
from hasnmp.config import known_keys, load, parse
from hasnmp.errors import ConfigError
from hasnmp.settings import Config

BASE = Path(__file__).with_name("base.yaml").read_text()
TEXTS = (BASE, (Path(__file__).parents[2] / "conf" / "hasnmp.yaml").read_text())
WORDS = sorted(
    {word for text in TEXTS for word in re.findall(r"[\w.:/-]+|[\[\]{}]", text)}
    | {path.rpartition(".")[2] for path in known_keys()}
)
SNIPPETS = ["\t", "\n", "  ", "- ", ": ", "? ", "&a ", "*a", "!!str ", "!x", "<<: ", "|", ">", "'", '"', "#", "%YAML 1.1", "---", "...",
            "\0", "\x07", "\x85", "\u2028", "\ufeff", "\ud800", "é", "~", "null", "true", "-1", "1e999", ".nan", "0x" + "f" * 50,
            "9" * 5000, "[" * 50, "{a: " * 50, "\\ud800", "\\x00", "::1", "fe80::1%1", "0.0.0.0/0", "http://[", "http://1:1:1"]  # fmt: skip


def answer(text: str) -> None:
    try:
        assert isinstance(parse(text, "FILE", "/", strict_files=False), Config)
    except ConfigError as error:
        assert error.faults
        lines = 2 + sum(text.count(end) for end in ("\n", "\r", "\x85", "\u2028", "\u2029"))
        for fault in error.faults:
            assert 1 <= fault.line <= lines
            assert fault.text and fault.key and "\n" not in str(fault)
            str(fault).encode()  # it can be printed


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid text with a few of its parts removed, doubled, moved, exchanged or broken."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 6))):
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 6)):
            case 0:
                del lines[at]
            case 1:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 2:
                lines[at] = draw(st.sampled_from(["", " ", "  ", "    "])) + lines[at].strip()
            case 3:
                words = list(re.finditer(r"[\w.:/-]+", lines[at]))
                if words:
                    word = draw(st.sampled_from(words))
                    lines[at] = lines[at][: word.start()] + draw(st.sampled_from(WORDS)) + lines[at][word.end() :]
            case 4:
                where = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:where] + draw(st.sampled_from(SNIPPETS)) + lines[at][where:]
            case 5:
                where = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:where] + draw(st.text(max_size=4)) + lines[at][where + 1 :]
            case _:
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        text = "\n".join(lines) or "\n"
    return text


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(WORDS),
        st.integers(-1, 1000), st.sampled_from(SNIPPETS),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def exchanged(draw: st.DrawFn) -> str:
    """A document of the right form with some values, anywhere, exchanged for any others."""
    document: Any = yaml.safe_load(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 4))):
        at = document
        while True:
            if isinstance(at, dict) and at:
                key: Any = draw(st.sampled_from(list(at)))
            elif isinstance(at, list) and at:
                key = draw(st.integers(0, len(at) - 1))
            else:
                break
            if not isinstance(at[key], (dict, list)) or not at[key] or draw(st.integers(0, 4)) == 0:
                at[key] = draw(VALUES)
                break
            at = at[key]
    return json.dumps(document, indent=1)


@settings(max_examples=500, deadline=None)
@given(mutated())
def test_mutated_text(text: str) -> None:
    answer(text)


@settings(max_examples=300, deadline=None)
@given(exchanged())
def test_exchanged_values(text: str) -> None:
    answer(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters() | st.sampled_from("[]{}:,-?&*!|>'\"%@` \n\t#"), max_size=60))
def test_any_text(text: str) -> None:
    answer(text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_octets(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(octets)
    with pytest.raises(ConfigError) as caught:  # 200 random octets are never a whole configuration
        load(str(path))
    assert caught.value.faults


@pytest.mark.parametrize("loader", [yaml.SafeLoader, *([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])])
def test_both_of_the_librarys_scanners(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in C is not on every machine; both give the same values and lines."""
    monkeypatch.setattr(config_yaml, "_LOADER", loader)
    for text in TEXTS:
        parse(text, "FILE", "/", strict_files=False)
    for snippet in SNIPPETS:
        answer(BASE.replace("cluster: bank", f"cluster: {snippet}"))
        answer(BASE.replace("cluster: bank", f'cluster: "{snippet}"'))
        answer(snippet + BASE)
    with pytest.raises(ConfigError, match=r"^FILE:1: cluster: \"BANK\"") as caught:
        parse(BASE.replace("bank", "BANK").replace("  dead", "  deat"), "FILE", "/", strict_files=False)
    assert [fault.line for fault in caught.value.faults] == [1, 7]


@pytest.mark.parametrize(
    "piece", ["[", "{a: ", "- ", "? ", "[:", "!", "&a ", "key: 1\n", "1,", "\n", "a", "'", "9", "  - a:\n"], ids=ascii
)
def test_a_megabyte_of_anything_ends_soon(piece: str) -> None:
    """Depth, width and length are all bounded; 10 s is far above what any of these takes on a slow machine."""
    began = time.process_time()
    answer((piece * (config_yaml.MAX_SIZE // len(piece)))[: config_yaml.MAX_SIZE])
    assert time.process_time() - began < 10
