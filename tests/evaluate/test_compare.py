"""`llmscale compare` on artefacts, runs and samples of lm-eval: verdicts, items, pictures, and what is refused."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from scipy import stats

from llmscale.cli import cli
from llmscale.evaluate.artefact import ITEMS_FILE, Answer, Meta, Record
from llmscale.evaluate.artefact_writer import ArtefactWriter, folder_name

PNG = b"\x89PNG\r\n\x1a\n"


def answer(nats, size=4):
    return Answer([1], [(0, size)], [nats], [True], size, size)


def choice(number, right, cluster=None):
    """An item of two answers, the second of which is right."""
    nats = (-2.0, -1.0) if right else (-1.0, -2.0)
    return Record(number, f"item{number}", [answer(nats[0]), answer(nats[1])], gold=[1], cluster=cluster)


def write(run: Path, records, task="arc", step=100, kind="choice", metrics=("accuracy",), items=None, **meta):
    """An artefact in the evaluations of a run; returns its folder."""
    whole = Meta(
        **{
            "format": 1, "task": task, "task_digest": "t", "kind": kind, "metrics": list(metrics),
            "items": len(records) if items is None else items, "limited": None, "few_shot": 0,
            "checkpoint": f"{run}/checkpoints/step-{step:08d}", "model": f"{run}{step}", "reading": "r",
            "scorer": "causal", "exactness": "exact", **meta,
        }
    )  # fmt: skip
    folder = run / "evaluations" / folder_name(whole, step)
    writer = ArtefactWriter(folder, whole, [record.item for record in records])
    writer.append(records)
    writer.close()
    return folder


def choices(right, n=100):
    """n items, of which those numbers are answered right."""
    return [choice(number, number in set(right)) for number in range(n)]


def compare(*arguments, code=0):
    """The JSON of a comparison, or the message where it is refused."""
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments), "--json"])
    if code:
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.stderr
        return result.stderr
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return json.loads(result.stdout)["comparisons"]


@pytest.fixture
def runs(tmp_path):
    """a: 50 of 100; b: 30 more and 8 fewer of them; c: as b, but for 2."""
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    better = [*range(8, 50), *range(50, 80)]
    write(a, choices(range(50)))
    write(b, choices(better))
    write(c, choices([*better[2:]]))
    return a, b, c


def test_two_runs_are_told_apart_by_mcnemars_test(runs):
    (row,) = compare(*runs[:2])
    assert (row["task"], row["metric"], row["test"]) == ("arc", "accuracy", "McNemar, exact")
    assert [figure["value"] for figure in row["figures"]] == [0.5, 0.72]
    assert row["difference"]["value"] == pytest.approx(0.22)
    assert (row["larger"], row["smaller"]) == (30, 8)
    assert row["p_value"] == pytest.approx(stats.binomtest(8, 38).pvalue)
    assert row["verdict"]["word"] == "better"
    assert row["difference"]["low"] > 0
    (turned,) = compare(runs[1], runs[0])
    assert turned["verdict"]["word"] == "worse"
    assert turned["difference"]["high"] == pytest.approx(-row["difference"]["low"])


def test_every_model_is_compared_with_the_first_and_all_at_once(runs):
    rows = compare(*runs)
    assert [(Path(row["first"]).name, Path(row["second"]).name) for row in rows] == [("a", "b"), ("a", "c")]
    p_values = sorted(row["p_value"] for row in rows)
    assert sorted(row["verdict"]["p_value"] for row in rows) == pytest.approx(
        [2 * p_values[0], max(p_values[1], 2 * p_values[0])]
    )


def test_close_models_are_equal_within_a_delta_or_cannot_be_told_apart(runs):
    (row,) = compare(*runs[1:])
    assert row["verdict"]["sentence"].startswith("cannot tell: about ")
    assert row["verdict"]["more_items"] > 0
    assert compare(*runs[1:], "--delta", 0.1)[0]["verdict"]["sentence"] == "equal within 0.1"
    assert compare(*runs[1:], "--delta", "accuracy=0.1")[0]["verdict"]["word"] == "equal"
    assert compare(*runs[1:], "--delta", "f1=0.1")[0]["verdict"]["word"] == "cannot tell"


def test_an_artefact_a_checkpoint_and_a_run_are_the_same_model(tmp_path, runs):
    folder = next((runs[1] / "evaluations").iterdir())
    checkpoint = runs[1] / "checkpoints" / "step-00000100"
    checkpoint.mkdir(parents=True)
    expected = compare(*runs[:2])[0]["difference"]
    assert compare(runs[0], folder)[0]["difference"] == expected
    assert compare(runs[0], checkpoint)[0]["difference"] == expected


def test_a_run_is_its_newest_checkpoint_and_a_checkpoint_is_itself(runs):
    a, b, _ = runs
    write(b, choices(range(10)), step=20)
    old = b / "checkpoints" / "step-00000020"
    old.mkdir(parents=True)
    assert compare(a, b)[0]["figures"][1]["value"] == 0.72
    assert compare(a, old)[0]["figures"][1]["value"] == 0.1


def test_clusters_of_items_count_as_one(tmp_path):
    """20 clusters of 5 items that are all alike: as sure as 20 items are."""
    a, b = tmp_path / "a", tmp_path / "b"
    for run, chosen in ((a, range(0, 10)), (b, range(5, 20))):
        write(run, [choice(number, number // 5 in chosen, f"text{number // 5}") for number in range(100)])
    (row,) = compare(a, b)
    assert (row["difference"]["n"], row["difference"]["clusters"]) == (100, 20)
    assert row["test"] == "sign flips, exact"
    assert row["p_value"] == pytest.approx(stats.binomtest(5, 15).pvalue)
    assert row["verdict"]["word"] == "cannot tell"


def test_a_ratio_of_sums_is_compared_as_one(tmp_path):
    """Bits per byte: nats over bytes of all texts, of which long ones weigh more."""
    a, b = tmp_path / "a", tmp_path / "b"
    sizes = [40 + 7 * (number % 5) for number in range(30)]
    for run, scale in ((a, 1.0), (b, 1.1)):
        records = [
            Record(number, f"i{number}", [answer(-size * scale - number % 3, size)])
            for number, size in enumerate(sizes)
        ]
        write(run, records, "text", kind="perplexity", metrics=["bits_per_byte"])
    (row,) = compare(a, b)
    bits = [
        sum(size * scale + number % 3 for number, size in enumerate(sizes)) / sum(sizes) / math.log(2)
        for scale in (1.0, 1.1)
    ]
    assert [figure["value"] for figure in row["figures"]] == pytest.approx(bits)
    assert row["difference"]["value"] == pytest.approx(bits[1] - bits[0])
    assert (row["higher_is_better"], row["verdict"]["word"]) == (False, "worse")
    assert (row["larger"], row["smaller"]) == (30, 0)


def test_noise_of_checkpoints_stands_in_the_way_of_a_claim(runs):
    a, b, _ = runs
    for step, count in ((80, 20), (90, 70)):
        write(a, choices(range(count)), step=step)
        write(b, choices(range(count)), step=step)
    (row,) = compare(a, b, "--checkpoints", 3)
    assert row["noise"]["low"] < 0 < row["noise"]["high"]
    assert row["noise"]["value"] == pytest.approx(0.22)
    assert row["verdict"]["sentence"] == "cannot tell: beyond the noise of items, but within that of training"
    assert compare(a, b)[0]["noise"] is None


def test_seeds_are_one_model_with_the_noise_between_them(tmp_path):
    firsts, seconds = [tmp_path / f"a{seed}" for seed in range(3)], [tmp_path / f"b{seed}" for seed in range(3)]
    for seed, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        write(first, choices(range(40 + seed)))
        write(second, choices(range(60 + seed)))
    (row,) = compare(",".join(map(str, firsts)), ",".join(map(str, seconds)))
    assert [figure["value"] for figure in row["figures"]] == pytest.approx([0.41, 0.61])
    expected = stats.ttest_ind([0.6, 0.61, 0.62], [0.4, 0.41, 0.42], equal_var=False).confidence_interval()
    assert (row["noise"]["low"], row["noise"]["high"]) == pytest.approx((expected.low, expected.high))
    assert row["verdict"]["word"] == "better"


def test_items_of_another_order_are_matched(tmp_path):
    records = choices(range(30))
    turned = [
        Record(place, record.item, record.answers, gold=record.gold) for place, record in enumerate(records[::-1])
    ]
    (row,) = compare(write(tmp_path / "a", records), write(tmp_path / "b", turned))
    assert (row["larger"], row["smaller"]) == (0, 0)


def test_other_items_are_refused_and_shared_ones_can_be_compared(tmp_path):
    a, b = write(tmp_path / "a", choices(range(50), 100)), write(tmp_path / "b", choices(range(60), 90))
    message = compare(a, b, code=2)
    assert f"{a} has 100 items of arc and {b} 90, of which 90 are the same" in message
    assert f"the first that only {a} has is item90" in message
    assert "--common" in message
    assert message.count("\n") == 1
    (row,) = compare(a, b, "--common")
    assert row["difference"]["n"] == 90
    other = write(tmp_path / "c", [Record(0, "x", [answer(-1), answer(-2)], gold=[0])])
    assert "have no item of arc in common" in compare(a, other, "--common", code=2)


def test_disagreements_are_listed_item_by_item(runs):
    (row,) = compare(*runs[:2], "--items", 3)
    assert [each["item"] for each in row["disagreements"]] == ["item0", "item1", "item2"]
    assert row["disagreements"][0]["scores"] == [1.0, 0.0]
    assert row["disagreements"][0]["said"] == ["answer 1 of 2 (right: 1)", "answer 0 of 2 (right: 1)"]
    (every,) = compare(*runs[:2], "--items", 1000)
    assert len(every["disagreements"]) == 38


def test_the_table_says_what_the_json_says(runs):
    result = CliRunner().invoke(cli, ["compare", *map(str, runs), "--items", "2"])
    assert result.exit_code == 0
    assert "+0.2200 [+0.0996" in result.stdout
    assert "better" in result.stdout
    assert "item0" in result.stdout
    assert "for all rows together (2, Holm)" in result.stdout


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_forest_plot_is_drawn(runs, tmp_path, suffix):
    picture = tmp_path / f"forest{suffix}"
    compare(*runs, "--plot", picture, "--delta", 0.05)
    if suffix == ".png":
        assert picture.read_bytes().startswith(PNG)
        return
    texts = [element.text for element in ElementTree.parse(picture).iter() if element.tag.endswith("}text")]
    assert texts.count("better") == 2
    assert any("better to the right" in (text or "") for text in texts)


def test_interrupted_evaluations_are_told_of(tmp_path):
    a, b = write(tmp_path / "a", choices(range(5), 20), items=50), write(tmp_path / "b", choices(range(9), 20))
    result = CliRunner().invoke(cli, ["compare", str(a), str(b)])
    assert result.exit_code == 0
    assert f"warning: {a} has 20 of 50 items, since its evaluation was interrupted" in result.stderr


def test_items_that_were_asked_otherwise_are_told_of(tmp_path):
    a, b = write(tmp_path / "a", choices(range(5), 20)), write(tmp_path / "b", choices(range(9), 20), few_shot=5)
    result = CliRunner().invoke(cli, ["compare", str(a), str(b)])
    assert "warning: arc: another number of few-shot examples: 0 in" in result.stderr


def test_tasks_are_chosen_and_those_of_one_model_left_out(runs):
    a, b, _ = runs
    write(a, choices(range(40)), "alone")
    write(a, choices(range(40)), "both")
    write(b, choices(range(70)), "both")
    assert [row["task"] for row in compare(a, b)] == ["arc", "both"]
    assert [row["task"] for row in compare(a, b, "--task", "both")] == ["both"]
    assert "evaluate both on one task" in compare(a, b, "--task", "alone", code=2)
    assert "no model was evaluated on nothing" in compare(a, b, "--task", "nothing", code=2)


def harness(path: Path, right, n=100, metric="acc", **more):
    """A file of lm-eval's samples, which has the fields that its version 0.4.9 writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "doc_id": number, "doc": {"question": f"q{number}"}, "target": "1", "arguments": {},
                "resps": [[["-1.5", "False"]], [["-1.0", "True"]]],
                "filtered_resps": [["-1.5", "False"], ["-1.0", "True"]], "filter": "none", "metrics": [metric],
                "doc_hash": f"{number:064x}", "prompt_hash": "p", "target_hash": "t",
                metric: float(number in set(right)), **more,
            }
        )
        for number in range(n)
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_samples_of_lm_eval_are_compared(tmp_path):
    first = harness(tmp_path / "m1" / "samples_arc_easy_2026-01-02T03-04-05.678901.jsonl", range(50))
    harness(tmp_path / "m2" / "samples_arc_easy_2026-01-02T03-04-05.678901.jsonl", range(10))
    harness(tmp_path / "m2" / "samples_arc_easy_2026-02-02T03-04-05.678901.jsonl", range(8, 80))
    (row,) = compare(first, tmp_path / "m2", "--items", 1)
    assert (row["task"], row["metric"], row["larger"], row["smaller"]) == ("arc_easy", "acc", 30, 8)
    assert row["p_value"] == pytest.approx(stats.binomtest(8, 38).pvalue)
    assert row["disagreements"][0]["said"][0] == "answer 1 of 2 (right: 1)"


def test_filters_and_logarithms_of_lm_eval_have_names_of_their_own(tmp_path):
    a = harness(tmp_path / "a" / "samples_gsm8k_x.jsonl", range(50), metric="exact_match", filter="strict-match")
    b = harness(tmp_path / "b" / "samples_gsm8k_x.jsonl", range(60), metric="exact_match", filter="strict-match")
    assert "samples_gsm8k_x" not in compare(a, b)[0]["metric"]
    assert compare(a, b)[0]["metric"] == "exact_match,strict-match"
    first = harness(tmp_path / "a" / "samples_lambada.jsonl", range(50), metric="perplexity")
    second = harness(tmp_path / "b" / "samples_lambada.jsonl", range(90), metric="perplexity")
    (row,) = compare(first, second)
    assert (row["metric"], row["verdict"]["word"]) == ("log_likelihood", "better")


def test_what_cannot_be_compared_is_refused_in_one_sentence(runs, tmp_path):
    a, b, _ = runs
    empty = tmp_path / "empty"
    empty.mkdir()
    samples = harness(tmp_path / "samples_arc.jsonl", range(5))
    broken = tmp_path / "samples_broken.jsonl"
    broken.write_text('{"doc_id": 1}\n')
    twice = tmp_path / "samples_twice.jsonl"
    twice.write_text(samples.read_text() + samples.read_text().split("\n")[0] + "\n")
    stranger = tmp_path / "table.csv"
    stranger.write_text("a,b\n")
    cases = [
        ((a,), "1 model is named, but a comparison needs at least 2"),
        ((a, a), "is named twice"),
        ((a, tmp_path / "nowhere"), "nowhere does not exist"),
        ((a, empty), "empty has no evaluation"),
        ((a, stranger), "table.csv is no evaluation"),
        ((a, samples), "100, of which 0 are the same"),
        ((a, samples, "--common"), "have no item of arc in common"),
        ((samples, broken), "samples_broken.jsonl:1 is no sample of lm-eval"),
        ((samples, twice), "samples_twice.jsonl:101 has item 0 a second time"),
        ((a, b, "--level", 95), "--level is 95, but must lie between 0 and 1"),
        ((a, b, "--delta", -1), "--delta is '-1', but must be a number above 0"),
        ((a, b, "--delta", "accuracy"), "--delta is 'accuracy', but must be a number above 0"),
        ((a, b, "--metric", "accurasy"), "there is no metric 'accurasy'"),
        ((a, b, "--plot", tmp_path / "x.pdf"), "must end in .png or .svg"),
        ((a, b, "--plot", tmp_path / "no" / "x.png"), "no does not exist; make it first"),
        ((f"{a},{b}", a, "--checkpoints", 2), "names 2 seeds and --checkpoints 2 asks for checkpoints"),
    ]
    for arguments, expected in cases:
        message = compare(*arguments, code=2)
        assert expected in message
        assert message.count("\n") == 1, message


def test_a_damaged_line_is_named(runs):
    path = next((runs[0] / "evaluations").iterdir()) / ITEMS_FILE
    lines = path.read_text().split("\n")
    lines[6] = lines[6][:40]
    path.write_text("\n".join(lines))
    assert f"{path}:7 is damaged" in compare(*runs[:2], code=2)


def test_comparing_needs_no_torch(runs):
    script = (
        "import sys\nfrom llmscale.evaluate import artefact, artefact_files, compare, metrics, statistics\n"
        "from llmscale.evaluate.compare.command import compare_models\n"
        f"compare_models({[str(run) for run in runs]!r}, (), (), 0.95, (), 1, False, 0, True)\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
