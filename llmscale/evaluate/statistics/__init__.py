"""What a score says beyond its items: intervals, comparisons of models on the same items, looking many times."""

from llmscale.evaluate.statistics.interval import Interval
from llmscale.evaluate.statistics.means import group_mean_interval, mean_interval, ratio_interval
from llmscale.evaluate.statistics.proportions import exact_interval, proportion_interval
from llmscale.evaluate.statistics.resampling import corpus_interval

__all__ = [
    "Interval",
    "corpus_interval",
    "exact_interval",
    "group_mean_interval",
    "mean_interval",
    "proportion_interval",
    "ratio_interval",
]
