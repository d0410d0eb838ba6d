"""Twenty kills at random instants, seeded; `python -m tests.train.kills` makes more of them."""

from pathlib import Path

import pytest

from tests.train.kills import survived


@pytest.mark.slow
def test_every_kill_is_survived(tmp_path: Path) -> None:
    kills = 0
    for done, problem in survived(tmp_path, seed=18, kills=20):
        assert not problem, (done, problem)
        kills += len(done)
    assert kills >= 20
