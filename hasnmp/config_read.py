"""The kinds of values that a key may have: each reads a node into a value, or tells what is wrong with it.

A Kind says once what it allows; the messages, the reference (`config.known_keys`) and the reader take it from there.
Every fault is told to the Context and reading goes on with BAD in the value's place, so that one run finds them all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from hasnmp.config_yaml import Node, join, show
from hasnmp.errors import Fault


class Marker:
    """A value that is none."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


BAD: Final[Any] = Marker("BAD")  # a value with a fault that is already told
REQUIRED: Final[Any] = Marker("REQUIRED")  # the default of a key that has none


@dataclass(slots=True)
class Context:
    """One run over one file. strict: look at secrets, users and programs of this machine too."""

    source: str
    base_dir: str
    strict: bool
    faults: list[Fault] = field(default_factory=list)

    def fault(self, line: int, key: str, text: str) -> Any:
        """Tell a fault; gives BAD, so that a reader can return it."""
        self.faults.append(Fault(self.source, line, key, text))
        return BAD

    def tell(self, section: Section, keys: list[str], text: str) -> Any:
        """Tell a fault of a section's key (the first; the others are those that it contradicts)."""
        return self.fault(*section.at(*keys), text)


Read = Callable[[Node, str, Context], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """allowed: completes "allowed: ..."; keys, step: of a section, for the reference; variants: sections by agent."""

    allowed: str
    read: Read
    keys: tuple[Key, ...] = ()
    step: str = ""
    variants: tuple[tuple[str, tuple[Key, ...]], ...] = ()
    later: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the form. default: the value it has when absent, REQUIRED for none; only: the types it belongs to."""

    name: str
    kind: Kind
    default: Any
    doc: str
    only: tuple[str, ...] = ()


@dataclass(slots=True)
class Section:
    """A mapping that was read: every key's value (BAD after a fault), and the line of each that the file gives."""

    path: str
    line: int
    values: dict[str, Any]
    lines: dict[str, int]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def good(self, *keys: str) -> bool:
        return all(self.values[key] is not BAD for key in keys)

    def at(self, *keys: str) -> tuple[int, str]:
        """Line and path for a fault of the first key: where the file gives it, or another that it contradicts."""
        return next((self.lines[k] for k in keys if k in self.lines), self.line), join(self.path, keys[0])


# ---------------------------------------------------------------------------------------------------------- messages


def what(node: Node) -> str:
    """A value as a message names it."""
    match node.value:
        case None:
            return "nothing is given"
        case bool():
            return f"{str(node.value).lower()} is a truth value"
        case int():
            return f"{show(str(node.value))} is a whole number"
        case float():
            return f"{node.value} is a fraction"
        case str():
            return f"{quoted(node.value)} is text"
        case list():
            return "a list is given"
        case _:
            return "a mapping is given"


def quoted(text: str) -> str:
    shown = show(text)
    return shown if shown.startswith('"') else f'"{shown}"'


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; perhaps X is meant", or nothing. Long words are not compared: that would take time, and help nobody."""
    close = difflib.get_close_matches(word, list(known), n=1) if len(word) <= 40 else []
    return f"; perhaps {show(close[0])} is meant" if close else ""


def _wrong(node: Node, path: str, context: Context, allowed: str, hint: str = "") -> Any:
    return BAD if node.broken else context.fault(node.line, path, f"{what(node)}{hint}; allowed: {allowed}")


# ----------------------------------------------------------------------------------------------------------- scalars


def integer(low: int, high: int) -> Kind:
    allowed = f"a whole number, {low}..{high}"

    def read(node: Node, path: str, context: Context) -> Any:
        value = node.value
        if node.broken or type(value) is not int:  # a bool is an int to Python, and never one here
            hint = ""
            if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_]*\s*([a-z]{1,3})?", value):
                hint = ", not a number; write the digits alone, without quotes and unit"
            return _wrong(node, path, context, allowed, hint)
        if not low <= value <= high:
            relation = f"less than {low}" if value < low else f"more than {high}"
            return context.fault(node.line, path, f"{show(str(value))} is {relation}; allowed: {allowed}")
        return value

    return Kind(allowed, read)


def _read_bool(node: Node, path: str, context: Context) -> Any:
    if node.broken or not isinstance(node.value, bool):
        words = ("yes", "no", "on", "off", "y", "n")
        hint = ", for this is YAML 1.2" if isinstance(node.value, str) and node.value.lower() in words else ""
        return _wrong(node, path, context, BOOL.allowed, hint)
    return node.value


BOOL = Kind("true or false", _read_bool)


def string(allowed: str, judge: Callable[[str], str], convert: Callable[[str, Context], Any] | None = None) -> Kind:
    """A string. judge gives "" or what is wrong with it ("is ..."); convert then makes the value of it."""

    def read(node: Node, path: str, context: Context) -> Any:
        value = node.value
        if node.broken or not isinstance(value, str):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return _wrong(node, path, context, allowed, ", not text; put it in quotes" if number else "")
        problem = "holds a control character" if not _clean(value) else judge(value)
        if problem:
            # A password in a URL is a fault, and must not reach a log.
            shown = re.sub(r"(?i)(//)[^/@]*(?=@)|(\b(?:pass\w*|pwd|odbc_connect)=)[^&]*", r"\1\2...", value)
            return context.fault(node.line, path, f"{quoted(shown)} {problem}; allowed: {allowed}")
        return convert(value, context) if convert else value

    return Kind(allowed, read)


def _clean(text: str) -> bool:
    return not any((c < " " and c not in "\t\r\n") or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff" for c in text)


def text(low: int, high: int) -> Kind:
    def judge(value: str) -> str:
        size = len(value.encode())
        return "" if low <= size <= high else f"has {size} octets"

    return string(f"text of {low}..{high} octets", judge)


def matching(noun: str, pattern: str, allowed: str) -> Kind:
    compiled = re.compile(pattern, re.ASCII)
    return string(allowed, lambda value: "" if compiled.fullmatch(value) else f"is no {noun}")


def choice(*words: str, later: dict[str, str] | None = None) -> Kind:
    """One of some words. later: words of a later version -> what to do instead in this one."""
    allowed = ", ".join(words)
    future = later or {}

    def read(node: Node, path: str, context: Context) -> Any:
        value = str(node.value) if type(node.value) is int else node.value  # `version: 3` is a word too
        if node.broken or not isinstance(value, str):
            return _wrong(node, path, context, allowed)
        if value in words:
            return value
        if value in future:
            return context.fault(node.line, path, f"{quoted(value)} is not in this version; {future[value]}")
        return context.fault(
            node.line, path, f"{quoted(value)} is none of them{suggest(value, words)}; allowed: {allowed}"
        )

    return Kind(allowed, read)


def absent(word: str, instead: str) -> Kind:
    """A key of a later version: null, false or an empty list, which ask for nothing, are accepted."""

    def read(node: Node, path: str, context: Context) -> Any:
        if node.broken:
            return BAD
        if node.value is None or node.value == [] or node.value is False:
            return None
        return context.fault(node.line, path, f"{word} not in this version; {instead}")

    return Kind("nothing in this version", read, later=True)


# --------------------------------------------------------------------------------------------- lists and mappings


def _item_path(path: str, index: int, item: Node) -> str:
    """An item is called by its name if it has one, else by its place, counted from 0."""
    name = item.value.get("name") if isinstance(item.value, dict) else None
    return join(path, name.value) if name is not None and isinstance(name.value, str) else f"{path}[{index}]"


def list_of(kind: Kind, least: int, most: int, unique: bool = False) -> Kind:
    allowed = f"a list of {least}..{most}, each {kind.allowed}"

    def read(node: Node, path: str, context: Context) -> Any:
        if node.broken or not isinstance(node.value, list):
            return _wrong(node, path, context, allowed)
        if not least <= len(node.value) <= most:
            return context.fault(node.line, path, f"{len(node.value)} are given; allowed: {allowed}")
        values: list[Any] = []
        for index, item in enumerate(node.value):
            where = _item_path(path, index, item)
            value = kind.read(item, where, context)
            if unique and value is not BAD and value in values:
                value = context.fault(item.line, where, f"{show(str(item.value))} is given twice; keep one")
            values.append(value)
        return BAD if BAD in values else tuple(values)

    return Kind(allowed, read, kind.keys, "[]")


def _fields(node: Node, path: str, context: Context, allowed: str) -> dict[str, Node] | None:
    """The mapping's entries; nothing given is an empty one; None: it is no mapping, and that is told."""
    if node.broken or not (node.value is None or isinstance(node.value, dict)):
        _wrong(node, path or "file", context, allowed)
        return None
    return node.value or {}


def unknown_key(key: str, node: Node, path: str, context: Context, keys: tuple[Key, ...]) -> None:
    known = [k.name for k in keys if not k.kind.later]
    stem = re.sub(r"_(s|sec|secs|seconds|ms|us|m|min|minutes|h|hours)$", "", key)
    other = next((k for k in known if k != key and re.sub(r"_(s|ms)$", "", k) == stem and k != stem), "")
    if other:
        unit = "milliseconds" if other.endswith("_ms") else "seconds"
        text = f"unknown key: this one is in {unit}; write {other}"
        if type(node.value) is int and key.endswith("_s") and 0 < node.value < 10**6:
            text += f": {node.value * 1000}"
    else:
        text = f"unknown key{suggest(key, known)}; known keys: {', '.join(known) or 'none'}"
    context.fault(node.line, join(path, key), text)


def read_section(node: Node, path: str, context: Context, keys: tuple[Key, ...]) -> Any:
    """A mapping with known keys -> Section, or BAD if it is no mapping at all."""
    fields = _fields(
        node, path, context, "a mapping with the keys " + ", ".join(k.name for k in keys if not k.kind.later)
    )
    if fields is None:
        return BAD
    section = Section(path, node.line, {}, {name: value.line for name, value in fields.items()})
    by_name = {key.name: key for key in keys}
    for name, value in fields.items():
        if name not in by_name:
            unknown_key(name, value, path, context, keys)
    for key in keys:
        where = join(path, key.name)
        if key.name in fields:
            section.values[key.name] = key.kind.read(fields[key.name], where, context)
        elif key.default is REQUIRED:
            section.values[key.name] = context.fault(
                node.line, where, f"missing, and it has no default; allowed: {key.kind.allowed}"
            )
        elif key.kind.keys and key.kind.step == "":
            section.values[key.name] = key.kind.read(Node(node.line, {}), where, context)  # a section of defaults
        else:
            section.values[key.name] = key.default
    return section


def section(*keys: Key) -> Kind:
    return Kind("a mapping", lambda node, path, context: read_section(node, path, context, keys), keys)


class Named(dict[str, Any]):
    """Values by name, in the file's order, and the line of each."""

    lines: dict[str, int]


def named(kind: Kind, name: Kind, least: int, most: int) -> Kind:
    """A mapping from names to values of one kind. A faulty name keeps its entry, so that other checks know of it."""
    allowed = f"a mapping with {least}..{most} names"

    def read(node: Node, path: str, context: Context) -> Any:
        fields = _fields(node, path, context, allowed)
        if fields is None:
            return BAD
        if not least <= len(fields) <= most:
            return context.fault(node.line, path, f"{len(fields)} are given; allowed: {allowed}")
        values = Named()
        values.lines = {key: value.line for key, value in fields.items()}
        for key, value in fields.items():
            name.read(Node(value.line, key), join(path, key), context)
            values[key] = kind.read(value, join(path, key), context)
        return values

    return Kind(allowed, read, kind.keys, ".NAME")


RAW = Kind("a mapping", lambda node, path, context: node)  # read later, when it is known what it belongs to


def judge_only(section: Section, keys: tuple[Key, ...], kind: str, by: str, context: Context) -> None:
    """Keys that belong to other types than the one in use."""
    for key in keys:
        if key.only and kind not in key.only and key.name in section.lines and section[key.name] is not False:
            fitting = [k.name for k in keys if not k.kind.later and (not k.only or kind in k.only)]
            context.tell(
                section,
                [key.name],
                f"belongs to {by} {' or '.join(key.only)}, but {by} is {kind}; allowed here: {', '.join(fitting)}",
            )


def allowed_of(keys: tuple[Key, ...], name: str) -> str:
    return next(key.kind.allowed for key in keys if key.name == name)
