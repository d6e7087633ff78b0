"""YAML text -> nodes that know their line. Only this file knows the YAML library.

The library's events are used and not its constructors, for two reasons. Its scalars are those of YAML 1.1, where `no`
is false, `1:30` is ninety and `010` is eight; here they are those of the core schema (YAML 1.2.2, section 10.3.2).
And its composer is recursive and follows aliases; here the depth is bounded, and aliases, which can make gigabytes of
a few lines, are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

MAX_SIZE = 1 << 20  # octets; a thousand services are a third of this
MAX_DEPTH = 16  # the deepest key of the form lies 7 deep

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Scalar = bool | int | float | str | None
AddFault = Callable[[int, str, str], None]  # line, key, text


@dataclass(slots=True)
class Node:
    """A value of the file. line: of its key, else where it begins. broken: a fault of it is already reported."""

    line: int
    value: Scalar | list[Node] | dict[str, Node]
    broken: bool = False


def show(text: str) -> str:
    """A key or a value for one line of a message: plain if it is short and printable, else quoted and cut."""
    if text and len(text) <= 60 and text.isprintable() and not text.isspace():
        return text
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=not text.isprintable())


def join(path: str, key: str) -> str:
    """The path of a key below another."""
    return f"{path}.{show(key)}" if path else show(key)


def resolve(text: str) -> Scalar:
    """A plain scalar's value by the core schema."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            if len(text) > 100:  # beyond every range, and int() refuses thousands of digits
                return -(10**100) if text[0] == "-" else 10**100
            return int(text if base == 10 else text[2:], base)
    if _FLOAT.fullmatch(text):
        return float(
            text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").lower().replace(".nan", "nan")
        )
    return text


@dataclass(slots=True)
class _Frame:
    """A list or mapping being read. key: the one whose value comes next; None = a key comes next."""

    node: Node
    path: str
    key: str | None = None
    key_line: int = 0
    skip: bool = False  # that key was no word: its value is not kept
    drop: bool = False  # this list or mapping is itself such a key
    first: dict[str, int] = field(default_factory=dict)  # key -> the line where it was given first


class _Stop(Exception):
    """Nothing after this point can be judged; the fault is already reported."""


def compose(text: str, fault: AddFault) -> Node | None:
    """The top node of the text's only document, every fault told; None: there is nothing, or nothing that is YAML."""
    root: list[Node] = []
    try:
        text.encode()
        _compose(text, fault, root)
    except _Stop:
        return None
    except UnicodeError:
        fault(1, "file", "holds characters that no UTF-8 text has; allowed: UTF-8 text")
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        lines = text.splitlines()
        shown = lines[line - 1] if 0 < line <= len(lines) else ""
        if "\t" in shown[: len(shown) - len(shown.lstrip())]:
            fault(line, "file", "a tab indents this line, and YAML has no width for tabs; indent with spaces")
        else:
            what = ", ".join(part for part in (error.context, error.problem) if part)
            fault(line, "file", f"not valid YAML: {what or 'no reason given'}")
        return None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = getattr(error, "reason", None) or "a character that has no place in text"
        where = getattr(error, "position", None)
        line = text.count("\n", 0, where) + 1 if isinstance(where, int) else 1
        fault(line, "file", f"not valid YAML: {reason}")
        return None
    return root[0] if root else None


def _compose(text: str, fault: AddFault, root: list[Node]) -> None:
    stack: list[_Frame] = []
    documents = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                fault(line, "file", "a second document begins here; a configuration is one document, without --- lines")
                raise _Stop
            if event.version not in (None, (1, 2)):
                fault(line, "file", "%YAML asks for another version; this is read as YAML 1.2, leave that line out")
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            frame = stack.pop()
            if not frame.drop:
                _place(stack, root, frame.node, fault)
            continue
        if not isinstance(event, (yaml.AliasEvent, yaml.ScalarEvent, yaml.CollectionStartEvent)):
            continue
        parent = stack[-1] if stack else None
        is_key = parent is not None and isinstance(parent.node.value, dict) and parent.key is None
        path = _path(parent)
        # A value bears its key's line: that is where a reader looks for it.
        node = Node(parent.key_line if parent is not None and parent.key is not None else line, None)
        if event.anchor is not None:
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            fault(
                line,
                path or "file",
                f"{mark}{show(event.anchor)}: anchors and aliases are not followed here; write the value out",
            )
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            fault(
                line,
                path or "file",
                f"the tag {show(tag)} is not followed here; leave it out, and quote what shall be text",
            )
            node.broken = True
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) >= MAX_DEPTH:
                fault(line, path or "file", f"lists and mappings nested {MAX_DEPTH + 1} deep; allowed: {MAX_DEPTH}")
                raise _Stop
            node.value = {} if isinstance(event, yaml.MappingStartEvent) else []
            frame = _Frame(node, path, drop=is_key)
            if is_key and parent is not None:
                fault(line, path or "file", "a list or mapping stands where a key should; allowed: one word")
                parent.key, parent.key_line, parent.skip = "", line, True
            stack.append(frame)
            continue
        if isinstance(event, yaml.AliasEvent):
            node.broken = True
        else:
            # libyaml gives "" as the style of a plain scalar, the Python scanner None
            node.value = event.value if event.style or tag == "!" else resolve(event.value)
        if is_key and parent is not None:
            parent.key = event.value if isinstance(event, yaml.ScalarEvent) else ""
            parent.key_line, parent.skip = line, isinstance(event, yaml.AliasEvent)
        else:
            _place(stack, root, node, fault)


def _path(parent: _Frame | None) -> str:
    if parent is None:
        return ""
    if isinstance(parent.node.value, list):
        return f"{parent.path}[{len(parent.node.value)}]"
    return parent.path if parent.key is None else join(parent.path, parent.key)


def _place(stack: list[_Frame], root: list[Node], node: Node, fault: AddFault) -> None:
    """Put a finished value where it belongs."""
    if not stack:
        root.append(node)
        return
    parent = stack[-1]
    if isinstance(parent.node.value, list):
        parent.node.value.append(node)
    elif isinstance(parent.node.value, dict) and parent.key is not None:
        if parent.key in parent.first and not parent.skip:
            first = parent.first[parent.key]
            fault(
                parent.key_line, join(parent.path, parent.key), f"given twice, first on line {first}; keep one of them"
            )
        elif not parent.skip:
            parent.node.value[parent.key] = node
            parent.first[parent.key] = parent.key_line
        parent.key, parent.skip = None, False
