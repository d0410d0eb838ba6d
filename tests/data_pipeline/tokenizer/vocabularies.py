"""Small vocabularies in the formats that others publish, trained by their own libraries."""

from __future__ import annotations

import inspect
import json
import random
import textwrap
from pathlib import Path

import sentencepiece
import tokenizers

TEXT = [
    *inspect.getsource(textwrap).splitlines(keepends=True),
    *inspect.getsource(random).splitlines(keepends=True),
    *["你好，世界。今天天气很好，我们去公园吧！\n", "déjà vu, naïve café — “quoted” 😀\n", "吾輩は猫である。한국어\n"]
    * 5,
]
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def gpt2_files(folder: Path) -> Path:
    """`vocab.json` and `merges.txt` of a byte-level BPE with GPT-2's one special token; the path of the first.

    Like the others, it is trained once a folder."""
    if (folder / "vocab.json").exists():
        return folder / "vocab.json"
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXT, vocab_size=700, special_tokens=["<|endoftext|>"], show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    return folder / "vocab.json"


def bert_file(folder: Path) -> Path:
    """A `vocab.txt` of cased and lower-case word pieces."""
    if (folder / "vocab.txt").exists():
        return folder / "vocab.txt"
    trained = tokenizers.BertWordPieceTokenizer(lowercase=False)
    trained.train_from_iterator(
        TEXT + [line.lower() for line in TEXT], vocab_size=800, special_tokens=BERT_TOKENS, show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    return folder / "vocab.txt"


def t5_file(folder: Path, name: str = "spiece.model", **settings: object) -> Path:
    """A Unigram SentencePiece model with T5's roles (no bos) and normalisation, unless `settings` say otherwise."""
    if (folder / name).exists():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT),
            model_writer=file,
            **{
                "model_type": "unigram",
                "vocab_size": 500,
                "character_coverage": 0.999,
                "pad_id": 0,
                "eos_id": 1,
                "unk_id": 2,
                "bos_id": -1,
                "hard_vocab_limit": False,
                "minloglevel": 3,
                **settings,
            },
        )
    return folder / name


def tokenizer_json(path: Path, backend: tokenizers.Tokenizer, added: dict[str, bool] | None = None) -> Path:
    """A `tokenizer.json`, with tokens added that are special or not."""
    for text, special in (added or {}).items():
        backend.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False)])
    layout = json.loads(backend.to_str())
    for entry in layout["added_tokens"]:
        entry["special"] = (added or {}).get(entry["content"], entry["special"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")
    return path
