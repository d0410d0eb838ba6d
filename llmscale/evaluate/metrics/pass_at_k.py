"""pass@k: the probability that one of k samples is right, from n of which c are (Chen et al. 2021, 2.1)."""

from __future__ import annotations

from dataclasses import replace
from math import comb

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Option, Options


def unbiased(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), exact in integers before the division."""
    return 1 - comb(n - c, k) / comb(n, k)


def _pass_at_k(record: Record, options: Options) -> float:
    n, k = len(record.generated), options["k"]
    if n < k:
        raise UserError(
            f"pass_at_k with k={k} needs {k} samples of each item, and item {record.number} has {n}; "
            f"generate more samples or set k to {n} at most"
        )
    return unbiased(n, sum(_right(record, text, options["by"]) for text in record.generated), k)


def _right(record: Record, text: str, by: str) -> bool:
    from llmscale.evaluate.metrics import per_item

    value = per_item(by, replace(record, generated=[text]))
    if value not in (0, 1):
        raise UserError(
            f"pass_at_k counts samples that are right, and metric {by} gives {value} for one of item {record.number}; "
            "set by to a metric of 0 and 1, such as exact_match or numeric_match"
        )
    return value == 1


METRICS = (
    ItemMean(
        "pass_at_k",
        "one of k samples is right by the metric `by`, without bias",
        ("generate",),
        ("references", "generated"),
        options={"k": Option(1, least=1), "by": Option("exact_match")},
        value=_pass_at_k,
    ),
)
