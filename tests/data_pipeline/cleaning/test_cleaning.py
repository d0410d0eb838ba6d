"""Steps that change text, the pipeline of steps, and cleaned documents in a corpus."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.cleaning.config import CleaningStep
from data_pipeline.cleaning.html import looks_like_html
from data_pipeline.cleaning.pipeline import build_cleaner
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.heldout import build_evaluation_set, heldout_documents, training_documents
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import Span
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import WRITERS, bytes_tokenizer, config, texts, write_jsonl

STEPS: TypeAdapter[list[CleaningStep]] = TypeAdapter(list[CleaningStep])
CHANGING: list[dict[str, Any]] = [
    {"step": "unicode"},
    {"step": "unicode", "form": "NFKC"},
    {"step": "unicode", "half_width": "alphanumeric"},
    {"step": "unicode", "half_width": "all"},
    {"step": "control_characters"},
    {"step": "control_characters", "replacement_character": "remove"},
    {"step": "html"},
    {"step": "whitespace"},
    {"step": "whitespace", "keep_indentation": True, "max_blank_lines": 0},
]
DROPPING: list[dict[str, Any]] = [
    {"step": "control_characters", "replacement_character": "drop"},
    {"step": "length", "min": 3, "max": 50},
    {"step": "repetition", "min_words": 2},
    {"step": "gopher_quality", "min_words": 3},
    {"step": "language", "min_probability": 0.2},
]


def clean(documents: list[Document], *steps: dict[str, Any]) -> tuple[list[Document], Counter[str]]:
    dropped: Counter[str] = Counter()
    return list(build_cleaner(STEPS.validate_python(list(steps)), dropped)(documents)), dropped


def cleaned(text: str, **step: Any) -> str:
    documents, _ = clean([Document(1, 2, 3, text)], step)
    return documents[0].text if documents else ""


# Steps that change text


def test_unicode_forms_and_full_width():
    text = "cafe\u0301 ﬁne １２ＡＢ，。！“quoted” ‘so’　①"
    composed = text.replace("e\u0301", "é")
    assert cleaned(text, step="unicode") == composed
    assert cleaned(text, step="unicode", form="NFKC") == "café fine 12AB,。!“quoted” ‘so’ 1"
    assert cleaned(text, step="unicode", half_width="alphanumeric") == composed.replace("１２ＡＢ", "12AB")
    assert cleaned(text, step="unicode", half_width="all") == "café ﬁne 12AB,。!“quoted” ‘so’ ①"
    # An accent after a full-width letter composes with the half-width one.
    assert cleaned("ｅ\u0301", step="unicode", half_width="all") == "é"


def test_half_width_is_what_compatibility_normalisation_makes():
    for code in [*range(0xFF01, 0xFF5F), 0x3000]:
        text = f"中{chr(code)}x"
        assert cleaned(text, step="unicode", half_width="all") == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("\ufeffa\x00b\x07c\x7fd\x80e\x9ff", "abcdef"),
        ("zero\u200bwidth\u2060space\u00ad", "zerowidthspace"),
        ("left\u200e\u202aright\u202c\u2066x\u2069", "leftrightx"),
        ("中\u200d文\u200c字", "中文字"),
        ("a\u200d\u200cb", "ab"),
        ("👩\u200d👩\u200d👧 می\u200cخواهم क्\u200dष", "👩\u200d👩\u200d👧 می\u200cخواهم क्\u200dष"),
        ("\ufffex\U0001ffffy\ufdd0", "xy"),
        ("a\ufffdb\ud800c", "a\ufffdb\ufffdc"),
    ],
)
def test_control_characters(text, expected):
    assert cleaned(text, step="control_characters") == expected


def test_replacement_characters_are_kept_removed_or_a_reason_to_drop():
    documents = [Document(i, 0, i, text) for i, text in enumerate(["a\ufffdb", "a\ud800b", "ab"])]
    kept = {
        policy: [
            document.text
            for document in clean(documents, {"step": "control_characters", "replacement_character": policy})[0]
        ]
        for policy in ("keep", "remove", "drop")
    }
    assert kept == {"keep": ["a\ufffdb", "a\ufffdb", "ab"], "remove": ["ab", "ab", "ab"], "drop": ["ab"]}


def test_whitespace():
    text = "\n\n  two  spaces\t\there \r\n\n\n\n\u3000\u3000中文\u00a0段落　\n    code  x \n\n"
    assert cleaned(text, step="whitespace") == "two spaces here\n\n中文 段落\ncode x"
    assert cleaned(text, step="whitespace", max_blank_lines=0) == "two spaces here\n中文 段落\ncode x"
    kept = "  two spaces here\n\n\u3000\u3000中文 段落\n    code x"
    assert cleaned(text, step="whitespace", keep_indentation=True) == kept


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<!DOCTYPE html><title>t</title><p>Only one", "Only one"),
        ("<?xml version='1.0'?>\n<!-- c --><html><body>x", "x"),
        (
            "<div><h1>The  title</h1>\n<p>Some <b>bold</b>, <i>not\nspaced</i> text.<p>Next<br>a &amp; b&nbsp;&lt;",
            "The title\n\nSome bold, not spaced text.\n\nNext\na & b\xa0<",
        ),
        (
            "<head><title>t</title></head><script>var x = '<p>';</script><style>p {}</style><p>shown</p><!-- no -->",
            "shown",
        ),
        (
            "<ul><li>一</li><li>二</li></ul><table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>",
            "一\n二\n\na b\nc",
        ),
        (
            "<p>before</p><pre>  def f():\n      return 1\n</pre><p>after</p>",
            "before\n\n  def f():\n      return 1\n\n\nafter",
        ),
        ("<p>a</p>&lt;p&gt;b &amp;amp; c&lt;/p&gt;<br>&lt;br&gt;", "a\n\nb & c"),
        ("<p>How &lt;p&gt; and &lt;/p&gt; work</p><br>", "How <p> and </p> work"),
        ("if a < b and c > d: print('<p>')", "if a < b and c > d: print('<p>')"),
        (
            "Dear <name>, mail <me@example.org> or <you@example.org>",
            "Dear <name>, mail <me@example.org> or <you@example.org>",
        ),
        (
            "story<|endoftext|>story<|endoftext|>story<|endoftext|>",
            "story<|endoftext|>story<|endoftext|>story<|endoftext|>",
        ),
    ],
)
def test_html(html, text):
    assert cleaned(html, step="html") == text


def test_html_of_any_depth_and_size_is_read_without_recursion():
    deep = "<div>" * 20_000 + "x" + "</div>" * 20_000
    assert cleaned(deep, step="html") == "x"


NESTED = {
    "blocks": "<div>x" * 200_000,
    "lists": "<ul><li>x" * 200_000,
    "formatting elements opened again in every paragraph": "".join(f"<p><b id={i}>x" for i in range(5_000)),
    "ends of nothing": "<span>x" * 200_000 + "</nothing>" * 200_000,
    "blocks in what is no raw text": "<svg><style>" + "<div>x" * 200_000,
    "tags in attributes": "<div title='<'>x" * 200_000,
    "tables in cells": "<table><tr><td>x" * 200_000,
    "ends of other formatting elements": "<i><p>x</b>" * 200_000,
    "attributes": "x<p " + " ".join(f"a{i}=1" for i in range(200_000)) + ">x",
    "attributes behind slashes": "x<img" + "".join(f"/a{i}" for i in range(100_000)) + ">x",
    "attributes before a value": "x<p " + "a=1 b " * 100_000 + "c = '> <div>'>x",
    "ends in comments": "<div>x<!--</div>-->" * 200_000,
}


# One of each kind: what is open, what ends, what is no element.
FAST = ("blocks", "ends of nothing", "attributes", "attributes behind slashes", "attributes before a value")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NESTED]
)
def test_html_that_nests_without_end_takes_time_by_its_size(name):
    # The parser alone takes 40 s for so many open blocks, and 5 GB for the formatting elements.
    started = time.process_time()
    assert cleaned(f"<!doctype html>{NESTED[name]}", step="html").count("x") == NESTED[name].count("x")
    assert time.process_time() - started < 15


def test_html_with_many_tags_that_end_keeps_its_text():
    rows = "".join(
        f"<tr><td>a{i}<td><p>b <b>c</b><script>if (x) y = '<div><div>'</script><br></tr>" for i in range(3000)
    )
    page = (
        f"<!doctype html><title><div></title><table>{rows}</table><div>end <i>of</i> it</div><!-- <div> --><pre>a\n b"
    )
    expected = "\n\n".join(f"a{i} b c" for i in range(3000))
    assert cleaned(page, step="html").split() == f"{expected} end of it a b".split()


# Properties

pieces = st.sampled_from(
    [
        "<p>",
        "</p>",
        "<br>",
        "&lt;",
        "&amp;",
        "p&gt;",
        "<html>",
        "<pre>",
        "</pre>",
        "\u200d",
        "\ud800",
        "…",
        "。",
        "中文",
        "the ",
    ]
)
any_text = st.text(st.characters(exclude_categories=())) | st.lists(
    pieces | st.text(st.characters(exclude_categories=()), max_size=4)
).map("".join)


@settings(max_examples=60, deadline=None)
@given(any_text)
@example("a\u200b\u200db")
@example("<p>&lt;p&gt;&lt;p&gt;&lt;p&gt;<p><p>")
@pytest.mark.parametrize("step", CHANGING, ids=str)
def test_changing_twice_is_changing_once(step, text):
    once = cleaned(text, **step)
    assert cleaned(once, **step) == once


@settings(max_examples=60, deadline=None)
@given(st.lists(any_text, max_size=6))
@pytest.mark.parametrize("step", [*CHANGING, *DROPPING], ids=str)
def test_no_text_raises_and_counts_add_up(step, texts):
    documents = [Document(i, 0, i, text) for i, text in enumerate(texts)]
    kept, dropped = clean(documents, step)
    assert len(kept) + sum(dropped.values()) == len(documents)
    assert all(reason.startswith(step["step"] + ": ") for reason in dropped)
    assert clean(documents, step) == (kept, dropped)


def test_text_without_what_a_step_cleans_stays_as_it_is():
    text = "One “line” of text, 中文，标点。\n\nAnother: def f(x): return x < 3"
    for step in CHANGING[:1] + CHANGING[2:3] + CHANGING[4:8]:
        assert cleaned(text, **step) == text


# The pipeline


def test_documents_keep_their_place_and_targets_are_changed_but_not_judged():
    documents = [
        Document(11, 1, 5, "  a  long enough text ", "t  x"),
        Document(12, 1, 9, "short", "a target that is long enough"),
        Document(13, 2, 0, "text enough, but no target", " \n "),
        Document(14, 2, 7, " \t ", None),
    ]
    kept, dropped = clean(documents, {"step": "whitespace"}, {"step": "length", "min": 10})
    assert kept == [Document(11, 1, 5, "a long enough text", "t x")]
    assert dropped == {"length: too short": 1, "whitespace: no target left": 1, "whitespace: no text left": 1}


def test_steps_run_in_the_order_given_and_one_document_at_a_time():
    page = Document(1, 0, 0, "<html><body><p>" + "x" * 5)
    assert clean([page], {"step": "html"}, {"step": "length", "max": 10})[0] == [page._replace(text="xxxxx")]
    assert clean([page], {"step": "length", "max": 10}, {"step": "html"})[0] == []
    cleaner = build_cleaner(STEPS.validate_python([{"step": "length", "min": 2}]), Counter())
    endless = (Document(i, 0, i, "x" * (i % 4)) for i in itertools.count())
    assert [document.id for document in itertools.islice(cleaner(endless), 3)] == [2, 3, 6]


def test_no_steps_change_nothing():
    documents = [Document(1, 0, 0, " \ufeff "), Document(2, 0, 1, "x")]
    assert clean(documents) == (documents, Counter())


def test_unknown_steps_and_keys_are_refused():
    with pytest.raises(ValidationError, match="expected tags: 'unicode', 'control_characters'"):
        STEPS.validate_python([{"step": "spellcheck"}])
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        STEPS.validate_python([{"step": "length", "minimum": 3}])


@pytest.mark.parametrize(("step", "library"), [("html", "selectolax"), ("language", "py3langid")])
def test_a_missing_library_is_named_with_the_fix(step, library, monkeypatch):
    def without(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError) as caught:
        build_cleaner(STEPS.validate_python([{"step": "length"}, {"step": step}]), Counter())
    assert str(caught.value) == (
        f"data.cleaning[1] needs {library}, which is not installed; run pip install 'llmscale[clean]'"
    )


def test_settings_load_without_the_libraries():
    script = (
        "import sys, data_pipeline.config\n"
        "print([m for m in ('numpy', 'selectolax', 'py3langid', 'datasketch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Cleaned documents in a corpus

CLEANING = [{"step": "unicode", "form": "NFKC"}, {"step": "whitespace"}, {"step": "length", "min": 80}]


def slow(text: str) -> str | None:
    lines = [" ".join(line.split()) for line in unicodedata.normalize("NFKC", text).split("\n")]
    text = "\n".join(lines).strip("\n")
    return text if len(text) >= 80 else None


def read_span(corpus: Corpus, span: Span) -> Iterator[Document]:
    position: int | None = span.start
    while position is not None:
        documents, position = corpus.read(span, position)
        yield from documents


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source_gives_cleaned_documents(tmp_path, kind):
    written = [text for text in texts(60) if text.strip()]
    source = WRITERS[kind](tmp_path / "data", written)
    plain = {(d.file, d.position): d for d in Corpus.training(config(source)).documents()}
    corpus = Corpus.training(config(source, cleaning=CLEANING))
    documents = list(corpus.documents())
    assert {(d.id, d.file, d.position, d.text) for d in documents} == {
        (d.id, d.file, d.position, slow(d.text)) for d in plain.values() if slow(d.text) is not None
    }
    assert 0 < len(documents) < len(plain)
    assert corpus.dropped["length: too short"] == len(plain) - len(documents)
    # A resume begins at a document that stays.
    spans = {document: span for span in corpus.spans for document in read_span(corpus, span)}
    for document in documents:
        assert corpus.read(spans[document], document.position)[0][0] == document


def test_training_and_both_kinds_of_evaluation_documents_are_cleaned(tmp_path):
    training = write_jsonl(tmp_path / "training", texts(60))
    evaluation = write_jsonl(tmp_path / "evaluation", texts(20, seed=1))
    settings = config(training, evaluation=[evaluation], holdout=0.3, cleaning=CLEANING)
    written = {slow(text) for text in texts(60)} - {None}
    tokenizer = bytes_tokenizer(tmp_path)
    loaded = load_tokenizer(tokenizer)
    trained, held_out = list(training_documents(settings, loaded)), list(heldout_documents(settings, loaded))
    assert set(trained) < written
    assert set(held_out) == (written - set(trained)) | {slow(text) for text in texts(20, seed=1)} - {None}
    built = build_evaluation_set(settings, load_tokenizer(tokenizer), tmp_path / "cache")
    ids = np.concatenate([np.asarray(built.batch([i]).targets)[0] for i in range(len(built))])[: built.tokens]
    text = loaded.decode(ids.tolist())
    assert all(document in text for document in held_out)
    assert built.documents == len(held_out)


def test_other_cleaning_is_other_data(tmp_path):
    source = write_jsonl(tmp_path, texts(20))
    choices: list[list[dict[str, Any]]] = [
        [],
        CLEANING,
        CLEANING[::-1],
        [{"step": "length", "min": 80}],
        [{"step": "length", "min": 81}],
    ]
    digests = [Corpus.training(config(source, cleaning=steps)).digest for steps in choices]
    assert len(set(digests)) == len(choices)
    again = DataConfig.model_validate(json.loads(config(source, cleaning=CLEANING).model_dump_json()))
    assert Corpus.training(again).digest == digests[1]


def test_looks_like_html_reads_no_further_than_it_must():
    assert looks_like_html("<p>" * 3 + "x" * 10**6)
    assert not looks_like_html("<p" * 10**5)
