"""A task file can run no code, and use neither time nor memory without bound."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.reading import rendering
from llmscale.evaluate.tasks import load_task
from llmscale.evaluate.tasks.templates import Template, Unrendered, reads, render, requires
from tests.evaluate.tasks.files import write_capitals

CODE = [
    "{{ q.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ q | attr('__class__') }}",
    "{{ (q | map(attribute='__class__') | list)[0] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('touch FILE').read() }}",
    "{{ cycler.__init__.__globals__.os.system('touch FILE') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ open('FILE', 'w') }}",
    "{{ ''.join.__self__.__class__ }}",
    "{{ '{0.__class__}'.format(q) }}",
    "{{ '{0.__class__}'.format_map({'0': q}) }}",
    "{{ options.append(1) }}",
    "{{ options.__setitem__(0, 'x') }}",
]
REFUSED_AT_ONCE = {
    "{% include 'FILE' %}": "'include'",
    "{% import 'FILE' as x %}": "'import'",
    "{% from 'FILE' import x %}": "'from ... import'",
    "{% extends 'FILE' %}": "'extends'",
    "{% block x %}{% endblock %}": "'block'",
    "{% macro x() %}{% endmacro %}": "'macro'",
    "{% call x() %}{% endcall %}": "'call'",
    "{% do x %}": "is no valid template",
    "{% generation %}x{% endgeneration %}": "is no valid template",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "template",
    "x" * 70_000: "the template has 70,000 characters, but 65,536 are the most",
}
ENDLESS = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x": "takes longer than 1 s",
    "{{ 'x' * 999999999 * 9 }}": "memory",
    "{% for i in range(9999) %}{{ 'xxxxxxxxxx' * 10000 }}{% endfor %}": "makes a text of more than 16,777,216",
    "{{ [q] * 99999999 }}": "",
    "{{ ('a' * 40) | regex_replace('(a|a)*b') }}": "takes longer than 1 s",
    "{{ 9 ** (9 ** 9) }}": "takes longer than 1 s",
    "{{ range(999999999) | list }}": "Range too big",
}


@pytest.mark.parametrize("source", CODE)
@pytest.mark.parametrize("text", ["", " and text"])
def test_no_code_is_reached(source: str, text: str, tmp_path: Path) -> None:
    source = source.replace("FILE", str(tmp_path / "made")) + text
    with pytest.raises(UserError) as caught:
        load_task(write_capitals(tmp_path, {"context": source})).items()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("source", REFUSED_AT_ONCE, ids=lambda source: source[:30])
def test_what_a_template_may_not_hold_is_refused_when_it_is_loaded(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write_capitals(tmp_path, {"context": source}))
    assert REFUSED_AT_ONCE[source] in str(caught.value)


@pytest.mark.parametrize("source", ENDLESS)
def test_time_and_memory_are_bounded(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_task(write_capitals(tmp_path, {"context": source})).items()
    assert time.monotonic() - begun < 20
    assert ENDLESS[source] in str(caught.value)
    # The next task is none the worse for it.
    monkeypatch.setattr(rendering, "SECONDS", 20.0)
    assert len(load_task(write_capitals(tmp_path)).items()) == 3


def test_a_pattern_that_takes_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    (tmp_path / "text.txt").write_text("a" * 40 + "\n")
    data = {"files": ["text.txt"], "format": "text", "begins": "(a|a)*b"}
    with pytest.raises(UserError, match=r"data\.begins takes longer than 1 s"):
        load_task(write_capitals(tmp_path, {"data": data, "context": "{{ text }}"})).items()


@pytest.mark.parametrize(
    ("source", "value", "whole"),
    [
        ("{{ a }}", ["x", {"y": 1}], True),
        ("{{- a -}}", ["x", {"y": 1}], True),
        ("{{ a[0] }}", "x", True),
        ("{{ a[0] }}", "x", False),
        ("{{ n }}", 3, True),
        ("{{ n }}", "3", False),
        ("{{ -n }}", -3, True),
        ("{{ n }}\n", "3\n", True),
        ("{{ n }}{{ n }}", "33", True),
        ("text", "text", True),
        ("", "", True),
        ("{{ 'é' ~ n }}", "é3", True),
        ("{{ a | map('string') | list | length }}", 2, True),
        ("{{ [n, n] | map('string') }}", ["3", "3"], True),
        ("{{ texts | surround('<', after='>') }}", ["<1>", "<2>"], True),
        ("{{ 'a1b22' | regex_replace('[0-9]+', '#') }}", "a#b#", False),
        ("{{ 'x' | digest }}", "2d711642b726b044", False),
        ("{% if n > 2 %}\n big\n{% endif %}", "\n big\n", False),
    ],
)
def test_values_and_texts(source: str, value: object, whole: bool) -> None:
    record = {"a": ["x", {"y": 1}], "n": 3, "texts": ["1", "2"]}
    assert render([Template("t", source, whole)], [record]) == [{"t": value}]


def test_values_of_let_are_seen_behind_them_and_hide_fields() -> None:
    templates = [
        Template("let.a", "{{ a }}!", True),
        Template("let.b", "{{ [a, c] }}", True),
        Template("t", "{{ b }}", True),
        Template("a", "{{ c }}", False),
        Template("u", "{{ a }}", False),
    ]
    [values] = render(templates, [{"a": "x", "c": 1}])
    assert values == {"let.a": "x!", "let.b": ["x!", 1], "t": ["x!", 1], "a": "1", "u": "x!"}


def test_a_fault_names_its_record_over_many_batches() -> None:
    records: list[dict[str, object]] = [{"a": 1}] * 700
    records[613] = {"b": 2}
    with pytest.raises(Unrendered) as caught:
        render([Template("t", "{{ a }} {{ 1 }}")], records)
    assert (caught.value.record, caught.value.template, caught.value.undefined) == (613, "t", True)


def test_names_that_are_read_and_that_must_be_there() -> None:
    assert reads("{{ a.b[c] }} {% for d in e %}{{ d }}{% endfor %} {{ range(f) }}") == {"a", "c", "e", "f"}
    assert requires("{{ a }}") == {"a"}
    assert requires("{{ a if a is defined else b }}") == set()
    assert requires("{{ a | default('x') }}") == set()


def test_thousands_of_items_take_seconds() -> None:
    """Of the time of one process for each it would be minutes."""
    records = [{"q": f"question {i}", "choices": ["a", "b", "c", "d"]} for i in range(20_000)]
    templates = [Template("context", "Question: {{ q }}\nAnswer:"), Template("answers", "{{ choices }}", True)]
    begun = time.monotonic()
    assert len(render(templates, records)) == 20_000
    assert time.monotonic() - begun < 30
