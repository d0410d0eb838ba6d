"""Activation recomputation (Chen et al. 2016), applied to a model from outside: parameters and names stay."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llmscale.model.block import Block
from llmscale.model.context import Context
from llmscale.parallel.swap import mix_in

_ATEN = torch.ops.aten
KEPT = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        torch.ops.mkldnn._linear_pointwise.default,
        _ATEN._grouped_mm.default,
        torch.ops.llmscale.product.default,
        torch.ops.llmscale.grouped_product.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
    }
)
"""What `selective` keeps: it takes long to compute and little room to hold. Attention that is not fused goes through
bmm and is computed again: its scores grow with the square of the length (Korthikanti et al. 2022, section 5)."""


def apply_activation_checkpointing(model: nn.Module, mode: Literal["none", "block", "selective"], draws: bool) -> None:
    """Let every block of the model keep its input only, and what `mode` says, for the backward pass.

    Args:
        draws: whether blocks draw from torch's generator, whose state must then be kept too.
    """
    if mode == "none":
        return
    for module in model.modules():
        if isinstance(module, Block):
            mix_in(module, SelectiveBlock if mode == "selective" else RecomputedBlock, draws=draws)


class RecomputedBlock(Block):
    """A block whose insides are computed again in the backward pass."""

    draws: bool

    def forward(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        return self._recomputed(hidden, context)

    def _recomputed(self, hidden: Tensor, context: Context, **how: Any) -> tuple[Tensor, Tensor | None]:
        return checkpoint(super().forward, hidden, context, use_reentrant=False, preserve_rng_state=self.draws, **how)


class SelectiveBlock(RecomputedBlock):
    """A block of whose insides `KEPT` results are held, and the rest is computed again in the backward pass."""

    def forward(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        return self._recomputed(hidden, context, context_fn=partial(create_selective_checkpoint_contexts, _policy))


def _policy(ctx: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if function in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
