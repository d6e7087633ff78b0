"""The systemd units of the groups: found by their control groups, and ended whole with their group.

systemd started their processes, so they are in none of our control groups. A service unit has one of its own, called by its
name, below slices only (systemd.slice(5)); so it is found without asking systemd, which may hang just then.
"""

from __future__ import annotations

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


@dataclass(slots=True)
class GroupUnits:
    config: Config

    def _of(self, group: str) -> list[Path]:
        try:
            return folders({s.unit for s in self.config.services() if s.group == group and s.unit})
        except OSError:  # a slice was removed meanwhile: the caller looks again
            return folders({s.unit for s in self.config.services() if s.group == group and s.unit})

    def kill(self, group: str) -> None:
        """SIGKILL to every process of its units."""
        for folder in self._of(group):
            Cgroups.kill(folder)

    def left(self, group: str) -> list[str]:
        """What of them still lives, a text each."""
        return [f"process {pid} ({folder.name})" for folder in self._of(group) for pid in Cgroups.pids(folder)]

    def kill_all(self) -> list[str]:
        """Of every group; gives what lived."""
        groups = [group.name for group in self.config.groups]
        lines = [line for group in groups for line in self.left(group)]
        for group in groups:
            self.kill(group)
        return lines
