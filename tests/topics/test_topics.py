"""Topics: words in any script, c-TF-IDF and coherence beside brute force, clusters that are there, the files."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics.cluster import contingency_matrix

from data_pipeline.base.errors import UserError
from llmscale.topics.clusters import cluster
from llmscale.topics.found import find_topics
from llmscale.topics.page import render
from llmscale.topics.scores import coherence, purity
from llmscale.topics.terms import best_terms, class_tf_idf, count_words, stop_words
from llmscale.topics.words import Words
from tests.evaluate.models import write_checkpoint
from tests.train.forked import Finished, run

SUBJECTS = {
    "sea": ["ship", "wave", "sailor", "harbour", "anchor", "船只", "波浪", "水手", "港口", "渔网"],
    "kitchen": ["bread", "oven", "flour", "butter", "spoon", "面包", "烤箱", "黄油", "厨房", "汤勺"],
    "sky": ["star", "moon", "orbit", "comet", "planet", "星星", "月亮", "轨道", "彗星", "行星"],
}
COMMON = ["the", "of", "and", "我们", "因为", "但是"]


def documents(count: int, chinese: bool = False, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    """Texts of three subjects with common words in all of them, their subjects, and vectors around three centres."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = draw.choice(sorted(SUBJECTS))
        part = slice(5, None) if chinese else slice(5)
        common = COMMON[3:] if chinese else COMMON[:3]
        words = draw.choices(SUBJECTS[label][part], k=6) + draw.choices(common, k=5)
        draw.shuffle(words)
        texts.append(("" if chinese else " ").join(words))
        labels.append(label)
    noise = np.random.default_rng(seed).normal(size=(count, 8)) * 0.05
    places = np.array([sorted(SUBJECTS).index(label) for label in labels])
    return texts, labels, (np.eye(3, 8)[places] + noise).astype(np.float32)


def test_words_of_scripts_with_spaces() -> None:
    words = Words([])
    assert words.split("Don't STOP, it's 42 o’clock \U0001f600 e\u0301te\u0301 — naïve_x 'quoted'") == [
        "don't", "stop", "it's", "o’clock", "\u00e9t\u00e9", "naïve", "quoted",
    ]  # fmt: skip
    assert words.split("हिन्दी भाषा 한국어 단어") == ["हिन्दी", "भाषा", "한국어", "단어"]
    assert words.split("") == words.split("123 \r\n \U0001f600") == []


def test_words_of_scripts_without_spaces_are_learned() -> None:
    texts, _, _ = documents(2000, chinese=True)
    words = Words(texts)
    known = {word for subject in SUBJECTS.values() for word in subject[5:]} | set(COMMON[3:])
    found = Counter(word for text in texts for word in words.split(text))
    right = sum(count for word, count in found.items() if word in known)
    assert right / found.total() > 0.9
    # All of the text is kept, mixed with other scripts too.
    assert "".join(words.split(f"{texts[0]}ship。{texts[1]}")) == f"{texts[0]}ship{texts[1]}"
    assert words.split(texts[5]) == Words(texts).split(texts[5])


def test_terms_are_those_of_brute_force() -> None:
    texts, labels, _ = documents(300)
    topics = np.array([sorted(SUBJECTS).index(label) for label in labels])
    counts = count_words(texts)
    stopped = stop_words(counts, topics)
    assert {word for word, out in zip(counts.words, stopped, strict=True) if out} == set(COMMON[:3])
    weights = class_tf_idf(counts, topics, stopped)
    by_topic = [Counter[str]() for _ in SUBJECTS]
    for text, topic in zip(texts, topics, strict=True):
        by_topic[topic].update(word for word in text.split() if word not in COMMON)
    mean = sum(each.total() for each in by_topic) / 3
    for place, word in enumerate(counts.words):
        everywhere = sum(each[word] for each in by_topic)
        for topic, own in enumerate(by_topic):
            expected = own[word] / own.total() * math.log(1 + mean / everywhere) if everywhere else 0
            assert weights[topic, place] == pytest.approx(expected, rel=1e-12)
    for topic, subject in enumerate(sorted(SUBJECTS)):
        assert {word for word, _ in best_terms(weights[topic], counts.words, 10)} == set(SUBJECTS[subject][:5])


def test_stop_words_of_chinese() -> None:
    texts, labels, _ = documents(1500, chinese=True)
    topics = np.array([sorted(SUBJECTS).index(label) for label in labels])
    counts = count_words(texts)
    stopped = {word for word, out in zip(counts.words, stop_words(counts, topics), strict=True) if out}
    assert set(COMMON[3:]) <= stopped
    assert not stopped & {word for subject in SUBJECTS.values() for word in subject}


def test_coherence_is_that_of_brute_force() -> None:
    draw = np.random.default_rng(0)
    has = draw.random((50, 12)) < np.linspace(0, 1, 12)  # a word that is nowhere, and one that is everywhere
    has[:, 11] = True
    chosen = [1, 4, 7, 8, 11]
    values = []
    for first, second in itertools.combinations(chosen, 2):
        one, other, both = (
            float(np.mean(each)) for each in (has[:, first], has[:, second], has[:, first] & has[:, second])
        )
        values.append(-1 if both == 0 else 1 if both == 1 else math.log(both / one / other) / -math.log(both))
    from scipy.sparse import csc_matrix

    assert coherence(chosen, csc_matrix(has.astype(np.int64))) == pytest.approx(np.mean(values), rel=1e-12)
    assert math.isnan(coherence([3], csc_matrix(has.astype(np.int64))))


def test_purity_is_that_of_the_contingency_table() -> None:
    draw = random.Random(0)
    topics, labels = draw.choices(range(5), k=200), draw.choices("abc", k=200)
    assert purity(topics, labels) == contingency_matrix(labels, topics).max(0).sum() / 200
    assert purity([0, 0, 1], ["a", "a", "b"]) == 1


@pytest.mark.parametrize("count", [3, None])
def test_clusters_that_are_there_are_found(count: int | None) -> None:
    _, labels, vectors = documents(300)
    topics = cluster(vectors, count, seed=1)
    assert len(set(zip(topics.tolist(), labels, strict=True))) == 3
    sizes = Counter(topics.tolist())
    assert [sizes[number] for number in range(3)] == sorted(sizes.values(), reverse=True)
    assert (cluster(vectors, count, seed=1) == topics).all()


@pytest.mark.parametrize(
    ("vectors", "topics", "words"),
    [
        (np.eye(2), 3, "--topics is 3, but --input has 2 texts; ask for fewer topics, or give more texts"),
        (np.ones((9, 4)), 2, "--topics is 2, but the 9 texts have 1 different vector; ask for fewer topics"),
        (np.eye(4), None, "--topics is auto, but --input has 4 texts, which are too few or too alike"),
        (np.ones((50, 4)), None, "--topics is auto, but --input has 50 texts, which are too few or too alike"),
    ],
)
def test_too_little_for_topics(vectors: np.ndarray, topics: int | None, words: str) -> None:
    with pytest.raises(UserError) as caught:
        cluster(vectors, topics, seed=0)
    assert str(caught.value).startswith(words)


class _Page(HTMLParser):
    """What a page has, and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_loads_nothing() -> None:
    texts, labels, vectors = documents(120)
    texts[0] = f"<script>alert(1)</script> {texts[0]} 床前明月光"
    found = find_topics(texts, vectors, 3, labels=labels)
    page = _Page()
    html = render(found, texts, "a <file> & more")
    page.feed(html)
    assert page.loaded == []
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?://", html)
    assert page.tags.count("circle") == 120
    assert "a <file> & more" in page.text
    for topic in found.topics:
        assert all(word in page.text for word, _ in topic.terms)


def write_input(folder: Path, count: int = 200) -> None:
    texts, labels, vectors = documents(count)
    rows = [{"body": text, "kind": label} for text, label in zip(texts, labels, strict=True)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(folder / "v.npy", vectors)


def topics(folder: Path, *arguments: object) -> Finished:
    return run("topics", *arguments, "--input", "t.jsonl", "--field", "body", "--output", "out", cwd=folder)


def test_from_vectors(tmp_path: Path) -> None:
    write_input(tmp_path)
    done = topics(tmp_path, "--embeddings", "v.npy", "--topics", 3, "--label", "kind", "--terms", 4)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((tmp_path / "out/topics.json").read_text())
    assert result["purity"] == result["mutual_information"] == 1
    assert result["coherence"] > 0.2
    assert set(result["stop_words"]) == set(COMMON[:3])
    for topic in result["topics"]:
        [label] = topic["labels"]
        assert {term["word"] for term in topic["terms"]} <= set(SUBJECTS[label])
        assert len(topic["terms"]) == 4
        assert topic["size"] == topic["labels"][label]
    rows = [json.loads(line) for line in (tmp_path / "out/texts.jsonl").read_text().splitlines()]
    assert Counter(row["topic"] for row in rows) == {each["topic"]: each["size"] for each in result["topics"]}
    assert done.stdout.splitlines()[-1].startswith("out/index.html: 3 topics of 200 texts, coherence 0.")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = topics(tmp_path, "--embeddings", "v.npy", "--topics", 3, "--label", "kind", "--terms", 4)
    assert again.stdout == done.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_from_a_checkpoint(tmp_path: Path) -> None:
    write_input(tmp_path)
    write_checkpoint(tmp_path / "run", "bert")
    done = topics(tmp_path, "run", "--topics", 3, "--device", "cpu", "--label", "kind")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/topics.json").read_text())
    assert sum(topic["size"] for topic in result["topics"]) == 200
    assert 1 / 3 <= result["purity"] <= 1
    # Its vectors can be used again.
    again = topics(tmp_path, "--embeddings", "out/embeddings.npy", "--topics", 3, "--label", "kind")
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a checkpoint, or --embeddings FILE"),
        (("run", "--embeddings", "v.npy"), "give a checkpoint, or --embeddings FILE"),
        (("--embeddings", "few.npy"), "few.npy has 7 rows, but --input has 12 texts; name the file that was made"),
        (("--embeddings", "flat.npy"), "flat.npy holds float64 of shape [12], but a finite vector for each text"),
        (("--embeddings", "nan.npy"), "but a finite vector for each text is needed"),
        (("--embeddings", "t.jsonl"), "t.jsonl holds no vectors; name a file that llmscale embed has written"),
        (("--embeddings", "none.npy"), "cannot read none.npy"),
        (("--embeddings", "v.npy", "--topics", "13"), "--topics is 13, but --input has 12 texts; ask for fewer"),
        (("--embeddings", "v.npy", "--topics", "1"), "--topics is '1', but must be auto or a number of 2 or more"),
        (("--embeddings", "v.npy", "--topics", "many"), "--topics is 'many', but must be auto or a number"),
        (("--embeddings", "v.npy", "--label", "sort"), "record 1 of t.jsonl has no label in 'sort'; give it one"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    write_input(tmp_path, 12)
    np.save(tmp_path / "few.npy", np.zeros((7, 3)))
    np.save(tmp_path / "flat.npy", np.zeros(12))
    np.save(tmp_path / "nan.npy", np.full((12, 2), np.nan))
    done = topics(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert words in line


def test_texts_without_words(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"body": "1 2 3"}\n' * 4)
    np.save(tmp_path / "v.npy", np.eye(4))
    done = topics(tmp_path, "--embeddings", "v.npy", "--topics", "2")
    assert done.returncode == 2
    assert done.stderr == "llmscale: --input has no word that occurs in two texts; give more text\n"
