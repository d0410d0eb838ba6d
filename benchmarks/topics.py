"""Topics of mixed corpora: an encoder that is pretrained and tuned here beside bags of words.

    python -m benchmarks.topics --data-root DIR [--language en|zh] [--folder DIR] [--documents N]

The data are short documents of several sources, whose source is the label that no method sees. A small BERT is trained
by masked language modelling on one part of them, then by the objective contrastive on the two halves of each document;
`llmscale topics` finds as many topics as there are sources in the other part. Beside it are k-means of TF-IDF vectors,
and of those reduced by latent semantic analysis. One JSON line: purity and normalised mutual information of each, the
mean of three seeds, and the seconds of training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import machine

SEEDS = (0, 1, 2)
SIZES = {"layers": 3, "hidden_size": 128, "heads": 4, "ffn_size": 512, "max_positions": 64}
_PER_SOURCE = 1600
"""Documents of a source, for training and evaluation."""
_LONGEST = {"en": 40, "zh": 60}
"""Words or characters of a document."""


def _json(*parts: str) -> Callable[[Path], Iterator[dict[str, Any]]]:
    def rows(root: Path) -> Iterator[dict[str, Any]]:
        for part in parts:
            text = (root / part).read_text(encoding="utf-8")
            yield from json.loads(text) if part.endswith(".json") else map(json.loads, text.splitlines())

    return rows


def _texts(pattern: str, split: str) -> Callable[[Path], Iterator[str]]:
    """Parts of plain files, where a regular expression says."""

    def parts(root: Path) -> Iterator[str]:
        for path in sorted(root.glob(pattern)):
            yield from re.split(split, path.read_text(encoding="utf-8"))

    return parts


def _column(pattern: str, column: int) -> Callable[[Path], Iterator[str]]:
    return lambda root: (
        line.split("\t")[column]
        for path in sorted(root.glob(pattern))
        for line in path.read_text(encoding="utf-8").splitlines()[1:]
        if line.count("\t") >= column
    )


def _field(
    rows: Callable[[Path], Iterator[dict[str, Any]]], name: str, join: str = " "
) -> Callable[..., Iterator[str]]:
    def texts(root: Path) -> Iterator[str]:
        for row in rows(root):
            value = row.get(name) or ""
            yield join.join(value) if isinstance(value, list) else value

    return texts


SOURCES: dict[str, dict[str, Callable[[Path], Iterator[str]]]] = {
    "en": {
        "encyclopedia": _texts("wikitext-2/*.txt", r"\n"),
        "stories": _texts("tinystories/*.txt", r"<\|endoftext\|>"),
        "plays": _texts("tinyshakespeare/*.txt", r"\n\n"),
        "papers": _field(_json("scitldr/train.jsonl"), "source"),
        "novels": _texts("austen/*.txt", r"\n\s*\n"),
        "reviews": _column("sst2/train.tsv", 0),
        "captions": _texts("multi30k/train.en", r"\n"),
        "science": _field(_json("eval/sciq.validation.jsonl"), "support"),
    },
    "zh": {
        "papers": _column("csl_title/*.tsv", 1),
        "reviews": _column("chnsenticorp/*.txt", 0),
        "poetry": _field(_json("chinese_poetry/songci_all.jsonl"), "paragraphs", ""),
        "novels": _texts("zh_novels/*.txt", r"\n\s*\n"),
        "instructions": _field(_json("sft/alpaca_zh_demo.json"), "output"),
    },
}


def documents_of(root: Path, language: str, seed: int = 1) -> list[tuple[str, str]]:
    """(source, text) of short documents, in a random order."""
    draw, found = random.Random(seed), []
    for source, read in SOURCES[language].items():
        texts = sorted({_short(text, language) for text in read(root)} - {""})
        draw.shuffle(texts)
        found += [(source, text) for text in texts[:_PER_SOURCE]]
    draw.shuffle(found)
    return found


def _short(text: str, language: str) -> str:
    """The beginning of a text; "" where that is too little."""
    # What WikiText writes for rare words would give its documents away.
    text = text.replace("<unk>", " ")
    words = text.split() if language == "en" else list("".join(text.split()))
    least = 8 if language == "en" else 16
    return (" " if language == "en" else "").join(words[: _LONGEST[language]]) if len(words) >= least else ""


def halves(text: str, language: str) -> tuple[str, str]:
    """The two halves of a document."""
    words, join = (text.split(), " ") if language == "en" else (list(text), "")
    return join.join(words[: len(words) // 2]), join.join(words[len(words) // 2 :])


def train(folder: Path, masked_steps: int, steps: int) -> Path:
    """Pretrain and tune on `train.jsonl`; the tuned run."""
    shared: dict[str, Any] = {
        "model": {"family": "bert", "next_sentence": False, **SIZES},
        "evaluation": {"interval": 0},
        "checkpoint": {"interval": 0, "keep": 1},
        "logging": {"interval": 50},
    }
    source = {"kind": "jsonl", "paths": ["train.jsonl"]}
    data: dict[str, Any] = {
        "tokenizer": {"kind": "sentencepiece", "train": {"model": "unigram", "vocab_size": 6000}},
        "holdout": 0.02,
        "span_bytes": 2000,
        "lanes": 64,
    }
    masked = {
        **shared,
        "run": {"directory": "masked", "device": "cpu"},
        "data": {"sources": [{**source, "field": "text"}], "sequence_length": 64, **data},
        "objective": {"name": "masked"},
        "optimizer": {"lr": 1e-3, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup_steps": masked_steps // 10},
        "train": {"steps": masked_steps, "global_batch": 64, "micro_batch": 64},
    }
    tuned = {
        **masked,
        "run": {"directory": "tuned", "device": "cpu"},
        "data": {
            "sources": [{**source, "field": "first", "target_field": "second"}],
            "sequence_length": 32,
            **data,
            "tokenizer": {"kind": "sentencepiece", "path": "masked/tokenizer/tokenizer.model"},
        },
        "objective": {"name": "contrastive"},
        "optimizer": {"lr": 3e-4, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup_steps": steps // 10},
        "train": {"steps": steps, "global_batch": 128, "micro_batch": 128, "init_from": "masked"},
        "evaluation": {"interval": 100, "batch": 64},
    }
    for name, config in (("masked", masked), ("tuned", tuned)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        subprocess.run([sys.executable, "-m", "llmscale", "train", f"{name}.yaml"], cwd=folder, check=True, stdout=2)
    return folder / "tuned"


def bags_of_words(texts: list[str], language: str, topics: int, seed: int, reduced: bool) -> Any:
    """(N,) clusters of TF-IDF vectors, by scikit-learn alone."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    english = {"stop_words": "english"}
    words: dict[str, Any] = english if language == "en" else {"analyzer": "char", "ngram_range": (1, 2)}
    vectors = TfidfVectorizer(min_df=2, max_df=0.5, sublinear_tf=True, **words).fit_transform(texts)
    if reduced:
        vectors = normalize(TruncatedSVD(100, random_state=seed).fit_transform(vectors))
    return KMeans(topics, n_init=10, random_state=seed).fit_predict(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--language", choices=sorted(SOURCES), default="en")
    parser.add_argument("--documents", type=int, default=2000, help="that topics are found in")
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 300), metavar=("MASKED", "CONTRASTIVE"))
    parser.add_argument("--folder", type=Path, help="kept, and used again where it has a trained model")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        print(json.dumps(measure(chosen, folder.absolute())))


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, find topics, and say how well they fit the sources."""
    from sklearn.metrics import normalized_mutual_info_score

    from llmscale.topics.scores import purity

    folder.mkdir(parents=True, exist_ok=True)
    documents = documents_of(chosen.data_root, chosen.language)
    held, trained_on = documents[: chosen.documents], documents[chosen.documents :]
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for _, text in trained_on:
            first, second = halves(text, chosen.language)
            file.write(json.dumps({"text": text, "first": first, "second": second}, ensure_ascii=False) + "\n")
    with open(folder / "held.jsonl", "w", encoding="utf-8") as file:
        for source, text in held:
            file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
    began = time.perf_counter()
    if not (folder / "tuned" / "summary.json").exists():
        train(folder, *chosen.steps)
    seconds = time.perf_counter() - began
    labels, texts = [source for source, _ in held], [text for _, text in held]
    count = len(SOURCES[chosen.language])
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "masked_only": [], "tfidf": [], "lsa": []}
    for seed, (name, run) in itertools.product(SEEDS, (("ours", "tuned"), ("masked_only", "masked"))):
        output = folder / f"topics-{name}-{seed}"
        command = ["topics", run, "--input", "held.jsonl", "--label", "source", "--topics", str(count)]
        command += ["--seed", str(seed), "--output", output.name, "--device", "cpu"]
        subprocess.run([sys.executable, "-m", "llmscale", *command], cwd=folder, check=True, stdout=2)
        result = json.loads((output / "topics.json").read_text())
        found[name].append((result["purity"], result["mutual_information"]))
    for seed, (name, reduced) in itertools.product(SEEDS, (("tfidf", False), ("lsa", True))):
        clusters = bags_of_words(texts, chosen.language, count, seed, reduced).tolist()
        found[name].append((purity(clusters, labels), float(normalized_mutual_info_score(labels, clusters))))
    figures = {
        name: {
            "purity": round(statistics.mean(pair[0] for pair in pairs), 4),
            "mutual_information": round(statistics.mean(pair[1] for pair in pairs), 4),
            "purities": [round(pair[0], 4) for pair in pairs],
        }
        for name, pairs in found.items()
    }
    about = {"language": chosen.language, "documents": len(held), "trained_on": len(trained_on), "topics": count}
    return {"benchmark": "topics", **about, "train_seconds": round(seconds), **figures, "machine": machine()}


if __name__ == "__main__":
    main()
