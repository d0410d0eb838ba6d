"""Config files and overrides: what is read, and that each mistake is one sentence that says what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.errors import UserError
from llmscale.config import dump_config, identity, known_keys, load_config, parse_config


def minimal() -> dict[str, Any]:
    return {"run": {"directory": "runs/a"}, "data": {"sources": [{"paths": ["a.txt"]}]}}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_file_then_overrides(tmp_path):
    path = write(tmp_path / "run.yaml", yaml.safe_dump({**minimal(), "train": {"steps": 5, "global_batch": 4}}))
    config = load_config(path, ["train.steps=7"])
    assert (config.train.steps, config.train.global_batch, config.run.directory) == (7, 4, "runs/a")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 9


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.steps=1", "train", "steps", 1),
        ("optimizer.lr=3e-4", "optimizer", "lr", 3e-4),
        ("optimizer.lr=3.0e-4", "optimizer", "lr", 3e-4),
        ("optimizer.betas=[0.8, 0.99]", "optimizer", "betas", (0.8, 0.99)),
        ("run.directory=runs/with spaces=and equals", "run", "directory", "runs/with spaces=and equals"),
        ("run.directory='007'", "run", "directory", "007"),
        ("logging.sample_prompts=['a: b', \"c, d\"]", "logging", "sample_prompts", ["a: b", "c, d"]),
        ("logging.sample_prompts=[]", "logging", "sample_prompts", []),
        ("model.bias=false", "model", "bias", False),
        ("model.ffn_size=null", "model", "ffn_size", None),
        ("model.ffn_size=", "model", "ffn_size", None),
    ],
)
def test_override_values_are_yaml(override, section, key, value):
    assert getattr(getattr(parse_config(minimal(), [override]), section), key) == value


def test_overrides_reach_into_lists_and_missing_sections():
    config = parse_config(
        minimal(), ["data.sources.0.kind=jsonl", "data.sources.0.paths=[b, c]", "data.tokenizer.train.vocab_size=500"]
    )
    assert (config.data.sources[0].kind, config.data.sources[0].paths) == ("jsonl", ["b", "c"])
    assert config.data.tokenizer.train.vocab_size == 500


def test_the_last_override_wins():
    assert parse_config(minimal(), ["train.steps=1", "train.steps=2"]).train.steps == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "not of the form dotted.key=value"),
        ("=5", "not of the form dotted.key=value"),
        ("train.steps=[1", "not a valid YAML value"),
        ("data.sources.3.kind=jsonl", "'3' is not an index below 1"),
        ("data.sources.first.kind=jsonl", "'first' is not an index below 1"),
        ("run.directory.name=x", "'run.directory' is a value, not a section"),
        ("run.directory.name.first=x", "'name' lies below a value"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(UserError) as caught:
        parse_config(minimal(), [override])
    assert message in str(caught.value)
    assert override in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["train.step=5"], ["unknown key 'train.step'", "did you mean 'train.steps'?"]),
        (["trian.steps=5"], ["unknown key 'trian'", "did you mean 'train'?"]),
        (["lr=5"], ["unknown key 'lr'", "did you mean 'optimizer.lr'?"]),
        (["data.tokenizer.train.vocabsize=5"], ["did you mean 'data.tokenizer.train.vocab_size'?"]),
        (["data.sources.0.path=a"], ["unknown key 'data.sources.0.path'", "did you mean 'data.sources.0.paths'?"]),
        (
            ["objective.name=causal", "objective.target_length=5"],
            ["unknown key 'objective.target_length'", "which objective has for seq2seq only; leave it out"],
        ),
        (["schedule.zzz=5"], ["unknown key 'schedule.zzz'", "'schedule' knows", "warmup_steps"]),
        (["train.steps=many"], ["'train.steps' is 'many'", "integer"]),
        (["train.steps=1.5"], ["'train.steps' is 1.5"]),
        (["train.steps=0"], ["'train.steps' is 0", "greater than or equal to 1"]),
        (["engine.zero_stage=4"], ["'engine.zero_stage' is 4", "1, 2 or 3"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas"]),
        (["model.bias=perhaps"], ["'model.bias' is 'perhaps'", "boolean"]),
        (["run=5"], ["'run' is 5"]),
        (["run={}"], ["'run.directory' is missing"]),
        (["model.family=llama3"], ["'model.family' is 'llama3', which is not known; did you mean 'llama'?"]),
        (["model.family=GPT2"], ["did you mean 'gpt2'?"]),
        (["data.order=other"], ["'data.order' is 'other', which is not known; use one of 'stream', 'finite'"]),
        (["objective=mlm"], ["'objective' is 'mlm', but it must be a mapping of settings; write objective.NAME=VALUE"]),
        (["train=5"], ["'train' is 5, but it must be a mapping of settings"]),
        (["data.sources=[]"], ["'data.sources' is []", "at least 1"]),
        (["model.heads=5"], ["hidden_size (768)", "heads (5)"]),
        (
            ["model.positions=rotary", "model.head_size=8", "model.rotary_fraction=0.1"],
            ["at least 2 rotated channels", "rotary_fraction (0.1) of 8 head channels is 0", "to 0.25 or more"],
        ),
        (["model.positions=rotary", "model.head_size=1"], ["of 1 head channels is 1; set head_size to 2 or more"]),
        (["model.kv_heads=5"], ["heads (12)", "kv_heads (5)"]),
        (["model.positions=rotary", "model.head_size=3"], ["rotary", "3 head channels"]),
        (["schedule.warmup_steps=2000"], ["(2000)", "train.steps (1000)"]),
    ],
)
def test_mistakes_are_one_sentence_with_the_key_and_the_value(changes, expected):
    with pytest.raises(UserError) as caught:
        parse_config(minimal(), changes, origin="run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ")
    assert "\n" not in message
    assert [part for part in expected if part not in message] == [], message


def test_an_objective_counts_for_more_than_a_preset() -> None:
    """BERT's preset has next sentence prediction; who asks for hidden tokens alone need not say so twice."""
    for model, objective, expected in (
        ({}, {}, False),
        ({}, {"next_sentence": True}, True),
        ({"next_sentence": True}, {}, True),
    ):
        sections = {"model": {"family": "bert", **model}, "objective": {"name": "masked", **objective}}
        config = parse_config({**minimal(), **sections}, [], origin="run.yaml")
        assert config.model.next_sentence == expected


def test_several_mistakes_are_counted():
    with pytest.raises(UserError, match=r"unknown key 'train\.step'.*\(and 1 more\)"):
        parse_config(minimal(), ["train.step=5", "train.global_batch=none"])


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "quickstart.yaml", "{}")
    with pytest.raises(UserError, match=r"no config file .*quickstrt\.yaml; this folder has .*quickstart\.yaml"):
        load_config(tmp_path / "quickstrt.yaml")
    with pytest.raises(UserError, match=r"no config file .*absent/run\.yaml$"):
        load_config(tmp_path / "absent" / "run.yaml")


def test_broken_yaml_names_the_line(tmp_path):
    path = write(tmp_path / "broken.yaml", "run:\n  directory: runs/a\ndata: [1,\n  2\ntrain:\n  steps: 5\n")
    with pytest.raises(UserError, match=r"broken\.yaml is not valid YAML at line 5, column 6"):
        load_config(path)
    with pytest.raises(UserError, match=r"tabs\.yaml is not valid YAML at line 2, column 1"):
        load_config(write(tmp_path / "tabs.yaml", "run:\n\tdirectory: a\n"))


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- 1\n", "list"), ("text\n", "str")])
def test_a_file_that_holds_no_sections(tmp_path, text, kind):
    with pytest.raises(UserError, match=rf"must hold sections .* but holds {kind}"):
        load_config(write(tmp_path / "odd.yaml", text))


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"run:\n  directory: \xe9\n")
    with pytest.raises(UserError, match=r"cannot read config file .*latin\.yaml"):
        load_config(path)
    with pytest.raises(UserError, match="cannot read config file"):
        load_config(tmp_path)


def test_yaml_cannot_build_python_objects(tmp_path):
    path = write(tmp_path / "evil.yaml", "run: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(path)


def test_dump_round_trips(tmp_path):
    changes = [
        "optimizer.betas=[0.8, 0.99]",
        "optimizer.eps=1e-12",
        "run.directory='运行/ä: b'",
        "data.evaluation=[{paths: [x]}]",
    ]
    config = parse_config(minimal(), changes)
    again = load_config(write(tmp_path / "resolved.yaml", dump_config(config)))
    assert again == config
    assert dump_config(again) == dump_config(config)


def test_every_section_and_field_says_what_it_is():
    keys = known_keys()
    assert len(keys) == len({key for key, _ in keys})
    undocumented = [key for key, description in keys if not description.endswith((".", ")"))]
    assert undocumented == []


OLD = """
run: {directory: r}
data: {sources: [{paths: [a]}]}
parallel: {tensor: 2, tensor_sequence: true}
engine: {recompute: block, live_elements: 7}
"""


def test_keys_of_earlier_releases_are_read_and_their_new_names_said(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    said: list[str] = []
    config = load_config(path, ["parallel.sequence=4", "engine.max_live_parameters=9"], said.append)
    assert (config.parallel.sequence_parallel, config.parallel.context) == (True, 4)
    assert (config.engine.activation_checkpointing, config.engine.max_live_parameters) == ("block", 9)
    assert sorted(said) == [
        f"{path}: engine.live_elements is now called engine.max_live_parameters",
        f"{path}: engine.recompute is now called engine.activation_checkpointing",
        f"{path}: parallel.sequence is now called parallel.context",
        f"{path}: parallel.tensor_sequence is now called parallel.sequence_parallel",
    ]
    section = load_config(path, ["parallel={sequence: 2}"], said.append)
    assert (section.parallel.context, section.parallel.tensor) == (2, 1)
    path.write_text(OLD + "schedule: {}\n")
    with pytest.raises(UserError, match=r"parallel.sequence is now called parallel.context, but both are given; leave"):
        load_config(path, ["parallel={sequence: 2, context: 4}"])


@pytest.mark.parametrize("overrides", [[], ["data.order=permutation"], ["data.order=stream"]])
def test_values_of_earlier_releases_are_read_and_their_new_names_said(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("run: {directory: r}\ndata: {sources: [{paths: [a]}], order: permutation}\n")
    said: list[str] = []
    config = load_config(path, overrides, said.append)
    assert config.data.order == ("stream" if overrides == ["data.order=stream"] else "finite")
    assert said == [f"{path}: data.order=permutation is now called data.order=finite"]
    today = parse_config({"run": {"directory": "r"}, "data": {"sources": [{"paths": ["a"]}], "order": "finite"}})
    assert (identity(config) == identity(today)) == (config.data.order == "finite")


def test_two_escapes_are_one_character_and_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text('run: {directory: "r-\\ud83d\\ude00"}\ndata: {sources: [{paths: [a]}]}\n')
    assert load_config(path).run.directory == "r-\U0001f600"
    assert load_config(path, ['run.directory="\\ud83d\\ude00"']).run.directory == "\U0001f600"
    path.write_text('run: {directory: "r-\\ud83d"}\ndata: {sources: [{paths: [a]}]}\n')
    with pytest.raises(UserError, match=r"a\.yaml is not valid YAML at line 1, .*half of a character"):
        load_config(path)
