"""A window of steps through torch.profiler, written where the run says."""

import gzip
import json
from pathlib import Path

from tests.distributed.cases import Case, case_config, run_cases, write_corpus


def test_a_window_is_recorded_on_rank_zero(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    window = {"logging__profile_start": 3, "logging__profile_steps": 2}
    late = {"logging__profile_start": 6, "logging__profile_steps": 50}
    cases = [Case(case_config(tmp_path, "window", **window)), Case(case_config(tmp_path, "late", **late))]
    assert run_cases(2, cases) == [[0, 0], [0, 0]]
    assert sorted(path.name for path in (tmp_path / "window/profile").iterdir()) == [
        "steps-3-4.json.gz",
        "steps-3-4.txt",
    ]
    # The run ends within the window.
    assert (tmp_path / "late/profile/steps-6-6.txt").exists()
    with gzip.open(tmp_path / "window/profile/steps-3-4.json.gz") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    updates = [name for name in names if name.startswith("Optimizer.step")]
    assert len(updates) >= 2
    assert any("addmm" in name or "linear" in name for name in names)
    assert "Self CPU" in (tmp_path / "window/profile/steps-3-4.txt").read_text()
