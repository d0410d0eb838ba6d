"""Prompts are those of lm-eval, to the character: contexts, continuations, right answers, examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmscale.evaluate.tasks import load_task

pytestmark = pytest.mark.slow

SCIENCE = [
    {
        "id": "1",
        "question": " Which is hot? ",
        "choices": {"text": ["ice", "the sun"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    {"id": "2", "question": "2 + 2", "choices": {"text": ["3", "4", "5"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"id": "3", "question": "“Ünïcode”?", "choices": {"text": ["a\nb", "c "], "label": ["A", "B"]}, "answerKey": "A"},
]
SCENES = [
    {
        "activity_label": "Baking",
        "ctx_a": "A man [title] mixes  eggs.",
        "ctx_b": "he THEN",
        "source_id": "s1",
        "label": "1",
        "endings": [" [header] eats. ", "waits [step] for  it [title] done", "runs", "sings"],
        "ind": 1,
        "ctx": "",
        "split": "val",
        "split_type": "indomain",
    },
    {
        "activity_label": "Ski",
        "ctx_a": "A hill.",
        "ctx_b": "",
        "source_id": "s2",
        "label": "3",
        "ind": 2,
        "ctx": "",
        "endings": ["a", "b  c", "[substeps] d", "e"],
        "split": "val",
        "split_type": "indomain",
    },
]
SETS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "arc_easy": ("arc/arc_easy.yaml", SCIENCE),
    "arc_challenge": ("arc/arc_challenge.yaml", SCIENCE),
    "hellaswag": ("hellaswag/hellaswag.yaml", SCENES),
    "piqa": (
        "piqa/piqa.yaml",
        [
            {"goal": "boil an egg", "sol1": "water", "sol2": "air ", "label": 0},
            {"goal": "", "sol1": "x{{ y }}", "sol2": "z", "label": 1},
        ],
    ),
    "winogrande": (
        "winogrande/default.yaml",
        [
            {"sentence": "Ann beat Sue so _ was glad.", "option1": "Ann", "option2": "Sue", "answer": "1"},
            {"sentence": "_ won.", "option1": "He", "option2": "She", "answer": "2"},
        ],
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        [
            {
                "question_stem": "Fish eat",
                "choices": {"text": ["water", "fire"], "label": ["A", "B"]},
                "answerKey": " A",
            },
            {"question_stem": "It is", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        ],
    ),
    "boolq": (
        "super_glue/boolq/default.yaml",
        [
            {"passage": "Water is wet.", "question": "is water wet", "label": 1, "idx": 0},
            {"passage": "Fire is hot.", "question": "is fire cold", "label": 0, "idx": 1},
        ],
    ),
    "sciq": (
        "sciq/sciq.yaml",
        [
            {
                "question": "What is it?",
                "distractor1": "a",
                "distractor2": "b",
                "distractor3": "c",
                "correct_answer": "d",
                "support": "  It is d. ",
            },
            {
                "question": "Who?",
                "distractor1": "x",
                "distractor2": "y",
                "distractor3": "z",
                "correct_answer": "w",
                "support": "",
            },
        ],
    ),
    "copa": (
        "super_glue/copa/default.yaml",
        [
            {
                "premise": "The tap ran. ",
                "choice1": "The tub filled.",
                "choice2": "It dried.",
                "question": "effect",
                "label": 0,
            },
            {
                "premise": "He fell.",
                "choice1": "Ice lay there.",
                "choice2": "He sang.",
                "question": "cause",
                "label": 0,
            },
        ],
    ),
    "commonsense_qa": (
        "commonsense_qa/default.yaml",
        [
            {
                "question": " Where? ",
                "choices": {"label": list("ABCDE"), "text": ["a", "b", "c", "d", "e"]},
                "answerKey": "C",
            },
            {
                "question": "When?",
                "choices": {"label": list("ABCDE"), "text": ["1", "2", "3", "4", "5"]},
                "answerKey": "E",
            },
        ],
    ),
    "social_iqa": (
        "siqa/siqa.yaml",
        [
            {
                "context": "Sue left.",
                "question": "Why?",
                "answerA": "tired",
                "answerB": "sad",
                "answerC": "bored",
                "label": "3",
            },
            {
                "context": "Al came.",
                "question": "When?",
                "answerA": "now",
                "answerB": "then",
                "answerC": "soon",
                "label": "1",
            },
        ],
    ),
    "lambada": (
        "lambada/lambada_openai.yaml",
        [{"text": "He said  hello\n\nto the world"}, {"text": '"No," she replied, "not that word"'}],
    ),
    "sst2": (
        "glue/sst2/default.yaml",
        [{"sentence": "it 's fun ", "label": 1, "idx": 0}, {"sentence": "dull", "label": 0, "idx": 1}],
    ),
    "xnli_zh": (
        "xnli/xnli_zh.yaml",
        [
            {"premise": "他走了。", "hypothesis": "他不在。", "label": 0},
            {"premise": "下雨", "hypothesis": "晴天", "label": 2},
        ],
    ),
    "triviaqa": (
        "triviaqa/default.yaml",
        [
            {"question": "Who wrote it", "answer": {"aliases": ["Ann Lee", "Lee"], "value": "Lee"}},
            {"question": "Where", "answer": {"aliases": ["Rome"], "value": "Rome"}},
        ],
    ),
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        [
            {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
            {"question": "A thousand?", "answer": "It is\n#### 1,000"},
        ],
    ),
    "wikitext": (
        "wikitext/wikitext.yaml",
        [
            {
                "page": ' = A ° B = \n \n He said " so " ( in N @-@ 1 @,@ 000 ) , it \'s \n = = Part = = \n [ x ] ; the'
                " girls ' { y } '"
            }
        ],
    ),
}
LETTERS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "mmlu": (
        "mmlu/default/mmlu_{subset}.yaml",
        "high_school_us_history",
        [
            {
                "question": f" Q{i}? ",
                "subject": "high_school_us_history",
                "choices": [f"a{i}", "b", "c", "d"],
                "answer": i % 4,
            }
            for i in range(7)
        ],
    ),
    "cmmlu": (
        "cmmlu/cmmlu_{subset}.yaml",
        "world_history",
        [
            {"Question": f" 问{i} ", "A": f"甲{i}", "B": "乙", "C": "丙", "D": "丁", "Answer": "ABCD"[i % 4]}
            for i in range(7)
        ],
    ),
    "ceval": (
        "ceval/ceval-valid_{subset}.yaml",
        "mao_zedong_thought",
        [
            {
                "id": i,
                "question": f" 问{i} ",
                "A": f"甲{i}",
                "B": "乙",
                "C": "丙",
                "D": "丁",
                "answer": "ABCD"[i % 4],
                "explanation": "",
            }
            for i in range(7)
        ],
    ),
}


def oracle(path: str, splits: dict[str, list[dict[str, Any]]], few_shot: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task of lm-eval's with these records in place of its data set's, and its requests."""
    datasets = pytest.importorskip("datasets")
    tasks = pytest.importorskip("lm_eval.tasks")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    settings = load_yaml(Path(tasks.__file__).parent / path)
    settings["num_fewshot"] = few_shot
    sets = {split: datasets.Dataset.from_list(records) for split, records in splits.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: datasets.DatasetDict(sets))
    task = ConfigurableTask(config=settings)
    task.build_all_requests()
    return task


def ours(folder: Path, name: str, splits: dict[str, list[dict[str, Any]]], few_shot: int, subset: str = "data") -> Any:
    for split, records in splits.items():
        (folder / split).mkdir(exist_ok=True)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / split / f"{subset}.jsonl").write_text("".join(lines), encoding="utf-8")
    return load_task(name, str(folder)).items(few_shot=few_shot)


def right_answers(task: Any, document: Any, answers: int) -> tuple[int, ...]:
    """The answers that lm-eval finds right, when each is the most probable."""
    return tuple(
        best
        for best in range(answers)
        if task.process_results(document, [(1.0 if each == best else 0.0, False) for each in range(answers)])["acc"]
        == 1
    )


def require_equal(task: Any, items: Any) -> None:
    requests: dict[int, list[Any]] = {}
    documents = list(task.eval_docs)
    for instance in task.instances:
        requests.setdefault(instance.doc_id, []).append(instance)
    assert len(items) == len(requests) > 0
    for number, item in enumerate(items):
        asked = requests[number]
        if asked[0].request_type == "generate_until":
            assert [item.contexts[0]] == [each.args[0] for each in asked]
        elif asked[0].request_type == "loglikelihood_rolling":
            assert [(answer,) for answer in item.answers] == [each.args for each in asked]
        else:
            mine = [(item.context_of(place), answer) for place, answer in enumerate(item.answers)]
            assert mine == [each.args for each in asked]
            if len(mine) > 1:
                assert item.gold == right_answers(task, documents[number], len(mine))


@pytest.mark.parametrize("name", SETS)
def test_requests_are_those_of_lm_eval(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, records = SETS[name]
    splits = dict.fromkeys(("train", "validation", "test"), records)
    task = oracle(path, splits, 0, monkeypatch)
    items = ours(tmp_path, name, splits, 0)
    require_equal(task, items)
    if name == "wikitext":
        figures = task.process_results(records[0], [-100.0])
        assert (-100.0, items[0].scored_words) == figures["word_perplexity"]
        assert (-100.0, items[0].scored_bytes) == figures["byte_perplexity"]


@pytest.mark.parametrize("name", sorted(SETS.keys() - {"wikitext", "lambada", "xnli_zh"}))
def test_examples_stand_as_in_lm_eval(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pool of one, both show the same one; lm-eval draws one more than it needs."""
    path, records = SETS[name]
    splits = {"train": records[:1] * 2, "validation": records[1:], "test": records[1:]}
    require_equal(oracle(path, splits, 1, monkeypatch), ours(tmp_path, name, splits, 1))


@pytest.mark.parametrize("few_shot", [0, 5])
@pytest.mark.parametrize("name", LETTERS)
def test_fixed_examples_are_those_of_lm_eval(
    name: str, few_shot: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, subset, records = LETTERS[name]
    splits = {"dev": records[:5], "test": records[5:], "val": records[5:]}
    task = oracle(path.format(subset=subset), splits, few_shot, monkeypatch)
    require_equal(task, ours(tmp_path, name, splits, few_shot, subset))


@pytest.mark.parametrize(
    ("name", "key"), [("mmlu", "mmlu/default/mmlu"), ("cmmlu", "cmmlu/cmmlu"), ("ceval", "ceval/ceval-valid")]
)
def test_every_subject_is_introduced_as_in_lm_eval(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    folder = Path(tasks.__file__).parent / key
    subjects = sorted(path.stem.removeprefix(f"{folder.name}_") for path in folder.parent.glob(f"{folder.name}_*.yaml"))
    subjects = [subject for subject in subjects if subject not in ("stem", "other", "humanities", "social_sciences")]
    assert len(subjects) == {"mmlu": 57, "cmmlu": 67, "ceval": 52}[name]
    record = LETTERS[name][2][0]
    split = {"ceval": "val"}.get(name, "test")
    (tmp_path / split).mkdir()
    for subject in subjects:
        own = record | {"subject": subject} if name == "mmlu" else record
        (tmp_path / split / f"{subject}.jsonl").write_text(json.dumps(own) + "\n", encoding="utf-8")
    items = load_task(name, str(tmp_path)).items()
    assert len(items) == len(subjects)
    splits = {each: [record | {"subject": ""}] for each in ("dev", "test", "val")}
    expected = sorted(oracle(f"{key}_{each}.yaml", splits, 0, monkeypatch).instances[0].args[0] for each in subjects)
    assert sorted(item.contexts[0] for item in items) == expected


@pytest.mark.parametrize(
    ("name", "path"), [("blimp", "blimp/npi_present_1.yaml"), ("zhoblimp", "zhoblimp/BA_negation.yaml")]
)
def test_minimal_pairs_are_those_of_lm_eval(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"sentence_good": "He has left.", "sentence_bad": "He have left.", "UID": "x", "pairID": "0"}]
    subset = Path(path).stem
    items = ours(tmp_path, name, {"train": records}, 0, subset)
    require_equal(oracle(path, {"train": records}, 0, monkeypatch), items)
    assert items[0].gold == (0,)


def test_questions_of_squad_are_asked_as_in_lm_eval(tmp_path: Path) -> None:
    task = pytest.importorskip("lm_eval.tasks.squadv2.task")
    record = {"id": "1", "title": "Rome", "context": "Rome is old.", "question": "What is old?",
              "answers": {"text": ["Rome"], "answer_start": [0]}}  # fmt: skip
    [item] = ours(tmp_path, "squad", {"validation": [record]}, 0)
    assert item.contexts == (task.SQuAD2.doc_to_text(None, record),)
    assert item.references == ("Rome",)
