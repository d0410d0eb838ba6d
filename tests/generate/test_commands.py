"""`llmscale generate`: what it prints, and mistakes, for decoders and encoder-decoders."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.tiny_run import write_tiny_run
from tests.train.forked import Finished, run

GREEDY = ("--temperature", "0", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained runs: a decoder, an encoder, an encoder-decoder on spans, and both kinds on pairs of texts."""
    folder = tmp_path_factory.mktemp("generate")
    write_tiny_run(folder)
    rows = [json.dumps({"text": f"say {i}", "target": "word " * 3 + str(i)}) for i in range(400)]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    (folder / "prompts.txt").write_text("ab\n\na longer one\n")
    (folder / "empty.txt").write_text("\n\n")
    (folder / "pointer.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x81")
    pairs = ("data.sources=[{kind: jsonl, paths: [pairs.jsonl], target_field: target}]", "data.lanes=2")
    two = ("model.architecture=encoder_decoder", "logging.sample_prompts=[ab]")
    for name, *overrides in (
        ("decoder", "logging.sample_prompts=[ab, '']"),
        ("encoder", "model.architecture=encoder", "objective.name=masked"),
        ("spans", *two, "objective.name=denoising"),
        ("pairs", *two, "objective={name: seq2seq, target_length: 16}", *pairs),
        ("joined", "objective={name: seq2seq, target_length: 16, concatenate: true}", *pairs),
    ):
        done = run("train", "config.yaml", f"run.directory={name}", "train.steps=2", *overrides, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def rows_of(done: Finished) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.rstrip("\n").split("\n")]


@pytest.mark.parametrize("name", ["decoder", "spans", "pairs", "joined"])
def test_one_prompt_several_and_json(folder: Path, name: str) -> None:
    command = ("generate", name, "--prompt", "xy", "--prompts", "prompts.txt", *GREEDY)
    rows = rows_of(run(*command, "--json", cwd=folder))
    assert [row["prompt"] for row in rows] == ["xy", "ab", "a longer one"]
    assert all(set(row) == {"prompt", "text", "tokens", "finish"} for row in rows)
    one = run("generate", name, "--prompt", "ab", *GREEDY, cwd=folder)
    assert one.returncode == 0, one.stderr
    assert one.stdout == f"{'ab' if name == 'decoder' else ''}{rows[1]['text']}\n"
    several = run(*command, "--batch", "2", cwd=folder).stdout
    heads = ("xy", "ab", "a longer one") if name == "decoder" else ("", "", "")
    expected = [f"--- {n + 1}\n{head}{row['text']}\n" for n, (head, row) in enumerate(zip(heads, rows, strict=True))]
    assert several == "".join(expected)


PROMPT_FILES: dict[bytes, list[str]] = {
    "a\u2028b\nc\fd\n".encode(): ["a\u2028b", "c\fd"],
    "\ufeffab\r\n\r\n\n cd \x85\x1c\v".encode(): ["ab", " cd \x85\x1c\v"],
    "one\rtwo\u2029\n\ufeffthree".encode(): ["one\rtwo\u2029", "\ufeffthree"],
    b"\xef\xbb\xbf\xef\xbb\xbfx\n \n": ["\ufeffx", " "],
}


@pytest.mark.parametrize("data", PROMPT_FILES, ids=repr)
def test_only_newlines_end_a_prompt(folder: Path, data: bytes) -> None:
    (folder / "odd.txt").write_bytes(data)
    rows = rows_of(run("generate", "decoder", "--prompts", "odd.txt", "--json", "--max-new-tokens", "1", cwd=folder))
    assert [row["prompt"] for row in rows] == PROMPT_FILES[data]


def test_all_options_reach_the_generation(folder: Path) -> None:
    base = rows_of(run("generate", "decoder", "--prompt", "ab", "--json", "--max-new-tokens", "12", cwd=folder))
    for options in (
        ["--temperature", "3"], ["--top-k", "1"], ["--top-p", "0.1"], ["--seed", "1"], ["--beams", "3"],
        ["--repetition-penalty", "50"],
    ):  # fmt: skip
        command = ("generate", "decoder", "--prompt", "ab", "--json", "--max-new-tokens", "12", *options)
        assert rows_of(run(*command, cwd=folder)) != base, options
    text = str(base[0]["text"])
    stopped = ("generate", "decoder", "--prompt", "ab", "--json", "--max-new-tokens", "12", "--stop", text[3:5])
    assert rows_of(run(*stopped, cwd=folder))[0]["finish"] == "stop"
    beams = ("generate", "decoder", "--prompt", "ab", "--json", "--max-new-tokens", "12", "--beams", "4")
    short = rows_of(run(*beams, "--stop-token", "100", "--length-penalty", "-20", cwd=folder))
    assert short != rows_of(run(*beams, "--stop-token", "100", "--length-penalty", "20", cwd=folder))


@pytest.mark.parametrize("name", ["decoder", "pairs"])
def test_new_tokens_fill_the_context_unless_told_otherwise(folder: Path, name: str) -> None:
    """128 of them do not fit these models; the refusal of as many says how many do, for each prompt by itself."""
    prompts = ("x" * 20, "ab")
    rows = rows_of(run("generate", name, "--prompt", prompts[0], "--prompt", prompts[1], "--json", cwd=folder))
    for prompt, row in zip(prompts, rows, strict=True):
        command = ("generate", name, "--prompt", prompt, "--json")
        refused = run(*command, "--max-new-tokens", "128", cwd=folder)
        assert refused.returncode == 2
        room = re.search(r"set --max-new-tokens to (\d+)", refused.stderr)
        assert room is not None
        assert rows_of(run(*command, "--max-new-tokens", room[1], cwd=folder)) == [row]


def test_samples_at_the_end_of_training(folder: Path) -> None:
    for name, prompts in (("decoder", ["ab", ""]), ("spans", ["ab"]), ("pairs", ["ab"])):
        samples = json.loads((folder / name / "summary.json").read_text())["samples"]
        assert [sample["prompt"] for sample in samples] == prompts


MISTAKES = {
    ("decoder",): r"generate needs a prompt; give --prompt TEXT or --prompts FILE",
    ("decoder", "--prompts", "none.txt"): r"--prompts: cannot read none\.txt: No such file or directory; name",
    ("decoder", "--prompts", "empty.txt"): r"--prompts: empty\.txt is empty; give a file with a prompt a line",
    ("decoder", "--prompts", "pointer.txt"): r"--prompts: pointer\.txt is a pointer of Git LFS .* run `git lfs pull`",
    ("decoder", "--prompt", "a\udcff"): r"the prompt is 'a\\udcff', whose bytes are not UTF-8; write it in UTF-8",
    ("decoder", "--prompts", "binary.txt"): r"--prompts: binary\.txt is not UTF-8 text; give",
    ("decoder", "--prompt", "x" * 80): r"the prompt has 81 tokens, but the model's context is 64; shorten",
    (
        "decoder",
        "--prompt",
        "x",
        "--prompt",
        "x" * 80,
        "--max-new-tokens",
        "9",
    ): r"prompt 2 of 2 has 81 tokens, but .* is 64; shorten",
    ("decoder", "--prompt", "x", "--stop-token", "259"): r"stop token 259 is outside the vocabulary, whose 259",
    ("decoder", "--prompt", "x", "--stop", ""): r"stop holds an empty text",
    ("decoder", "--prompt", "x", "--beams", "2", "--temperature", "1"): r"beams is 2 and temperature is 1\.0, but",
    ("decoder", "--prompt", "x", "--beams", "0"): r"beams is 0, but must be 1 \(no beam search\) or more",
    ("decoder", "--prompt", "x", "--beams", "999", "--max-new-tokens", "9"): r"beams is 999, .* to 129 or less",
    ("decoder", "--prompt", "x", "--batch", "0"): r"batch is 0, but must be at least 1",
    ("decoder", "--prompt", "x", "--max-new-tokens", "0"): r"max_new_tokens is 0, but must be at least 1",
    ("decoder", "--prompt", "x", "--repetition-penalty", "0"): r"repetition_penalty is 0\.0, but must be a finite",
    ("spans", "--prompt", ""): r"the prompt is empty, but the encoder of this model needs a source text; give one",
    ("joined", "--prompt", ""): r"the prompt is empty, but this model, trained on pairs of texts, needs a source",
    ("encoder", "--prompt", "x"): r"model\.architecture of this checkpoint is encoder, which continues no text; give",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes(folder: Path, arguments: tuple[str, ...]) -> None:
    done = run("generate", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    [sentence] = done.stderr.splitlines()
    assert re.match(f"llmscale: .*{MISTAKES[arguments]}", sentence), sentence


@pytest.mark.parametrize("name", ["decoder", "pairs"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrow_types(folder: Path, name: str, dtype: str) -> None:
    where = ("--device", "cpu", "--dtype", dtype)
    [row] = rows_of(run("generate", name, "--prompt", "ab", "--json", *GREEDY, *where, cwd=folder))
    assert row["tokens"] == 8 or row["finish"] == "end"


@pytest.mark.parametrize("command", ["generate", "chat", "eval"])
@pytest.mark.parametrize(("option", "value"), [("device", "tpu"), ("device", "cuda"), ("dtype", "int8")])
def test_devices_and_types_that_there_are_not(folder: Path, command: str, option: str, value: str) -> None:
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    given = {"generate": ("--prompt", "a"), "chat": (), "eval": ("--data", "prompts.txt")}[command]
    done = run(command, "decoder", *given, f"--{option}", value, cwd=folder)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"llmscale: --{option} is ")
    assert "give " in line


def test_an_encoder_does_not_chat(folder: Path) -> None:
    done = run("chat", "encoder", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is encoder, which continues no text" in done.stderr


def test_an_empty_sample_prompt_for_an_encoder_is_refused_before_training(folder: Path) -> None:
    overrides = ("model.architecture=encoder_decoder", "objective.name=denoising", "logging.sample_prompts=['']")
    done = run("train", "config.yaml", "run.directory=early", *overrides, cwd=folder)
    assert done.returncode == 2
    assert "logging.sample_prompts.0 is empty, but a model trained by objective denoising" in done.stderr
