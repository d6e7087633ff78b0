"""Addresses whose lease the kernel ends by itself, even if this whole stack is frozen or dead (design rule 5).

Two clocks in the kernel are wound up with what is left of the group's lease, each time that it is extended:
- an element of the packet filter (packet_filter.py), exact to the millisecond: without it the address is silent;
- the address's own valid lifetime, in whole seconds: then the address itself goes.

Nothing here ever gives more than the lease that it is called with, whenever it is frozen, except as said at `renew`.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hasnmp.core.guard import NEVER
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.netlink import NETLINK_ROUTE, Netlink, addresses, delete_address, set_address
from hasnmp.runtime.packet_filter import Damaged, Lapsed, PacketFilter

FIRST_MS = 20  # the life of an element that is created, as opposed to renewed; see add()
VALID_EARLY_NS = 100_000_000  # the kernel looks at valid lifetimes by ticks, and may end one a little early
LATE_NS = 5_000_000  # a renewal that took longer is looked at again
RETRY_NS = 20_000_000  # between two tries of a renewal that the kernel refused
LAST_TRY_NS = 20_000_000  # what is left of an element when the tries end
GONE = (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)


class AddressError(Exception):
    """An address could not be added, renewed or removed; the text says why."""


@dataclass(slots=True)
class Live:
    """An address that is up. armed_ns: when its element was last renewed; until_ns: when the element lapses."""

    service: str
    ip: str
    prefix: int
    interface: str
    index: int
    since_ns: int
    armed_ns: int = 0
    until_ns: int = 0
    retry_ns: int = 0  # a renewal failed: when it is tried again
    valid_ns: int = 0  # when its valid lifetime ends


class KernelAddresses:
    """The addresses of one node. `tag` names its tables; alarm(text) is called when someone tampered with them.

    Opening raises OSError: no permission, or a kernel without nftables.
    """

    def __init__(
        self, tag: str, alarm: Callable[[str], None] = lambda text: None, clock: Callable[[], int] = boottime_ns
    ) -> None:
        self._alarm, self._clock = alarm, clock
        self._route = Netlink(NETLINK_ROUTE)
        self._filter = PacketFilter("hasnmp_" + re.sub(r"[^A-Za-z0-9]", "_", tag))
        self._protected: dict[str, str] = {}
        self._live: dict[str, Live] = {}

    def close(self) -> None:
        """Close the sockets; what is up stays, until the kernel ends it."""
        self._route.close()
        self._filter.close()

    def cleanup(self, protect: Iterable[str] = ()) -> tuple[str, ...]:
        """Remove every address that a former life left, then protect these. Gives a line for each address removed."""
        found = self._filter.protected()
        self._filter.install(dict.fromkeys(protect, ""))
        self._protected = dict.fromkeys(protect, "")
        self._live.clear()
        lines = []
        for address in addresses(self._route):
            if address.ip in found or address.ip in self._protected:
                self._delete(address.ip, address.prefix, address.index)
                lines.append(f"address {address.ip}/{address.prefix}")
        return tuple(lines)

    def protect(self, ips: Iterable[str]) -> None:
        """Protect these, too: they are to answer only with a lease from now on. Raises OSError."""
        for ip in ips:
            if ip not in self._protected:
                try:
                    self._mended(lambda ip=ip: self._filter.protect(ip, ""))  # type: ignore[misc]
                except Damaged as damage:  # again, right after it was restored
                    raise OSError(errno.EAGAIN, str(damage)) from None
                self._protected[ip] = ""

    def attach(self) -> tuple[str, ...]:
        """In place of cleanup(): go on with what former code of this very process put up. Then take_over()."""
        self._filter.attach()
        self._protected = self._filter.protected()
        return ()

    def take_over(self, live: Iterable[Live]) -> None:
        self._live = {each.service: each for each in live}

    def uninstall(self) -> None:
        """Remove every address and the tables: this node stops in order, and the addresses are anyone's again."""
        for service in tuple(self._live):
            self.remove(service)
        self._filter.uninstall()

    def present(self) -> tuple[Live, ...]:
        """The addresses that are up, as far as this process did it."""
        return tuple(self._live.values())

    def is_up(self, service: str) -> bool:
        """May the address be there, as far as this process did it?"""
        return service in self._live

    def add(self, service: str, ip: str, prefix: int, interface: str, until_ns: int) -> None:
        """Put the address on the interface, to answer until until_ns at most. Idempotent. Raises AddressError.

        The order leaves no moment at which a process that freezes here and goes on later could let a lapsed lease
        answer: the address is protected before anything else, its element is made with FIRST_MS while the address is
        not there yet, and gets the lease's rest by a renewal, which fails if that moment has passed.
        """
        if service in self._live:
            self.renew(service, until_ns)
            return
        try:
            index = socket.if_nametoindex(interface)
        except OSError:
            raise AddressError(f"{ip} not added: there is no interface {interface}") from None
        try:
            self._mended(lambda: self._filter.protect(ip, f"{service} {interface}/{prefix}"))
            self._protected[ip] = f"{service} {interface}/{prefix}"
            self._delete(ip, prefix, index)
            try:
                self._mended(lambda: self._filter.let_in(ip, FIRST_MS))
            except FileExistsError:  # left by an addition that failed half-way
                self._filter.shut_out(ip)
                self._filter.let_in(ip, FIRST_MS)
            live = Live(service, ip, prefix, interface, index, self._clock())
            self._arm(live, until_ns)
            self._live[service] = live
            self._set(live, until_ns)
        except Lapsed:
            self.remove(service)
            raise AddressError(f"{ip} not added: the lease ended, or the machine stalled, meanwhile") from None
        except (OSError, Damaged) as error:
            self.remove(service)  # if even that fails it counts as up, and this says so
            raise AddressError(f"{ip}/{prefix} not added to {interface}: {error}") from None

    def renew(self, service: str, until_ns: int) -> None:
        """Let the address answer until until_ns at most. Raises AddressError: its own lease has ended, so it is off now.

        The kernel may refuse a renewal for a moment (no memory, a full buffer). While the element lives the address is as
        good as ever, so the renewal is tried again until just before it lapses; only then the address goes.
        """
        live = self._live[service]
        live.retry_ns = 0
        try:
            try:
                self._arm(live, until_ns)
            except Damaged as damage:
                self._restore(str(damage), until_ns, live)
            self._set(live, until_ns)
        except Lapsed:
            self.remove(service)
            raise AddressError(f"{live.ip} ended by the kernel: not renewed within its lease") from None
        except (OSError, Damaged) as error:
            gone = isinstance(error, OSError) and error.errno in GONE
            if not gone and self._clock() + RETRY_NS < live.until_ns - LAST_TRY_NS:
                live.retry_ns = self._clock() + RETRY_NS
                return
            self.remove(service)
            raise AddressError(f"{live.ip} ended: its renewal failed: {error}") from None

    def renew_due(self, service: str, until_ns: int) -> bool:
        """Is a renewal up to until_ns worth its price now?"""
        return self._clock() >= self.renew_at_ns(service, until_ns)

    def renew_at_ns(self, service: str, until_ns: int) -> int:
        """When the next renewal up to until_ns is worth its price; NEVER: not before the lease grows.

        One that gives more: when half of the element's life will have passed. One that gives no more, too, shortly before
        the valid lifetime ends: it counts whole seconds, so it may end up to one before a lease that nobody extends.
        """
        live = self._live[service]
        if live.retry_ns:
            return live.retry_ns
        at = NEVER
        if until_ns - live.until_ns >= 1_000_000:  # elements count milliseconds
            at = (live.armed_ns + live.until_ns) // 2
        if live.valid_ns - VALID_EARLY_NS < until_ns:
            at = min(at, live.valid_ns - 2 * VALID_EARLY_NS)
        return at

    def remove(self, service: str) -> None:
        """End the address now: silent first, then off the interface. Idempotent. Raises AddressError: it may be there."""
        live = self._live.get(service)
        if live is not None:
            self._off(live.ip, live.prefix, live.index)
            del self._live[service]

    def verify(self) -> str:
        """What is wrong with the protection; "" if nothing."""
        return self._filter.damage()

    # ------------------------------------------------------------------------------------------------------- the parts

    def _arm(self, live: Live, until_ns: int) -> None:
        """Give the element what is left of the lease. Raises Lapsed: nothing is, or the element has lapsed.

        Its timer is a relative one: if we are stopped between the look at the clock and the deed, it outlives the
        lease. So the time is looked at again, and the deed done again if it came late.
        """
        while True:
            now = self._clock()
            left_ms = (until_ns - now) // 1_000_000
            if left_ms < 1:
                self._filter.shut_out(live.ip)
                raise Lapsed(live.ip)
            self._filter.renew(live.ip, left_ms)
            live.armed_ns, live.until_ns = now, now + left_ms * 1_000_000
            if self._clock() - now < LATE_NS:
                return

    def _set(self, live: Live, until_ns: int) -> None:
        """Put the address on its interface, or renew it there. Raises Lapsed: the lease ended meanwhile.

        It counts whole seconds, so an address with a short lease has enough for many renewals: each waits for a lock that
        everything shares that changes any interface of the machine (rtnl), for 60 ms and more where many are made.
        """
        if live.valid_ns - VALID_EARLY_NS >= until_ns:
            return
        while True:
            now = self._clock()
            if now >= until_ns:
                raise Lapsed(live.ip)
            valid_s = max(1, (until_ns - now) // 1_000_000_000)
            set_address(self._route, live.ip, live.prefix, live.index, valid_s)
            live.valid_ns = now + valid_s * 1_000_000_000
            if self._clock() - now < LATE_NS:
                return

    def _mended(self, change: Callable[[], None]) -> None:
        """Do the change; if the tables were tampered with, restore them and do it once more."""
        try:
            change()
        except Damaged as damage:
            self._restore(str(damage))
            change()

    def _restore(self, damage: str, until_ns: int = 0, only: Live | None = None) -> None:
        """Make the tables anew, with every address that is live; for `only` a lease is known, others keep theirs."""
        self._filter.install(self._protected)
        for live in self._live.values():
            until = until_ns if live is only else live.until_ns
            try:
                # The address is there already, so what has no lease must not answer even for FIRST_MS.
                if until - self._clock() < FIRST_MS * 1_000_000:
                    raise Lapsed(live.ip)
                self._filter.let_in(live.ip, FIRST_MS)
                self._arm(live, until)
            except Lapsed:
                if live is only:
                    raise
                # Another's end is told when that one is renewed, not by this one's renewal.
        self._alarm(f"packet filter damaged and restored: {damage}")

    def _delete(self, ip: str, prefix: int, index: int) -> None:
        try:
            delete_address(self._route, ip, prefix, index)
        except OSError as error:
            if error.errno not in GONE:
                raise

    def _off(self, ip: str, prefix: int, index: int) -> None:
        problem: Exception | None = None
        try:
            self._filter.shut_out(ip)
        except (OSError, Damaged) as error:
            problem = error
        try:
            self._delete(ip, prefix, index)
        except OSError as error:
            raise AddressError(f"{ip} not removed: {error}") from problem
        # Off the interface is enough: what the filter says matters no more.
