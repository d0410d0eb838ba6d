"""Tasks of both kinds, with a context and without, give what the harness's own backend gives."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.benchmarks.test_families import WORDS


@pytest.mark.slow
def test_a_trained_model_scores_as_in_the_harness(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from benchmarks.agreement import BAR, Harness, compare_task, summary, table
    from benchmarks.families import config_of, train
    from llmscale.hugging_face.exporting import export_checkpoint
    from llmscale.hugging_face.importing import import_directory

    draw = random.Random(3)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    (tmp_path / "text.txt").write_text("\n".join(f"{words(4, 12)} {number}." for number in range(6000)))
    train(config_of("Llama", tmp_path, tmp_path / "text.txt", 3, 2, 32, 400))
    questions = [
        {"question": words(3, 6), "support": words(5, 20), "correct_answer": f"{words(1, 3)} a"}
        | {f"distractor{place}": f"{words(1, 3)} {place}" for place in (1, 2, 3)}
        for _ in range(6)
    ]
    pairs = [{"sentence_good": f"{words(3, 5)}.", "sentence_bad": f"{words(3, 5)}!", "UID": "a"} for _ in range(6)]
    for path, records in {"eval/sciq.validation.jsonl": questions, "blimp/adjunct_island.jsonl": pairs}.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text("".join(json.dumps(record) + "\n" for record in records))
    export_checkpoint(tmp_path / "Llama", tmp_path / "exported")
    import_directory(tmp_path / "exported", tmp_path / "imported")
    harness = Harness(tmp_path / "exported", 4)
    rows = {}
    for name in ("sciq", "blimp"):
        found = compare_task(name, tmp_path, tmp_path / "imported", harness, 5, tmp_path / "evaluations")
        rows[name] = row = summary(found)
        assert (row["items"], row["requests"], row["border_requests"]) == (5, 20 if name == "sciq" else 10, 0)
        assert row["ours_from_double"] < BAR
        assert not any(row["items_that_differ"].values())
    assert len(table(rows).splitlines()) == 2 + 2 + 1
