"""Mutants of the core: each breaks one rule of the design, and the simulator has to notice.

A mutant is a change of source text. It is compiled in place of the real module, in a fresh copy of the core and of the
simulator that drives it; the modules that everybody else has imported stay as they are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
FRESH = ("hasnmp.core", "hasnmp.simulator")


@dataclass(frozen=True)
class Edit:
    """In that file (below hasnmp/), the text `old`, which occurs exactly once, becomes `new`."""

    file: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        found = source.count(self.old)
        assert found == 1, f"hasnmp/{self.file}: {self.old!r} occurs {found} times, not once: bring the mutant up to date"
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    """rule: of design.md, the one that it breaks. profiles: whose runs look for it, in turn."""

    name: str
    rule: int
    edits: tuple[Edit, ...]
    profiles: tuple[str, ...]


class _Loader(SourceFileLoader):
    """Compiles the edited text; never the cached byte code of the real one."""

    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self.edits = edits

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        for edit in self.edits:
            source = edit.apply(source)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self.files: dict[str, list[Edit]] = {}
        for edit in edits:
            module = "hasnmp." + edit.file.removesuffix(".py").replace("/", ".")
            self.files.setdefault(module, []).append(edit)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.files:
            return None
        file = str(ROOT / (name.replace(".", "/") + ".py"))
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, file, self.files[name]))


@contextmanager
def mutated(edits: Sequence[Edit]) -> Iterator[ModuleType]:
    """hasnmp.simulator.runs as it would be with these edits."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith(FRESH)}
    for name in kept:
        del sys.modules[name]
    finder = _Finder(edits)
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module("hasnmp.simulator.runs")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(FRESH)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name in ("core", "simulator"):
            package = kept.get(f"hasnmp.{name}")
            if package is not None:
                setattr(sys.modules["hasnmp"], name, package)
