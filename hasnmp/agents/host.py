"""What the agents stand on: the guardian's messages as calls to await. Programs and addresses belong to the guardian,
which outlives the engine; here is only the engine's knowledge of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hasnmp import settings
from hasnmp.agents.fence_metadata import search_path
from hasnmp.core.events import Event, HeldLease, Outcome, ServiceExited
from hasnmp.errors import HasnmpError
from hasnmp.runtime import messages
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import AddressDone, AddressLost, AddressOp, Exited, Purpose, RunFailed, RunStarted


class NotRun(HasnmpError):
    """The guardian did not start a program: MISSING, REFUSED or FAILED."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Program:
    """One program under the guardian. `exited` is done when it and all that it started are gone."""

    def __init__(self, run: int, pid: int, loop: asyncio.AbstractEventLoop) -> None:
        self.run = run
        self.pid = pid
        self.exited: asyncio.Future[Exited] = loop.create_future()
        # Called when it ends, instead of a task that waits: a service's end is to be an event in the same loop turn.
        self.on_exit: Callable[[Exited], None] | None = None

    @property
    def alive(self) -> bool:
        return not self.exited.done()


def how_it_ended(exited: Exited) -> str:
    """ "exit status 1 after 0.2 s; last output: ..." """
    end = f"signal {exited.signal}" if exited.signal else f"exit status {exited.code}"
    tail = " ".join("".join(c if c.isprintable() else " " for c in exited.output_tail).split())
    return f"{end} after {exited.took_us / 1e6:.1f} s" + (f"; last output: {tail[-200:]}" if tail else "")


@dataclass(frozen=True, slots=True)
class Here:
    """Where agents work. nodes: of the whole cluster."""

    node: str = ""
    nodes: tuple[str, ...] = ()
    run_dir: str = "/run/hasnmp"


class Host:
    """The engine's side of the guardian, for the agents.

    send: puts a message on its way to the guardian. tell: hands an event to the engine (ServiceExited). Use within the
    engine's loop only.
    """

    def __init__(
        self,
        next_run: int,
        send: Callable[[messages.FromEngine], None],
        tell: Callable[[Event], None],
        log: Any,
        here: Here = Here(),
    ) -> None:
        self.tell, self.log, self.here = tell, log, here
        self._send = send
        self._next_run = next_run
        self._starting: dict[int, asyncio.Future[Program]] = {}
        self._programs: dict[int, Program] = {}
        self._addresses: dict[tuple[str, AddressOp], asyncio.Future[AddressDone]] = {}
        self._on_lost: dict[str, Callable[[str], None]] = {}
        self._tokens: dict[str, int] = {}
        self._until_ns: dict[str, int] = {}

    def extended(self, leases: tuple[HeldLease, ...]) -> None:
        """The guardian acknowledged these."""
        for lease in leases:
            self._until_ns[lease.group] = max(lease.until_ns, self._until_ns.get(lease.group, 0))

    def released(self, group: str) -> None:
        """The guardian confirmed that the lease is given up."""
        self._until_ns.pop(group, None)

    def lease_alive(self, group: str) -> bool:
        """Is there an acknowledged lease of the group now? To be asked right before what only its owner may do, and the
        kernel would not stop: an engine that was frozen goes on in the middle of what it did."""
        return boottime_ns() < self._until_ns.get(group, 0)

    def held(self) -> list[tuple[str, int]]:
        """(group, expiry) of each lease that the guardian acknowledged."""
        return list(self._until_ns.items())

    def token(self, lease: HeldLease) -> None:
        """A lease went to the guardian: what starts from now on is told this token."""
        self._tokens[lease.group] = lease.token

    async def run(
        self,
        service: settings.Service,
        argv: tuple[str, ...],
        purpose: Purpose,
        *,
        env: dict[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout_ms: int = 0,
        stdin: str = "",
        oom_score_adjust: int = 0,
    ) -> Program:
        """Start a program. Raises NotRun. Cancelled while it waits, it ends the program if it comes up after all."""
        # The guardian adds HASNMP_NODE, HASNMP_GROUP and HASNMP_RUN, by which it knows its own.
        names = {"HASNMP_SERVICE": service.name, "HASNMP_TOKEN": str(self._tokens.get(service.group, 0))}
        return await self._started(
            messages.Run(
                run=self._number(), group=service.group, service=service.name, argv=argv, purpose=purpose,
                env={**(env or {}), **names}, cwd=cwd, user=user, timeout_ms=timeout_ms, stdin=stdin,
                oom_score_adjust=oom_score_adjust,
            )
        )  # fmt: skip

    def _number(self) -> int:
        self._next_run += 1
        return self._next_run - 1

    async def _started(self, run: messages.Run) -> Program:
        started: asyncio.Future[Program] = asyncio.get_running_loop().create_future()
        self._starting[run.run] = started
        self._send(run)
        try:
            return await started
        except asyncio.CancelledError:
            self._send(messages.End(run.run))
            raise

    def adopt(self, running: messages.Running) -> Program:
        """A program from before this engine's start."""
        program = Program(running.run, running.pid, asyncio.get_running_loop())
        self._programs[running.run] = program
        return program

    def signal(self, program: Program, number: int) -> None:
        if program.alive:
            self._send(messages.Signal(program.run, number))

    def end(self, program: Program) -> None:
        """End it and all that it started, by force; `exited` follows."""
        if program.alive:
            self._send(messages.End(program.run))

    async def output(self, service: settings.Service, argv: tuple[str, ...], purpose: Purpose, timeout_ms: int,
                     env: dict[str, str] | None = None, cwd: str = "", user: str = "") -> Exited:  # fmt: skip
        """Run a program to its end. Raises NotRun. Cancelled, it ends the program by force."""
        return await self._to_its_end(
            await self.run(service, argv, purpose, env=env, cwd=cwd, user=user, timeout_ms=timeout_ms)
        )

    async def fence_agent(self, argv: tuple[str, ...], stdin: str, timeout_ms: int) -> Exited:
        """Run a fence agent to its end; it is of no group and needs no lease. argv[0]: looked up in PATH and where packages
        put fence agents. Raises NotRun, MessageError (stdin is too long). Cancelled, it ends the agent by force."""
        run = messages.Run(self._number(), "", "", argv, Purpose.FENCE, {"PATH": search_path()}, timeout_ms=timeout_ms,
                           stdin=stdin)  # fmt: skip
        return await self._to_its_end(await self._started(run))

    async def hook(self, group: str, argv: tuple[str, ...], env: dict[str, str], stdin: str, timeout_ms: int) -> Exited:
        """Run one of the administrator's own programs to its end. group: whose lease it needs, and with which it ends; "" =
        none. Raises NotRun, MessageError (stdin is too long). Cancelled, it ends the program by force."""
        run = messages.Run(
            self._number(), group, "", argv, Purpose.HOOK, env, cwd="/", timeout_ms=timeout_ms, stdin=stdin
        )  # fmt: skip
        return await self._to_its_end(await self._started(run))

    def token_of(self, group: str) -> int:
        """Of the newest lease that went to the guardian, 0 for none."""
        return self._tokens.get(group, 0)

    async def _to_its_end(self, program: Program) -> Exited:
        try:
            return await asyncio.shield(program.exited)
        except asyncio.CancelledError:
            self.end(program)
            raise

    async def address(
        self, service: settings.Service, op: AddressOp, ip: str, prefix: int, interface: str
    ) -> AddressDone:
        """Add or remove an address; a second call of the same kind takes the first one's place."""
        done: asyncio.Future[AddressDone] = asyncio.get_running_loop().create_future()
        self._addresses[service.name, op] = done
        self._send(messages.Address(op, service.name, service.group, ip, prefix, interface))
        return await done

    def on_address_lost(self, service: str, call: Callable[[str], None]) -> None:
        self._on_lost[service] = call

    def exited_by_itself(self, service: settings.Service, pid: int, message: str) -> None:
        self.tell(ServiceExited(service.name, pid, message))

    def handle(self, message: messages.Message) -> bool:
        """Take in what the guardian says of programs and addresses. False: it is about something else."""
        match message:
            case RunStarted(run) if run in self._programs:
                pass  # adopted: the engine that asked for it died before the guardian knew that it was executed
            case RunFailed(run, _, text) if (adopted := self._programs.get(run)) is not None:
                self._exited(Exited(run, "", "", messages.Purpose.SERVICE, adopted.pid, 127, 0, text, 0))
            case RunStarted(run, pid):
                program = Program(run, pid, asyncio.get_running_loop())
                self._programs[run] = program
                started = self._starting.pop(run, None)
                if started is not None and not started.done():
                    started.set_result(program)
            case RunFailed(run, outcome, text):
                started = self._starting.pop(run, None)
                if started is not None and not started.done():
                    started.set_exception(NotRun(outcome, text))
            case Exited():
                self._exited(message)
            case AddressDone(service, op):
                done = self._addresses.pop((service, op), None)
                if done is not None and not done.done():
                    done.set_result(message)
            case AddressLost(service, text):
                if service in self._on_lost:
                    self._on_lost[service](text)
            case _:
                return False
        return True

    def _exited(self, message: Exited) -> None:
        program = self._programs.pop(message.run, None)
        if program is None:
            # It ended while no engine lived; what was not adopted is started again or not by the core's own rules.
            secret = message.purpose in (Purpose.FENCE, Purpose.HOOK)
            how = f"a {message.purpose} program" if secret else how_it_ended(message)  # which may tell secrets
            self.log.info("former_program_ended", service=message.service, how=how)
            return
        program.exited.set_result(message)
        if program.on_exit is not None:
            program.on_exit(message)
