"""Rows of metrics.jsonl, and the progress bar."""

from __future__ import annotations

import time
from typing import Any

import torch

from data_pipeline.loader import TrainLoader
from llmscale.train.callbacks.base import Callback
from llmscale.train.outputs import Outputs
from llmscale.train.rank_extremes import RankExtremes
from llmscale.train.state import StepResult, TrainState
from llmscale.train.utilisation import Utilisation


class MetricsLogger(Callback):
    """The figures of the steps since the last row, every so many steps and after the last one."""

    def __init__(
        self, outputs: Outputs, loader: TrainLoader, interval: int, utilisation: Utilisation, device: torch.device
    ) -> None:
        """
        Args:
            interval: steps between rows.
            utilisation: of the devices, which makes MFU of samples and seconds.
            device: of this rank, whose memory is looked at.
        """
        self._utilisation = utilisation
        self._extremes = RankExtremes(device)
        self._outputs = outputs
        self._loader = loader
        self._interval = interval
        self._since: list[StepResult] = []
        self._started = 0.0

    def on_start(self, state: TrainState) -> None:
        self._started = time.perf_counter()
        self._extremes.meet()

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self._since.append(result)
        if result.step % self._interval == 0 or state.finished:
            self._write(state, result)
        self._outputs.step(result)

    def _write(self, state: TrainState, result: StepResult) -> None:
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        tokens, samples = (sum(getattr(each, name) for each in self._since) for name in ("tokens", "samples"))
        steps = len(self._since)
        ranks = self._extremes.gather(
            data_seconds=sum(each.data_seconds for each in self._since) / steps,
            forward_seconds=sum(each.forward_seconds for each in self._since) / steps,
        )
        row: dict[str, Any] = {
            "step": result.step,
            **result.losses,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "samples": state.samples,
            "tokens": state.tokens,
            "tokens_per_second": tokens / seconds,
            "mfu": self._utilisation.mfu(samples, seconds),
            "peak_flops": self._utilisation.peak,
            "data_seconds": sum(each.data_seconds for each in self._since) / steps,
            "step_seconds": sum(each.step_seconds for each in self._since) / steps,
            "memory_bytes": int(ranks["memory_bytes"]["most"]),
            "skipped_steps": state.skipped_steps,
        }
        if state.checked:
            row["computed_twice"] = state.checked
        sources = self._loader.samples.sources(state.samples)
        if len(sources) > 1:
            row["sources"] = sources
        if len(self._extremes.hosts) > 1:
            row["ranks"] = ranks
        if self._loader.dropped:
            row["dropped"] = dict(sorted(self._loader.dropped.items()))
        self._since.clear()
        self._outputs.metrics(row)
