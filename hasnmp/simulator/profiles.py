"""What a run may meet: which faults, how many, on what cluster. A seed picks one profile of MIX, by weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """faults: name -> weight. strikes: how many in the safety phase, at least and at most."""

    faults: dict[str, float]
    strikes: tuple[int, int] = (3, 10)
    nodes: tuple[int, ...] = (2, 2, 2, 3)
    groups: tuple[int, ...] = (1, 2)
    links: tuple[int, ...] = (1, 2)
    arbiter: str = "disk"  # disk | gone: a disk that fails for everybody until the end | fence | none
    disk: bool = False  # every group writes to a disk, and every machine can be fenced
    devices: bool = True  # with `disk`: they can; False: a hardware watchdog is all there is
    watchdog: float = 0.0  # the share of machines that have an armed one
    rough: float = 0.5  # the share of runs with a network that loses, doubles and delays all the time
    early: float = 0.2  # the share of runs whose faults begin before the cluster has found itself
    keep: bool = False  # nothing may interrupt any group
    taken: bool = False  # one owner fails for good, in whatever way, and its groups must be taken soon
    pathless: bool = False  # with `taken`: meanwhile another node can't reach the lease disk
    duel: bool = False  # nobody hears anybody for many turns of fencing
    rolled: bool = False  # one node is restarted in order, and the owner right after it
    moved: bool = False  # a move is ordered, and the owner's engine ends before it is done
    drift: bool = False  # the first machine's clock is as slow as may be, the others' as fast
    mixed: float = 0.0  # the share of runs whose nodes have different lease times
    intervals: tuple[int, int] = (18, 48)  # length of the safety phase, in heartbeats
    passive: float = 0.0  # the share of runs whose groups have a passive service each
    hooks: float = 0.0  # the share of runs with programs before and after each start and stop


def _aimed(faults: dict[str, float], strikes: tuple[int, int] = (1, 2), **more: Any) -> Profile:
    """A cluster that is sound but for what is aimed at it, and time enough for that to work."""
    return Profile(faults, strikes, rough=0.0, early=0.0, intervals=(25, 65), **more)


def _kept(faults: dict[str, float], strikes: tuple[int, int] = (1, 3), **more: Any) -> Profile:
    return Profile(faults, strikes, rough=0.0, early=0.0, intervals=(25, 65), keep=True, **more)


_CHAOS: dict[str, float] = {
    "cut_all": 3, "cut_link": 1, "cut_one_way": 3, "cut_node": 1, "burst": 1, "replays": 1,
    "pause_engine": 2, "pause_guardian": 2, "pause_lease_io": 2, "pause_store": 0.5, "pause_stack": 2, "trap": 4,
    "kill_engine": 2, "kill_lease_io": 1, "kill_guardian": 1, "kill_stack": 2, "power_cycle": 3, "power_all": 0.7,
    "disk_bad": 3, "disk_bad_all": 1, "slot_unreadable": 0.5, "store_bad": 0.7,
    "program_dies": 1, "program_bad": 1, "operator": 3, "leave": 1,
    "isolate_owner": 4, "restart_promiser": 3, "leave_cut": 2, "replay_cut": 2, "duel": 2, "move_under_fire": 2,
}  # fmt: skip

PROFILES: dict[str, Profile] = {
    "chaos": Profile(_CHAOS),
    "mixed": Profile(_CHAOS | {"disk_bad": 8, "power_cycle": 6}, mixed=1.0),
    "promises": Profile(_CHAOS, arbiter="gone"),
    "arbiter": Profile(
        {"isolate_owner": 6, "duel": 4, "disk_bad": 4, "cut_all": 3, "trap": 4, "power_cycle": 2, "operator": 1},
        rough=0.2,
    ),
    "restart": Profile(
        {"restart_promiser": 6, "leave_cut": 3, "kill_engine": 2, "power_cycle": 3, "cut_all": 2},
        rough=0.2, intervals=(25, 65),
    ),
    "freeze": Profile(
        {"trap": 5, "pause_stack": 3, "pause_engine": 3, "pause_guardian": 3, "isolate_owner": 4, "cut_all": 2},
        rough=0.2, intervals=(25, 65),
    ),
    "giver": _aimed({"restart_giver": 1}, (1, 1), nodes=(2,), groups=(1,)),
    "replay": Profile(
        {"replay_cut": 6, "replays": 2, "cut_one_way": 3, "cut_all": 2, "pause_engine": 1, "power_cycle": 1},
        links=(2,), rough=0.3, intervals=(25, 65),
    ),
    "moves": Profile(
        {"move_under_fire": 6, "operator": 6, "cut_all": 1, "leave": 2, "pause_engine": 1, "kill_engine": 1}, rough=0.3,
    ),
    "services": Profile({"program_dies": 4, "program_bad": 6, "operator": 2, "power_cycle": 1}, rough=0.2),
    "split": Profile(
        {"program_dies": 2, "program_bad": 2, "operator": 3, "power_cycle": 3, "kill_engine": 2, "leave": 1},
        arbiter="none", rough=0.0, early=0.0,
    ),
    "disks": Profile(_CHAOS | {"device_bad": 4}, disk=True, watchdog=0.4),
    "dogs": Profile(
        {"kill_stack": 4, "pause_stack": 3, "pause_guardian": 2, "isolate_owner": 2, "power_cycle": 2, "cut_all": 2, "trap": 2},
        disk=True, devices=False, watchdog=0.6, intervals=(30, 70),
    ),
    "fence": Profile(_CHAOS | {"device_bad": 4}, arbiter="fence", watchdog=0.2),
    "fence disks": Profile(_CHAOS | {"device_bad": 4}, arbiter="fence", disk=True),
    "shoot": Profile(
        {"cut_all": 6, "cut_one_way": 4, "cut_node": 2, "pause_stack": 2, "kill_stack": 2, "power_cycle": 1, "device_bad": 2},
        (1, 3), arbiter="fence", disk=True, rough=0.2, intervals=(40, 90),
    ),
    # Aimed at one thing each; what they aim at is said at the faults' own functions.
    "late": _aimed({"late_words": 1}),
    "late record": _aimed({"late_record": 1}, (1, 1), nodes=(2,), groups=(1,)),
    "drift": _aimed({"freeze_owner": 1}, drift=True),
    "lapse": _aimed({"lapsed_owner": 1, "freeze_owner": 1}),
    "frozen start": _aimed({"start_while_frozen": 1}),
    "claimants": _aimed({"claimants": 1}, nodes=(3,)),
    "unreadable": _aimed({"unreadable_cut": 1}),
    "ghost": _aimed({"ghost_idle": 1}, (1, 3), nodes=(2,)),
    "handover": _aimed({"move_stopped": 1}, (2, 4)),
    "durable": _aimed({"inhibit_then_crash": 1, "store_bad": 0.5}, (1, 4)),
    "taken": _aimed({}, (0, 0), taken=True),
    # Long enough that a node which was fenced starts anew, hears nobody, and comes to its turn.
    "long fence": Profile({"cut_long": 1}, (1, 1), rough=0.0, early=0.0, intervals=(110, 130), keep=True, nodes=(2,), groups=(1,),
                          arbiter="fence", disk=True),
    "fence fails": _aimed({"fence_fails": 1}, (1, 2), disk=True),
    "mixed alone": Profile({"freeze_alone": 1}, (1, 1), rough=0.0, early=0.0, intervals=(60, 90), mixed=1.0),
    "reborn": _aimed({"reborn_cut": 1, "move_under_fire": 0.5}, (1, 3), arbiter="fence"),
    "long duel": _aimed({}, (0, 0), duel=True, nodes=(3,), arbiter="fence"),
    "taken pathless": _aimed({}, (0, 0), taken=True, pathless=True, nodes=(3,)),
    "rolled": _aimed({}, (0, 0), rolled=True, nodes=(2, 3, 3)),
    "moved": _aimed({}, (0, 0), moved=True, groups=(1,), hooks=1.0),
    # No slot tells a taker there which number is free.
    "moved none": _aimed({}, (0, 0), moved=True, groups=(1,), hooks=1.0, arbiter="none"),
    "moved fence": _aimed({}, (0, 0), moved=True, groups=(1,), hooks=1.0, arbiter="fence", disk=True),
    # One fault class that must interrupt nothing.
    "kept arbiter": _kept({"disk_bad_all": 1, "slot_unreadable": 0.3, "pause_lease_io": 1, "kill_lease_io": 1}, (3, 10)),
    "kept link": _kept({"cut_link": 1}, (2, 6), links=(2,)),
    "kept loss": _kept({"lossy_link": 1}, links=(2,)),
    "kept store": _kept({"store_bad": 1, "pause_store": 1}, (3, 10)),
    "kept engine": _kept({"kill_one_engine": 1}, (2, 5)),
    "kept cut": _kept({"cut_all": 1, "cut_one_way": 1}, nodes=(2,)),
    "kept calm": _kept({"replays": 1}),
    "kept ghost": _kept({"ghost_claim": 1}, (1, 1), nodes=(2,), groups=(1,)),
    "kept standby": _kept({"standby_lost": 1}, nodes=(2,), groups=(1,)),
    "kept disks": _kept({"cut_all": 1, "cut_one_way": 1}, nodes=(2,), disk=True),
    "kept fence": _kept({"cut_all": 1, "cut_one_way": 1}, (1, 1), nodes=(2,), groups=(1,), arbiter="fence", disk=True),
}  # fmt: skip

# How the seeds are spread over the profiles.
MIX: tuple[tuple[str, float], ...] = (
    ("chaos", 40), ("mixed", 3), ("promises", 4), ("arbiter", 10), ("restart", 8), ("freeze", 8), ("replay", 5), ("moves", 7),
    ("services", 4), ("taken", 3), ("late", 2), ("late record", 2), ("drift", 2),
    ("lapse", 1), ("frozen start", 1), ("claimants", 1), ("unreadable", 1), ("ghost", 2), ("handover", 2), ("durable", 4), ("giver", 2), ("kept ghost", 1), ("split", 2),
    ("kept arbiter", 1.5), ("kept link", 1), ("kept loss", 1), ("kept store", 1),
    ("kept engine", 1.5), ("kept cut", 1.5), ("kept calm", 0.5), ("kept standby", 1), ("kept disks", 1), ("kept fence", 1),
    ("disks", 26), ("dogs", 10), ("fence", 8), ("fence disks", 10), ("shoot", 10),
)  # fmt: skip

# What malice.py adds.
_MALICE: dict[str, float] = {
    "crash_at_effect": 12, "crash_in_move": 4, "pause_machine": 5, "pause_both": 2, "disk_torn": 3, "outside_bad": 2,
}  # fmt: skip
PROFILES |= {
    "malice": Profile(_CHAOS | _MALICE, passive=0.3),
    "crash": Profile(
        {"crash_at_effect": 8, "crash_in_move": 4, "isolate_owner": 1, "cut_all": 1, "leave": 1, "restart_promiser": 1},
        (3, 8), rough=0.1, intervals=(25, 65),
    ),
    "paused": _aimed({"pause_machine": 4, "pause_both": 1, "cut_all": 1, "disk_bad_all": 1}, (1, 4)),
    "torn": _aimed({"disk_torn": 1}, (1, 3)),
    "outside": Profile(
        {"outside_bad": 6, "program_bad": 1, "pause_engine": 1, "kill_engine": 1, "operator": 1, "power_cycle": 1},
        rough=0.1, passive=1.0, intervals=(25, 65),
    ),
    "hooks": Profile(
        {"hook_bad": 8, "hook_cancelled": 4, "operator": 4, "move_under_fire": 2, "kill_engine": 2, "program_dies": 1, "power_cycle": 2, "leave": 2,
         "isolate_owner": 1, "crash_at_effect": 1},
        rough=0.1, hooks=1.0, intervals=(30, 70),
    ),
    "lingers": _aimed({"disk_lingers": 1}, (1, 2)),
    "state lost": _aimed({"state_lost": 1, "state_older": 1}, (1, 1)),
    "kept torn": _kept({"disk_torn_reads": 1}, (1, 3)),
    "kept exchanged": _kept({"disk_exchanged": 1}, (1, 2)),
    "exchanged": _aimed({"disk_exchanged_cold": 1, "disk_exchanged_cut": 1}, (1, 1), nodes=(2,)),
    "state lost cut": _aimed({"state_lost_cut": 1, "leave_cut": 1}, (1, 4)),
    "state lost twice": _aimed({"state_lost_twice": 1}, (1, 2)),
}  # fmt: skip
MIX += (
    ("malice", 12), ("crash", 11), ("paused", 5), ("torn", 14), ("outside", 3), ("lingers", 4),
    ("state lost", 5), ("kept torn", 1), ("kept exchanged", 1), ("exchanged", 1), ("state lost cut", 2), ("state lost twice", 1),
    ("rolled", 1), ("moved", 1), ("moved none", 0.5), ("moved fence", 0.5), ("long fence", 1), ("long duel", 1), ("reborn", 2), ("fence fails", 2), ("mixed alone", 1), ("taken pathless", 1), ("hooks", 4),
)  # fmt: skip

# What changes.py adds.
_CHANGES: dict[str, float] = {"change_under_fire": 6, "change_crashes": 5, "change_stopped": 2, "reload": 2, "apply": 2}
PROFILES |= {
    "changes": Profile(_CHANGES | {"cut_all": 1, "power_cycle": 1, "operator": 1}, (2, 5), rough=0.2, intervals=(30, 80)),
    "changes disks": Profile(_CHANGES | {"cut_all": 1, "power_cycle": 1}, (2, 4), disk=True, rough=0.2, intervals=(30, 80)),
    "shrink": _aimed({"shrink_cut": 1}, (1, 1), nodes=(2,), groups=(1,)),
    "slow changes": _aimed({"apply_slow": 1}, (1, 2)),
    "kept changes": _kept({"apply": 2, "reload": 1}, (1, 1)),
    "kept refused": _kept({"apply_refused": 1}, (1, 1)),
}  # fmt: skip
MIX += (
    ("changes", 3),
    ("changes disks", 1),
    ("slow changes", 1),
    ("shrink", 1),
    ("kept changes", 1),
    ("kept refused", 0.5),
)

# Groups that get other nodes.
PROFILES |= {
    "members": Profile(
        {"members_under_fire": 5, "members_cut": 6, "members": 2, "change_crashes": 1, "cut_all": 1, "power_cycle": 1}, (2, 5),
        nodes=(3,), rough=0.2, intervals=(40, 100),
    ),
    "members cut": _aimed({"members_cut": 1}, (1, 3), nodes=(3,), groups=(1,)),
    "kept members": _kept({"members": 1}, (1, 1), nodes=(3,)),
    "members by hand": _aimed({"members_by_hand": 2, "members_cut": 1}, (1, 3), nodes=(3,)),
    "members anew": _aimed({"members_anew": 1}, (1, 2), nodes=(3,)),
    "nodes": Profile(
        {"nodes_change": 6, "members_cut": 2, "members": 1, "cut_node": 1, "power_cycle": 1}, (3, 7), nodes=(3,), rough=0.1,
        intervals=(60, 120),
    ),
    "moved disk": _aimed({"disk_moved_cut": 2, "disk_moved": 1}, (1, 3), nodes=(2, 3)),
    "kept moved disk": _kept({"disk_moved": 1}, (1, 1)),
    "members forgotten": _aimed({"members_forgotten": 1}, (1, 1), nodes=(3,)),
    "members unknown": Profile({"members_unknown": 1}, (1, 1), nodes=(3,), groups=(1,), rough=0.0, early=0.0, intervals=(130, 150)),
    "members held": _aimed({"members_held": 1}, (1, 1), nodes=(3,), groups=(1,)),
}  # fmt: skip
MIX += (
    ("nodes", 2),
    ("moved disk", 1),
    ("kept moved disk", 0.5),
    ("members", 3),
    ("members cut", 2),
    ("members unknown", 1),
    ("kept members", 1),
    ("members by hand", 2),
    ("members anew", 1),
    ("members held", 0.5),
    ("members forgotten", 0.5),
)
