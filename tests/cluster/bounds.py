"""A bound on a time, and its second chance: the machine is shared with others, and what they do to it no control tells whole.

What says of a time that it is within its bound is within(), and a test that fails by it, and by nothing else in any of its
phases, is measured once more; twice too late is a failure. Two owners, a lost write, a wrong state fail at once, always.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


class TooLate(AssertionError):
    """What was measured is over its bound. Raised by within() alone."""


def within(took_ms: float, bound_ms: float, why: str | Callable[[], str] = "") -> float:
    """took_ms, which is at most bound_ms. Ask for it when all else is judged. Raises TooLate.

    why: what was measured, or a function that tells what there is to know.
    """
    if took_ms > bound_ms:
        more = why() if callable(why) else why
        raise TooLate(f"{took_ms:.0f} ms, {took_ms - bound_ms:.0f} more than the bound of {bound_ms:.0f}; {more}")
    return took_ms


# only_rerun alone would also take another failure in whose course a TooLate was handled.
MEASURED_TWICE = pytest.mark.flaky(reruns=1, only_rerun=TooLate, rerun_except=f"^(?!{TooLate.__name__}: )")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say of each that was measured twice by how much it was late the first time."""
    again = terminalreporter.stats.get("rerun", [])
    if not again:
        return
    terminalreporter.section(f"MEASURED TWICE, FOR THEY WERE TOO LATE: {len(again)}", sep="!", red=True, bold=True)
    for report in again:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = (crash.message if crash else str(report.longrepr)).splitlines()[0]
        failed = any(one.nodeid == report.nodeid for one in terminalreporter.stats.get("failed", []))
        terminalreporter.line(f"{report.nodeid}\n    first {said}\n    then  {'failed' if failed else 'in time'}")
