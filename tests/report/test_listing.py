"""`llmscale runs`: what is known of runs from their directories."""

import fcntl
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import RecordWriter, newest_record
from llmscale.commands.runs import runs
from llmscale.report.listing import as_table, list_runs, read_status


def plant(run: Path, outcome: str = "done", **details: object) -> Path:
    """A run as three attempts leave it that were at step 7 of 9 in the end."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("train: {steps: 9}\n")
    (run / "outcome.json").write_text(json.dumps({"outcome": outcome, "attempt": 3, "step": 7, **details}))
    with RecordWriter(run / "metrics.jsonl", 3, continues=4) as metrics:
        metrics.write({"step": 6, "loss": 2.5, "tokens_per_second": 1000.0, "mfu": 0.41})
        metrics.write({"step": 6, "evaluation": {"loss": 2.0}})
    with RecordWriter(run / "ledger.jsonl", 3, continues=4) as ledger:
        ledger.write({"step": 7})
    with RecordWriter(run / "time.jsonl", 3) as times:
        times.write({"step": 0, "time": 100.0, "began": 90.0, "before": 90.0, "job": "4711"})
    return run


def test_a_run_is_listed_with_what_its_files_say(tmp_path):
    status = read_status(plant(tmp_path / "a"))
    shown = status.as_json()
    assert {name: shown[name] for name in ("state", "step", "steps", "loss", "tokens_per_second", "mfu")} == {
        "state": "done", "step": 7, "steps": 9, "loss": 2.5, "tokens_per_second": 1000.0, "mfu": 0.41,
    }  # fmt: skip
    assert (status.job, status.restarts, status.reason) == ("4711", 2, None)


def _hold(path: str, held: "multiprocessing.synchronize.Event", end: "multiprocessing.synchronize.Event") -> None:
    with open(path, "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.set()
        end.wait(60)


def test_a_run_that_says_running_is_so_only_while_a_process_holds_it(tmp_path):
    run = plant(tmp_path / "a", "running")
    assert read_status(run).state == "killed"
    context = multiprocessing.get_context("spawn")
    held, end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(run / ".lock"), held, end))
    process.start()
    assert held.wait(60)
    assert read_status(run).state == "running"
    end.set()
    process.join()
    assert read_status(run).state == "killed"


def test_runs_are_found_below_a_folder_and_others_are_not_taken_for_one(tmp_path):
    plant(tmp_path / "a")
    plant(tmp_path / "group/b", "failed", reason="rank 3 was killed")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/config.yaml").write_text("x")
    plant(tmp_path / "a/checkpoints/step-1")  # within a run
    assert {run.run for run in list_runs(tmp_path)} == {str(tmp_path / "a"), str(tmp_path / "group/b")}
    text = CliRunner().invoke(runs, [str(tmp_path)]).stdout
    assert text.splitlines()[0].split() == [
        "run",
        "state",
        "step",
        "loss",
        "tokens/s",
        "MFU",
        "job",
        "restarts",
        "goodput",
        "last",
        "sign",
    ]
    assert f"{tmp_path}/group/b: rank 3 was killed" in text
    rows = CliRunner().invoke(runs, [str(tmp_path / "a"), "--json"]).stdout.splitlines()
    assert [json.loads(row)["step"] for row in rows] == [7]


def test_damaged_files_leave_holes_and_no_traceback(tmp_path):
    run = plant(tmp_path / "a")
    for name in ("outcome.json", "config.yaml", "metrics.jsonl", "ledger.jsonl", "time.jsonl"):
        (run / name).write_bytes(b"\xff{[\n")
    status = read_status(run)
    assert (status.state, status.step, status.steps, status.loss, status.goodput) == ("unknown", 0, None, None, None)
    assert CliRunner().invoke(runs, [str(run)]).exit_code == 0


def test_a_run_is_a_line_whatever_its_name_and_folders_that_may_not_be_read_are_passed_over(tmp_path, monkeypatch):
    run = plant(tmp_path / "a\nb", "failed", reason="one\ntwo")
    plant(tmp_path / "secret")
    is_file = Path.is_file

    def barred(path: Path) -> bool:
        if path.parent.name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", barred)
    assert [status.run for status in list_runs(tmp_path)] == [str(run)]
    rows = as_table(list_runs(tmp_path)).splitlines()
    assert len(rows) == 3
    assert rows[2] == f"{tmp_path}/a\\nb: one\\ntwo"


@pytest.mark.parametrize("folder", ["nothing", "."])
def test_a_folder_without_runs_is_refused(tmp_path, folder):
    with pytest.raises(UserError):
        list_runs(tmp_path / folder)


def test_the_newest_record_is_found_from_the_end_past_damaged_lines(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordWriter(path, 1) as writer:
        for step in range(500):
            writer.write({"step": step, "loss": 1.0})
        writer.write({"step": 500, "evaluation": {}})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"step": 499, "loss": 1.0', b'"step": 499, "loss": 7.0') + b'{"step": 501, "lo')
    for window in (64, 300, 1 << 20):
        row = newest_record(path, having="loss", window=window)
        assert row is not None
        assert row["step"] == 498, "499 does not fit its checksum"
    assert newest_record(path, having="nothing") is None
    assert newest_record(tmp_path / "missing", having="loss") is None


def test_listing_needs_no_torch(tmp_path):
    plant(tmp_path / "a")
    script = (
        "import sys; from llmscale.cli import cli; cli.main(['runs', sys.argv[1]], standalone_mode=False);"
        "assert not {'torch', 'matplotlib', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)
