"""How a guardian begins: its parts are put together, what a former one left is ended, and the other processes are forked.

Or this is the new code of a handover: then nothing is ended and nothing forked; it takes over what the deputy keeps for it.
"""

from __future__ import annotations

import gc
import logging
import selectors
import signal
import socket
from typing import TYPE_CHECKING

from hasnmp.core.guard import Guard
from hasnmp.runtime import handover, leftovers
from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.cgroups import open_cgroups
from hasnmp.runtime.ending import Ending, certain
from hasnmp.runtime.feeder import Feeder
from hasnmp.runtime.group_addresses import GroupAddresses
from hasnmp.runtime.handover import Handover
from hasnmp.runtime.kernel import (
    adopt_orphans,
    boottime_ns,
    lock_memory,
    prefer_this_process,
    set_name,
    set_oom_score,
    take_descriptors,
)
from hasnmp.runtime.kernel_address import KernelAddresses
from hasnmp.runtime.mounts import GroupMounts
from hasnmp.runtime.orders import Orders
from hasnmp.runtime.places import Places, record_holder
from hasnmp.runtime.processes import MS, Family, log
from hasnmp.runtime.programs import NO_CGROUP, Programs, address_tag, mark_of, virtual_addresses
from hasnmp.runtime.pulse import Pulse
from hasnmp.runtime.reload import Reloader
from hasnmp.runtime.units import GroupUnits
from hasnmp.runtime.vigil import Vigil
from hasnmp.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian


def begin(g: Guardian, handed: socket.socket | None) -> None:
    """handed: the deputy's socket: this is new code in the place of a guardian, and takes over all that it has."""
    config, node = g.config, g.node
    g.orders, g.handover = Orders(g), Handover(g)
    g.obey = g.orders.obey
    g.guard = Guard(config.heartbeat.kill_ms * MS, show=g.board.show)
    set_name("hasnmpd")
    adopt_orphans()
    take_descriptors()
    g.vigil, g.pulse, g.places = Vigil(g), Pulse(g), Places(g)
    g.family = Family.make(config, node, g.children, g.board, g.vigil.beat)
    if not handed:
        leftovers.end_former_engine(g)
    cgroups = open_cgroups(config, node)
    g.programs = Programs(mark_of(config, node), cgroups, g.selector, g._tell)
    g.family.close_in_child += [g.wake[0].close, g.wake[1].close, g.timer.close, g.selector.close]
    g.family.close_in_child += [g.programs.close_all, lambda: g.channel.close() if g.channel else None]
    notes = [] if cgroups else [NO_CGROUP]
    g.watchdog = Watchdog(config.watchdog)
    g.feeder = Feeder(g)
    g.family.close_in_child.append(g.watchdog.forget)
    g.belongings = Belongings(config, node)
    g.mounts = GroupMounts(g.belongings)
    g.addresses = GroupAddresses(g.guard)
    g.ending = Ending(
        g.guard,
        g.programs,
        g.addresses,
        g.mounts,
        GroupUnits(g.belongings),
        g.belongings,
        g._alarm,
        certain(config),
        g._ended,
        lambda group: g.programs.outside(group, g.config),
    )
    g.reload = Reloader(g, g._tell)
    cleaned = [] if handed else [*leftovers.clean(g), *g.mounts.cut_all(5000)[0]]
    cleaned += open_addresses(g, handed=bool(handed))
    if g.addresses.why:
        notes.append(f"no addresses can be put up: {g.addresses.why}")
    for group in () if handed else g.belongings.groups():
        if g.ending.left_of(group):
            g.ending.begin_found(group, boottime_ns())
        else:
            g.belongings.forget(group)
    if note := set_oom_score(-1000):
        notes.append(note)
    notes += prefer_this_process() + lock_memory()
    g.cleaned, g.notes = tuple(cleaned), tuple(notes)
    for line in cleaned:
        log("leftover_ended", logging.WARNING, what=line, why="it ran without a lease when the guardian started")
    if not handed:
        record_holder(g)
    _watch_signals(g)
    g.selector.register(g.timer, selectors.EVENT_READ, g.timer.read)
    gc.collect()
    gc.freeze()  # what is there now stays out of the collector's way, and so shared with the children
    if handed:
        handover.take_over(g, handed)
        g._take_pills()
        g.feeder.feed(boottime_ns())
        return
    g._take_pills()
    for child in g.family.others:
        if child.wanted():
            g.start(child)
    g.start(g.family.engine)
    g.feeder.notify("READY=1")
    g.feeder.feed(boottime_ns())


def open_addresses(g: Guardian, handed: bool = False) -> tuple[str, ...]:
    """Protect every address that the configuration has; gives a line for each that was up and is removed."""
    protect, kernel = virtual_addresses(g.config), g.addresses.kernel
    if not protect:
        return ()
    try:
        if kernel is not None:
            kernel.protect(protect)
            return ()
        kernel = KernelAddresses(address_tag(g.config, g.node), g._alarm)
        cleaned = kernel.attach() if handed else kernel.cleanup(protect)
    except OSError as error:
        g.addresses.why = f"nftables over netlink: {error.strerror}"
        return ()
    g.addresses.kernel, g.addresses.why = kernel, ""
    g.family.close_in_child.append(kernel.close)
    return cleaned


def _watch_signals(g: Guardian) -> None:
    for sock in g.wake:
        sock.setblocking(False)
    signal.set_wakeup_fd(g.wake[1].fileno(), warn_on_full_buffer=False)
    for number in handover.SIGNALS:
        signal.signal(number, lambda *_: None)  # the wake-up socket tells; SIGCONT: look at the clock at once
    g.selector.register(g.wake[0], selectors.EVENT_READ, g._on_signal)
