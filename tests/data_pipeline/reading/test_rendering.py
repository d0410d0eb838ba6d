"""Chat templates are rendered as transformers renders them, and held within limits of time, memory and length."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from data_pipeline.base.errors import UserError
from data_pipeline.reading import rendering
from data_pipeline.reading.rendering import RENDERER, Renderer
from data_pipeline.tokenizer import BytesTokenizer
from llmscale.generate.template import JinjaTemplate, Message
from tests.hugging_face.test_round_trips import write_checkpoint

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "image_token": "<image>"}
DIALOGUES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " hi\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [
        {"role": "system", "content": "S"},
        {"role": "user", "content": 'ü你好 {{ x }} <b> "q"'},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nb"},
        {"role": "user", "content": ""},
    ],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": "a"}],
]
TEMPLATES = {
    "break and continue": """{% for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- if loop.index0 > 1 %}{% break %}{% endif %}
[{{ m.role }}] {{ m.content }}
{% endfor %}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{% set inner = m.content %}{{ inner }}{{ eos_token }}
{%- endgeneration %}{{ inner }}{% else %}
{{ m.content }}
{%- endif %}{% endfor %}""",
    "trimmed blocks": "a\n  {% if true %}\n    b\n  {% endif %}\n\tc  {#- d -#}\n{%+ if true %} e{% endif %}\r\nf\n",
    "json": """{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=true) }}
{{ messages[0] | tojson(separators=(',', ':'), ensure_ascii=true) }}""",
    "namespace": """{% set ns = namespace(system='', count=0) %}
{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] | trim %}{% endif %}
{%- set ns.count = ns.count + 1 %}{% endfor %}{{ ns.system }}{{ ns.count }}""",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}[{{ unk_token }}]",
    "what is not given": """{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ custom is defined }}
{% if tools %}t{% else %}n{% endif %}{{ date_string | default('d') }}{{ messages[0].tool_calls is defined }}
{{ messages[0].get('thinking', 'none') }}""",
    "date": "{{ strftime_now('%Y-%m') }}{% if strftime_now is defined %}+{% endif %}",
    "refusal": "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}fine",
    "macro": """{% macro turn(m, end='</t>') %}<{{ m.role }}>{{ m.content }}{{ end }}{% endmacro %}
{% for m in messages %}{{ turn(m) }}{{ turn(m, end='') if loop.last }}{% endfor %}""",
    "texts": """{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{{ m.content[:2] }}
{%- if 'think' in m.content %}{{ m.content.startswith('<') }}{% endif %}{{ m.role | upper }}{{ m.content | length }}
{%- endfor %}{{ messages | map(attribute='role') | join(',') }}{{ messages[1:] | selectattr('role', '==', 'user')
| list | length }}{{ messages[::-1][0].content }}""",
    "alternation": """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}""",
    "tables": "{% set d = dict(a=1, b=[2]) %}{{ d.items() | list }}{{ d | tojson }}{{ dict.fromkeys([1]) }}"
    "{% for k, v in d | dictsort %}{{ k }}{% endfor %}",
    "whole loops": "{% for m in messages %}{{ loop.previtem.role if not loop.first }}{{ loop.cycle('x', 'y') }}"
    "{% endfor %}{% for i in range(3) %}{{ i }}{% else %}none{% endfor %}",
    "private names": "{{ namespace(_a=1) }}",
    "changed arguments": "{{ messages.append(1) }}",
    "internals": "{{ ''.__class__.__mro__ }}",
    "unknown name": "{{ nothing.at_all }}",
    "division": "{% if messages | length > 1 %}{{ 1 / 0 }}{% endif %}.",
}


def transformers_text(source: str, dialogue: list[dict[str, Any]], prompt: bool) -> str | None:
    """None where it raises."""
    try:
        texts, _ = render_jinja_template([dialogue], chat_template=source, add_generation_prompt=prompt, **SPECIAL)
    except Exception:
        return None
    return texts[0]


def our_text(source: str, dialogue: list[dict[str, Any]], prompt: bool) -> str | None:
    given = {"messages": dialogue, "tools": None, "documents": None, "add_generation_prompt": prompt, **SPECIAL}
    try:
        return RENDERER.render(source, given, "the template")
    except UserError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_what_transformers_makes_of_it(name: str) -> None:
    texts = [our_text(TEMPLATES[name], dialogue, prompt=True) for dialogue in DIALOGUES]
    assert texts == [transformers_text(TEMPLATES[name], dialogue, prompt=True) for dialogue in DIALOGUES]
    assert any(texts) == (name not in ("private names", "changed arguments", "internals", "unknown name"))


def published_templates() -> list[Path]:
    """Those that the trl package ships, where it is installed."""
    spec = importlib.util.find_spec("trl")
    folders = [Path(place) / "chat_templates" for place in (spec and spec.submodule_search_locations) or []]
    return sorted(path for folder in folders for path in folder.glob("*.jinja"))


@pytest.mark.slow
@pytest.mark.skipif(not published_templates(), reason="trl is not installed (the extra `oracles`)")
@pytest.mark.parametrize("path", published_templates(), ids=lambda path: path.stem)
def test_published_templates_give_what_transformers_makes_of_them(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for prompt in (True, False):
        for dialogue in DIALOGUES:
            assert our_text(source, dialogue, prompt) == transformers_text(source, dialogue, prompt)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
FAULTS = {
    "{{ 1 / 0 }}": "fails on the dialogue: ZeroDivisionError: division by zero; repair it",
    "{{ 'a' + 1 }}": "fails on the dialogue: TypeError: can only concatenate str",
    "{% for i in range(10 ** 9) %}{% endfor %}": "fails on the dialogue: OverflowError: Range too big",
    "{{ 10 ** (10 ** 8) }}": "takes longer than",
    LOOP.replace("BODY", ""): "takes longer than",
    "{% set x = 'a' * 9000000 %}{{ x | replace('a', 'aa') }}": "makes a text of more than 16,777,216 characters",
    LOOP.replace("BODY", "0123456789"): "makes a text of more than 16,777,216 characters",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}": "MiB of memory",
    "{{ 'x' * 10 ** 9 }}": "needs more than 512 MiB of memory; repair it",
    "{{ 'x' | center(10 ** 10) }}": "needs more than 512 MiB of memory; repair it",
    "{{ '%9999999999d' | format(1) }}": "MiB of memory",
    "{{ [0] * 10 ** 10 }}": "needs more than 512 MiB of memory; repair it",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}": "calls itself without end; repair it",
    "{% block a %}{{ self.a() }}{% endblock %}": "calls itself without end; repair it",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}": "nested too deeply",
    "{% if 1 %}" * 200 + "{% endif %}" * 200: "fails on the dialogue: ",
    "{% include 'x' %}": "fails on the dialogue: ",
    "{% endfor %}": "is no valid jinja",
    "{{ 1 | nosuch }}": "is no valid jinja (No filter named 'nosuch'",
    "{{ raise_exception('no\nway.') }}": "refuses the dialogue: no way; change it",
    "{{ '\\ud800' }}": "no valid Unicode; repair it",
    "{{ messages[0].content.x.y }}": "refuses the dialogue: 'str object' has no attribute 'x'",
}


@pytest.mark.parametrize("source", FAULTS)
def test_a_template_that_goes_wrong_is_one_sentence(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0 if "takes longer" in FAULTS[source] else 20.0)
    template = JinjaTemplate(source, BytesTokenizer(), Path("folder/chat_template.jinja"))
    with pytest.raises(UserError) as caught:
        template.context([Message("user", "hi")])
    said = str(caught.value)
    assert said.startswith("the chat template in folder/chat_template.jinja ")
    assert FAULTS[source] in said
    assert "\n" not in said
    # The next one is none the worse for it.
    assert RENDERER.render("{{ 1 + 1 }}", {}, "x") == "2"


def test_limits_hold_in_threads_and_processes_are_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    renderer, found = Renderer(), []

    def render(source: str) -> None:
        try:
            found.append(renderer.render(source, {}, "t"))
        except UserError as error:
            found.append(str(error))

    sources = [LOOP.replace("BODY", ""), "{{ 6 * 7 }}", "{{ 'a' * 3 }}"]
    threads = [threading.Thread(target=render, args=(source,)) for source in sources]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 20
    assert sorted(found) == ["42", "aaa", "t takes longer than 1 s, as an endless loop would; repair it"]
    process = renderer._process
    assert process is not None
    renderer.close()
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_process_that_was_killed_is_started_again() -> None:
    renderer = Renderer()
    assert renderer.render("{{ 1 }}", {}, "t") == "1"
    assert renderer._process is not None
    renderer._process.kill()
    renderer._process.wait()
    assert renderer.render("{{ 2 }}", {}, "t") == "2"
    renderer.close()


@pytest.mark.parametrize(
    ("source", "messages", "code", "says"),
    [
        ("{{ 1 / 0 }}", "hi\n", 2, "fails on the dialogue: ZeroDivisionError: division by zero"),
        ("{{ raise_exception('no') }}", "hi\n", 2, "refuses the dialogue: no; change it"),
        # Once a dialogue has begun, a refusal is about the last message.
        (
            "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}a",
            "hi\nho\n",
            0,
            "refuses the dialogue",
        ),
    ],
)
def test_the_command_ends_with_one_sentence(
    source: str, messages: str, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import io

    from tests.hugging_face.test_bad_directories import command

    checkpoint = write_checkpoint(tmp_path / "run", {})
    (checkpoint / "tokenizer" / "chat_template.jinja").write_text(source)
    monkeypatch.setattr(sys, "stdin", io.StringIO(messages))
    assert command("chat", checkpoint, "--max-new-tokens", "2") == code
    said = capsys.readouterr().err
    assert said.count("llmscale: the chat template in") == 1
    assert says in said


@pytest.mark.slow
def test_the_worker_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the midst of an endless loop: its own processor time is limited."""
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    parent = os.fork()
    if parent == 0:
        renderer = Renderer()
        renderer.render("{{ 1 }}", {}, "t")
        (tmp_path / "pid").write_text(str(renderer._process.pid if renderer._process else 0))
        loop = (LOOP.replace("BODY", ""), {}, "t")
        threading.Thread(target=renderer.render, args=loop, daemon=True).start()
        time.sleep(0.3)
        os._exit(0)
    assert os.waitpid(parent, 0)[1] == 0
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while not _ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _ended(pid: int) -> bool:
    """Whether that process is gone, or nothing is left of it but its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
