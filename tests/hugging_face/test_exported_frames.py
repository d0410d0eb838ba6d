"""What `AutoTokenizer` puts around texts is what a head is trained on and asked about, exported and imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from data_pipeline.tokenizer import load_tokenizer
from llmscale.checkpoint.reader import newest_intact
from llmscale.config import parse_config
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.evaluate.test_classify_task import write_checkpoint
from tests.hugging_face.references import save
from tests.hugging_face.test_classification import reference
from tests.hugging_face.test_pairs import sample_of

CLASSIFY = {"name": "classification", "labels": ["a", "b"], "pairs": True}
TAG = {"name": "token_classification", "labels": ["a", "b"], "scheme": "none"}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {**CLASSIFY, "pooling": "first"}),
    "modernbert mean": ("modernbert", {**CLASSIFY, "pooling": "mean"}),
    "bert tags": ("bert", TAG),
    "gpt2": ("gpt2", {**CLASSIFY, "pooling": "last"}),
    "gpt2 tags": ("gpt2", {**TAG, "special_tokens": "eos"}),
    "gpt2 span": ("gpt2", {"name": "span", "special_tokens": "eos"}),
    "t5": ("t5", {**CLASSIFY, "pooling": "decoder"}),
}
"""Family and objective."""


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_an_exported_tokenizer_reads_as_was_trained(case: str, tmp_path: Path) -> None:
    family, objective = TRAINED[case]
    fields = {"label": "l", "tokens": "a", "tags": "b", "question": "a", "answers": "b"}
    path = write_checkpoint(tmp_path, family, objective, fields)
    export_checkpoint(path, tmp_path / "exported")
    for folder in (tmp_path / "exported", tmp_path / "again"):
        checkpoint = newest_intact(path)
        tokenizer = load_tokenizer(checkpoint.tokenizer)
        config = parse_config(dict(checkpoint.manifest.config))
        around = config.objective.around(tokenizer)
        assert around is not None
        first, second = tokenizer.encode("ab"), tokenizer.encode("cde")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs("ab")["input_ids"] == [*around.begin, *first, *around.end]
        pair = theirs("ab", "cde")
        assert pair["input_ids"] == [*around.begin, *first, *around.between, *second, *around.end]
        assert ("token_type_ids" in pair) == (family == "bert")
        if objective["name"] == "classification":
            made = config.objective.build(tokenizer, 32, 0)
            arrays = made.arrays([sample_of(tokenizer, "ab", "cde", "a")], [0])
            size = len(pair["input_ids"])
            inputs = arrays.get("encoder_inputs", arrays["inputs"])[0]
            assert inputs[:size].tolist() == pair["input_ids"]
            assert arrays["encoder_weights"].sum() == size
            if family == "bert":
                assert arrays["segment_ids"][0, :size].tolist() == pair["token_type_ids"]
        if folder.name == "exported":
            path = tmp_path / "ours"
            import_directory(folder, path)
            export_checkpoint(path, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt2", "llama", "modernbert", "modernbert_mean"])
def test_an_imported_head_reads_as_its_tokenizer_does(case: str, tmp_path: Path) -> None:
    """No end token behind a text of GPT-2, and `[CLS]` in front of one whose mean counts."""
    model = reference(case)
    model.config.pad_token_id = 0
    save(model, tmp_path / "hf")
    template = {"gpt2": ("$A", "$A $B:1"), "llama": ("<s> $A", "<s> $A <s>:1 $B:1")}
    single, pair = template.get(case, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"))
    names = ["<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "<unk>", *"abcde"]
    known = {name: place for place, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(known, [], unk_token="<unk>"))
    special = [(name, names.index(name)) for name in names[1:5]]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    roles |= {"cls_token": "[CLS]", "sep_token": "[SEP]"} if case.startswith("modern") else {}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    theirs.save_pretrained(tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours")
    checkpoint = newest_intact(tmp_path / "ours")
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    objective = parse_config(dict(checkpoint.manifest.config)).objective
    [label, *_] = objective.labels  # type: ignore[attr-defined]
    for second in ("", "cde"):
        arrays = objective.build(tokenizer, 16, 0).arrays([sample_of(tokenizer, "ab", second, label)], [0])
        ids = theirs(*filter(None, ("ab", second)))["input_ids"]
        assert arrays["inputs"][0, : int(arrays["encoder_weights"].sum())].tolist() == ids
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back("ab")["input_ids"] == theirs("ab")["input_ids"]
    assert back("ab", "cde")["input_ids"] == theirs("ab", "cde")["input_ids"]
