"""Unit files as they lie on this machine, for check-config and `hasnmp agents`: systemd itself is not asked. Standard library
only. Source: systemd.unit(5), "Unit File Load Path" and the .wants and .requires folders that `systemctl enable` fills."""

from __future__ import annotations

import os
from pathlib import Path

PLACES = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
          "/lib/systemd/system")  # fmt: skip


def _template(unit: str) -> str:
    """getty@tty1.service is made of getty@.service."""
    name, at, _ = unit.partition("@")
    return f"{name}@.service" if at else unit


def is_known(unit: str) -> bool:
    return any(os.path.exists(f"{place}/{name}") for place in PLACES for name in (unit, _template(unit)))


def enabled_by(unit: str) -> str:
    """The link that has a boot start it, "" if none does."""
    for place in PLACES[:2]:
        for kind in ("wants", "requires"):
            for folder in sorted(Path(place).glob(f"*.{kind}")):
                if os.path.lexists(folder / unit):
                    return str(folder / unit)
    return ""


def services() -> list[str]:
    """The service units that there are, without .service, sorted; without templates."""
    names = {name for place in PLACES if os.path.isdir(place) for name in os.listdir(place)}
    return sorted(name.removesuffix(".service") for name in names if name.endswith(".service") and "@." not in name)
