"""What a group has outlives the file that names it, until nothing of it is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hasnmp.runtime.belongings import Belongings, Has
from tests.runtime.stack import make_config

DISK = Has(("web.service",), (("/dev/vdb", "/srv"),))


def file(folder: Path, **more: Any) -> Any:
    return make_config(str(folder), "c", **more)


def whole(folder: Path) -> Any:
    return file(folder, unit="web", filesystem={"device": "/dev/vdb", "directory": "/srv"})


def test_a_reload_forgets_nothing_that_is_still_being_ended(tmp_path: Path) -> None:
    Belongings(whole(tmp_path), "n").leased("g")
    for other in (file(tmp_path, groups="h"), file(tmp_path)):  # without the group, without its services
        found = Belongings(other, "n")
        assert found.of("g") == DISK
        found.configure(file(tmp_path, groups="h"), ending={"g"})
        assert found.of("g") == DISK, "what could not be ended yet would count as gone"
        assert Belongings(other, "n").of("g") == DISK
    found.forget("g")
    assert found.of("g") == Belongings(other, "n").of("g") == Has()


def test_what_another_group_has_by_now_is_that_ones(tmp_path: Path) -> None:
    """While something else of the former group can't be ended, it would be ended again and again under a living lease."""
    Belongings(whole(tmp_path), "n").leased("g")
    config = whole(tmp_path)
    web, h = config.groups[0].services[-1], config.groups[1]
    assert web.unit == "web.service"
    h = replace(h, services=(*h.services, replace(web, group="h")))
    found = Belongings(replace(config, groups=(h,)), "n")
    assert found.groups() == ["h", "g"]
    assert found.of("g") == Has((), DISK.mounts) and found.of("h") == Has(DISK.units)


def test_a_reload_forgets_what_it_has_stopped(tmp_path: Path) -> None:
    living = Belongings(whole(tmp_path), "n")
    living.leased("g")
    living.configure(file(tmp_path))
    assert living.of("g") == Belongings(file(tmp_path), "n").of("g") == Has()
