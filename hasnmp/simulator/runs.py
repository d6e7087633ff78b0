"""One seed, one run: build a cluster, let it suffer, heal it, and ask whether every group runs once again."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field, replace

from hasnmp.core.engine import Engine
from hasnmp.core.guard import Guard
from hasnmp.core.hooks import GRACE_MS
from hasnmp.core.lease import Phase
from hasnmp.model import AdminState, GroupRow, GroupState, NodeRow, ServiceRow, SystemRow, Verb
from hasnmp.settings import (
    Arbiter,
    Check,
    Config,
    FenceLevel,
    Fencing,
    Group,
    Heartbeat,
    NodeSettings,
    OnFailure,
    Service,
)
from hasnmp.simulator.changes import Changes
from hasnmp.simulator.faults import Faults
from hasnmp.simulator.hooked import with_hooks
from hasnmp.simulator.invariants import Truth
from hasnmp.simulator.machine import Machine
from hasnmp.simulator.outside import attend, with_passive
from hasnmp.simulator.power import Power
from hasnmp.simulator.profiles import MIX, PROFILES, Profile
from hasnmp.simulator.reloader import digest_of
from hasnmp.simulator.storage import Disk
from hasnmp.simulator.world import MS, Broken, Network, NewCore, NewGuard, Say, World, world_choice

LINKS = ("lan", "cross")


@dataclass(slots=True)
class Result:
    """What came of one run. broken: the invariant's name, "" for none. signature: equal for equal runs."""

    seed: int
    profile: str
    broken: str = ""
    text: str = ""
    at_ns: int = 0
    steps: int = 0
    signature: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def make_config(rng: random.Random, profile: Profile) -> Config:
    """Short times, so that a run of some seconds sees many leases; in the proportions that check-config demands."""
    interval = 100
    io_timeout = rng.choice((60, 100, 150))
    kill = rng.choice((30, 50))
    dead = rng.choice((400, 500, 700))
    assert interval + io_timeout + kill < dead
    lease = rng.choice((700, 1000, 1500))
    assert kill + lease // 3 + io_timeout < lease
    names = ("ada", "bob", "cyd")[: rng.choice(profile.nodes)]
    nodes = tuple(
        NodeSettings(n, {link: f"127.0.{i}.{k}" for i, link in enumerate(LINKS)}, _levels(rng, profile))
        for k, n in enumerate(names, 1)
    )
    groups = []
    for i in range(rng.choice(profile.groups)):
        group = f"g{i + 1}"
        order = names[i % len(names) :] + names[: i % len(names)]
        failure = OnFailure(restart=rng.choice((0, 1, 3)), within_s=900, then="failover")
        check = Check(type="process", every_ms=1000, timeout_ms=300)
        services = [
            Service(f"{group}-address", group, "address", {"ip": f"192.0.2.{100 + i}/24", "interface": "eth0"}, True,
                    Check(type="address", every_ms=1000, timeout_ms=300), 1000, 500, failure),
            Service(f"{group}-program", group, "exec", {"command": ["/bin/program"]}, True, check, 1000, 500, failure),
        ]  # fmt: skip
        if rng.random() < 0.5:
            services.reverse()
        groups.append(
            Group(
                group, order, tuple(services), failover_limit=rng.choice((3, 1000)), disk=profile.disk,
                on_stop_failure="fence" if profile.disk and rng.random() < 0.5 else "block",
            )
        )  # fmt: skip
    config = Config(
        "sim",
        nodes,
        Heartbeat(5405, interval, 250, dead, 1000, 10000, kill, (b"k" * 32,)),
        Arbiter("none", "", lease, io_timeout, True)
        if profile.arbiter == "none"
        else Arbiter("fence", "", lease, io_timeout)
        if profile.arbiter == "fence"
        else Arbiter("disk", "/dev/lease", lease, io_timeout),
        tuple(groups),
        recovery_automatic=rng.random() < 0.4,
        fencing=Fencing(test_every_s=5, test_alarm_s=20),
        events_keep=50,
    )
    return replace(config, digest=digest_of(config))


def _levels(rng: random.Random, profile: Profile) -> tuple[FenceLevel, ...]:
    if not profile.devices or (not profile.disk and profile.arbiter != "fence"):
        return ()
    return tuple(FenceLevel("fence_sim", "power", rng.choice((300, 600, 1000))) for _ in range(rng.choice((1, 1, 2))))


def pick_profile(rng: random.Random) -> str:
    return rng.choices([name for name, _ in MIX], [weight for _, weight in MIX])[0]


def run(
    seed: int, profile: str = "", say: Say | None = None, new_core: NewCore = Engine, new_guard: NewGuard = Guard
) -> Result:
    """Run that seed, with that profile of faults or the one that the seed picks."""
    world = World(seed, say)
    rng = world.rng
    picked = pick_profile(rng)
    name = profile or picked
    result = Result(seed, name)
    gc.disable()  # a run leaves little behind, and looking for it costs a tenth of the time
    try:
        _run(world, PROFILES[name], new_core, new_guard)
    except Broken as e:
        result.broken, result.text = e.invariant, e.text
        world.tell("BROKEN", str(e))
    finally:
        gc.enable()
    result.at_ns, result.steps, result.counts = world.now, world.steps, world.counts
    result.signature = rng.getrandbits(64)
    return result


def _run(world: World, profile: Profile, new_core: NewCore, new_guard: NewGuard) -> None:
    rng = world.rng
    config = make_config(rng, profile)
    if profile.passive and rng.random() < profile.passive:
        config = with_passive(config)
    if profile.hooks and rng.random() < profile.hooks:
        config = with_hooks(config)
    names, groups = tuple(n.name for n in config.nodes), tuple(g.name for g in config.groups)
    interval = config.heartbeat.interval_ms * MS
    world.tell("WORLD", f"{config.heartbeat}, {config.arbiter}, {names}, {groups}")
    links = tuple(config.nodes[0].links)
    world.network, world.disk, world.power = Network(world, links), Disk(world, groups, names), Power(world)
    world.truth = truth = Truth(world, groups, profile.arbiter == "none")
    world.disk.gone = profile.arbiter == "gone"
    world.remember = any(name.startswith("replay") for name in profile.faults)
    common = config
    mixed = rng.random() < profile.mixed
    for n in names:
        own = config
        if mixed:
            lease, dead = rng.choice((600, 1000, 2000)), rng.choice((400, 700))
            own = replace(
                config,
                heartbeat=replace(config.heartbeat, dead_after_ms=dead),
                arbiter=replace(config.arbiter, lease_ms=lease),
                digest=f"{lease:08d}{dead:08d}",
            )
        machine = world.machines[n] = Machine(world, own, n, new_core, new_guard)
        first = n == names[0]
        machine.rate = (
            1_000_000 + (-10_000 if first else 10_000)
            if profile.drift
            else 1_000_000 + rng.choice((-10_000, 10_000, rng.randint(-10_000, 10_000)))
        )
        if profile.disk and rng.random() < profile.watchdog:
            machine.watchdog_ms = rng.choice((1000, 2000))
        world.post_at(world.between(1, 3 * interval), None, machine.power_on)
    if rng.random() < profile.rough:
        world.network.loss = {link: rng.choice((0.0, 0.05, 0.2)) for link in links}
        world.network.double, world.network.slow = rng.choice((0.0, 0.1)), rng.choice((0.0, 0.05))
        world.network.slow_ns = rng.choice((30, 200, 600)) * MS
    attend(world, config)
    faults = Changes(world, profile, inhibits=rng.random() < 0.3)
    world.documents[""] = config
    early = rng.random() < profile.early
    start = 3 * interval if early else (config.heartbeat.startup_wait_ms if mixed else 1000) * MS + 6 * interval
    end = start + rng.randint(*profile.intervals) * interval
    if profile.keep or profile.taken or profile.rolled or profile.moved or profile.duel:
        while truth.unsettled() and world.now < 50 * interval:
            world.run_until(world.now + interval)
        start, end = world.now, world.now + end - start
    if profile.keep:
        truth.keep_all()
    if profile.taken:
        _must_be_taken(world, config, faults, profile.pathless)
        end = world.now
    if profile.rolled:
        _must_roll(world, config)
        end = world.now
    if profile.moved:
        _must_move(world, config, faults)
        end = world.now
    if profile.duel:
        faults.long_duel()
        end = world.now
    faults.schedule(start, end - 5 * interval)
    world.run_until(end)
    if len(world.documents) > 1 and profile.keep:
        world.run_until(end + 4000 * MS)  # an apply takes its time
        faults.agreed()
    if profile.keep:
        truth.kept()
    faults.heal()
    if len(world.documents) > 1:
        faults.agree(lambda machine: _administer(world, machine, permit=False))  # what was inhibited is looked at later
        config = faults.meant
    elif mixed:  # whoever repairs a cluster gives it one configuration
        for machine in world.machines.values():
            machine.power_off()
            machine.file = common
            machine.power_on()
    _settle(world, config, profile)


def _must_be_taken(world: World, config: Config, faults: Changes, pathless: bool) -> None:
    """An owner fails for good: every group of it runs elsewhere after the lease has ended and another was claimed.

    pathless: another node, which may come first, can't reach the lease disk: it has to find that out, and its promises to lapse.
    """
    owner = faults.owner()
    groups = [g for g in world.truth.groups if world.truth.runs(owner, g)]
    heartbeat, arbiter = config.heartbeat, config.arbiter
    bound = 2 * heartbeat.dead_after_ms + arbiter.lease_ms + 4 * arbiter.io_timeout_ms + 1000
    if pathless:
        mode = world_choice(world.rng, ("failing", "frozen"))
        world.disk.mode[faults.other(owner).name] = mode
        world.run_until(world.now + world.between(0, 3000 * MS))
        bound += 2 * heartbeat.dead_after_ms + 4 * arbiter.io_timeout_ms
    faults.fail_for_good(owner)
    world.run_until(world.now + bound * MS)
    for group in groups:
        if not any(world.truth.runs(m, group) for m in world.machines.values() if m is not owner):
            raise Broken("is taken", f"{bound} ms after {owner.name} failed, {group} does not run elsewhere")


def _must_roll(world: World, config: Config) -> None:
    """An operator restarts two nodes, the second as soon as the first has come up, and no other is there: so the first listens
    for long. No group is left to nobody meanwhile."""
    first, second, *others = world.rng.sample(list(world.machines.values()), len(world.machines))
    for machine in others:
        machine.engine.shut_down()
        world.run_until(world.now + 2 * config.heartbeat.dead_after_ms * MS)
        machine.power_off()
    first.engine.shut_down()
    while not first.stopped:
        world.run_until(world.now + 10 * MS)
    world.run_until(world.now + world.between(0, 3 * config.heartbeat.dead_after_ms * MS))
    first.start_stack()
    world.run_until(world.now + world.between(MS, 200 * MS))
    second.engine.shut_down()
    gone, bound_ms = dict.fromkeys(world.truth.groups, 0), 500 + 4 * config.arbiter.io_timeout_ms
    while not second.stopped or world.truth.unsettled():
        world.run_until(world.now + 10 * MS)
        for group in gone:
            gone[group] += 0 if world.truth.owner(group) else 10
            if gone[group] > bound_ms:
                raise Broken("rolls", f"{group} ran nowhere for more than {bound_ms} ms while {second.name} stopped")


def _must_move(world: World, config: Config, faults: Changes) -> None:
    """A move is ordered, and the owner's engine ends before it is done. The next one goes on with it, and asks the hooks that the
    first could not wait for."""
    world.run_until(world.now + 1000 * MS)  # whoever has just started is not able yet
    group, owner = world.truth.groups[0], faults.owner()
    target = faults.other(owner)
    refused = world.rng.random() < 0.4
    ordered = world.now
    owner.bad_hooks["before_stop"] = "hang" if refused else "slow"
    faults.order(world_choice(world.rng, (owner, target)), Verb.FAILOVER, group, target.name)
    while not world.counts.get("hooks before_stop"):
        world.run_until(world.now + 10 * MS)
        if world.now > ordered + 2000 * MS:
            raise Broken("goes on", f"{group} was ordered to {target.name}, and no before_stop was run")
    world.truth.keep[group] = owner.name if refused else ""  # also: no engine is started so late that its lease is lost
    alone = not refused and world.rng.random() < 0.4
    if alone:  # whoever is to have it fails too, in the moment in which something of it is stopped
        while world.truth.runs(owner, group) and world.now < ordered + 4000 * MS:
            world.run_until(world.now + MS)
        world.run_until(world.now + world.between(5 * MS, 30 * MS))
    else:  # the order is durable by now; a hook that fails has not ended yet, one that takes its time may have
        world.run_until(world.now + world.between(20 * MS, (250 if refused else 2500) * MS))
    # Nobody can have been told of what is given up just now: of three, it is then for whoever of the other two comes first.
    open_to, core = [target], owner.engine.core
    if isinstance(core, Engine) and core.state.leases[group].phase is not Phase.HELD:
        # Where no record tells it, the next engine does not know for whom it was given up, and can't promise it for a while.
        back = config.arbiter.type != "disk"
        open_to, alone = [machine for machine in world.machines.values() if machine is not owner or back], False
    owner.kill_engine()
    if alone:
        _must_start_again(world, config, target)
        return
    slowest = (
        sum(h.timeout_ms + GRACE_MS for h in config.hooks)
        + 4 * config.heartbeat.dead_after_ms
        + config.heartbeat.startup_wait_ms
        + 2000
    )
    world.run_until(world.now + slowest * MS)
    world.truth.keep.clear()
    if not any(world.truth.runs(machine, group) for machine in ([owner] if refused else open_to)):
        raise Broken(
            "goes on", f"{group} was ordered to {target.name}, and is not there {slowest} ms after its engine's end"
        )


def _must_start_again(world: World, config: Config, target: Machine) -> None:
    """Whoever was to have the group fails with the engine that began to move it: it is not stopped for longer than it takes to
    find that out, and to start it again."""
    target.power_off()
    group, gone = world.truth.groups[0], 0
    bound_ms = config.heartbeat.dead_after_ms + 600
    for _ in range(600):
        world.run_until(world.now + 10 * MS)
        gone = 0 if any(world.truth.runs(machine, group) for machine in world.machines.values()) else gone + 10
        if gone > bound_ms:
            raise Broken(
                "starts again", f"{group} was ordered to {target.name}, which failed, and runs nowhere for {gone} ms"
            )
    world.truth.keep.clear()


def _settle(world: World, config: Config, profile: Profile) -> None:
    """Wait for every group to run once; give the orders that an administrator would give; then see that it lasts."""
    heartbeat, interval = config.heartbeat, config.heartbeat.interval_ms * MS
    longest = (
        3 * (heartbeat.startup_wait_ms + heartbeat.dead_after_ms) + 4 * max(2000, config.arbiter.lease_ms) + 10_000
    )
    deadline = world.now + longest * MS
    checked = False
    quiet = 0
    while True:
        world.run_until(world.now + 3 * interval)
        amiss = world.truth.unsettled()
        if not amiss:
            quiet += 1
            if quiet == 2 and not checked:
                world.truth.check_inhibited()
                checked = True
            if quiet >= 3:
                return
            continue
        quiet = 0
        if world.now > deadline:
            raise Broken("lives", f"{longest} ms after everything healed, {amiss}")
        if world.now > deadline - (longest - 2000) * MS:
            if not checked:
                world.truth.check_inhibited()
                checked = True
            for machine in world.machines.values():
                if machine.stopped:
                    machine.start_stack()
                if world.now % (9 * interval) < 3 * interval:
                    _administer(world, machine)


def _administer(world: World, machine: Machine, permit: bool = True) -> None:
    """Undo what operators and failed services left behind: that is no matter of liveness. permit: inhibits, too."""
    view = machine.engine.view()
    if view is None:
        return
    faults = Faults(world, PROFILES["chaos"])
    me = view.tables["nodes"].get(machine.name)
    if isinstance(me, NodeRow) and me.recovering:
        faults.order(machine, Verb.RECOVER, machine.name)
    if isinstance(me, NodeRow) and me.standby:
        faults.order(machine, Verb.ONLINE, machine.name)
    system = view.tables["system"].get("")
    if permit and isinstance(system, SystemRow) and system.inhibited:
        faults.order(machine, Verb.PERMIT, "")
    for group in view.tables["groups"].values():
        assert isinstance(group, GroupRow)
        if group.frozen:
            faults.order(machine, Verb.THAW, group.name)
        if permit and group.inhibited:
            faults.order(machine, Verb.PERMIT, group.name)
        if group.excluded or group.state in (GroupState.FAILED, GroupState.BLOCKED):
            for service in machine.config.group(group.name).services:
                faults.order(machine, Verb.SERVICE_CLEAR, service.name)
    for row in view.tables["services"].values():
        assert isinstance(row, ServiceRow)
        if row.admin is AdminState.LOCKED:
            faults.order(machine, Verb.SERVICE_START, row.name)
