"""An imported model reads and writes as it was trained: the same tokens, losses and texts as transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers

from data_pipeline.base.errors import UserError
from llmscale.checkpoint.model import load_model
from llmscale.generate import Generator, Settings
from llmscale.generate.prompts import contexts_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.conventions import edit, write_model
from tests.hugging_face.test_bad_directories import command

PROMPTS = ["def wrap(text):", " The café 3.5 m²", "x", "    return None\n"]
KINDS = ["llama3", "add_bos_token", "both", "qwen", "gpt2", "llama2"]
BEGINS = {"llama3": "<s>", "add_bos_token": "<s>", "both": "<s>", "llama2": "<s>"}


def expected_ids(folder: Path, kind: str, text: str) -> list[int]:
    """What transformers' tokenizer gives. transformers 5 overlooks `add_bos_token` beside a tokenizer.json without a
    template, where earlier ones put the begin token; and of a SentencePiece model it drops spaces in front of a text,
    which the library keeps."""
    if kind == "llama2":
        return [1, *sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode(text)]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids: list[int] = theirs(text).input_ids
    return [theirs.bos_token_id, *ids] if kind == "add_bos_token" else ids


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each kind's directory is made once."""
    return tmp_path_factory.mktemp("conventions")


@pytest.fixture
def folder(base: Path, kind: str) -> Path:
    """The directory of transformers (hf-...) of a kind, and what was imported of it."""
    if not (base / kind).exists():
        write_model(base / f"hf-{kind}", kind)
        import_directory(base / f"hf-{kind}", base / kind)
    return base


@pytest.mark.parametrize("kind", [*KINDS, "t5"])
def test_prompts_begin_and_end_as_in_transformers(kind: str, folder: Path) -> None:
    trained = load_model(folder / kind)
    contexts = contexts_of(PROMPTS, trained.tokenizer, trained.model.config, "document")
    expected = [expected_ids(folder / f"hf-{kind}", kind, text) for text in PROMPTS]
    assert [context.key for context in contexts] == expected
    first = trained.tokenizer.token_text(expected[0][0])
    assert first == BEGINS.get(kind, first)
    assert first not in ("</s>", "<|im_end|>", "<|endoftext|>")
    raw = contexts_of(PROMPTS, trained.tokenizer, trained.model.config, "document", raw=True)
    assert [context.key for context in raw] == [trained.tokenizer.encode(text) for text in PROMPTS]


@pytest.mark.parametrize("kind", [*KINDS, "t5"])
def test_generate_gives_the_texts_of_transformers(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = getattr(transformers, {"t5": "T5ForConditionalGeneration"}.get(kind, "AutoModelForCausalLM"))
    model = theirs.from_pretrained(folder / f"hf-{kind}").eval()
    words = [word for text in PROMPTS for word in ("--prompt", text)]
    assert command("generate", folder / kind, *words, "--temperature", 0, "--max-new-tokens", 12, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tokenizer = load_model(folder / kind).tokenizer
    for text, row in zip(PROMPTS, rows, strict=True):
        ids = torch.tensor([expected_ids(folder / f"hf-{kind}", kind, text)])
        options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        made = model.generate(ids, **options)[0].tolist()[1 if kind == "t5" else ids.shape[1] :]
        ends = [place for place, token in enumerate(made) if token == model.generation_config.eos_token_id]
        assert row["tokens"] == (ends[0] if ends else 12)
        made = [token for token in made[: row["tokens"]] if token < tokenizer.vocab_size]
        before = [] if kind == "t5" else ids[0].tolist()
        assert tokenizer.decode([*before, *made]) == tokenizer.decode(before) + row["text"]


def reference_loss(folder: Path, kind: str, documents: list[str]) -> tuple[float, int]:
    """Mean loss in nats of transformers' model on the documents, one after the other, each with its special tokens and
    the end token; and of how many tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    begin = [theirs.bos_token_id] if kind in BEGINS else []
    stream: list[int] = []
    counted: list[bool] = []
    for document in documents:
        text = expected_ids(folder, kind, document)[len(begin) :]
        text = text[:-1] if kind == "both" else text
        stream += [*begin, *text, theirs.eos_token_id]
        counted += [False] * len(begin) + [True] * (len(text) + 1)
    counted[0] = False
    ids = torch.tensor([stream])
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
    chosen = losses[torch.tensor(counted[1:])]
    return float(chosen.mean()), len(chosen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_documents_are_scored_as_in_transformers(
    kind: str, count: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = ["import random\n", "The café is open.", "x = 1"][:count]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    assert command("eval", folder / kind, "--data", tmp_path / "texts.jsonl", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    loss, tokens = reference_loss(folder / f"hf-{kind}", kind, documents)
    assert figures["tokens"] == tokens
    assert figures["loss"] == pytest.approx(loss, rel=2e-6)


@pytest.mark.parametrize("kind", [*KINDS, "t5"])
def test_export_gives_the_conventions_back(kind: str, folder: Path, tmp_path: Path) -> None:
    source = folder / f"hf-{kind}"
    export_checkpoint(folder / kind, tmp_path / "back")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in PROMPTS:
        assert theirs(text).input_ids == expected_ids(source, kind, text), text
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, tmp_path / "back"))
    assert {key: before[key] for key in before if key.endswith("_token_id")} == {
        key: after[key] for key in after if key.endswith("_token_id")
    }
    if (source / "generation_config.json").exists():
        generation = [
            json.loads((place / "generation_config.json").read_text()) for place in (source, tmp_path / "back")
        ]
        assert generation[0] == generation[1]
    import_directory(tmp_path / "back", tmp_path / "again")
    again, first = (load_model(place).tokenizer for place in (tmp_path / "again", folder / kind))
    assert again.conventions == first.conventions  # type: ignore[attr-defined]


ENDS = [pytest.param(value, id=str(value)) for value in ([257, 258, 300], 258, None)]


def ends_of(model: Any, prompts: list[list[int]]) -> list[int]:
    """Tokens that greedy decoding comes to, each in another text and at another place."""
    ends = []
    for number, ids in enumerate(prompts):
        row = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        ends.append(int(row[0, len(ids) + 3 * number + 1]))
    return ends


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_a_text_ends_at_each_of_several_tokens(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "hf"
    model: Any = write_model(source, "llama3", seed=3)
    ids = [expected_ids(source, "llama3", text) for text in PROMPTS[:3]]
    ends = ends_of(model, ids)
    (source / "generation_config.json").unlink()
    edit(source / "config.json", eos_token_id=ends if place == "config.json" else ends[0])
    if place != "config.json":
        edit(source / place, eos_token_id=ends, unknown_key={"kept": [1]})
    import_directory(source, tmp_path / "ours")
    words = [word for text in PROMPTS[:3] for word in ("--prompt", text)]
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(source)
    assert theirs.generation_config.eos_token_id == ends
    for beams in (1, 3):
        options = ("--temperature", 0, "--max-new-tokens", 12, "--json", "--batch", 2, "--beams", beams)
        assert command("generate", tmp_path / "ours", *words, *options) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for row, prompt in zip(rows, ids, strict=True):
            made = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, num_beams=beams, pad_token_id=0
            )[0].tolist()[len(prompt) :]
            stops = [number for number, token in enumerate(made) if token in ends]
            assert (row["tokens"], row["finish"]) == ((stops[0], "end") if stops else (12, "length"))
        assert "end" in {row["finish"] for row in rows}
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert back.generation_config.eos_token_id == ends
    written = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert written["eos_token_id"] == ends
    if place != "config.json":
        assert written == json.loads((source / place).read_text())
    assert (
        json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"]
        == json.loads((source / "config.json").read_text())["eos_token_id"]
    )


def test_one_end_none_and_one_outside_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "hf"
    write_model(source, "llama3")
    for number, (value, stop) in enumerate([(258, (258,)), (None, ()), ([7], (7,))]):
        edit(source / "generation_config.json", eos_token_id=value)
        import_directory(source, tmp_path / str(number))
        kept = load_model(tmp_path / str(number)).tokenizer.conventions  # type: ignore[attr-defined]
        assert kept is not None
        assert kept.stop == stop
    edit(source / "generation_config.json", eos_token_id=[257, 9999])
    assert command("import", source, tmp_path / "out") == 2
    [sentence] = capsys.readouterr().err.splitlines()[-1:]
    assert "generation_config.json: eos_token_id names token 9999, but the model's 640 tokens are 0 to 639" in sentence
    assert not (tmp_path / "out").exists()


GENERATION = {
    "do_sample": True, "temperature": 0.6, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.3, "max_new_tokens": 9,
}  # fmt: skip


def test_defaults_of_generation_are_kept_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "hf"
    write_model(source, "llama3")
    edit(source / "generation_config.json", no_repeat_ngram_size=3, **GENERATION)
    notes = import_directory(source, tmp_path / "ours")
    assert any("no_repeat_ngram_size=3" in note for note in notes)
    prompts = ("--prompt", "def", "--prompt", "x", "--json")

    def texts(*options: object) -> list[str]:
        assert command("generate", tmp_path / "ours", *prompts, *options) == 0
        out, err = capsys.readouterr()
        assert "no_repeat_ngram_size=3" in err
        return [json.loads(line)["text"] for line in out.splitlines()]

    plain = texts()
    generator = Generator(load_model(tmp_path / "ours").model, load_model(tmp_path / "ours").tokenizer)
    settings = Settings(9, temperature=0.6, top_k=7, top_p=0.8, repetition_penalty=1.3)
    assert plain == [done.text for done in generator.generate(["def", "x"], settings)]
    greedy = Settings(4, repetition_penalty=1.0)
    assert texts("--temperature", 0, "--max-new-tokens", 4, "--repetition-penalty", 1) == [
        done.text for done in generator.generate(["def", "x"], greedy)
    ]
    assert texts("--seed", 5) != plain
    edit(source / "generation_config.json", temperature="hot")
    assert command("import", source, tmp_path / "out") == 2
    assert "generation_config.json: temperature is 'hot', but must be a number" in capsys.readouterr().err


def test_ids_that_nobody_set_are_noted_and_not_used(tmp_path: Path) -> None:
    """GPT-2's class has the end token of its published vocabulary, whatever the size of a model."""
    source = tmp_path / "hf"
    write_model(source, "gpt2", bos_token_id=50256, eos_token_id=50256)
    notes = import_directory(source, tmp_path / "ours")
    assert any(
        "eos_token_id 50256 of config.json is outside the model's 720 tokens: not used" in note for note in notes
    )
    tokenizer = load_model(tmp_path / "ours").tokenizer
    assert Settings().ends(tokenizer) == [tokenizer.special["eos"]]
    edit(source / "generation_config.json", eos_token_id=50000)
    with pytest.raises(
        UserError, match=r"generation_config\.json: eos_token_id names token 50000, but the model's 720"
    ):
        import_directory(source, tmp_path / "again")
