"""What a group may have here that bears no mark of ours: its systemd units and its file systems.

The configuration names them, but a file can be changed while this node's whole stack is dead. So what a group has is written
down as well, before the first lease of it counts, and is forgotten when nothing of it is left: run_dir/NODE.groups/GROUP, one
JSON object. The next guardian ends what stands there like what its own file names.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hasnmp.runtime.kernel import boot_id
from hasnmp.runtime.processes import log
from hasnmp.settings import Config


class Has(NamedTuple):
    """mounts: (device, directory) each."""

    units: tuple[str, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()


def configured(config: Config, group: str) -> Has:
    services = [service for service in config.services() if service.group == group]
    return Has(tuple(s.unit for s in services if s.unit), tuple(s.mounts for s in services if s.mounts))


@dataclass(slots=True)
class Belongings:
    config: Config
    node: str
    written: dict[str, Has] = field(init=False)

    def __post_init__(self) -> None:
        boot, self.written = boot_id(), {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder().glob("[!.]*"):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    row = json.loads(path.read_text())
                    if row["boot_id"] == boot:  # nothing of it outlived another
                        mounts = tuple((str(device), str(directory)) for device, directory in row["mounts"])
                        self.written[path.name] = Has(tuple(map(str, row["units"])), mounts)

    def _folder(self) -> Path:
        return Path(self.config.run_dir, f"{self.node}.groups")

    def groups(self) -> list[str]:
        """Those of the configuration, then those that had something before it."""
        return list(dict.fromkeys([*(group.name for group in self.config.groups), *self.written]))

    def of(self, group: str) -> Has:
        """What is another group's by now is that one's to end: it may have a lease for it again."""
        now, before = configured(self.config, group), self.written.get(group, Has())
        others = [service for service in self.config.services() if service.group != group]
        units = [u for u in before.units if u not in {service.unit for service in others}]
        mounts = [m for m in before.mounts if m not in {service.mounts for service in others}]
        return Has(tuple(dict.fromkeys([*now.units, *units])), tuple(dict.fromkeys([*now.mounts, *mounts])))

    def is_configured(self, unit: str) -> bool:
        return any(service.unit == unit for service in self.config.services())

    def leased(self, group: str) -> None:
        """Write down what it may have from here on."""
        if group not in self.written:
            self._write(group)

    def configure(self, config: Config, ending: Container[str] = ()) -> None:
        """Go by another configuration: what is not in it any more was stopped in order before; but for what is still being ended."""
        self.config = config
        for group in self.written:
            if group not in ending:
                self._write(group)

    def write_anew(self) -> None:
        """What was written is gone."""
        for group, has in self.written.items():
            self._put(group, has)

    def _write(self, group: str) -> None:
        self.written[group] = configured(self.config, group)
        self._put(group, self.written[group])

    def _put(self, group: str, has: Has) -> None:
        path = self._folder() / group
        try:
            if has == Has():
                path.unlink(missing_ok=True)
                return
            path.parent.mkdir(mode=0o755, exist_ok=True)
            new = path.parent / f".{group}"
            new.write_text(json.dumps({"boot_id": boot_id(), **has._asdict()}))
            new.replace(path)
        except OSError as error:
            log("belongings_not_written", logging.ERROR, group=group, path=str(path), why=error.strerror,
                next="as long as the file names it, it is ended all the same")  # fmt: skip

    def forget(self, group: str) -> None:
        """Nothing of the group is here any more, seen and confirmed."""
        if self.written.pop(group, Has()) != Has():
            with contextlib.suppress(OSError):
                (self._folder() / group).unlink(missing_ok=True)
