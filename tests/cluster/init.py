"""Process 1 of a laboratory host: prepares the host's own file systems, then reaps. Run by lab.py only.

Arguments: the host's name, then pairs "source=target" that are bind-mounted (targets lie below the fresh /run).
/tmp stays the machine's: the checkout and its interpreter may lie there, and hasnmp keeps nothing in it.
"""

import ctypes
import os
import signal
import socket
import sys

_libc = ctypes.CDLL(None, use_errno=True)
MS_BIND = 4096


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def main() -> None:
    name, *binds = sys.argv[1:]
    _libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: the host goes with what started it
    socket.sethostname(name)
    sources = []
    for bind in binds:  # opened before /run is covered: a source may lie below it
        source, target = bind.split("=")
        sources.append((os.open(source, os.O_PATH), os.path.isdir(source), target))
    mount("tmpfs", "/run", "tmpfs")
    mount("tmpfs", "/dev/shm", "tmpfs")
    for fd, is_folder, target in sources:
        if is_folder:
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "w").close()
        mount(f"/proc/self/fd/{fd}", target, "none", MS_BIND)
        os.close(fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print("ready", flush=True)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


main()
