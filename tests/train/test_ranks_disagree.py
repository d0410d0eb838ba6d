"""Mistakes that not all ranks make: all end with exit code 2 within 30 s, and one sentence is said."""

import re
from pathlib import Path

import pytest
import yaml

from llmscale.parity.ranks import free_port
from tests.tiny_run import write_tiny_run
from tests.train.complaints import complaint
from tests.train.forked import Command
from tests.train.runs import metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny_run(folder)
    return folder


@pytest.mark.parametrize(
    ("says", "by_rank"),
    [
        (r"llmscale: rank 1 was started with run\.seed = 3, but rank 0 with 0; give all", ((), ("run.seed=3",))),
        (r"llmscale: rank 1 was started with engine\.zero_stage = 2", ((), ("engine.zero_stage=2",))),
        (r"llmscale: rank 1 was started with parallel\.tensor = 2, but rank 0 with 1", ((), ("parallel.tensor=2",))),
        (r"llmscale: rank 1 was started with model\.layers = 3", (("run.seed=0",), ("model.layers=3",))),
        (
            r"llmscale: (?=.*2 ranks)(?=.*parallel\.data \(?(is )?2)(?=.*parallel\.tensor)(?=.* = 4)",
            (("parallel.tensor=2", "parallel.data=2"),) * 2,
        ),
        (r"llmscale: (?=.*2 ranks)(?=.*no multiple of .*parallel\.tensor \(?3)", (("parallel.tensor=3",),) * 2),
        (r"llmscale: rank 1 on \S+: config\.yaml: unknown key 'train\.stepz'", ((), ("train.stepz=3",))),
        (r"llmscale: config\.yaml: unknown key 'train\.stepz'", (("train.stepz=3",), ())),
        (r"llmscale: config\.yaml: unknown key 'train\.stepz'", (("train.stepz=3",), ("train.stepz=3",))),
        (
            r"llmscale: data\.sources\[0\]\.paths: no file matches none\.txt",
            (("data.sources.0.paths=[none.txt]",),) * 2,
        ),
    ],
)
def test_ranks_agree_on_what_is_wrong(folder: Path, says: str, by_rank: tuple[tuple[str, ...], ...]) -> None:
    overrides = [[*texts, "run.directory=ranks"] for texts in by_rank]
    _assert_one_voice([folder, folder], says, overrides)
    assert not metrics(folder / "ranks")


def test_a_rank_that_lacks_the_files_stops_all(folder: Path, tmp_path: Path) -> None:
    """Two machines of which the second does not have the data: the run directory is shared, the texts are not."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["run"]["directory"] = str(folder / "shared")
    for place in (folder, tmp_path):
        (place / "shared.yaml").write_text(yaml.safe_dump(config))
    _assert_one_voice(
        [folder, tmp_path],
        r"rank 1 on \S+: .*text-.*\.txt of [\d,]+ bytes is on rank 0's machine but not on this one",
        [[], []],
        "shared.yaml",
    )


def _assert_one_voice(folders: list[Path], says: str, overrides: list[list[str]], config: str = "config.yaml") -> None:
    """Both ranks end with code 2 within 30 s, and only rank 0 speaks."""
    port = free_port()
    ranks = [
        Command(
            "train",
            config,
            *overrides[rank],
            cwd=folders[rank],
            RANK=rank,
            WORLD_SIZE=2,
            LOCAL_RANK=rank,
            LOCAL_WORLD_SIZE=2,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    lead, other = (command.finish(timeout=30) for command in ranks)
    assert re.search(says, complaint(lead))
    assert (other.returncode, other.stderr) == (2, "")
