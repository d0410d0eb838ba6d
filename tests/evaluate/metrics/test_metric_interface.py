"""What holds of every metric, and what is refused."""

import dataclasses
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from llmscale.evaluate import metrics
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics import METRICS, check_metric, figure_of, fitting, per_item
from llmscale.evaluate.metrics.base import KINDS, ItemMean
from tests.evaluate.metrics.records import choice, random_records, written

PAIRS = [(kind, name) for kind in KINDS for name in fitting(kind)]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 12), seed=st.integers(0, 10**6), clusters=st.booleans(), groups=st.booleans(), data=st.randoms()
)
def test_every_metric_of_every_kind(kind, name, n, seed, clusters, groups, data):
    records = random_records(kind, n, seed, clusters, groups)
    figure = figure_of(name, records, kind=kind)
    least, greatest = METRICS[name].bounds
    assert figure.n == n
    assert figure.clusters == len({record.cluster for record in records} if clusters else records)
    assert least - 1e-9 <= figure.value <= greatest + 1e-9
    assert figure.low - 1e-9 <= figure.value <= figure.high + 1e-9
    assert figure.signature.startswith(name)

    shuffled = list(records)
    data.shuffle(shuffled)
    assert figure_of(name, shuffled).value == pytest.approx(figure.value, rel=1e-9, abs=1e-12)

    values = [per_item(name, record) for record in records]
    if isinstance(METRICS[name], ItemMean):
        assert figure.value == pytest.approx(sum(values) / n, rel=1e-9, abs=1e-12)
    if groups:
        members = {
            group: [record for record in records if record.group == group] for group in {r.group for r in records}
        }
        alone = {group: figure_of(name, among).value for group, among in members.items()}
        assert figure.by_group == pytest.approx(alone, rel=1e-9, abs=1e-12)
        assert figure.macro.value == pytest.approx(sum(alone.values()) / len(alone), rel=1e-9, abs=1e-12)
        assert figure.macro.low - 1e-9 <= figure.macro.value <= figure.macro.high + 1e-9
    else:
        assert figure.by_group is None
        assert figure.macro is None


@pytest.mark.parametrize(("kind", "name"), [pair for pair in PAIRS if pair[1] != "expected_calibration_error"])
def test_all_records_twice_is_the_same_figure_with_no_wider_interval(kind, name):
    """Calibration in bins by count is left out: equal items may fall into two bins."""
    records = random_records(kind, 20, seed=3)
    once, twice = figure_of(name, records), figure_of(name, records * 2)
    assert twice.value == pytest.approx(once.value, rel=1e-9)
    assert twice.high - twice.low <= once.high - once.low + 1e-9


def test_records_of_one_cluster_are_no_more_than_one_of_each():
    records = [dataclasses.replace(record, cluster=record.item) for record in random_records("choice", 30, seed=5)]
    once = figure_of("soft_accuracy", records)
    thrice = figure_of("soft_accuracy", records * 3)
    assert (thrice.low, thrice.high, thrice.clusters) == (pytest.approx(once.low), pytest.approx(once.high), 30)


def test_intervals_are_those_of_their_level():
    records = random_records("choice", 40, seed=1)
    narrow, wide = (figure_of("accuracy", records, {"level": level}) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_a_share_has_wilsons_interval():
    records = [choice([0.0, -1.0])] * 9 + [choice([-1.0, 0.0])]
    figure = figure_of("accuracy", records)
    z, p, n = 1.959963984540054, 0.9, 10
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (figure.low, figure.high) == (
        pytest.approx((centre - half) / (1 + z**2 / n)),
        pytest.approx((centre + half) / (1 + z**2 / n)),
    )


def test_options_stand_in_the_name_or_beside_it():
    record = written("我爱北京", "北京")
    beside = figure_of("f1", [record], {"language": "zh"})
    within = figure_of("f1:language=zh", [record])
    assert beside.value == within.value == per_item("f1:language=zh", record) == pytest.approx(2 / 3)
    assert figure_of("f1", [record]).value == 0
    assert within.name == "f1:language=zh"
    assert within.signature == beside.signature == "f1|language:zh"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("acuracy", {}, "no metric 'acuracy'; those of tasks of kind choice are acc_bytes, acc_norm, accuracy,"),
        ("bleu", {}, "metric bleu does not fit tasks of kind choice; these do: acc_bytes"),
        ("acc_norm", {"k": 2}, "acc_norm has no option k; its options are delimiter, level, seed"),
        ("acc_norm:delimiter", {}, "'delimiter' in metric 'acc_norm:delimiter' is no option"),
        ("acc_norm:delimiter=x", {}, "option delimiter of metric acc_norm is 'x'; give a whole number of at least 0"),
        ("acc_norm:delimiter=-1", {}, "is -1; give a whole number of at least 0"),
        ("acc_norm", {"delimiter": True}, "is True; give a whole number of at least 0"),
        ("expected_calibration_error:binning=size", {}, "is 'size'; give one of width, count"),
        ("accuracy:level=95", {}, "option level of metric accuracy is 95.0; give a number between 0 and 1"),
        ("accuracy:level=nan", {}, "give a number between 0 and 1"),
    ],
)
def test_names_and_options_that_are_refused(name, options, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        figure_of(name, [choice([0.0, -1.0])], options, kind="choice")


def test_a_task_file_is_checked_before_there_are_records():
    check_metric("f1:language=zh", "span")
    with pytest.raises(UserError, match="does not fit tasks of kind perplexity; these do: bits_per_byte, byte_perp"):
        check_metric("accuracy", "perplexity")
    with pytest.raises(UserError, match="no task has the kind 'chioce'; the kinds are choice, likelihood"):
        check_metric("accuracy", "chioce")


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("accuracy", choice([0.0, -1.0], gold=()), "of item 0: it has no right answer"),
        ("accuracy", choice([0.0, -1.0], gold=(2,)), "its right answer is number 2 of 2, counted from 0"),
        ("accuracy", choice([0.0]), "it has 1 scored answers or labels, where 2 or more are needed"),
        ("accuracy", written("a", "a"), "fits tasks of kind choice or classify"),
        ("accuracy_pmi", choice([0.0, -1.0], neutral=[0.0]), "1 of its 2 answers were scored after the neutral"),
        ("token_perplexity", Record(0, ""), "no text was scored"),
        ("word_perplexity", choice([0.0, -1.0]), "the number of words of its text was not counted"),
        ("f1", written("a"), "it has no reference"),
        ("f1", Record(0, "", references=["a"]), "no text was generated"),
        ("bleu", written(["a", "b"], "a"), "2 texts were generated, where 1 is needed"),
        ("acc_norm:delimiter=4", choice([0.0, -1.0]), "answer 0 of item 0 has length 4, which the option delimiter=4"),
    ],
)
def test_records_that_lack_what_a_metric_needs(name, record, message):
    for attempt in (lambda: figure_of(name, [record]), lambda: per_item(name, record)):
        with pytest.raises(UserError, match=message):
            attempt()


def test_no_records_and_groups_of_some_are_refused():
    with pytest.raises(UserError, match="metric f1 has no records"):
        figure_of("f1", [])
    with pytest.raises(UserError, match="item 0 has no group and others do"):
        figure_of("f1", [written("a", "a", group="x"), written("a", "a")])


def test_items_without_a_finite_value_leave_no_interval():
    figure = figure_of("target_perplexity", [choice([-1.0]), choice([-math.inf])])
    assert figure.value == math.inf
    assert math.isnan(figure.low)
    assert figure.method == "none: 1 of 2 items are not finite"
    assert math.isnan(figure_of("accuracy", [choice([0.0, -1.0]), choice([math.nan, -1.0])]).value)


def test_a_new_metric_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "length.py").write_text(
        "from llmscale.evaluate.metrics.texts import text_metric\n"
        'METRICS = (text_metric("same_length", "", lambda right, own, options: float(len(right) == len(own))),)\n'
    )
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    listed = metrics._listed()
    assert listed.keys() - METRICS.keys() == {"same_length"}
    monkeypatch.setattr(metrics, "METRICS", listed)
    assert per_item("same_length", written("ab", "cd", "e")) == 1


def test_all_metrics_are_computed_without_torch():
    script = (
        "import sys\n"
        "from llmscale.evaluate.metrics import fitting, figure_of\n"
        "from llmscale.evaluate.metrics.base import KINDS\n"
        "from tests.evaluate.metrics.records import random_records\n"
        "for kind in KINDS:\n"
        "    for name in fitting(kind): figure_of(name, random_records(kind, 4, 0))\n"
        "print([m for m in ('torch', 'transformers', 'nltk', 'rouge_score') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
