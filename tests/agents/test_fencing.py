"""A fence level carried out by real programs: what counts as fenced, what does not, and what is told of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from hasnmp.agents import fencing
from hasnmp.agents.fencing import Fencing
from hasnmp.core.events import Fence, FenceAction, Fenced, Outcome
from hasnmp.runtime import messages
from hasnmp.settings import Arbiter, Config, FenceLevel, Heartbeat, NodeSettings
from tests.agents.bench import Bench
from tests.runtime.netns import Cable
from tests.ticks import Ticks

FAKE = str(Path(__file__).parent / "fake_fence.py")
SECRET = "geheim/4711 &x"


class Switch(Bench):
    """A bench with one node, `victim`, whose fence levels are given; its outlet is the file `state`."""

    def __init__(self, folder: Path, *levels: FenceLevel) -> None:
        super().__init__()
        self.state, self.calls_file = folder / "state", folder / "calls"
        self.state.write_text("on")
        node = NodeSettings("victim", {"lan": "127.0.0.1"}, levels)
        self.lines: list[dict[str, Any]] = []
        config = Config("c", (node,), Heartbeat(), Arbiter("none"), ())
        self.fencing = Fencing(config, "here", self.host, structlog.wrap_logger(self, processors=[]))
        self._number = 0

    def __getattr__(self, name: str) -> Callable[..., None]:  # a logger that keeps what it is told
        if name not in ("info", "warning", "error", "exception"):
            raise AttributeError(name)
        return lambda event="", **more: self.lines.append({"event": event, **more})

    def calls(self) -> list[str]:
        """The actions that the agent was asked for."""
        return (
            [line.split()[0] for line in self.calls_file.read_text().splitlines()] if self.calls_file.exists() else []
        )

    def begin(self, action: FenceAction = FenceAction.FENCE, level: int = 0, timeout_ms: int = 3000) -> int:
        self._number += 1
        self.fencing.fence(Fence(self._number, "victim", level, action, timeout_ms))
        return self._number

    def answers(self, attempt: int) -> list[Fenced]:
        return [e for e in self.events if isinstance(e, Fenced) and e.attempt == attempt]

    async def answer(self, attempt: int, seconds: float = 20, count: int = 1) -> Fenced:
        await self.until(lambda: len(self.answers(attempt)) >= count, seconds)
        return self.answers(attempt)[-1]

    async def fence(self, level: int = 0, timeout_ms: int = 3000) -> Fenced:
        return await self.answer(self.begin(FenceAction.FENCE, level, timeout_ms), timeout_ms / 1000 + 10)

    async def test(self, level: int = 0, timeout_ms: int = 3000) -> Fenced:
        return await self.answer(self.begin(FenceAction.TEST, level, timeout_ms), timeout_ms / 1000 + 10)

    async def close(self) -> None:
        self.fencing.close()
        await super().close()


def level(folder: Path, agent: str = FAKE, action: str = "off", cuts: str = "power", **options: str) -> FenceLevel:
    given = {"state": str(folder / "state"), "log": str(folder / "calls"), **options}
    return FenceLevel(agent, cuts, action=action, options=given, secrets={"password": SECRET})


def play(test: Callable[[Switch], Awaitable[None]], folder: Path, *levels: FenceLevel) -> Switch:
    async def whole() -> Switch:
        switch = Switch(folder, *levels)
        try:
            await test(switch)
        finally:
            await switch.close()
        return switch

    return asyncio.run(whole())


def once(folder: Path, timeout_ms: int = 3000, **options: str) -> tuple[Fenced, Switch]:
    """Fence once with these options of the fake agent."""
    found: list[Fenced] = []

    async def test(switch: Switch) -> None:
        found.append(await switch.fence(timeout_ms=timeout_ms))

    switch = play(test, folder, level(folder, **options))
    return found[0], switch


# --------------------------------------------------------------------------------------------------- what is a fence


def test_off_is_verified_by_status(tmp_path: Path) -> None:
    began_s = time.monotonic()
    fenced, switch = once(tmp_path)
    assert 0 < fenced.took_us < (time.monotonic() - began_s) * 1e6
    assert fenced.ok and fenced.text == "off, verified by its status"
    assert switch.calls() == ["off", "status"] and switch.state.read_text() == "off"
    assert (fenced.node, fenced.level, fenced.action) == ("victim", 0, FenceAction.FENCE)


def test_every_option_and_secret_goes_to_standard_input(tmp_path: Path) -> None:
    once(tmp_path, plug="7", verbose="1")
    assert (tmp_path / "calls").read_text().splitlines()[0] == "off log password plug state verbose"


def test_off_that_takes_effect_later_is_waited_for(tmp_path: Path) -> None:
    fenced, switch = once(tmp_path, 30_000, off_does="late:3")
    assert fenced.ok and fenced.text == "off, verified by its status"
    assert switch.calls() == ["off", "status", "status", "status"] and fenced.took_us > 500_000


def test_off_without_effect_is_no_fence(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        with Ticks() as ticks:
            fenced = await switch.fence(timeout_ms=3000)
            assert ticks.at_most(3300)
        assert not fenced.ok and "not done within 3000 ms" in fenced.text and "its status was: on" in fenced.text
        assert switch.calls().count("status") >= 2
        assert fenced.took_us > 2_800_000

    play(test, tmp_path, level(tmp_path, off_does="none"))


@pytest.mark.parametrize("action", ["off", "status"])
def test_what_does_not_end_in_time_has_not_happened(tmp_path: Path, action: str) -> None:
    async def test(switch: Switch) -> None:
        with Ticks() as ticks:
            fenced = await switch.fence(timeout_ms=1500)
            assert ticks.at_most(1600)
        assert not fenced.ok and "not done within 1500 ms" in fenced.text
        assert action in fenced.text and fenced.took_us > 1_400_000
        assert any(isinstance(m, messages.End) for m in switch.sent) or any(
            isinstance(m, messages.Run) and 0 < m.timeout_ms <= 1500 for m in switch.sent
        )
        await switch.until(lambda: not switch._processes)  # the agent was ended
        (tmp_path / "go").touch()
        await asyncio.sleep(0.2)
        assert len(switch.answers(1)) == 1, "an end that comes late is told to nobody"

    switch = play(test, tmp_path, level(tmp_path, **{f"{action}_until": str(tmp_path / "go")}))
    if action == "off":
        assert switch.state.read_text() == "on", "an agent that was ended can't switch off any more"


def test_an_engine_that_was_stopped_meanwhile_does_not_believe_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock that counts goes on while the process stands still."""
    real, ahead = fencing.boottime_ns, [0]
    monkeypatch.setattr(fencing, "boottime_ns", lambda: real() + ahead[0])

    async def test(switch: Switch) -> None:
        attempt = switch.begin(timeout_ms=3000)
        await switch.until(lambda: "status" in switch.calls())
        ahead[0] = 10 * 10**9
        (tmp_path / "go").touch()
        fenced = await switch.answer(attempt)
        assert not fenced.ok and "not done within 3000 ms" in fenced.text and fenced.took_us > 3_000_000

    play(test, tmp_path, level(tmp_path, status_until=str(tmp_path / "go")))


def test_off_that_fails_is_no_fence(tmp_path: Path) -> None:
    fenced, switch = once(tmp_path, off_exit="1", off_print="Connection refused")
    assert not fenced.ok and switch.calls() == ["off", "metadata"]
    assert "off: exit status 1" in fenced.text and "Connection refused" in fenced.text


@pytest.mark.parametrize("status", ["1", "7", "255"])
def test_a_status_that_says_nothing_is_no_fence(tmp_path: Path, status: str) -> None:
    fenced, _ = once(tmp_path, 2500, status_exit=status, status_print="no idea")
    assert not fenced.ok and f"exit status {status}" in fenced.text and "no idea" in fenced.text


def test_a_flood_of_output_is_cut(tmp_path: Path) -> None:
    fenced, _ = once(tmp_path, off_exit="1", off_flood="3000000", off_print="the end")
    assert not fenced.ok and len(fenced.text) < 500 and "the end" in fenced.text


def test_an_agent_that_closes_standard_input_early(tmp_path: Path) -> None:
    agent = tmp_path / "fence_rude"
    agent.write_text("#!/bin/sh\nexec <&-\nexit 2\n")
    agent.chmod(0o755)

    async def test(switch: Switch) -> None:
        fenced = await switch.fence()
        assert not fenced.ok and "off: exit status 2" in fenced.text
        assert (await switch.test()).ok, "2 is what `status` says of an outlet that is off"

    play(test, tmp_path, level(tmp_path, str(agent), long="x" * 50_000))


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        fenced = await switch.fence()
        assert not fenced.ok and "fence_nowhere: No such file" in fenced.text

    play(test, tmp_path, level(tmp_path, "fence_nowhere"))


def test_what_can_not_be_handed_over_is_told(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        broken = await switch.fence(0)
        assert not broken.ok and "line break" in broken.text
        long = await switch.fence(1)
        assert not long.ok and "is longer than" in long.text
        none = await switch.fence(7)
        assert not none.ok and none.text == "victim has no fence level 8"
        assert not (await switch.answer(_other(switch))).ok

    def _other(switch: Switch) -> int:
        switch.fencing.fence(Fence(99, "stranger", 0, FenceAction.FENCE, 1000))
        return 99

    play(test, tmp_path, level(tmp_path, plug="7\naction=on"), level(tmp_path, plug="x" * 200_000))
    assert not (tmp_path / "calls").exists()


def test_a_guardian_that_refuses_is_told(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        switch.refuse[""] = messages.RunFailed(1, Outcome.FAILED, "not started: no process could be made")
        fenced = await switch.fence()
        assert not fenced.ok and "no process could be made" in fenced.text

    play(test, tmp_path, level(tmp_path))


# --------------------------------------------------------------------------------------- agents that know less than most


def test_an_agent_that_only_reboots(tmp_path: Path) -> None:
    fenced, switch = once(tmp_path, has="reboot,status,monitor")
    assert fenced.ok and "rebooted" in fenced.text and "could not be verified" in fenced.text
    assert switch.calls() == ["off", "metadata", "reboot"]


def test_a_reboot_that_fails(tmp_path: Path) -> None:
    fenced, _ = once(tmp_path, has="reboot,status", reboot_exit="3")
    assert not fenced.ok and "reboot (it knows no off): exit status 3" in fenced.text


def test_an_agent_without_status(tmp_path: Path) -> None:
    fenced, switch = once(tmp_path, has="off,monitor")
    assert fenced.ok and "it knows no status to verify it by" in fenced.text
    assert switch.calls() == ["off", "status", "metadata"]


# --------------------------------------------------------------------------------------------------------- on again


def test_the_node_is_switched_on_again_after_the_answer(tmp_path: Path) -> None:
    """Nobody waits for it: the standby may start the group as soon as off is verified."""

    async def test(switch: Switch) -> None:
        attempt = switch.begin(timeout_ms=20_000)
        first = await switch.answer(attempt)
        assert first.ok and first.text == "off, verified by its status"
        assert switch.state.read_text() == "off"
        await switch.until(lambda: "on" in switch.calls())
        (tmp_path / "go").touch()
        second = await switch.answer(attempt, count=2)
        assert second.ok and second.text == "off, verified by its status; on again"
        assert switch.calls() == ["off", "status", "on"] and switch.state.read_text() == "on"

    play(test, tmp_path, level(tmp_path, action="reboot", on_until=str(tmp_path / "go")))


def test_a_node_that_can_not_be_switched_on_again_is_fenced_all_the_same(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        second = await switch.answer(switch.begin(), count=2)
        assert second.ok and "NOT switched on again: on: exit status 1" in second.text and "no fuse" in second.text
        assert [line for line in switch.lines if "node_not_switched_on" in str(line)]

    play(test, tmp_path, level(tmp_path, action="reboot", on_exit="1", on_print="no fuse"))


@pytest.mark.parametrize("cuts", ["disk", "network"])
def test_a_node_that_lives_is_not_let_in_again(tmp_path: Path, cuts: str) -> None:
    """It was only cut off: it would go on with what it had."""

    async def test(switch: Switch) -> None:
        assert (await switch.fence()).ok
        await asyncio.sleep(0.3)
        assert switch.calls() == ["off", "status"] and switch.state.read_text() == "off"

    play(test, tmp_path, level(tmp_path, action="reboot", cuts=cuts))


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(("state", "word"), [("on", "status on"), ("off", "status off")])
def test_a_test_asks_only(tmp_path: Path, state: str, word: str) -> None:
    async def test(switch: Switch) -> None:
        switch.state.write_text(state)
        tested = await switch.test()
        assert tested.ok and tested.text == word and tested.action is FenceAction.TEST
        assert switch.calls() == ["status"] and switch.state.read_text() == state

    play(test, tmp_path, level(tmp_path, action="reboot"))


def test_a_test_of_an_agent_without_status_uses_monitor(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        tested = await switch.test(0)
        assert tested.ok and "monitor is well" in tested.text
        failed = await switch.test(1)
        assert not failed.ok and "monitor: exit status 1" in failed.text

    play(test, tmp_path, level(tmp_path, has="off,monitor"), level(tmp_path, has="off,monitor", monitor_exit="1"))


def test_a_device_that_does_not_answer_fails_its_test(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        tested = await switch.test(0)
        assert not tested.ok and "status: exit status 1" in tested.text and "no route to host" in tested.text
        slow = await switch.test(1, timeout_ms=400)
        assert not slow.ok and "not done within 400 ms" in slow.text

    play(
        test,
        tmp_path,
        level(tmp_path, status_exit="1", status_print="no route to host"),
        level(tmp_path, status_ms="900"),
    )


# --------------------------------------------------------------------------------- several at once, for one device


def test_a_fence_takes_the_place_of_a_test(tmp_path: Path) -> None:
    """Many devices serve one session only: the test must not hold the fence up."""

    async def test(switch: Switch) -> None:
        slow = switch.begin(FenceAction.TEST, 0, 600_000)
        await switch.until(switch.calls)
        fenced = await switch.fence(1, 30_000)
        assert fenced.ok, "in that time it could not have waited for the test"
        assert switch.answers(slow) == [], "nobody waits for it any more"

    play(test, tmp_path, level(tmp_path, status_ms="600000"), level(tmp_path))


def test_a_fence_takes_the_place_of_switching_on(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        first = switch.begin()
        assert (await switch.answer(first)).ok
        await switch.until(lambda: "on" in switch.calls())
        assert (await switch.fence(1)).ok
        await switch.until(lambda: not switch._processes)
        assert switch.state.read_text() == "off", "the older `on` was ended"
        assert len(switch.answers(first)) == 1

    play(test, tmp_path, level(tmp_path, action="reboot", on_ms="600000"), level(tmp_path))


def test_a_test_waits_for_switching_on(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        attempt = switch.begin()
        await switch.answer(attempt)
        tested = await switch.test()
        assert tested.ok and tested.text == "status on"
        assert switch.calls() == ["off", "status", "on", "status"]

    play(test, tmp_path, level(tmp_path, action="reboot", on_ms="300"))


def test_nothing_is_told_after_the_end(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        attempt = switch.begin()
        await switch.until(switch.calls)
        switch.fencing.close()
        await switch.until(lambda: not switch._processes)
        await asyncio.sleep(0.1)
        assert switch.answers(attempt) == [] and switch.state.read_text() == "on"

    play(test, tmp_path, level(tmp_path, off_ms="600000"))


# ------------------------------------------------------------------------------------------------------------ secrets


def _everywhere(word: bytes) -> list[str]:
    """Every process that shows this in its command line or its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        for place in ("cmdline", "environ"):
            try:
                if word in (entry / place).read_bytes():
                    found.append(f"{entry}/{place}")
            except OSError:
                pass
    return found


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (f"login as ha with {SECRET} refused", "login as ha with *** refused"),
        ("https://ha:geheim/4711%20%26x@192.0.2.1/", "https://ha:***@192.0.2.1/"),
        ("https://ha:geheim%2F4711%20%26x@192.0.2.1/", "https://ha:***@192.0.2.1/"),
    ],
)
def test_a_secret_is_in_no_text(tmp_path: Path, printed: str, shown: str) -> None:
    fenced, switch = once(tmp_path, off_exit="1", off_print=printed)
    assert not fenced.ok and shown in fenced.text and "4711" not in fenced.text
    assert "4711" not in str(switch.lines)


@pytest.mark.parametrize("left", range(1, len(SECRET)))
def test_a_secret_whose_beginning_was_not_kept_is_in_no_text(tmp_path: Path, left: int) -> None:
    """Of a program's output the last 1,024 octets are kept."""
    agent = tmp_path / "fence_cut"
    rest = "." * (1024 - left - 1)
    agent.write_text(f"#!/bin/sh\necho '{SECRET}{rest}'\nexit 1\n")
    agent.chmod(0o755)
    texts: list[str] = []

    async def test(switch: Switch) -> None:
        exited = await switch.host.fence_agent((str(agent),), "action=off\n", 1000)
        assert exited.output_tail.startswith(SECRET[-left:])
        work = fencing._Work(Fence(1, "victim", 0, FenceAction.FENCE, 1000), level(tmp_path), 0)
        texts.append(switch.fencing._how(work, exited))
        texts.append(str(switch.fencing._masked(work, exited.output_tail)))

    play(test, tmp_path, level(tmp_path, str(agent)))
    assert texts[1].startswith("***.") and all(SECRET[-left:] + "." not in text for text in texts)


def test_a_secret_is_in_no_process_list(tmp_path: Path) -> None:
    async def test(switch: Switch) -> None:
        attempt = switch.begin(timeout_ms=20_000)
        await switch.until(switch.calls)
        assert _everywhere(SECRET.encode()) == [] and _everywhere(b"geheim") == []
        (tmp_path / "go").touch()  # up to here the agent had it
        assert (await switch.answer(attempt)).ok
        runs = [m for m in switch.sent if isinstance(m, messages.Run)]
        assert runs and all("geheim" in run.stdin and "geheim" not in repr(run) for run in runs)
        assert all(run.purpose is messages.Purpose.FENCE and run.group == "" for run in runs)

    play(test, tmp_path, level(tmp_path, off_until=str(tmp_path / "go")))


# -------------------------------------------------------------------------------------------------------- real agents


def test_a_real_agent_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fence_dummy is the library of all of Debian's agents with a file for its device."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # found in /usr/sbin all the same
    state = tmp_path / "state"
    dummy = FenceLevel(
        "fence_dummy", "power", options={"type": "file", "status_file": str(state)}, secrets={"password": "x"}
    )
    failing = FenceLevel("fence_dummy", "power", options={"type": "fail", "plug": "7"})

    async def test(switch: Switch) -> None:
        tested = await switch.test(0, 8000)
        assert tested.ok and tested.text == "status on", tested.text
        attempt = switch.begin(timeout_ms=8000)
        fenced = await switch.answer(attempt, 9)
        assert fenced.ok and fenced.text == "off, verified by its status" and state.read_text() == "off"
        assert (await switch.answer(attempt, 9, 2)).text.endswith("; on again")
        assert state.read_text() == "on"
        liar = await switch.fence(1, 3000)
        assert not liar.ok

    play(test, tmp_path, dummy, failing)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: run as root")
def test_a_real_agent_cuts_a_real_port(tmp_path: Path) -> None:
    """fence_ifmib against Net-SNMP's agent on a "switch", whose port srv0 is the victim's cable."""
    cable = Cable()

    def port() -> str:
        return cable.run(cable.server, "ip", "-br", "link", "show", "srv0").stdout.split()[1]

    conf = tmp_path / "snmpd.conf"
    conf.write_text(f"rwcommunity {SECRET.split('/')[0]}\n[snmp] persistentDir {tmp_path}\n")
    # The agent of the package, as it would run on a node that reaches the switch.
    agent = tmp_path / "fence_there"
    agent.write_text(f'#!/bin/sh\nexec ip netns exec {cable.client} /usr/sbin/fence_ifmib "$@"\n')
    agent.chmod(0o755)
    options = {"ip": "192.0.2.1", "plug": "uplink0"}
    snmpd = None
    try:
        # It is reached over another cable than the one that it cuts.
        cable.run(cable.server, "ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "victim0")
        cable.run(cable.server, "ip", "link", "set", "uplink0", "up")
        cable.run(cable.server, "ip", "link", "set", "victim0", "up")
        snmpd = subprocess.Popen(
            ["ip", "netns", "exec", cable.server, "snmpd", "-f", "-Lo", "-C", "-c", str(conf), "-I", "-smux", "udp:161"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        ask = ("snmpget", "-v2c", "-c", SECRET.split("/")[0], "-t1", "-r0", "192.0.2.1", ".1.3.6.1.2.1.1.3.0")
        deadline = time.monotonic() + 30
        while cable.run(cable.client, *ask).returncode:
            assert time.monotonic() < deadline, "snmpd does not answer"
        given = FenceLevel(str(agent), "network", options=options, secrets={"community": SECRET.split("/")[0]})
        wrong = replace(given, options={**options, "plug": "nothing0"})
        states: list[str] = []

        async def test(switch: Switch) -> None:
            tested = await switch.test(0, 15_000)
            assert tested.ok and tested.text == "status on", tested.text
            missing = await switch.test(1, 15_000)
            assert not missing.ok and "geheim" not in missing.text
            fenced = await switch.fence(0, 15_000)
            assert fenced.ok and fenced.text == "off, verified by its status", fenced.text
            states.append(cable.run(cable.server, "ip", "-br", "link", "show", "uplink0").stdout.split()[1])
            assert (await switch.test(0, 15_000)).text == "status off"

        play(test, tmp_path, given, wrong)
        assert states == ["DOWN"] and port() == "UP"
    finally:
        if snmpd:
            os.killpg(snmpd.pid, signal.SIGTERM)
            snmpd.wait(30)
        cable.remove()
