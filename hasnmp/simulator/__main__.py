"""python -m hasnmp.simulator --seeds N | --seed N: run the simulator; exit 1 when an invariant broke."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from hasnmp.simulator import story
from hasnmp.simulator.profiles import PROFILES
from hasnmp.simulator.runs import Result, run


def _one(job: tuple[int, str]) -> Result:
    return run(job[0], job[1])


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: every invariant held; 1: one broke, and its seed was printed; 2: usage."""
    parser = argparse.ArgumentParser(prog="python -m hasnmp.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="run N seeds, from --first on")
    parser.add_argument("--seed", type=int, metavar="N", help="replay one seed and tell its story")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first of --seeds (default 1)")
    parser.add_argument("--profile", default="", choices=["", *PROFILES], help="instead of the one that the seed picks")
    parser.add_argument("--heartbeats", action="store_true", help="with --seed: tell of every datagram too")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    args = parser.parse_args(argv)
    if args.seed is not None:
        story.WITH_HEARTBEATS = args.heartbeats
        result = run(args.seed, args.profile, story.tell)
        print(verdict(result))
        return 1 if result.broken else 0
    if args.seeds <= 0:
        parser.error("one of --seeds N and --seed N is needed, N above 0")
    return many(range(args.first, args.first + args.seeds), args.profile, args.jobs)


def verdict(result: Result) -> str:
    where = f"seed {result.seed} ({result.profile}), {result.at_ns / 1e9:.3f} s simulated, {result.steps} steps"
    if result.broken:
        return f"BROKEN {result.broken}: {result.text} [{where}]"
    return f"ok [{where}]"


def many(seeds: range, profile: str, jobs: int) -> int:
    began, broken = time.monotonic(), 0
    counts: Counter[str] = Counter()
    simulated = steps = 0
    with multiprocessing.Pool(jobs) as pool:
        for result in pool.imap_unordered(_one, ((seed, profile) for seed in seeds), chunksize=8):
            counts.update(result.counts)
            simulated += result.at_ns
            steps += result.steps
            if result.broken:
                broken += 1
                again = f"make sim SEED={result.seed}" if not profile else f"--seed {result.seed} --profile '{profile}'"
                print(f"{verdict(result)}; its story: {again}", flush=True)
    took = time.monotonic() - began
    print(
        f"{len(seeds)} runs, {broken} broken, in {took:.1f} s ({1000 * took * jobs / len(seeds):.1f} ms of a core each); "
        f"{simulated / 1e9:.0f} s simulated, {steps} steps of engines"
    )
    print(", ".join(f"{what} {n}" for what, n in sorted(counts.items(), key=lambda item: -item[1])))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
