"""`llmscale schema`: every setting is in it, and every shipped config fits it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from data_pipeline.base.errors import UserError
from llmscale.cli import cli
from llmscale.config import RunConfig, dump_config, known_keys, load_config, parse_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("accelerate", "tasks"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["schema"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.output)


def variants(schema: dict[str, Any], node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a node may be, its references followed and its alternatives one by one."""
    if "$ref" in node:
        yield from variants(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    elif alternatives := node.get("anyOf", node.get("oneOf")):
        for alternative in alternatives:
            yield from variants(schema, alternative)
    else:
        yield node


def fields(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for variant in variants(schema, node):
        for key, below in variant.get("properties", {}).items():
            yield prefix + key, below
            yield from fields(schema, below, f"{prefix}{key}.")
        if isinstance(variant.get("items"), dict):
            yield from fields(schema, variant["items"], prefix)


def fits(schema: dict[str, Any], node: dict[str, Any], value: Any) -> bool:
    """Whether a value is what the schema says, as far as types, choices and keys go."""
    return any(fits_variant(schema, variant, value) for variant in variants(schema, node))


def fits_variant(schema: dict[str, Any], node: dict[str, Any], value: Any) -> bool:
    if "const" in node or "enum" in node:
        return value in node.get("enum", [node.get("const")])
    if node.get("type") == "object":
        known = node.get("properties", {})
        other = node.get("additionalProperties", True)
        return (
            isinstance(value, dict)
            and set(node.get("required", ())) <= set(value)
            and all(
                fits(schema, known[key], below)
                if key in known
                else other is True or (isinstance(other, dict) and fits(schema, other, below))
                for key, below in value.items()
            )
        )
    if node.get("type") == "array":
        places = node.get("prefixItems", [node.get("items", {})] * len(value) if isinstance(value, list) else [])
        return (
            isinstance(value, list)
            and len(places) == len(value)
            and all(fits(schema, place, below) for place, below in zip(places, value, strict=True))
        )
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    return "type" not in node or (
        isinstance(value, types[node["type"]]) and (node["type"] == "boolean" or not isinstance(value, bool))
    )


def test_every_setting_is_there_with_its_description(schema: dict[str, Any]) -> None:
    found: dict[str, str] = {}
    for key, field in fields(schema, schema):
        assert field.get("description"), f"{key} has no description"
        found.setdefault(key, field["description"])
    assert found == {key: " ".join(description.split()) for key, description in known_keys()}
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["required"] == ["run", "data"]


def integers(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, what it may be) of every setting outside of data and objective that may be an integer."""
    for key, field in fields(schema, schema):
        if key.partition(".")[0] not in ("data", "objective"):
            kinds = (node for node in variants(schema, field) if "enum" not in node)
            yield from ((key, node) for node in kinds if node.get("type") == "integer")


def test_every_integer_has_an_upper_bound(schema: dict[str, Any]) -> None:
    found = dict(integers(schema))
    assert {"run.seed", "model.layers", "model.experts.count", "train.batch_ramp.samples"} <= set(found)
    assert [key for key, node in found.items() if not {"maximum", "exclusiveMaximum"} & set(node)] == []
    for key, node in found.items():
        most = node.get("maximum", node.get("exclusiveMaximum", 0) - 1)
        assert node["minimum"] < most < 2**63
        given = {
            "run": {"directory": "x"},
            "data": {"sources": [{"paths": ["a"]}]},
            "model": {"experts": {"count": 2}, "rotary_scaling": {"factor": 2}, "head": {"name": "x", "outputs": 2}},
            "train": {"batch_ramp": {"start": 1, "increment": 1, "samples": 9}},
            "evaluation": {"generate": {"metrics": ["bleu"]}},
        }
        for beyond in (most + 1, 10**23):
            with pytest.raises(UserError, match=rf"^config: '{key}' is {beyond}, but it must be less than .*$"):
                parse_config(given, [f"{key}={beyond}"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_configs_fit(path: Path, schema: dict[str, Any]) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert fits(schema, schema, raw)
    assert fits(schema, schema, yaml.safe_load(dump_config(load_config(path))))


def test_mistakes_do_not_fit(schema: dict[str, Any]) -> None:
    good: dict[str, Any] = {"run": {"directory": "x"}, "data": {"sources": [{"paths": ["a"]}]}}
    assert fits(schema, schema, good)
    for section, values in (
        ("optimizer", {"nam": "muon"}),
        ("optimizer", {"name": "moun"}),
        ("optimizer", {"lr": "fast"}),
        ("optimizer", {"betas": [0.9]}),
        ("objective", {"name": "causal", "mean_span": 3}),
        ("data", {"sources": "a"}),
    ):
        assert not fits(schema, schema, good | {section: values}), (section, values)


def test_no_heavy_import() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from llmscale.cli import cli;"
        "CliRunner().invoke(cli, ['schema'], catch_exceptions=False);"
        "print([name for name in ('torch', 'deepspeed', 'datasets') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
