"""One layer of the Transformer."""

from collections.abc import Sequence

from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.attention import make_attention
from llmscale.model.attention.modules.multi_head import CrossAttention
from llmscale.model.context import Context
from llmscale.model.dropout import Place, drop
from llmscale.model.experts import ExpertLinear, Experts
from llmscale.model.feed_forward import FeedForward
from llmscale.model.linear import Linear
from llmscale.model.norms import make_norm


class Block(nn.Module):
    """Attention, cross-attention where there is an encoder, and feed-forward, each added to the residual stream.

    Norms come before them (GPT-2, section 2.3), after each sum (BERT), or between them and the sum (OLMo 2; Gemma
    3 besides those before); or attention and feed-forward read the same input (GPT-J).
    """

    low_ranks: Sequence[Linear | ExpertLinear] = ()
    """Its layers with factors (`llmscale.model.low_rank`) whose inputs are dropped."""

    def __init__(self, config: ModelConfig, layer: int, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.post_norm = config.norm_order == "post"
        self.parallel = config.parallel_residual
        self.dropout = config.dropout
        self.multiplier = config.residual_multiplier
        before, after = config.norm_order != "reordered", config.norm_order in ("reordered", "sandwich")
        self.attention_norm = make_norm(config) if before and (config.first_norm or layer) else None
        self.attention = make_attention(config, layer, causal)
        self.post_attention_norm = make_norm(config) if after else None
        self.cross_attention_norm = make_norm(config) if cross and before else None
        self.cross_attention = CrossAttention(config, layer) if cross else None
        self.post_cross_attention_norm = make_norm(config) if cross and after else None
        self.feed_forward_norm = make_norm(config) if before and not config.shared_norm else None
        self.post_feed_forward_norm = make_norm(config) if after else None
        dense = FeedForward(config, config.dense_channels(layer)) if config.dense_channels(layer) else None
        self.feed_forward = Experts(config) if config.has_experts(layer) else dense
        self.shared_feed_forward = dense if config.has_experts(layer) else None

    def forward(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """(B, T, hidden_size) to the same shape, and each sequence's router loss (B,), or None in a dense layer."""
        for layer in self.low_ranks:
            layer.low_rank.lend(context.dropout)  # type: ignore[union-attr]
        if self.post_norm:
            return self._post_norm(hidden, context)
        normed = _normed(self.attention_norm, hidden)
        if self.parallel:
            beside = normed if self.feed_forward_norm is None else self.feed_forward_norm(hidden)
            changed, loss = self._feed_forward(beside, context)
            return hidden + self._scaled(self.attention(normed, context)) + self._scaled(changed), loss
        hidden = hidden + self._scaled(_normed(self.post_attention_norm, self.attention(normed, context)))
        if self.cross_attention is not None:
            changed = self.cross_attention(_normed(self.cross_attention_norm, hidden), context)
            hidden = hidden + self._scaled(_normed(self.post_cross_attention_norm, changed))
        changed, loss = self._feed_forward(_normed(self.feed_forward_norm, hidden), context)
        return hidden + self._scaled(_normed(self.post_feed_forward_norm, changed)), loss

    def _post_norm(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        assert self.attention_norm is not None
        assert self.feed_forward_norm is not None
        hidden = self.attention_norm(hidden + self._scaled(self.attention(hidden, context)))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            hidden = self.cross_attention_norm(hidden + self._scaled(self.cross_attention(hidden, context)))
        changed, loss = self._feed_forward(hidden, context)
        return self.feed_forward_norm(hidden + self._scaled(changed)), loss

    def _scaled(self, changed: Tensor) -> Tensor:
        return changed if self.multiplier == 1 else changed * self.multiplier

    def _feed_forward(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        loss = None
        if isinstance(self.feed_forward, Experts):
            changed, loss = self.feed_forward(hidden, context.padding_mask, context.segment_ids)
            if self.shared_feed_forward is not None:
                changed = changed + self.shared_feed_forward(hidden, context.dropout)
        else:
            assert self.feed_forward is not None
            changed = self.feed_forward(hidden, context.dropout)
        if context.dropout is not None and self.dropout:
            keys, part = context.dropout.keys[Place.FEED_FORWARD_OUTPUT], context.dropout.part.positions
            changed = drop(changed, keys, self.dropout, [part])
        return changed, loss


def _normed(norm: nn.Module | None, hidden: Tensor) -> Tensor:
    return hidden if norm is None else norm(hidden)
