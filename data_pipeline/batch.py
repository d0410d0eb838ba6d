"""The one batch that every objective reads, and the samples it is stacked from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from data_pipeline.objectives.objective import LABELS


@dataclass
class Batch:
    """Samples of one micro batch, B of them, as torch tensors. What an objective does not use is None.

    Corruption (masking, spans) has happened already; `llmscale.objectives` only compute losses.
    """

    inputs: torch.Tensor
    """(B, T) int64: token ids that the decoder (or the encoder of an encoder-only model) reads."""
    targets: torch.Tensor
    """(B, T) int64: the token to predict at each position; any valid id where the weight is 0."""
    weights: torch.Tensor
    """(B, T) float32: how much each target counts; 0 where nothing is predicted."""
    sample_ids: torch.Tensor
    """(B,) int64: the global sample number k; -1 for fill."""
    segment_ids: torch.Tensor | None = None
    """(B, T) int64: number of the document within the sample, from 0; -1 for fill; token types for next-sentence
    pairs."""
    positions: torch.Tensor | None = None
    """(B, T) int64: position of each token, where it is not 0..T-1."""
    encoder_inputs: torch.Tensor | None = None
    """(B, S) int64: token ids that the encoder of an encoder-decoder reads."""
    encoder_weights: torch.Tensor | None = None
    """(B, S) float32: 1 for encoder tokens, 0 for padding; of `inputs` in an encoder-only model."""
    prefix_lengths: torch.Tensor | None = None
    """(B,) int64: how many tokens from the start all see each other (prefix LM)."""
    shared_lengths: torch.Tensor | None = None
    """(B,) int64: how many tokens from the start the documents of `segment_ids` share: all that come later see them."""
    scored_places: torch.Tensor | None = None
    """(B, K) int64: positions whose prediction is scored, one for each of `scored_tokens`; -1 for padding."""
    scored_tokens: torch.Tensor | None = None
    """(B, K) int64: the tokens whose probability is asked for."""
    features: torch.Tensor | None = None
    """(B, T, channels): hidden states of `inputs`, where they are known."""
    labels: dict[str, torch.Tensor] = field(default_factory=dict)
    """(B, ...) what heads predict besides tokens, by the head's name: classes as int64, -1 where there is none; numbers
    as float32, NaN where there is none. Fill has none."""

    @property
    def size(self) -> int:
        """Samples in the batch, fill included."""
        return self.inputs.shape[0]

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with `function` applied to every tensor."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "labels"}
        labels = {name: function(value) for name, value in self.labels.items()}
        return Batch(
            **{name: None if value is None else function(value) for name, value in values.items()}, labels=labels
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; copies from pinned memory do not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, micro_batch: int) -> list[Batch]:
        """Micro batches of at most `micro_batch` samples, in order."""
        return [
            self.map(lambda tensor, start=start: tensor[start : start + micro_batch])  # type: ignore[misc]
            for start in range(0, self.size, micro_batch)
        ]


def make_batch(arrays: Mapping[str, np.ndarray], numbers: np.ndarray) -> Batch:
    """The batch of an objective's rows, which have the global sample numbers `numbers` (-1 for fill)."""
    tensors = {name: torch.from_numpy(array.astype(_dtype(name, array), copy=False)) for name, array in arrays.items()}
    labels = {name.removeprefix(LABELS): tensors.pop(name) for name in list(tensors) if name.startswith(LABELS)}
    tokens = tensors.pop("tokens", None)
    if tokens is not None:
        tensors |= {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    if "weights" not in tensors:
        tensors["weights"] = torch.ones(()).expand(tensors["targets"].shape)
    return Batch(sample_ids=torch.from_numpy(numbers), labels=labels, **tensors)


def fill_of(name: str, array: np.ndarray) -> float:
    """What rows of fill hold in an array of an objective."""
    if name.startswith(LABELS):
        return np.nan if array.dtype.kind == "f" else -1
    return 0


def with_label(batch: Batch, name: str, value: float) -> Batch:
    """The batch with one number, in fp64, as a label of all its samples."""
    label = torch.full((batch.size,), value, dtype=torch.float64)
    return replace(batch, labels={**batch.labels, name: label})


def no_labels(labels: torch.Tensor) -> torch.Tensor:
    """Labels of samples that have none."""
    return torch.full_like(labels, torch.nan if labels.is_floating_point() else -1)


def _dtype(name: str, array: np.ndarray) -> type:
    numbers = name.startswith(LABELS) and array.dtype.kind == "f"
    return np.float32 if numbers or name in ("weights", "encoder_weights") else np.int64
