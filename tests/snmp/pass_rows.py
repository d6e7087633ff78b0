"""Rows for Debian's snmpd, by its pass_persist protocol: python pass_rows.py FILE, a JSON list of [oid, type, value, writable].

The rows are what tests/snmp/differential.py has the responder serve, too. `size` and `choices` in place of true say what a
writable one takes.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from pathlib import Path
from typing import Any


def main() -> None:
    rows: dict[tuple[int, ...], list[Any]] = {}
    for oid, kind, value, writable in json.loads(Path(sys.argv[1]).read_text()):
        rows[tuple(oid)] = [kind, value, writable]
    names = sorted(rows)

    def ask() -> str:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        return line.rstrip("\n")

    def say(*lines: object) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    while True:
        command = ask()
        if not command:  # snmpd ends a SET with an empty line
            continue
        if command == "PING":
            say("PONG")
            continue
        oid = tuple(int(part) for part in ask().strip(".").split("."))
        if command == "set":
            kind, _, value = ask().partition(" ")
            say(judge(rows.get(oid), kind, value))
            continue
        if command == "getnext":
            at = bisect_right(names, oid)
            oid = names[at] if at < len(names) else ()
        if oid in rows:
            say("." + ".".join(map(str, oid)), rows[oid][0], rows[oid][1])
        else:
            say("NONE")


def judge(row: list[Any] | None, kind: str, value: str) -> str:
    if row is None or not row[2]:
        return "not-writable"
    if kind != row[0]:
        return "wrong-type"
    if kind == "string":
        if len(value.strip('"')) > row[2]["size"]:
            return "wrong-length"
    elif int(value) not in row[2]["choices"]:
        return "wrong-value"
    # Not kept: the requests that follow find the same rows.
    return "DONE"


if __name__ == "__main__":
    main()
