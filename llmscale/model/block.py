"""One layer of the Transformer."""

from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.attention import Attention
from llmscale.model.cache import KeyValueCache
from llmscale.model.feed_forward import FeedForward
from llmscale.model.norms import make_norm


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward (GPT-2, section 2.3)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, T, hidden_size) to the same shape; the other arguments are those of `Attention.forward`."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotary, mask, cache)
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))
