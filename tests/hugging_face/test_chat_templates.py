"""Chat templates are part of a model: read as transformers reads them, and the same after import and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils.chat_template_utils import render_jinja_template

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.chat_files import read_chat
from llmscale.checkpoint.model import load_model
from llmscale.generate.prompts import Context
from llmscale.generate.template import JinjaTemplate, Message, template_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.data_pipeline.tokenizer.vocabularies import TEXT
from tests.hugging_face.test_bad_directories import command
from tests.hugging_face.test_round_trips import write_checkpoint

DIALOGUES = [
    [("user", "hi there")],
    [("system", "Be kind."), ("user", " two  spaces "), ("assistant", "yes\nno"), ("user", "今天")],
]
ROLES = """{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
OTHER = "{{ pad_token }}{{ image_token }}{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}"
END = {
    "__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False,
    "single_word": False, "special": True,
}  # fmt: skip
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}


def library_tokenizer(first: bool) -> Tokenizer:
    """Byte-level, or with spaces as SentencePiece has them, which stand before the first word of a text only."""
    backend = Tokenizer(models.BPE(unk_token=None if not first else "<unk>"))
    if first:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*"".join(TEXT), "▁"})
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT[:200], trainer)
    backend.add_special_tokens([AddedToken("<|user|>"), AddedToken("<|system|>"), AddedToken("<|assistant|>")])
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


def write_folder(folder: Path, first: bool = False, **settings: Any) -> Path:
    """A small Llama and its tokenizer, with these keys of tokenizer_config.json."""
    folder.mkdir()
    backend = library_tokenizer(first)
    backend.save(str(folder / "tokenizer.json"))
    given = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS, "image_token": "<image>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    config = transformers.LlamaConfig(
        vocab_size=backend.get_vocab_size(), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def put(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def of_config(value: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))

    return write


def all_of(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


NAMED = [{"name": "default", "template": ROLES}, {"name": "tool_use", "template": OTHER}]
LAYOUTS: dict[str, Callable[[Path], None]] = {
    "text": of_config(ROLES),
    "named": of_config(NAMED),
    "table": of_config({"default": ROLES, "rag": OTHER}),
    "file": put("chat_template.jinja", ROLES),
    "file before text": all_of(put("chat_template.jinja", ROLES), of_config(OTHER)),
    "files before named": all_of(
        put("chat_template.jinja", ROLES), put("additional_chat_templates/rag.jinja", OTHER), of_config(NAMED)
    ),
    "text before that of a processor": all_of(of_config(ROLES), put("chat_template.json", '{"chat_template": "no"}')),
}


def ours(checkpoint: Path, dialogue: list[tuple[Any, str]], chosen: str | None = None) -> tuple[str, list[int]]:
    """Text and tokens of our template."""
    trained = load_model(checkpoint)
    folder = Path(trained.checkpoint.tokenizer)
    template, _ = template_of(folder, trained.tokenizer, trained.model.config, "document", chosen)
    assert isinstance(template, JinjaTemplate)
    text = template.template.render([{"role": role, "content": text} for role, text in dialogue])
    return text, template.context([Message(role, text) for role, text in dialogue]).tokens


def theirs(folder: Path, dialogue: list[tuple[str, str]], chosen: str | None = None) -> tuple[str, list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": role, "content": text} for role, text in dialogue]
    how = {"chat_template": chosen, "add_generation_prompt": True}
    return tokenizer.apply_chat_template(turns, tokenize=False, **how), list(
        tokenizer.apply_chat_template(turns, **how)["input_ids"]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_template_is_the_same_before_and_after(layout: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", first=layout == "file")
    LAYOUTS[layout](folder)
    import_directory(folder, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    chat = read_chat(tmp_path / "ours" / "tokenizer")
    assert chat is not None
    for dialogue in DIALOGUES:
        for name in chat.templates:
            chosen = None if name == "default" else name
            expected = theirs(folder, dialogue, chosen)
            assert expected[0].startswith("<s><|" if name == "default" else "<image>")
            assert ours(tmp_path / "ours", dialogue, chosen) == expected
            assert theirs(tmp_path / "back", dialogue, chosen) == expected
    before, after = (transformers.AutoTokenizer.from_pretrained(place) for place in (folder, tmp_path / "back"))
    assert after.chat_template == before.chat_template
    assert after.special_tokens_map == before.special_tokens_map


def test_the_template_of_a_processor_is_the_last_resort(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    put("chat_template.json", json.dumps({"chat_template": ROLES}))(folder)
    import_directory(folder, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    turns = [{"role": role, "content": text} for role, text in DIALOGUES[1]]
    [expected], _ = render_jinja_template([turns], chat_template=ROLES, add_generation_prompt=True, bos_token="<s>")
    assert ours(tmp_path / "ours", DIALOGUES[1])[0] == expected
    assert theirs(tmp_path / "back", DIALOGUES[1])[0] == expected


@pytest.mark.parametrize("named", [{}, {"bos_token": None}, {"bos_token": END, "unk_token": "<s>"}])
@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("PreTrainedTokenizerFast", False),
        ("GPT2Tokenizer", False),
        ("LlamaTokenizerFast", False),
        ("LlamaTokenizerFast", True),
    ],
)
def test_special_tokens_are_those_that_transformers_gives(
    kind: str, first: bool, named: dict[str, Any], tmp_path: Path
) -> None:
    """A token that a class has by default, one that is null, and one that the tokenizer's file would not suggest."""
    tokens = [f"{role}_token" for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")]
    show = "".join(f"[{{{{ {name} }}}}]" for name in tokens)
    folder = write_folder(tmp_path / "hf", first)
    settings = {"tokenizer_class": kind, "eos_token": "</s>", "chat_template": show, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    [expected], _ = render_jinja_template(
        [[{"role": "user", "content": "a"}]],
        chat_template=show,
        **transformers.AutoTokenizer.from_pretrained(folder).special_tokens_map,
    )
    import_directory(folder, tmp_path / "ours")
    assert ours(tmp_path / "ours", DIALOGUES[0])[0] == expected
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert theirs(tmp_path / "back", DIALOGUES[0])[0] == expected


def test_a_person_who_spells_special_tokens_changes_nothing_else(tmp_path: Path) -> None:
    """Only the stretch between two special tokens in which one is spelled out is read apart."""
    folder = write_folder(tmp_path / "hf", first=True)
    of_config(ROLES)(folder)
    import_directory(folder, tmp_path / "ours")
    trained = load_model(tmp_path / "ours")
    harmless, hostile = (
        ours(tmp_path / "ours", [("user", text), ("assistant", "so"), ("user", "is it")])[1] for text in ("ab", "a</s>")
    )
    end = trained.tokenizer.token_id("<|end|>")
    assert hostile.count(trained.tokenizer.special["eos"]) == 0
    assert hostile[hostile.index(end) :] == harmless[harmless.index(end) :]


def test_our_own_form_keeps_templates(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", {"positions": "alibi"})
    (tmp_path / "run" / "tokenizer" / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    export_checkpoint(tmp_path / "run", tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "back")
    expected = ours(tmp_path / "run", DIALOGUES[0])
    assert expected[0] == "hi there</s>"
    assert ours(tmp_path / "back", DIALOGUES[0]) == expected


def test_another_template_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "hf")
    of_config(NAMED)(folder)
    import_directory(folder, tmp_path / "ours")
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!")
    assert ours(tmp_path / "ours", DIALOGUES[0], str(tmp_path / "mine.jinja"))[0] == "hi there!"
    trained = load_model(tmp_path / "ours")
    template, words = template_of(
        tmp_path / "ours" / "tokenizer", trained.tokenizer, trained.model.config, "document", "none"
    )
    assert words == "the default chat template"
    assert not isinstance(template, JinjaTemplate)
    assert command("chat", tmp_path / "ours", "--template", "nosuch") == 2
    assert (
        "--template is 'nosuch', which is neither a file nor one of default, tool_use, none" in capsys.readouterr().err
    )


def test_an_encoder_reads_the_dialogue(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", {"family": "t5"})
    (tmp_path / "run" / "tokenizer" / "chat_template.jinja").write_text("{{ messages[-1].content }}{{ eos_token }}")
    trained = load_model(tmp_path / "run")
    template, _ = template_of(tmp_path / "run" / "tokenizer", trained.tokenizer, trained.model.config, "document")
    special = trained.tokenizer.special
    assert template.context([Message("user", "ab")]) == Context(
        [special["pad"]], [*trained.tokenizer.encode("ab"), special["eos"]]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_config(3), "chat template 'default' is 3, but must be a text"),
        (of_config([{"name": "default"}]), "chat_template is a list of other things than objects"),
        (of_config([{"name": "../../x", "template": "a"}]), "the name '../../x', which can be no file name"),
        (of_config({"default": "\ud800"}), "is no valid text"),
        (put("tokenizer_config.json", "[1]"), "tokenizer_config.json"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff") and None, "cannot be read"),
    ],
)
def test_files_that_are_no_templates(change: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    change(folder)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        import_directory(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
