"""Looks at a mounted file system in a process of its own, for every look may wait for ever on a disk that is frozen.

    python -I -S filesystem_probe.py look DIRECTORY DEVICE     exit 0: the disk answers; else 1, and a line that says what does not
    python -I -S filesystem_probe.py holders DIRECTORY         prints who holds it open: "nginx (812), sh (97)"
    python -I -S filesystem_probe.py kill DIRECTORY            the same, and kills them
    python -I -S filesystem_probe.py elsewhere DEVICE          exit 3: no process here has it mounted, and yet its file system lives;
                                                               prints who has it mounted, with mounts of its own (a container)
    python -I -S filesystem_probe.py kill-elsewhere DEVICE     the same, and kills them

Stands alone: it imports nothing of this package, so that it starts in milliseconds. `holders` never touches the disk.
"""

import contextlib
import errno
import mmap
import os
import signal
import stat
import sys


def look(directory: str, device: str) -> None:
    """Raises OSError, with what failed as its text."""
    what = "its size can't be read"
    try:
        os.statvfs(directory)
        what = "nothing can be written"
        # Writes what is to be written of the folder itself, nearly always nothing: a journal that was given up after an
        # error, or a file system that was shut down, says so here. statvfs(2) is answered from memory alone.
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if device.startswith("/") and stat.S_ISBLK(os.stat(device).st_mode):
            what = f"{device} can't be read"
            fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
            try:
                os.preadv(fd, [mmap.mmap(-1, 4096)], 0)  # past the kernel's memory, from the disk itself
            finally:
                os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from None


def holders(directory: str, kill: bool = False) -> list[str]:
    """By the names that the kernel gives: no file is touched."""

    def inside(path: str) -> bool:
        return path == directory or path.startswith(directory.rstrip("/") + "/")

    found = []
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
        try:
            links += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        for link in links:
            try:
                held = inside(os.readlink(link))
            except OSError:
                continue
            if held:
                with open(f"/proc/{pid}/comm") as name:
                    found.append(f"{name.read().strip()} ({pid})")
                if kill:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
    with open("/proc/self/mountinfo") as mounts:
        below = [line.split()[4] for line in mounts if line.split()[4] != directory and inside(line.split()[4])]
    return found + [f"the mount at {path}" for path in below]


def elsewhere(device: str, kill: bool = False) -> list[str] | None:
    """None: nothing is written to it: the kernel has nothing mounted from it, in whatever namespace (who mounts claims the device, as
    O_EXCL does: open(2)), or its file system was shut down."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK))
        return None
    except OSError as error:
        if error.errno != errno.EBUSY:
            return None  # it is not there: nothing is written to it
    status, own, found, dead = os.stat(device), os.stat("/proc/self/ns/mnt").st_ino, [], False
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        try:
            if os.stat(f"/proc/{pid}/ns/mnt").st_ino == own:
                continue
            with open(f"/proc/{pid}/mountinfo", errors="replace") as mounts:
                places = [line.split() for line in mounts if line.split()[2] == number]
            if not places:
                continue
            if is_dead(pid, places[0]):
                dead = True
                continue
            with open(f"/proc/{pid}/comm") as name:
                found.append(f"{name.read().strip()} ({pid})")
        except OSError:
            continue
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return found if found or not dead else None


def is_dead(pid: int, place: list[str]) -> bool:
    """Was it shut down (mounts.cut_off)? ext4 tells so in its options, xfs opens nothing any more. place: a line of mountinfo."""
    if "shutdown" in place[-1].split(","):
        return True
    try:
        os.close(os.open(f"/proc/{pid}/root{place[4]}", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        return error.errno == errno.EIO
    return False


def main() -> int:
    if sys.argv[1].endswith("elsewhere"):
        who = elsewhere(sys.argv[2], sys.argv[1].startswith("kill"))
        print(", ".join(who[:20]) if who else "")
        return 0 if who is None else 3
    if sys.argv[1] in ("holders", "kill"):
        print(", ".join(holders(sys.argv[2], sys.argv[1] == "kill")[:20]))
        return 0
    try:
        look(sys.argv[2], sys.argv[3])
    except OSError as error:
        print(error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
