"""What a guardian ends beside its work: at its start what a former one left, at its own end everything that is left."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from hasnmp.runtime.kernel import boottime_ns, start_time
from hasnmp.runtime.kernel_address import AddressError
from hasnmp.runtime.places import engine_path
from hasnmp.runtime.processes import log

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian


FOUND = 40  # lines that are told of what was found


def end_former_engine(g: Guardian) -> None:
    """The engine of a guardian that died may still be ending its groups, or be frozen: it must not meet ours."""
    try:
        pid, started, boot = engine_path(g).read_text().split()
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + 5
    while boot == g.boot and start_time(int(pid)) == int(started) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.002)


def clean(g: Guardian) -> list[str]:
    """End what a former guardian left; at most 5 s, then go on and say what is left."""
    found: dict[str, None] = {}
    deadline = time.monotonic() + 5
    while lines := [*g.programs.clean(), *g.ending.units.kill_all()]:
        if len(found) < FOUND:
            found.update(dict.fromkeys(lines))
        if time.monotonic() > deadline:
            return [*found, *(f"NOT ENDED: {line}" for line in lines)]
        time.sleep(0.002)
    return list(found)


def finish(g: Guardian) -> None:
    """End everything that is left. After an engine that left in order there is nothing but the other processes."""
    if not hasattr(g, "ending"):
        return  # it failed before anything was there
    g.finished = True
    g._kill_engine("the guardian stops")
    g.programs.end_questions()
    groups = {*g.belongings.groups(), ""}  # fence agents are of no group
    for group in groups:
        g.programs.end_group(group)
    g.ending.units.kill_all()
    for child in g.family.others:
        if child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + 1
    hard = deadline + 1
    while time.monotonic() < hard:
        g._reap()
        g.programs.poll(boottime_ns())
        left = [line for group in groups for line in (*g.programs.leftovers(group), *g.ending.units.left(group))]
        for child in g.family.others:
            if child.pid and time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
        for group in groups if left else ():
            g.programs.end_group(group)
            g.ending.units.kill(group)
        if not left and not any(child.pid for child in g.family.all()):
            break
        time.sleep(0.005)
    if g.addresses.kernel:
        with contextlib.suppress(OSError, AddressError):
            g.addresses.kernel.uninstall()
    _, left = g.mounts.cut_all(2000)
    left += [*g.programs.clean(), *g.ending.units.kill_all()]
    for line in left:
        log("not_ended", logging.ERROR, what=line)
    if g.stopping and not left:
        g.watchdog.disarm()
    for group in () if left else g.belongings.groups():
        g.belongings.forget(group)
    with contextlib.suppress(OSError):
        engine_path(g).unlink()
    log("guardian_ended", worst_late_us=g.worst_late_us)
