"""House rules that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SKIPPED = {
    ".git",
    ".venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "build",
    "dist",
}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".service", ".conf", ".cfg", ""}


def files(*suffixes: str) -> list[Path]:
    return sorted(
        path for path in ROOT.rglob("*")
        if path.is_file() and path.suffix in (suffixes or TEXT) and not SKIPPED & set(path.relative_to(ROOT).parts)
    )  # fmt: skip


def sources() -> list[Path]:
    return [path for path in files(".py") if path.relative_to(ROOT).parts[0] in ("hasnmp", "tests")]


# Written in pieces, so that this file is not its own first finding.
WORKPLACE = re.compile(
    "|".join(("/" + "work/", "/tmp/" + "v1", "/home/" + r"\w", r"\." + "library", "developer " + "session"))
)
LEFT_OVER = re.compile(
    "|".join(
        ("TO" + "DO", "FIX" + "ME", "XX" + "X:", "Not" + "ImplementedError", r"@pytest\.mark\." + r"(skip\b|xfail)")
    )
)


def findings(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_nothing_names_a_workplace() -> None:
    assert findings(WORKPLACE, files()) == []


def test_nothing_is_left_over() -> None:
    assert findings(LEFT_OVER, sources()) == []


def test_no_cancellation_is_swallowed() -> None:
    """In Python 3.11 asyncio's wait for one thing drops a cancellation that comes as that thing is done; its timeout does not."""
    assert (
        findings(
            re.compile(r"asyncio\.wait_" + r"for\("),
            [p for p in sources() if "hasnmp" in p.relative_to(ROOT).parts[:1]],
        )
        == []
    )


def test_patterns_bite() -> None:
    assert WORKPLACE.search("see /wo" + "rk/main") and WORKPLACE.search("/home/" + "me/x")
    assert LEFT_OVER.search("# TO" + "DO: later") and LEFT_OVER.search("@pytest.mark." + "skip(reason='slow')")


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in sources()
              if path.name not in ("__init__.py", "conftest.py") and not ast.get_docstring(ast.parse(path.read_text()))]  # fmt: skip
    assert silent == []


def test_no_assertion_of_nothing() -> None:
    """`assert True`, `assert (x, "text")`: checks that cannot fail."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                constant = isinstance(node.test, ast.Constant) and bool(node.test.value)
                if constant or (isinstance(node.test, ast.Tuple) and node.test.elts):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_every_test_checks_something() -> None:
    """A test without an assertion, a `raises`, or a call of something that asserts passes whatever happens."""
    empty = []
    for path in sources():
        if not path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                if not any(isinstance(each, ast.Assert | ast.Call) for each in ast.walk(node)):
                    empty.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert empty == []


def test_every_ignore_has_its_reason() -> None:
    """Linters' ignores in pyproject.toml: a comment beside each one."""
    bare = []
    for number, line in enumerate((ROOT / "pyproject.toml").read_text().splitlines(), 1):
        if re.match(r'\s+("[A-Z]+\d+"(, )?)+,?', line) and "#" not in line:
            bare.append(f"pyproject.toml:{number}: {line.strip()}")
    assert bare == []


def test_every_dependency_has_its_reason_and_is_used() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    modules = {"pyyaml": "yaml"}
    used = "\n".join(path.read_text() for path in sources() if path.relative_to(ROOT).parts[0] == "hasnmp")
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert re.search(rf'"{re.escape(requirement)}",\s*# \w', text), f"{name}: no reason"
        if name != "pyasn1":  # pysnmp's values are made of it: named for its version, imported by way of pysnmp
            assert re.search(rf"^\s*(import|from) {modules.get(name, name)}\b", used, re.MULTILINE), f"{name}: not used"


@pytest.mark.parametrize("script", ["tools/setup", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, f"{script} can't be run"
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""


FAKE_PYTHON = """#!/bin/sh
case "$1" in
-V) echo "Python 3.11.2" ;;
-m) echo "$@" >>calls; mkdir -p .venv/bin; printf '#!/bin/sh\\nexit $PIP\\n' >.venv/bin/python; chmod 755 .venv/bin/python ;;
esac
"""


def test_set_up_is_made_once_and_again_when_pyproject_changes(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/setup", tmp_path / "tools/setup")
    (tmp_path / "pyproject.toml").write_text("one")
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)

    def setup(pip: int = 0) -> tuple[int, int, str]:
        env = {**os.environ, "PYTHON": str(tmp_path / "python"), "PIP": str(pip)}
        ran = subprocess.run(
            [str(tmp_path / "tools/setup"), "venv"], env=env, capture_output=True, text=True, timeout=20
        )
        return ran.returncode, len((tmp_path / "calls").read_text().splitlines()), ran.stderr

    status, calls, said = setup(pip=1)
    assert (status, calls) == (1, 1) and "pip could not install" in said
    assert setup()[:2] == (0, 2)  # what failed is tried again
    assert setup() == (0, 2, "")  # and what is there is left alone, without a word
    (tmp_path / "pyproject.toml").write_text("two")
    assert setup()[:2] == (0, 3)


def test_set_up_says_what_is_missing(tmp_path: Path) -> None:
    """An ordinary user on a bare machine, and a machine that is no Debian."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/setup", tmp_path / "tools/setup")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env", "dirname", "cat"):
        (programs / name).symlink_to(shutil.which(name) or name)

    def setup() -> str:
        ran = subprocess.run([str(tmp_path / "tools/setup"), "debian"], env={"PATH": str(programs)}, capture_output=True,
                             text=True, timeout=20)  # fmt: skip
        assert ran.returncode == 1
        return ran.stderr

    assert "no apt-get" in setup() and "nftables" in setup()
    for name, text in (("apt-get", "exit 9"), ("dpkg-query", "exit 1"), ("id", "echo 1000")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    assert "have root run: apt-get install --no-install-recommends snmp " in setup()


def test_make_says_what_it_has() -> None:
    named = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("run", "demo", "test", "lint", "bench", "sim", "setup", "clean"):
        assert f"make {target}" in named
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_version_is_said_once() -> None:
    from hasnmp import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
