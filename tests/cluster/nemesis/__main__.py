"""python -m tests.cluster.nemesis --seed N [--rounds N] [--plan] [--out FOLDER]: exits 1 on a violation. Needs root."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.cluster.nemesis import campaign, plan


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.nemesis", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="default: one by chance")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--plan", action="store_true", help="only print what would be done")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="where the picture goes")
    arguments = parser.parse_args()
    drawn = plan.draw(arguments.seed or random.SystemRandom().randrange(1, 1 << 30), arguments.rounds)
    print(drawn.text())
    if arguments.plan:
        return 0
    verdict = campaign.Campaign(drawn, arguments.out).run()
    print(verdict.text().removeprefix(verdict.story).lstrip())
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
