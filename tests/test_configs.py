"""Every shipped run config parses, and says the same after it is written and read again."""

from pathlib import Path

import pytest
import yaml

from llmscale.config import dump_config, load_config
from llmscale.layout import given_ranks, require_legal

ROOT = Path(__file__).parents[1]
# accelerate/ holds configs of `accelerate launch` and tasks/ those of evaluation, which are not run configs.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("accelerate", "tasks"))


def test_there_is_a_quickstart():
    assert ROOT / "configs" / "quickstart.yaml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_config(path, tmp_path):
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(resolved) == config
    require_legal(config, given_ranks(config.parallel))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_config_states_no_machine(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    flat = yaml.safe_dump(values)
    assert "/home/" not in flat
    assert not Path(values["run"]["directory"]).is_absolute()
