"""How a forked child of the guardian turns into a program of a service: its place, its user, its standard input; then exec."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import NoReturn

from hasnmp.runtime.kernel import F_SETPIPE_SZ, be_ordinary, boottime_ns, die_with, give_back_descriptors, set_oom_score
from hasnmp.runtime.messages import Run

MAX_STDIN = 1 << 16  # octets that a program can be given on standard input: what a pipe holds


def filled(data: bytes) -> int:
    """The read end of a pipe that holds all this, then end of file: nothing is left to do, whether it is read or not.

    Raises OSError: it is longer than a pipe may hold (an ordinary user with many pipes gets smaller ones).
    """
    if len(data) > MAX_STDIN:
        raise OSError(errno.EMSGSIZE, f"{len(data)} octets for standard input, {MAX_STDIN} are possible")
    there, fill = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(fill, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fill, F_SETPIPE_SZ, MAX_STDIN)
        if os.write(fill, data) != len(data):
            raise OSError(errno.EMSGSIZE, f"a pipe of this user does not hold {len(data)} octets")
    except OSError:
        os.close(there)
        raise
    finally:
        os.close(fill)
    return there


def become(
    mark: str, run: Run, parent: int, not_after_ns: int, folder: Path | None, stdin: int, output: int, errors: int
) -> NoReturn:
    """In the child: turn into the program. folder: the control group to go to, None: it is there."""
    what = "not started"
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)  # also what the shell that started us had ignored
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        if folder:
            what = "its control group"
            (folder / "cgroup.procs").write_text("0")
        set_oom_score(run.oom_score_adjust)  # the guardian is exempt; a program is what it is configured to be, 0
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        own = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
        env = {key: value for key, value in os.environ.items() if key not in own} | run.env
        env |= {"HASNMP_NODE": mark, "HASNMP_GROUP": run.group, "HASNMP_RUN": str(run.run)}
        if run.user:
            what = f"user {run.user}"
            _become_user(run.user, env)
        die_with(parent)
        if run.cwd:
            what = f"directory {run.cwd}"
            os.chdir(run.cwd)
        what = "an ordinary priority"
        be_ordinary()
        give_back_descriptors()
        what = run.argv[0] if run.argv else "an empty command"
        # The guardian looked at the lease before the fork. If the machine stalled since, this is the last look.
        if boottime_ns() >= not_after_ns:
            raise TimeoutError(0, "its lease ended meanwhile")
        os.execvpe(run.argv[0], list(run.argv), env)
    except BaseException as error:
        code = error.errno or 0 if isinstance(error, OSError) else 0
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        os.write(errors, f"{code} {what}: {text}".encode()[:4000])
    finally:
        os._exit(127)


def _become_user(user: str, env: dict[str, str]) -> None:
    import pwd  # here, not in the guardian: a look-up may ask a directory service, and take its time

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError(0, "no such user") from None
    if os.geteuid() != entry.pw_uid:
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    env |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user}
