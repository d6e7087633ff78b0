"""hasnmp-run: a program that needs a service, run where the service is.

    hasnmp-run --service db -- psql -h {host} -p {port} bank
    hasnmp-run --service db --restart -- /usr/local/bin/reader          # HASNMP_HOST, HASNMP_PORT in its environment
    hasnmp-run --service db                                             # only says where it runs

It waits until the service runs somewhere. {host}, {port}, {node} and {token} in the program's words stand for the place; the
environment has HASNMP_SERVICE, _GROUP, _NODE, _HOST, _PORT, _TOKEN. With --restart the program is ended (SIGTERM, then
SIGKILL) when the service has moved, and begun again where it is then.

Exit status: the program's own, 128 + N if signal N ended it; 126, 127 if it can't be run; 69 if the service does not run in
time (EX_UNAVAILABLE of sysexits.h); 2 wrong arguments, or a faulty client's file.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from hasnmp import __version__
from hasnmp.client import DEFAULT_FILE, Client, Moved, NotRunning, Place, now_ns, place_environment
from hasnmp.errors import ConfigError

UNAVAILABLE = 69
GRACE_S = 5.0  # from SIGTERM to SIGKILL
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def words_for(words: Sequence[str], place: Place) -> list[str]:
    values = {"host": place.host, "port": str(place.port or ""), "node": place.node, "token": str(place.token)}
    result = []
    for word in words:
        for name, value in values.items():
            word = word.replace("{" + name + "}", value)
        result.append(word)
    return result


def _cant_run(error: OSError, program: str) -> int:
    print(f"hasnmp-run: {program}: {error.strerror}", file=sys.stderr)
    return 127 if isinstance(error, FileNotFoundError) else 126


class Runner:
    """One program, begun anew at each place."""

    def __init__(self, client: Client, name: str, port: int, wait_s: float, words: Sequence[str]) -> None:
        self._client, self._name, self._port, self._wait_s, self._words = client, name, port, wait_s, words
        self._program: subprocess.Popen[bytes] | None = None
        self._asked = 0  # the signal by which somebody ended this program

    def run(self) -> int:
        """Raises NotRunning, OSError (the program can't be run)."""
        for number in FORWARDED:
            signal.signal(number, self._forward)
        while True:
            place = self._client.wait(self._name, self._wait_s, self._port)
            self._program = subprocess.Popen(
                words_for(self._words, place), env={**os.environ, **place_environment(place)}
            )
            if self._asked:
                self._program.send_signal(self._asked)
            status = self._until_moved(place)
            if status is not None:
                return status if status >= 0 else 128 - status

    def _forward(self, number: int, _: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._asked = number
        if self._program is not None:
            if self._program.poll() is None:
                self._program.send_signal(number)
        elif self._asked:
            sys.exit(128 + number)

    def _until_moved(self, place: Place) -> int | None:
        """The program's exit status; None: the service is not known to be there any more, and the program was ended."""
        assert self._program is not None
        while True:
            left_s = (place.until_ns - now_ns()) / 1e9
            try:
                return self._program.wait(max(0.05, left_s / 3))
            except subprocess.TimeoutExpired:
                pass
            try:
                place = self._client.again(place, max(0.2, (place.until_ns - now_ns()) / 1e9))
            except Moved as moved:
                print(f"hasnmp-run: {moved}", file=sys.stderr)
                return self._end()

    def _end(self) -> int | None:
        assert self._program is not None
        self._program.terminate()
        try:
            status = self._program.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._program.kill()
            status = self._program.wait()
        self._program = None if not self._asked else self._program
        return status if self._asked else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="hasnmp-run", usage="%(prog)s --service NAME [options] [-- PROGRAM WORD...]",
        description="Run a program where a service runs. {host}, {port}, {node} and {token} in its words stand for the place, "
        "HASNMP_HOST and so on in its environment.",
    )  # fmt: skip
    parser.add_argument("--service", metavar="NAME", required=True, help="a service, or a group")
    parser.add_argument(
        "--config", metavar="FILE", default="", help=f"the client's file; default: {DEFAULT_FILE}, or HASNMP_CLIENT"
    )
    parser.add_argument("--port", metavar="N", type=int, default=0, help="where the nodes don't tell it")
    parser.add_argument("--wait", metavar="S", type=float, default=60.0, help="for the service to run (60)")
    parser.add_argument("--restart", action="store_true", help="begin the program again when the service has moved")
    parser.add_argument("--version", action="version", version=f"hasnmp-run {__version__}")
    parser.add_argument("words", metavar="PROGRAM", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    try:
        client = Client.load(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        if arguments.restart and words:
            return Runner(client, arguments.service, arguments.port, arguments.wait, words).run()
        began_ns = time.monotonic_ns()
        place = client.wait(arguments.service, arguments.wait, arguments.port)
    except NotRunning as error:
        print(f"hasnmp-run: {error}", file=sys.stderr)
        return UNAVAILABLE
    except OSError as error:
        return _cant_run(error, words[0])
    if not words:
        left_ms = max(0, place.until_ns - now_ns()) // 1_000_000
        print(f"{place.name} runs on {place.node}: {place.host}:{place.port or '?'}, token {place.token}, lease {left_ms} ms, "
              f"found in {(time.monotonic_ns() - began_ns) // 1_000_000} ms")  # fmt: skip
        return 0
    try:
        os.execvpe(words[0], words_for(words, place), {**os.environ, **place_environment(place)})
    except OSError as error:
        return _cant_run(error, words[0])


if __name__ == "__main__":
    sys.exit(main())
