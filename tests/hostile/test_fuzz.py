"""The fuzzer, briefly; `make fuzz` runs it for long."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_some_seconds_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    line = [sys.executable, "-m", "tests.hostile.fuzz", "-max_total_time=6", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(line, cwd=project, capture_output=True, text=True, timeout=120)
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert done.returncode == 0 and not found, (found, done.stderr[-3000:])
    # It ran, and it was guided: code of ours was seen to be reached.
    runs = re.search(r"Done (\d+) runs", done.stderr)
    covered = [int(n) for n in re.findall(r"cov: (\d+)", done.stderr)]
    assert runs and int(runs[1]) > 200 and max(covered) > 300, done.stderr[-2000:]
