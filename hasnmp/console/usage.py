"""The words of the command line: argparse with hints, the kinds of its arguments, and what every command prints with."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from hasnmp import __version__
from hasnmp.errors import Code, Refused

LATER = ("console",)  # what versions to come will have

Args = argparse.Namespace


def out(lines: Iterable[str]) -> None:
    print("\n".join(lines))


def out_json(value: object) -> None:
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def known(what: str, name: str, names: list[str]) -> None:
    """Raises Refused: no such thing here. The engine would refuse it too; here the names are at hand."""
    if name and name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names) or 'none'}"
        raise Refused(Code.NOT_FOUND, f"no {what} {name!r}{hint}")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Parser(argparse.ArgumentParser):
    """argparse, with a hint for what is misspelt and a clear word for what a later version has."""

    words: Sequence[str] = ()  # the command line, also for the parsers of the commands

    def error(self, message: str) -> NoReturn:
        given = next((word for word in Parser.words if f"'{word}'" in message), "")
        later = next((word for word in Parser.words if word.split("=")[0] in LATER), "")
        if later and ("invalid choice" in message or "unrecognized" in message or "required" in message):
            message = f"{later.split('=')[0]} is not in version {__version__}; a later one has it"
        elif "invalid choice" in message and "choose from" in message:
            names = [part.strip(" '") for part in message[message.index("choose from") + 12 :].rstrip(")").split(",")]
            close = difflib.get_close_matches(given, names, 2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
            message = f"{given or 'this'} is none of its words; {hint}"
        print(f"{self.prog}: {message}\nsee: {self.prog} --help", file=sys.stderr)
        raise SystemExit(int(Code.USAGE))


class StartTimes(argparse.Action):
    """--start-ms SERVICE=MS, any number of times -> {service: ms}."""

    def __call__(self, parser: argparse.ArgumentParser, args: Args, value: Any, option: str | None = None) -> None:
        name, _, ms = str(value).rpartition("=")
        if not name or not ms.isdigit() or not 0 < int(ms) <= 3_600_000:
            parser.error(f"argument --start-ms: {value!r} is not SERVICE=MS with 1 to 3600000 ms")
        setattr(args, self.dest, {**getattr(args, self.dest), name: int(ms)})


def number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
