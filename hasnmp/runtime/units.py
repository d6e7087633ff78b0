"""The systemd units of the groups: found by their control groups, and ended whole with their group.

systemd started their processes, so they are in none of our control groups. A service unit has one of its own, called by its
name, below slices only (systemd.slice(5)); so it is found without asking systemd, which may hang just then.

Nor does systemd have to be asked not to start one that has ended here. A job of it may wait still, for another unit: the drop-in
(agents/systemd_unit.py) makes it fail without a file that says that the unit may run, and which is removed first. And what
systemd does about a process that was killed may be to execute the unit's next program: it comes into a control group that was
frozen before, and does nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from hasnmp.runtime.cgroups import Cgroups, find_mount
from hasnmp.settings import Config


def folders(units: set[str]) -> list[Path]:
    """The control groups of these units, of those that have one now."""
    mount = find_mount()
    found: list[Path] = []
    waiting = [mount] if mount and units else []
    while waiting:
        for folder in waiting.pop().iterdir():
            if folder.name in units:
                found.append(folder)
            elif folder.name.endswith(".slice") and folder.is_dir():
                waiting.append(folder)
    return found


def leave_of(run_dir: str, node: str, unit: str) -> Path:
    """The file without which systemd does not start the unit."""
    return Path(run_dir, f"{node}.units", unit)


@dataclass(slots=True)
class GroupUnits:
    config: Config
    node: str

    def _names(self, group: str) -> set[str]:
        return {s.unit for s in self.config.services() if s.group == group and s.unit}

    def _of(self, group: str) -> list[Path]:
        try:
            return folders(self._names(group))
        except OSError:  # a slice was removed meanwhile: the caller looks again
            return folders(self._names(group))

    def _forbid(self, group: str) -> list[str]:
        """From here on systemd starts none of them. Returns those that it may start still, a text each."""
        allowed = []
        for unit in self._names(group):
            leave = leave_of(self.config.run_dir, self.node, unit)
            try:
                leave.unlink(missing_ok=True)
            except OSError as error:  # what runs is killed all the same
                allowed.append(f"{unit}, which systemd may start, for {leave} can't be removed: {error.strerror}")
        return allowed

    def kill(self, group: str) -> None:
        """SIGKILL to every process of its units, and to no avail whatever systemd does about that."""
        self._forbid(group)
        for folder in self._of(group):
            with contextlib.suppress(OSError):  # it has just gone
                (folder / "cgroup.freeze").write_text("1")
            Cgroups.kill(folder)

    def left(self, group: str) -> list[str]:
        """What of them still lives, a text each. Asked when the programs of the group have ended: one of them may have
        allowed a unit after kill()."""
        allowed = self._forbid(group)
        return allowed + [
            f"process {pid} ({folder.name})" for folder in self._of(group) for pid in Cgroups.pids(folder)
        ]

    def kill_all(self) -> list[str]:
        """Of every group; gives what lived."""
        groups = [group.name for group in self.config.groups]
        lines = [line for group in groups for line in self.left(group)]
        for group in groups:
            self.kill(group)
        return lines
