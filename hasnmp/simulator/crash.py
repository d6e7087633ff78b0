"""An end that comes between two effects: what an engine had decided is done in part, and the rest never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasnmp.core.events import Act, ArbiterCall, Effect, Extend, Notify, Persist, Release, Reply, Send

# What there is to crash at; each as often as the other, for a run has a hundred heartbeats for each release.
KINDS: tuple[tuple[type, ...], ...] = (
    (Extend,), (Act,), (Release,), (ArbiterCall,), (Persist,), (Notify,), (Reply,), (Send,),
    (Extend, Act, Release, ArbiterCall, Persist),
)  # fmt: skip


@dataclass(slots=True)
class Doom:
    """ends() is called just before, or just after, an effect of these kinds is carried out, when `passes` went well."""

    kinds: tuple[type, ...]
    passes: int
    after: bool
    ends: Callable[[], None]

    def meets(self, effect: Effect) -> bool:
        if not isinstance(effect, self.kinds):
            return False
        self.passes -= 1
        return self.passes < 0
