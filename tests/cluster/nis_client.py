"""NIS clients without end: every so often one more ypmatch, beside those that wait still; and ypcat in turns.

    python nis_client.py PERIOD_MS MAP KEY VALUE

Each line of standard output is one request that has ended: its name, its number, when it was begun and when it had ended
(CLOCK_MONOTONIC, ns), and "" or what went wrong.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

CAT_EVERY = 20  # so many ypmatch for each ypcat


def ask(number: int, table: str, key: str, value: str) -> None:
    what = "ypmatch" if number % CAT_EVERY else "ypcat"
    argv = [what, "-t", key, table] if what == "ypmatch" else [what, "-t", table]
    began_ns = time.monotonic_ns()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    ended_ns = time.monotonic_ns()
    good = done.returncode == 0 and value in done.stdout.splitlines()
    error = "" if good else f"exit {done.returncode}: {done.stdout!r} {done.stderr!r}"
    sys.stdout.write(f"{what}\t{number}\t{began_ns}\t{ended_ns}\t{error}\n")
    sys.stdout.flush()


def main() -> None:
    period_s, rest = float(sys.argv[1]) / 1000, sys.argv[2:]
    number, next_s = 0, time.monotonic()
    while True:
        number += 1
        threading.Thread(target=ask, args=(number, *rest), daemon=True).start()
        next_s += period_s
        time.sleep(max(0.0, next_s - time.monotonic()))


main()
