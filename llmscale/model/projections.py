"""What heads are made of: a projection to the vocabulary, and numbers made of a vector of each sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmscale.config.model import HeadConfig, ModelConfig
from llmscale.model.cross_entropy import linear_cross_entropy, linear_scores
from llmscale.model.dropout import drop
from llmscale.model.feed_forward import ACTIVATIONS
from llmscale.model.linear import Linear, linear
from llmscale.model.norms import make_norm


class Vocabulary(nn.Module):
    """A projection to the padded vocabulary, whose padded columns never get any probability.

    BERT has a dense layer, activation and norm before it (Devlin et al. 2019, code).
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        rows = config.padded_vocab(vocab_size)
        self.vocab_size = vocab_size
        self.factor = config.head_factor
        self.activation = ACTIVATIONS[config.activation]
        transform = config.head_transform
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.bias) if transform else None
        self.norm = make_norm(config) if transform else None
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(rows)) if config.head_bias else None

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        scored: bool = False,
    ) -> Tensor:
        """Logits, or with `targets` the loss, or the log-probability of each target.

        All go through `forward` since DeepSpeed ZeRO 3 gathers a module's parameters only around it.

        Args:
            hidden: (..., hidden_size).
            targets: (...) int64, below vocab_size also where the weight is 0.
            weights: (...) how much each target counts; None: 1.
            scored: whether the targets' log-probabilities are wanted; then hidden is (P, hidden_size) and the targets,
                (P, M), are M tokens at each position.

        Returns:
            Logits (..., padded vocabulary) with -inf in the padded columns; or the sum over targets of
            weight x negative log-likelihood in nats, a scalar of at least fp32; or with `scored` (2, P, M) of at least
            fp32: log-probabilities in nats, and 1 where no token is more probable than the target.
        """
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(self.activation(self.dense(hidden)))
        if self.factor != 1:
            hidden = hidden * self.factor
        if targets is None:
            logits = self.project(hidden)
            logits[..., self.vocab_size :] = -torch.inf
            return logits
        if scored:
            return self.scores(hidden, targets)
        hidden, targets = hidden.flatten(0, -2), targets.flatten()
        weights = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights.flatten()
        return self.loss(hidden, targets, weights)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The loss of (N, hidden_size) transformed hidden states, (N,) targets and weights."""
        return linear_cross_entropy(hidden, self.weight, targets, weights, self.vocab_size, self.bias)

    def scores(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The scores (2, P, M) of (P, hidden_size) transformed hidden states and (P, M) targets."""
        return linear_scores(hidden, self.weight, targets, self.vocab_size, self.bias)

    def project(self, hidden: Tensor) -> Tensor:
        """(..., hidden_size) to (..., padded vocabulary)."""
        return linear(hidden, self.weight, self.bias)


class Projection(nn.Module):
    """A projection to a few numbers, of vectors that first go through what its form has: BERT's pooler, a dense layer
    and tanh (Devlin et al. 2019, code), or a dense layer, the model's activation and its norm (Warner et al. 2024,
    code)."""

    def __init__(self, config: ModelConfig, form: HeadConfig) -> None:
        super().__init__()
        channels = config.hidden_size
        self.dropout = form.dropout
        self.activation = ACTIVATIONS[config.activation]
        self.pooler = Linear(channels, channels) if form.pooler else None
        self.dense = Linear(channels, channels, bias=config.bias) if form.transform else None
        self.norm = make_norm(config) if form.transform else None
        self.classifier = Linear(channels, form.outputs, bias=form.bias)

    def forward(self, vectors: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, ..., channels) to (B, ..., outputs); `keys` (B, 2): what training drops
        (`llmscale.model.dropout.drop`)."""
        if self.pooler is not None:
            vectors = self.pooler(vectors).tanh()
        if self.dense is not None and self.norm is not None:
            vectors = self.norm(self.activation(self.dense(vectors)))
        if self.dropout and keys is not None:
            vectors = drop(vectors, keys, self.dropout)
        return self.classifier(vectors)
