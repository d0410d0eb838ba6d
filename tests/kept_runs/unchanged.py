"""Does a change leave training as it was, to the bit? Trains with the llmscale of two trees, and compares.

    python -m tests.kept_runs.unchanged BEFORE AFTER [--work FOLDER]

BEFORE and AFTER are trees with an environment of their own in `.venv`. Each trains the cases of this folder and the
quickstart's model at one and at two ranks; rows of metrics and ledger and the checkpoints' tensors must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.base.records import read_records
from tests.kept_runs.cases import CASES, write_case

TIMES = (
    *("tokens_per_second", "data_seconds", "step_seconds", "attempt"),
    *("mfu", "peak_flops", "memory_bytes", "ranks"),
)
"""What may differ in a row."""
QUICKSTART = (
    "run.threads=1", "schedule.name=constant", "schedule.warmup_steps=2",
    "train.steps=8", "logging.interval=1", "evaluation.baselines=false",
    "logging.sample_prompts=[]", "run.directory=run",
)  # fmt: skip


def figures(run: Path) -> dict[str, object]:
    """What must be equal of a run."""
    rows, ledger = (
        [{key: value for key, value in row.items() if key not in TIMES} for row in read_records(run / name)]
        for name in ("metrics.jsonl", "ledger.jsonl")
    )
    newest = max((run / "checkpoints").glob("step-*"))
    tensors = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(newest.glob("*.safetensors"))
    }
    return {"metrics": rows, "ledger": ledger, "checkpoint": tensors}


def train(tree: Path, config: Path, overrides: tuple[str, ...], ranks: int, folder: Path) -> dict[str, object]:
    """Train in `folder`."""
    command = [str(tree / ".venv/bin/llmscale")]
    command += ["launch", "local", "--nproc", str(ranks)] if ranks > 1 else ["train"]
    done = subprocess.run([*command, str(config), *overrides], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return figures(folder / "run")


def compare(before: Path, after: Path, work: Path) -> Iterator[dict[str, object]]:
    """A row for each case and number of ranks."""
    for name in [*CASES, "quickstart"]:
        for ranks in (1, 2):
            results = []
            for side, tree in (("before", before), ("after", after)):
                folder = work / f"{name}-{ranks}-{side}"
                folder.mkdir(parents=True)
                quick = name == "quickstart"
                config = tree / "configs/quickstart.yaml" if quick else write_case(name, folder)
                results.append(train(tree, config, QUICKSTART if quick else (), ranks, folder))
            unequal = [part for part in results[0] if results[0][part] != results[1][part]]
            steps = sum("loss" in row for row in results[0]["metrics"])  # type: ignore[attr-defined]
            yield {"case": name, "ranks": ranks, "steps": steps, "unequal": unequal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--work", type=Path, help="an empty folder that is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        unequal = False
        for row in compare(given.before.resolve(), given.after.resolve(), given.work or Path(temporary)):
            print(json.dumps(row), flush=True)
            unequal |= bool(row["unequal"])
    sys.exit(unequal)


if __name__ == "__main__":
    main()
