"""What a score says beyond its items: intervals, comparisons of models on the same items, looking many times."""

from llmscale.evaluate.statistics.difference import Difference
from llmscale.evaluate.statistics.exchange import CorpusDifference
from llmscale.evaluate.statistics.interval import Interval
from llmscale.evaluate.statistics.means import (
    group_mean_interval,
    groups_difference,
    mean_interval,
    ratio_interval,
)
from llmscale.evaluate.statistics.paired import PairedDifference, paired_difference
from llmscale.evaluate.statistics.proportions import exact_interval, proportion_interval
from llmscale.evaluate.statistics.resampling import corpus_interval
from llmscale.evaluate.statistics.sequences import confidence_sequence, look_level, paired_confidence_sequence
from llmscale.evaluate.statistics.several import holm
from llmscale.evaluate.statistics.training_noise import training_noise
from llmscale.evaluate.statistics.verdict import Verdict, judge

__all__ = [
    "CorpusDifference",
    "Difference",
    "Interval",
    "PairedDifference",
    "Verdict",
    "confidence_sequence",
    "corpus_interval",
    "exact_interval",
    "group_mean_interval",
    "groups_difference",
    "holm",
    "judge",
    "look_level",
    "mean_interval",
    "paired_confidence_sequence",
    "paired_difference",
    "proportion_interval",
    "ratio_interval",
    "training_noise",
]
