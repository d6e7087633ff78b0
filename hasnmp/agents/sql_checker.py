"""The program that asks a database, started by the check `sql`: a process of its own, for SQLAlchemy takes a third of a second to
load, and a driver may hang where nothing but SIGKILL reaches it.

    python -I sql_checker.py        what to ask comes on standard input: url, password, query, expect, socket (JSON)

Connects to `socket` (a Unix socket's abstract name) once it is loaded. Each line that comes is a question; it is answered by a
line of JSON, `ok` and `text`. Ends when the engine closes the connection or dies. Exit status 127: something is not installed.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

SHOWN = 300  # characters of a driver's error that a message quotes


def main() -> int:
    order = json.load(sys.stdin)
    secret = str(order["password"])
    try:
        import sqlalchemy  # here, so that it can be said which package is missing
        from sqlalchemy import pool

        url = sqlalchemy.make_url(order["url"])
        # A connection of its own each time: one that is kept goes on working when no client gets a new one any more.
        engine = sqlalchemy.create_engine(url.set(password=secret) if secret else url, poolclass=pool.NullPool)
    except Exception as error:
        print(_brief(error, secret))
        return 127
    statement = sqlalchemy.text(order["query"].replace(":", "\\:"))  # a colon is SQL's here, never a parameter's
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect("\0" + order["socket"])
        for _ in channel.makefile("rb"):
            ok, text = _ask(engine, statement, order["expect"], secret)
            channel.sendall(json.dumps({"ok": ok, "text": text}).encode() + b"\n")
    return 0


def _ask(engine: Any, statement: Any, expect: str, secret: str) -> tuple[bool, str]:
    try:
        with engine.begin() as connection:  # committed: a statement may write, to prove that the disk can be written to
            result = connection.execute(statement)
            row = result.first() if result.returns_rows else None
    except Exception as error:  # whatever a driver raises is what the administrator must read
        return False, _brief(error, secret)
    if not expect:
        return True, "answers the query"
    if row is None:
        return False, f"expected {expect!r}, got no row"
    if str(row[0]) != expect:
        return False, f"expected {expect!r}, got {str(row[0])[:SHOWN]!r}"
    return True, "answered as expected"


def _brief(error: Exception, secret: str) -> str:
    """The driver's own words, in one line, without SQLAlchemy's, which repeat the statement; and never the password."""
    said = " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__
    return (said.replace(secret, "...") if secret else said)[:SHOWN]


if __name__ == "__main__":
    sys.exit(main())
