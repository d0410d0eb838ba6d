"""What is published of each system in configs/systems, stated independently of the configs."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYSTEMS = ROOT / "configs" / "systems"
TWINS = SYSTEMS / "tiny"


@dataclass(frozen=True)
class Published:
    """Figures of a paper or of released weights."""

    parameters: float
    """As published: to the digit where weights are released, else rounded."""
    released: bool
    """Whether the count is that of released weights."""
    tokens: float | None = None
    """Tokens of the whole training, padding of the encoder's input included; None where not published."""
    batch_tokens: float | None = None
    """Tokens of a step, at the end of the batch ramp."""
    layout: tuple[int, int, int] | None = None
    """(tensor, pipeline, data) sizes that it was trained with; None where not published."""


PUBLISHED = {
    # Brown et al. 2020, table D.1: 174,600 M.
    "gpt3_175b": Published(174.6e9, False, tokens=300e9, batch_tokens=3.2e6),
    # bert-base-uncased and bert-large-uncased, with pooler, without heads. Devlin et al. 2019, A.2.
    "bert_base": Published(109_482_240, True, tokens=256 * 512 * 1e6, batch_tokens=256 * 512),
    "bert_large": Published(335_141_888, True, tokens=256 * 512 * 1e6, batch_tokens=256 * 512),
    # t5-base and t5-11b. Raffel et al. 2020, section 3.7.
    "t5_base": Published(222_903_552, True, tokens=2**20 * 1e6, batch_tokens=2**20),
    "t5_11b": Published(11_307_321_344, True, tokens=2**20 * 1e6, batch_tokens=2**20),
    # EleutherAI/gpt-neo-2.7B, gpt-j-6b and gpt-neox-20b, and their cards.
    "gpt_neo_2_7b": Published(2_651_307_520, True, tokens=420e9, layout=(2, 1, 128)),
    "gpt_j_6b": Published(6_050_882_784, True, tokens=402e9, layout=(8, 1, 32)),
    "gpt_neox_20b": Published(20_554_567_680, True, tokens=150_000 * 3.15e6, batch_tokens=3.15e6, layout=(2, 4, 12)),
    # Narayanan et al. 2021, table 1; Smith et al. 2022: the schedule reaches its end at 340 B tokens.
    "mt_nlg_530b": Published(529.6e9, False, tokens=340e9, batch_tokens=1920 * 2048, layout=(8, 35, 8)),
    # Zeng et al. 2021, table 1, figure 8 (where the curve ends) and section 4.1.
    "pangu_alpha_200b": Published(207.0e9, False, tokens=42.6e9, layout=(8, 16, 16)),
    # BAAI 2021.
    "wu_dao_2": Published(1.75e12, False),
    # meta-llama/Meta-Llama-3-8B, Qwen/Qwen3-8B, mistralai/Mixtral-8x7B-v0.1.
    "llama3_8b": Published(8_030_261_248, True, tokens=15e12),
    "qwen3_8b": Published(8_190_735_360, True, tokens=30e12),
    "mixtral_8x7b": Published(46_702_792_704, True),
}
