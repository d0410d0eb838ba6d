"""Pairs of texts, as an imported model's own tokenizer in transformers reads them; the first token of decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from data_pipeline.objectives.classification import Classification, ClassificationObjective
from data_pipeline.objectives.packing import Sample, stored_value
from data_pipeline.objectives.span import Span, SpanObjective
from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import parse_config
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.parallel.init import build
from tests.data_pipeline.tokenizer.vocabularies import TEXT, bert_file, t5_file

PAIRS = [("def wrap(text):", "return a list"), ("a", "b"), ("\u4f60\u597d", "na\u00efve caf\u00e9 " * 9)]
LENGTH = 60
ENCODER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 700}


def write_roberta(folder: Path, saved: bool) -> None:
    """RoBERTa's files: those of a vocabulary, or all that transformers writes of them."""
    place = folder.with_name(f"{folder.name}-files") if saved else folder
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXT, vocab_size=600, special_tokens=special, show_progress=False)
    place.mkdir(exist_ok=True)
    trained.save_model(str(place))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>", "mask_token": "<mask>", "tokenizer_class": "RobertaTokenizer"}
    (place / "tokenizer_config.json").write_text(json.dumps(names))
    if saved:
        transformers.AutoTokenizer.from_pretrained(place).save_pretrained(folder)


def forget_names(folder: Path) -> None:
    """As the first models were published, whose tokens the tokenizer's class names alone."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))


def write_xlm_roberta(folder: Path, named: bool) -> None:
    """A unigram tokenizer.json as XLM-RoBERTa's, with the names of its tokens or without."""
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=500, unk_token="<unk>", show_progress=False)
    learner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    learner.train_from_iterator(TEXT, trainer)
    pieces = [(text, score) for text, score in json.loads(learner.to_str())["model"]["vocab"] if text != "<unk>"]
    first = [(text, 0.0) for text in ("<s>", "<pad>", "</s>", "<unk>")]
    made = transformers.XLMRobertaTokenizer(vocab=[*first, *pieces, ("<mask>", 0.0)])
    made.save_pretrained(folder)
    if not named:
        forget_names(folder)


def write_directory(folder: Path, kind: str) -> None:
    folder.mkdir()
    if kind.startswith("roberta"):
        write_roberta(folder, saved=kind != "roberta_files")
        if kind.endswith("unnamed"):
            forget_names(folder)
        sizes = {"vocab_size": 600, "max_position_embeddings": 66, "type_vocab_size": 1}
        config: Any = transformers.RobertaConfig(**sizes, **ENCODER)
        transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    elif kind.startswith("xlm_roberta"):
        write_xlm_roberta(folder, named=kind == "xlm_roberta")
        config = transformers.XLMRobertaConfig(vocab_size=600, max_position_embeddings=66, type_vocab_size=1, **ENCODER)
        transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder)
    elif kind == "bert":
        bert_file(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        config = transformers.BertConfig(vocab_size=800, max_position_embeddings=64, **ENCODER)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    else:
        t5_file(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
        name = kind.upper()
        config = getattr(transformers, f"{name}Config")(**T5, decoder_start_token_id=0)
        getattr(transformers, f"{name}ForConditionalGeneration")(config).save_pretrained(folder)


def imported(folder: Path, kind: str) -> tuple[Tokenizer, Any]:
    """Our tokenizer, and theirs."""
    torch.manual_seed(0)
    write_directory(folder / "hf", kind)
    import_directory(folder / "hf", folder / "ours")
    return load_tokenizer(folder / "ours" / "tokenizer"), transformers.AutoTokenizer.from_pretrained(folder / "hf")


def sample_of(tokenizer: Tokenizer, first: str, second: str, value: Any) -> Sample:
    texts = [tokenizer.encode(text) for text in (first, second)]
    return Sample(np.array([*texts[0], *texts[1]], np.int32), (), len(texts[0]), values=(stored_value(value),))


@pytest.mark.parametrize(
    "kind",
    ["roberta", "roberta_files", "roberta_unnamed", "xlm_roberta", "xlm_roberta_unnamed", "bert", "t5", "mt5"],
)
def test_a_pair_is_read_as_by_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer, theirs = imported(tmp_path, kind)
    encoder = kind.startswith(("bert", "roberta", "xlm_roberta"))
    pooling, read = ("first", "inputs") if encoder else ("decoder", "encoder_inputs")
    objective = ClassificationObjective(labels=["a", "b"], pairs=True, pooling=pooling)  # type: ignore[arg-type]
    made = Classification(objective, tokenizer, LENGTH)
    for pair in (*PAIRS, ("x" * 99, "y" * 99)):
        sample = sample_of(tokenizer, *pair, "a")
        arrays = made.arrays([sample], [0])
        size = int(arrays["encoder_weights"].sum())
        expected = theirs(*pair, truncation="longest_first", max_length=LENGTH)
        assert made.is_cut(sample) == (len(theirs(*pair)["input_ids"]) > LENGTH)
        assert arrays[read][0, :size].tolist() == expected["input_ids"]
        if kind == "bert":
            assert arrays["segment_ids"][0, :size].tolist() == expected["token_type_ids"]
    alone = sample_of(tokenizer, PAIRS[0][0], "", "a")
    arrays = made.arrays([alone], [0])
    assert arrays[read][0, : int(arrays["encoder_weights"].sum())].tolist() == theirs(PAIRS[0][0])["input_ids"]
    # A question and a passage are such a pair, too.
    span = Span(SpanObjective(special_tokens="cls" if encoder else "decoder"), tokenizer, LENGTH)
    question, passage = (np.array(tokenizer.encode(text), np.int32) for text in PAIRS[0])
    [window] = span.windows(question, passage)
    row, first, _ = span.row(window.question, window.tokens)
    assert row.tolist() == theirs(*PAIRS[0])["input_ids"]
    assert row[first : first + len(passage)].tolist() == passage.tolist()


def test_a_row_is_full_where_the_texts_fill_it(tmp_path: Path) -> None:
    """With one token more between the texts, one less of them has room."""
    tokenizer, theirs = imported(tmp_path, "roberta")
    span = Span(SpanObjective(), tokenizer, 24)
    question, passage = (np.array(tokenizer.encode(text), np.int32) for text in ("what is it?", TEXT[5] * 4))
    rows = [span.row(window.question, window.tokens)[0] for window in span.windows(question, passage)]
    assert len(rows) > 1
    assert len(rows[0]) == 24
    assert theirs.decode(rows[0]).count("</s></s>") == 1


def test_what_is_exported_reads_pairs_the_same(tmp_path: Path) -> None:
    _, theirs = imported(tmp_path, "roberta")
    export_checkpoint(tmp_path / "ours", tmp_path / "exported")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    import_directory(tmp_path / "exported", tmp_path / "back")
    back = load_tokenizer(tmp_path / "back" / "tokenizer")
    for pair in PAIRS:
        assert again(*pair)["input_ids"] == theirs(*pair)["input_ids"]
    made = Classification(ClassificationObjective(labels=["a", "b"], pairs=True), back, LENGTH)
    [row] = made.arrays([sample_of(back, *PAIRS[0], "a")], [0])["inputs"]
    expected = theirs(*PAIRS[0])["input_ids"]
    assert row[: len(expected)].tolist() == expected


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_the_decoder_starts_from_the_padding_token(family: str, tmp_path: Path) -> None:
    """Of a model of ours, as its decoder was trained."""
    config = parse_config(
        {
            "run": {"directory": "r"},
            "data": {"sources": [{"paths": ["a"]}], "tokenizer": {"kind": "bytes"}, "sequence_length": 32},
            "model": {"family": family, "layers": 1, "encoder_layers": 1, "hidden_size": 16, "heads": 2},
            "objective": {"name": "denoising"},
        }
    )
    kept = tmp_path / "tokenizer"
    tokenizer = prepare_tokenizer(config.data, kept, roles=config.objective.roles(32))
    built = build(config.model, config.model.vocabulary(tokenizer.vocab_size), seed=3)
    (tmp_path / "ours").mkdir()
    tensors = ((key, value.detach()) for key, value in built.named_parameters())
    files = {file.name: file.read_bytes() for file in kept.iterdir()}
    write_whole(tmp_path / "ours", tensors, RunState(samples=0, config=config.model_dump(mode="json")), files)
    export_checkpoint(tmp_path / "ours", tmp_path / "exported")
    read = transformers.AutoConfig.from_pretrained(tmp_path / "exported")
    assert read.model_type == family
    assert read.decoder_start_token_id == tokenizer.special["pad"]
