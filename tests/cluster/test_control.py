"""The control: what stops the whole machine is taken off what was measured, what hasnmp's own priority could do is not."""

from __future__ import annotations

import os
import signal
import time

from tests.cluster.control import Control


def test_a_timer_that_does_not_run_is_a_stall_and_a_program_that_never_pauses_is_none() -> None:
    control = Control()
    assert control.runs, "root may ask for SCHED_RR"
    try:
        time.sleep(0.05)
        stalled_ms: list[float] = []
        while min(stalled_ms, default=300) >= 150:  # the machine itself may stand still for half of it, not each time
            begun_ns = time.monotonic_ns()
            child = os.fork()
            if not child:  # as a program of hasnmp's that has gone wild
                os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
                while time.monotonic_ns() < begun_ns + 300_000_000:
                    pass
                os._exit(0)
            os.waitpid(child, 0)
            stalled_ms.append(control.stalled_ms(begun_ns, time.monotonic_ns()))
            assert len(stalled_ms) <= 5, stalled_ms

        (timer, *_) = timers = children(control)
        assert len(timers) == len(os.sched_getaffinity(0))
        stopped_ns = time.monotonic_ns()
        os.kill(timer, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(timer, signal.SIGCONT)
        ended_ns = time.monotonic_ns()
        assert 190 <= control.stalled_ms(stopped_ns, ended_ns) <= (ended_ns - stopped_ns) / 1e6
        assert 90 <= control.stalled_ms(stopped_ns + 50_000_000, stopped_ns + 150_000_000) <= 100, "of a part, a part"
    finally:
        control.close()


def children(control: Control) -> list[int]:
    pid = control._process.pid
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
