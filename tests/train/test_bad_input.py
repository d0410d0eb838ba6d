"""Every mistake ends with exit code 2 and one sentence that names what is wrong, and harms nothing."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.complaints import assert_refused, complaint, mounted
from tests.train.forked import Command, run
from tests.train.runs import files_of, ledger, llmscale, metrics, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, a config, files of every wrong kind, and the finished run `trained`."""
    folder = tmp_path_factory.mktemp("bad_input")
    write_tiny_run(folder)
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("\n  \n" * 50)
    (folder / "small.txt").write_text("a few words\n")
    (folder / "bad.jsonl").write_text('{"body": 1}\n')
    (folder / "array.jsonl").write_text(json.dumps([{"text": "x" * 400}] * 3600))
    (folder / "lists.jsonl").write_text('{"text": ["a", "b"]}\n' * 9)
    (folder / "gbk.txt").write_bytes("今天\n".encode("gbk") * 99)
    (folder / "corrupt.model").write_bytes(b"\x0a\x0bnot a model")
    (folder / "broken.yaml").write_text("run: [1,\n  b: }")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    (folder / "folder").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("years of work")
    done = run("train", "config.yaml", "run.directory=trained", "train.steps=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


CONFIG_MISTAKES = {
    "a missing config": (r"no config file missing\.yaml; this folder has .*config\.yaml", "missing.yaml"),
    "a folder as config": (r"folder: Is a directory; give a YAML file", "folder"),
    "no YAML": (r"broken\.yaml is not valid YAML at line 2, column 6", "broken.yaml"),
    "no sections": (r"list\.yaml must hold sections such as .* but holds list", "list.yaml"),
    "no text": (r"binary\.yaml: it is not UTF-8 text; give a YAML file", "binary.yaml"),
    "an unknown key": (r"unknown key 'train\.stepz'; did you mean 'train\.steps'", "config.yaml", "train.stepz=1"),
    "a wrong type": (r"'train\.steps' is 'many', but .* integer", "config.yaml", "train.steps=many"),
    "a number out of range": (r"'train\.steps' is -1, but .* 1", "config.yaml", "train.steps=-1"),
    "an infinite number": (r"'optimizer\.lr' is inf, but .* finite", "config.yaml", "optimizer.lr=.inf"),
    "an empty path": (r"'train\.init_from' is '', but .* 1 character", "config.yaml", "train.init_from=''"),
    "no override": (r"override 'train\.steps' is not of the form", "config.yaml", "train.steps"),
    "a batch that does not divide": (
        r"train\.global_batch \(8\) must be a multiple .* \(3\); use .*train\.global_batch=9",
        "config.yaml",
        "parallel.data=3",
    ),
    "fewer ranks than asked for": (
        r"the run has 1 rank, but .*parallel\.data \(2\).* = 2; use parallel\.data=1, or 2 ranks",
        "config.yaml",
        "parallel.data=2",
    ),
    "too long sequences": (
        r"data\.sequence_length \(65 tokens\) exceeds model\.max_positions \(64\); set model\.max_positions=65",
        "config.yaml",
        "data.sequence_length=65",
    ),
    "a tracker that is not installed": (
        r"logging\.trackers has 'wandb', which is not installed; `pip install wandb`",
        "config.yaml",
        "logging.trackers=[wandb]",
    ),
    "CUDA without a GPU": (r"run\.device is 'cuda', but .* no GPU here", "config.yaml", "run.device=cuda"),
}


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_mistakes_in_the_config(folder: Path, mistake: str) -> None:
    if mistake == "a tracker that is not installed" and shutil.which("wandb"):
        pytest.skip("wandb is installed")
    says, *arguments = CONFIG_MISTAKES[mistake]
    assert_refused(folder, says, "train", *arguments, CUDA_VISIBLE_DEVICES="")
    assert not (folder / "run").exists()


def test_a_batch_that_the_ranks_do_not_divide(folder: Path) -> None:
    says = r"train\.global_batch \(8\) must be a multiple of the data-parallel size \(3\)"
    assert_refused(folder, says, "train", "config.yaml", "--dry-run", WORLD_SIZE=3)


def test_a_real_process_says_it_too(folder: Path) -> None:
    unknown = llmscale("train", "config.yaml", "train.stepz=1", cwd=folder)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "llmscale: config.yaml: unknown key 'train.stepz'; did you mean 'train.steps'?\n"
    nothing = llmscale("train", cwd=folder)
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "llmscale: missing argument 'CONFIG' (see llmscale train --help)\n",
    )


DATA_MISTAKES = {
    "a missing file": (r"data\.sources\[0\]\.paths: no file matches none\.txt", "data.sources.0.paths=[none.txt]"),
    "an empty corpus": (
        r"data\.sources\[0\] holds no text: its 1 files \(.*\) are empty, or have no rows; add",
        "data.sources.0.paths=[empty.txt]",
    ),
    "one JSON array": (
        r"array\.jsonl is one JSON array and not JSON lines",
        "data.sources.0={kind: jsonl, paths: [array.jsonl]}",
    ),
    "lists in place of texts": (
        r"data\.sources\[0\] holds no text: of 9 records in lists\.jsonl none .* at lists\.jsonl:1: 'text' is a list",
        "data.sources.0={kind: jsonl, paths: [lists.jsonl]}",
    ),
    "one source of two without text": (
        r"data\.sources\[1\] holds no text: of 9 records in lists\.jsonl",
        "data.sources=[{paths: ['text-*.txt']}, {kind: jsonl, paths: [lists.jsonl]}]",
    ),
    "another encoding": (r"gbk\.txt is not utf-8 but probably gb18030", "data.sources.0.paths=[gbk.txt]"),
    "blank lines only": (
        r"data\.sources\[0\] holds no text: of 100 records in blank\.txt none was kept \(100 empty\); add",
        "data.sources.0.paths=[blank.txt]",
        "data.lanes=1",
    ),
    "a corpus smaller than a batch": (
        r"lane 0 holds only 12 tokens, less than one sample \(32\); lower",
        "data.sources.0.paths=[small.txt]",
        "data.lanes=1",
    ),
    "a field that is not there": (
        r"data\.sources\[0\]\.field: bad\.jsonl has no field 'text' but 'body'",
        "data.sources.0={kind: jsonl, paths: [bad.jsonl]}",
    ),
    "nothing held out": (r"documents to evaluate on hold no text; raise data\.holdout", "data.holdout=0.0000001"),
    "a tokenizer of another size": (
        r"model\.vocab_size is 200, but the tokenizer has 259 tokens; set model\.vocab_size=259 or more",
        "model.vocab_size=200",
    ),
    "a corrupt tokenizer": (
        r"corrupt\.model is not a SentencePiece model; give a \.model file",
        "data.tokenizer={kind: sentencepiece, path: corrupt.model}",
    ),
    "a missing tokenizer": (
        r"data\.tokenizer\.path: cannot read none\.model: No such file",
        "data.tokenizer={kind: sentencepiece, path: none.model}",
    ),
    "a vocabulary too small for its characters": (
        r"data\.tokenizer\.train: cannot train 300 pieces on \d+ characters of data\.sources: .*; change vocab_size",
        "data.tokenizer={kind: sentencepiece, train: {vocab_size: 300}}",
        "data.sources.0.paths=[many-characters.txt]",
    ),
    "a prompt that does not fit": (
        r"logging\.sample_prompts\.0 needs 102 positions .* model\.max_positions is 64; shorten",
        f"logging.sample_prompts=[{'x' * 100}]",
    ),
    "no run to start from": (r"train\.init_from: there is no .* nowhere", "train.init_from=nowhere"),
    "no checkpoint to start from": (r"train\.init_from: foreign holds no checkpoint", "train.init_from=foreign"),
    "weights of another shape": (
        r"train\.init_from: blocks\.0\.\S+ has shape \[32\] in trained/.*, but \[64\] in the model",
        "train.init_from=trained",
        "model.hidden_size=64",
    ),
    "weights of fewer layers": (
        r"train\.init_from: trained/.* has no tensor blocks\.2\.\S+; make",
        "train.init_from=trained",
        "model.layers=3",
    ),
    "weights of more layers": (
        r"train\.init_from: trained/.* has the tensor blocks\.1\.\S+, which the model lacks; make",
        "train.init_from=trained",
        "model.layers=1",
    ),
    "weights for another tokenizer": (
        r"train\.init_from trained was trained with another tokenizer \(259 tokens.*\) than this run's \(\d+ tokens",
        "train.init_from=trained",
        "data.tokenizer={kind: sentencepiece, train: {vocab_size: 400}}",
    ),
}


def test_mistakes_in_the_data_then_a_good_start_in_the_same_directory(folder: Path) -> None:
    (folder / "many-characters.txt").write_text("".join(chr(0x4E00 + i) for i in range(2000)))
    for says, *overrides in DATA_MISTAKES.values():
        # Only the directory's own record of the attempt may change from one start to the next.
        before = {path: data for path, data in files_of(folder).items() if not path.startswith("mended/")}
        sentence = complaint(run("train", "config.yaml", "run.directory=mended", *overrides, cwd=folder))
        assert re.search(says, sentence), sentence
        after = files_of(folder)
        assert {path: after.get(path) for path in before} == before
        assert not ledger(folder / "mended")
    good = run("train", "config.yaml", "run.directory=mended", "train.steps=3", cwd=folder)
    assert good.returncode == 0, good.stderr
    assert metrics(folder / "mended") == metrics(folder / "trained")
    assert json.loads((folder / "mended" / "outcome.json").read_text())["outcome"] == "done"


def test_directories_that_are_not_this_run(folder: Path) -> None:
    for says, *overrides in (
        (
            r"trained was trained with optimizer\.lr = 0\.0003, but the config says 0\.1; set it back, or give",
            "run.directory=trained",
            "train.steps=3",
            "optimizer.lr=0.1",
        ),
        (r"trained was trained with train\.steps = 3, but the config says 6", "run.directory=trained"),
        (r"run\.directory foreign has files but no config\.yaml, .*; name an empty or new", "run.directory=foreign"),
        (r"run\.directory small\.txt is a file; name a folder", "run.directory=small.txt"),
        (r"run\.directory small\.txt/run cannot be used: Not a directory", "run.directory=small.txt/run"),
        (r"run\.directory x+ cannot be used: File name too long", f"run.directory={'x' * 300}"),
    ):
        assert_refused(folder, says, "train", "config.yaml", *overrides)
    again = run("train", "config.yaml", "run.directory=trained", "train.steps=3", cwd=folder)
    assert (again.returncode, "is finished" in again.stderr) == (0, True)


def test_a_place_that_may_not_be_written(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() == 0:
        with mounted(place, "ro"):
            assert_refused(folder, "cannot be used: Read-only", "train", "config.yaml", f"run.directory={place}/run")
    else:
        place.chmod(0o555)
        assert_refused(folder, "cannot be used: Permission", "train", "config.yaml", f"run.directory={place}/run")


COMMAND_MISTAKES = {
    ("eval", "nowhere", "--data", "small.txt"): r"there is no checkpoint or run directory nowhere; give",
    ("eval", "foreign", "--data", "small.txt"): r"foreign holds no checkpoint yet; give",
    ("eval", "trained", "--data", "none.txt"): r"--data\[0\]\.paths: no file matches none\.txt .*; correct",
    (
        "eval",
        "trained",
        "--data",
        "blank.txt",
    ): r"--data\[0\] holds no text: of 1 records in blank\.txt none was kept \(1 empty\); add",
    ("eval", "trained", "--data", "array.jsonl"): r"array\.jsonl is one JSON array and not JSON lines",
    ("eval", "trained", "--data", "lists.jsonl"): r"--data\[0\] holds no text: .*'text' is a list, not a string",
    ("eval", "trained", "--data", "text-0.txt", "--data", "gbk.txt"): r"gbk\.txt is not utf-8 but probably gb18030",
    ("eval", "trained", "--data", "bad.jsonl"): r"bad\.jsonl has no field 'text' but 'body'",
    ("generate", "folder", "--prompt", "x"): r"folder holds no checkpoint yet; give",
    ("generate", "trained", "--prompt", "x" * 80): r"prompt has 81 tokens, but the model's context is 64; shorten",
    (
        "generate",
        "trained",
        "--prompt",
        "x",
        "--max-new-tokens",
        "128",
    ): r"2 tokens of the prompt and 128 new tokens exceed .* 64; .* --max-new-tokens to 62",
    ("generate", "trained", "--prompt", "x", "--temperature", "-1"): r"temperature is -1\.0, but must be 0 .* or",
    ("generate", "trained", "--prompt", "x", "--temperature", "nan"): r"temperature is nan, but must be 0",
    ("generate", "trained", "--prompt", "x", "--temperature", "1e-320"): r"temperature is 1e-320, but must be 0",
    ("generate", "trained", "--prompt", "x", "--top-p", "0"): r"top_p is 0\.0, but must be above 0 and at most 1",
    ("generate", "trained", "--prompt", "x", "--top-k", "-1"): r"top_k is -1, but must be 0",
    ("checkpoint", "show", "nowhere"): r"there is no checkpoint or run directory nowhere; give",
    ("checkpoint", "verify", "foreign"): r"foreign holds no checkpoint yet; give",
    ("report", "nowhere"): r"there is no run directory nowhere; give",
    ("report", "foreign"): r"foreign/metrics\.jsonl is missing, .*; give a run directory",
    ("report", "trained", "--output", "small.txt"): r"cannot use small\.txt: File exists; .* name another place",
    ("report", "trained", "--output", "/proc/x"): r"cannot use /proc/x: No such file or directory; .* another place",
    ("data", "ledger", "nowhere", "--step", "1"): r"nowhere is no run, .*; give",
    ("data", "ledger", "foreign", "--diff", "trained"): r"foreign has no ledger \(ledger\.jsonl\); give",
    ("data", "ledger", "trained", "--step", "9"): r"the ledger of trained has no step 9: it has steps 1 to 3",
    ("data", "ledger", "trained"): r"needs --step N or --diff RUN; give either",
}


@pytest.mark.parametrize("arguments", COMMAND_MISTAKES, ids=" ".join)
def test_mistakes_of_the_other_commands(folder: Path, arguments: tuple[str, ...]) -> None:
    assert_refused(folder, COMMAND_MISTAKES[arguments], *arguments)


def test_a_second_trainer_is_refused_and_ctrl_c_ends_the_first(folder: Path) -> None:
    endless = ("train", "config.yaml", "run.directory=endless", "train.steps=1000000")
    first = Command(*endless, cwd=folder)
    path = folder / "endless" / "ledger.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") > 3):
        assert first.process.is_alive()
        time.sleep(0.01)
    second = complaint(run(*endless, cwd=folder))
    assert "another process is training in endless; wait for it, or name another run.directory" in second
    os.kill(first.process.pid, signal.SIGINT)
    assert complaint(first.finish(), code=130) == "llmscale: interrupted"
    assert ledger(folder / "endless")[-1][0] > 3


def test_a_signal_during_the_imports_still_saves(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    process = start("train", "config.yaml", cwd=tmp_path)
    while not _handles(process.pid, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.002)
    assert not (tmp_path / "run").exists()
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["outcome"] == "preempted"


def _handles(pid: int, number: int) -> bool:
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
