"""Samples that lm-evaluation-harness logs (`--log_samples`), one file a task."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.base.durable import json_bytes, parse_json, read_file
from data_pipeline.base.errors import UserError
from llmscale.evaluate.compare.scored import MetricFacts, Places, Scored, Statistic

PATTERN = "samples_*.jsonl"
_NAME = re.compile(r"samples_(?P<task>.+?)(_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")
_NO_FILTER = "none"
_LOWER_IS_BETTER = frozenset({"brier_score"})
_LOGARITHM_OF = {"perplexity": "log_likelihood"}
"""Metrics whose samples hold the log-likelihood of the target, which is larger where the model is better."""


def task_and_date(path: Path) -> tuple[str, str]:
    """From a file's name; the date is empty where there is none. Raises UserError for a name that is not theirs."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is no evaluation; name an artefact's folder, a run, a checkpoint or a file {PATTERN}")
    return match["task"], match["date"] or ""


class HarnessSamples(Scored):
    """One file of samples. A metric of another filter than none is called metric,filter, as in the harness."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for a line that is no sample, with file and line."""
        self.path, self.task = str(path), task_and_date(path)[0]
        self.conditions = {}
        self._samples: dict[str, dict[str, Any]] = {}
        self._values: dict[str, dict[str, float]] = {}
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                self._add(line, f"{path}:{number}")
        self.metrics = list(self._values)
        if not self.metrics:
            raise UserError(f"{path} has no sample with a number for a metric; log samples of another task")

    @cached_property
    def items(self) -> list[str]:
        return list(self._samples)

    @property
    def clusters(self) -> list[str] | None:
        return None

    def facts(self, metric: str) -> MetricFacts:
        if metric not in self._values:
            raise UserError(f"{self.path} has no metric {metric}; it has {', '.join(self.metrics)}")
        name = metric.partition(",")[0]
        return MetricFacts(metric, name not in _LOWER_IS_BETTER, None, is_mean=True)

    def item_value(self, metric: str, place: int) -> float | None:
        return self._values[metric].get(self.items[place])

    def statistic(self, metric: str, places: Places, other: Scored, other_places: Places) -> Statistic:
        raise AssertionError("every metric of samples is a mean")

    def describe(self, place: int) -> str:
        sample = self._samples[self.items[place]]
        return f"{_said(sample.get('filtered_resps'))} (right: {sample.get('target')})"

    def _add(self, line: bytes, where: str) -> None:
        try:
            sample = parse_json(line)
            item = _digest(sample)
            names = sample["metrics"] if "metrics" in sample else [name for name in sample if _is_number(sample[name])]
            chosen = str(sample.get("filter", _NO_FILTER))
            values = {name: sample[name] for name in names if name != "doc_id" and _is_number(sample[name])}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{where} is no sample of lm-eval, or damaged; write it again with --log_samples") from None
        self._samples.setdefault(item, sample)
        for name, value in values.items():
            metric = _LOGARITHM_OF.get(name, name) + ("" if chosen == _NO_FILTER else f",{chosen}")
            if item in self._values.setdefault(metric, {}):
                raise UserError(f"{where} has item {sample['doc_id']} a second time; take one run's file of samples")
            self._values[metric][item] = float(value)


def _lines(path: Path) -> list[bytes]:
    try:
        return read_file(path).split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a file {PATTERN} of lm-eval") from None


def _digest(sample: dict[str, Any]) -> str:
    """Of a sample's place and question; files of before there were hashes have the question itself."""
    content = sample.get("doc_hash") or hashlib.sha256(json_bytes(sample["doc"])).hexdigest()
    return f"{sample['doc_id']}-{content[:16]}"


def _said(responses: Any) -> str:
    """The most probable of several answers, whose responses are a log-likelihood and whether it is the greedy text;
    else what was generated."""
    try:
        scores = [float(score) for score, _ in responses]
        return f"answer {max(range(len(scores)), key=scores.__getitem__)} of {len(scores)}"
    except (TypeError, ValueError):
        return " ".join(str(responses).split())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
