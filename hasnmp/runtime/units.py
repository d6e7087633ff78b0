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

from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.cgroups import Cgroups, find_mount


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
    belongings: Belongings

    def _names(self, group: str) -> set[str]:
        return set(self.belongings.of(group).units)

    def _of(self, group: str) -> list[Path]:
        try:
            return folders(self._names(group))
        except OSError:  # a slice was removed meanwhile: the caller looks again
            return folders(self._names(group))

    def _forbid(self, group: str) -> list[str]:
        """From here on systemd starts none of them. Returns those that it may start still, a text each."""
        allowed = []
        for unit in self._names(group):
            leave = leave_of(self.belongings.config.run_dir, self.belongings.node, unit)
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
            Cgroups.kill_in(folder)

    def left(self, group: str) -> list[str]:
        """What of them still lives, a text each. Asked when the programs of the group have ended: one of them may have
        allowed a unit after kill()."""
        allowed = self._forbid(group)
        return allowed + [
            f"process {pid} ({folder.name}{self._how_to_free(folder.name)})"
            for folder in self._of(group)
            for pid in Cgroups.pids_in(folder)
        ]

    def _how_to_free(self, unit: str) -> str:
        if self.belongings.is_configured(unit):
            return ""
        # agents/systemd_unit.py has put it there, and takes it away with a stop in order; no stop will follow.
        drop_in = f"/run/systemd/system/{unit}.d/50-hasnmp.conf"
        return f", of no group any more; before systemd starts it again: rm {drop_in}; systemctl daemon-reload"

    def kill_all(self) -> list[str]:
        """Of every group; gives what lived."""
        groups = self.belongings.groups()
        lines = [line for group in groups for line in self.left(group)]
        for group in groups:
            self.kill(group)
        return lines
