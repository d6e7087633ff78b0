"""A campaign of five rounds with a seed by chance; `make soak` does fifty.

HASNMP_NEMESIS_SEED=7 HASNMP_NEMESIS_ROUNDS=50 pytest tests/cluster/nemesis   does again what seed 7 draws
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.cluster.nemesis import campaign

SEED = int(os.environ.get("HASNMP_NEMESIS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
ROUNDS = int(os.environ.get("HASNMP_NEMESIS_ROUNDS", "5"))


def test_faults_at_random_and_a_history_without_a_violation(tmp_path: Path) -> None:
    verdict = campaign.run(SEED, ROUNDS, tmp_path)
    assert not verdict.violations, verdict.text()
    assert len(verdict.history.rounds) == ROUNDS
    answered = sum(op.outcome == "ok" for op in verdict.history.ops)
    assert answered > 100 * ROUNDS and len(verdict.history.log) > 50 * ROUNDS, "the clients had next to nothing to do"
