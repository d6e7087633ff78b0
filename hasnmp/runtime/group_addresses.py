"""The addresses of the groups: each is wound up with its group's lease, and off before that ends.

Between the guardian's lease table and kernel_address.py, which does it. A node that can't (no permission, no nftables)
refuses every address with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hasnmp.core.guard import NEVER, Guard
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.kernel_address import AddressError, KernelAddresses
from hasnmp.runtime.messages import Address, HeldAddress


@dataclass(slots=True)
class GroupAddresses:
    """kernel: None where none can be put up; `why` then says why."""

    guard: Guard
    kernel: KernelAddresses | None = None
    why: str = ""
    held: dict[str, HeldAddress] = field(default_factory=dict)  # service -> its address

    def add(self, message: Address) -> str:
        """Put it up. Gives why not, "" if done. The caller has looked at the lease."""
        lease = self.guard.leases[message.group]
        if self.kernel is None:
            return f"refused: this node can't put up addresses: {self.why}"
        problem = ""
        try:
            self.kernel.add(message.service, message.ip, message.prefix, message.interface, lease.until_ns)
        except AddressError as error:
            problem = str(error)
            if not self.kernel.is_up(message.service):
                self.held.pop(message.service, None)
                return problem
        self.held.setdefault(
            message.service,
            HeldAddress(message.service, message.group, message.ip, message.prefix, message.interface, boottime_ns()),
        )
        return problem

    def remove(self, service: str) -> str:
        """Take it down. Gives why not, "" if it is not there (any more)."""
        if self.kernel and service in self.held:
            try:
                self.kernel.remove(service)
            except AddressError as error:
                return str(error)
            del self.held[service]
        return ""

    def of(self, group: str) -> list[HeldAddress]:
        return [address for address in self.held.values() if address.group == group]

    def remove_all(self, group: str) -> list[str]:
        """Take down all of the group. Gives what may still be there, a text each."""
        return [problem for address in self.of(group) if (problem := self.remove(address.service))]

    def renew(self) -> list[tuple[str, str]]:
        """Wind up what is worth it. Gives (service, why) of each that the kernel has ended: it is off."""
        lost = []
        for address in tuple(self.held.values()):
            lease = self.guard.leases.get(address.group)
            if not self.kernel or lease is None or address.group in self.guard.ending:
                continue
            if self.kernel.renew_due(address.service, lease.until_ns):
                try:
                    self.kernel.renew(address.service, lease.until_ns)
                except AddressError as error:
                    if not self.kernel.is_up(address.service):
                        del self.held[address.service]
                    lost.append((address.service, str(error)))
        return lost

    def next_deadline_ns(self) -> int:
        at = NEVER
        for address in self.held.values():
            lease = self.guard.leases.get(address.group)
            if self.kernel and lease and address.group not in self.guard.ending:
                at = min(at, self.kernel.renew_at_ns(address.service, lease.until_ns))
        return at
