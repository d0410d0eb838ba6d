"""The table of published systems in docs/guide/models.md, made of configs/systems.

`python docs/systems_table.py` writes it; `--check` fails where the page has another one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from llmscale.config import RunConfig, load_config
from llmscale.model import Transformer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guide" / "models.md"
BEGIN, END = "<!-- systems: made by docs/systems_table.py -->\n", "<!-- end of systems -->\n"
HEAD = ("config", "family", "layers", "hidden", "heads", "feed-forward", "context", "vocabulary", "parameters")


def table() -> str:
    """The rows, by parameters."""
    rows = sorted((_row(path) for path in (ROOT / "configs/systems").glob("*.yaml")), key=lambda row: row[0])
    lines = [HEAD, ("---",) * len(HEAD), *(cells for _, cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(path: Path) -> tuple[int, tuple[str, ...]]:
    config = load_config(path)
    model, parameters = config.model, _parameters(config)
    encoder = f"{model.encoder_layer_count} + " if model.architecture == "encoder_decoder" else ""
    heads = f"{model.heads}" + (f" ({model.kv_heads} for keys)" if model.kv_heads else "")
    experts = f" x {model.experts.count} experts" if model.experts else ""
    return parameters, (
        f"[`{path.stem}`](../../configs/systems/{path.name})",
        str(model.family),
        f"{encoder}{model.layers}",
        f"{model.hidden_size:,}",
        heads,
        f"{model.ffn_channels:,}{experts}",
        f"{config.data.sequence_length:,}",
        f"{model.vocab_size:,}",
        f"{parameters / 1e9:,.2f} B",
    )


def _parameters(config: RunConfig) -> int:
    """All that is trained, heads and the padding rows of the vocabulary included."""
    assert config.model.vocab_size is not None
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config.model, config.model.vocab_size).parameters())


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = table()
    if "--check" not in sys.argv:
        PAGE.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    elif old != new:
        print(f"{PAGE} has another table; run: python docs/systems_table.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
