"""Evaluations of runs on tasks, for the page: figures, curves, comparison, calibration, and items one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.base.errors import UserError
from llmscale.report.task_figures import Point, calibration_figure, curve_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llmscale.evaluate.compare.models import Model
    from llmscale.evaluate.compare.pairs import Comparison, Disagreement
    from llmscale.evaluate.compare.scored import ScoredArtefact

COMPARISON = "comparison"
"""Name of the picture of differences, which is wider than the others."""
_ITEMS = 10
"""Most items of a task that the page lists."""
_SHOWN = 1000
"""Most characters of a question, whose end is shown."""


@dataclass
class TaskReport:
    """What the page shows of tasks."""

    table: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    """By what they are named."""
    items: str = ""
    problems: list[str] = field(default_factory=list)
    """Sentences about evaluations that cannot be read."""


def read_tasks(directories: list[Path], names: list[str]) -> TaskReport:
    """The evaluations in the runs' `evaluations/`; empty where there are none. Draw within `figures.style`."""
    from llmscale.evaluate.compare.models import EVALUATIONS, load_model
    from llmscale.evaluate.compare.pairs import compare

    report = TaskReport()
    models: dict[str, Model] = {}
    for directory, name in zip(directories, names, strict=True):
        if any((directory / EVALUATIONS).glob("*/items.jsonl")):
            try:
                models[name] = load_model(str(directory))
            except UserError as error:
                report.problems.append(str(error))
    if not models:
        return report
    report.table = _table(models)
    report.figures |= _curves(models)
    report.figures |= _calibration(models)
    comparisons: list[Comparison] = []
    if len(models) > 1:
        try:
            comparisons = compare(list(models.values()), common=True, disagreements=_ITEMS)
        except UserError as error:
            report.problems.append(str(error))
    if comparisons:
        report.figures[COMPARISON] = _forest(comparisons, {model.name: name for name, model in models.items()})
    questions = {model.name: _questions(model, report.problems) for model in models.values()}
    report.items = _items(models, questions) + _disagreements(comparisons, questions)
    return report


def _questions(model: Model, problems: list[str]) -> dict[str, list[str]]:
    """What each item of all tasks asks, by its digest."""
    from llmscale.evaluate.artefact_files import load_questions

    found: dict[str, list[str]] = {}
    for scored in _newest(model).values():
        try:
            found |= load_questions(Path(scored.path))
        except UserError as error:
            problems.append(str(error))
    return found


def _newest(model: Model) -> dict[str, ScoredArtefact]:
    """The last evaluation of each task."""
    return {task: repeats[-1] for task, repeats in model.evaluations.items()}  # type: ignore[misc]


def _table(models: dict[str, Model]) -> str:
    from llmscale.evaluate.compare.models import step_of
    from llmscale.evaluate.metrics import figure_of

    rows = []
    for name, model in models.items():
        for task, scored in _newest(model).items():
            step = step_of(Path(scored.path).name)
            seen = sum("seen" in record.flags for record in scored.records)
            notes = f"{seen:,} items seen in training" if seen else ""
            for number, metric in enumerate(scored.metrics):
                figure = figure_of(metric, scored.records, kind=scored.kind)
                cells = [
                    f"{figure.value:.4g}",
                    f"{figure.low:.4g} to {figure.high:.4g}",
                    f"{figure.n:,}",
                    "" if step is None else f"{step:,}",
                    notes if number == 0 else "",
                ]
                head = f"{task} · {metric}" + (f" · {name}" if len(models) > 1 else "")
                rows.append(
                    f"<tr><th scope=row>{escape(head)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
                )
    head = "".join(f"<th>{name}</th>" for name in ("value", "95 % interval", "items", "step", ""))
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curves(models: dict[str, Model]) -> dict[str, Figure]:
    """A picture for each task that was evaluated after several steps, of its main metric."""
    histories = {name: _histories(model) for name, model in models.items()}
    tasks = dict.fromkeys(task for history in histories.values() for task in history)
    figures = {}
    for task in tasks:
        curves = {name: _points(history.get(task, [])) for name, history in histories.items()}
        if max(map(len, curves.values())) > 1:
            metric = next(history[task][-1].metrics[0] for history in histories.values() if task in history)
            figures[f"{task} {metric}"] = curve_figure(task, metric, curves)
    return figures


def _histories(model: Model) -> dict[str, list[ScoredArtefact]]:
    """All evaluations of each task that were asked as the newest one was, by steps; how many items may differ."""
    from llmscale.evaluate.artefact_files import load_artefact
    from llmscale.evaluate.compare.models import EVALUATIONS, step_of
    from llmscale.evaluate.compare.scored import ScoredArtefact

    by_step: dict[str, dict[int, ScoredArtefact]] = {}
    newest = _newest(model)
    for lines in (Path(model.name) / EVALUATIONS).glob("step-*/items.jsonl"):
        with contextlib.suppress(UserError):
            scored = ScoredArtefact(load_artefact(lines.parent))
            last, step = newest.get(scored.task), step_of(lines.parent.name)
            if last is not None and step is not None and scored.records and scored.conditions == last.conditions:
                steps = by_step.setdefault(scored.task, {})
                if step not in steps or len(steps[step].records) < len(scored.records):
                    steps[step] = scored
    return {task: [steps[step] for step in sorted(steps)] for task, steps in by_step.items()}


def _points(repeats: list[Any]) -> list[Point]:
    """A run's figures by steps. All their intervals hold at once with the usual level, however many looks there are."""
    from llmscale.evaluate.compare.models import step_of
    from llmscale.evaluate.metrics import figure_of
    from llmscale.evaluate.statistics import look_level

    points = []
    for look, scored in enumerate(repeats, start=1):
        step = step_of(Path(scored.path).name)
        if step is not None:
            options = {"level": look_level(look)}
            figure = figure_of(scored.metrics[0], scored.records, options, scored.kind)
            points.append(Point(step, figure.value, figure.low, figure.high))
    return points


def _calibration(models: dict[str, Model]) -> dict[str, Figure]:
    """A picture for each task with answers to choose from."""
    from llmscale.evaluate.metrics.calibration import reliability_table

    figures = {}
    for task in dict.fromkeys(task for model in models.values() for task in model.evaluations):
        tables = {}
        for name, model in models.items():
            scored = _newest(model).get(task)
            if scored is not None and scored.kind == "choice":
                with contextlib.suppress(UserError, ValueError):
                    table = reliability_table(scored.records)
                    tables[name] = [(row.confidence, row.accuracy, row.count) for row in table]
        if tables:
            figures[f"{task} calibration"] = calibration_figure(task, tables)
    return figures


def _forest(comparisons: list[Comparison], names: dict[str, str]) -> Figure:
    from llmscale.report.forest import ForestRow, forest_figure

    rows = [
        ForestRow(
            row.task, row.metric, names[row.second] if len(names) > 2 else "", row.difference.value,
            row.difference.low, row.difference.high, row.verdict.word, row.verdict.sentence, row.higher_is_better,
            row.verdict.delta,
        )
        for row in comparisons
    ]  # fmt: skip
    second = "others" if len(names) > 2 else names[comparisons[0].second]
    return forest_figure(rows, f"{second} beside {names[comparisons[0].first]}", comparisons[0].difference.level)


def _items(models: dict[str, Model], questions: dict[str, dict[str, list[str]]]) -> str:
    """The items that each run does worst, with what it made of the answers."""
    folds = []
    for name, model in models.items():
        text_of = _decoder(Path(model.name))
        for task, scored in _newest(model).items():
            metric = scored.metrics[0]
            values = [scored.item_value(metric, place) for place in range(len(scored.records))]
            if any(value is None for value in values):
                continue
            sign = 1 if scored.facts(metric).higher_is_better else -1
            order = sorted(
                range(len(values)), key=lambda place: (sign * (values[place] or 0.0), _margin(scored, place))
            )
            asked = questions[model.name]
            rows = "".join(
                _item(scored, place, f"{metric} {values[place]:.4g}", text_of, asked) for place in order[:_ITEMS]
            )
            of = f" of {escape(name)}" if len(models) > 1 else ""
            folds.append(f'<details class="card"><summary>{escape(task)}: worst items{of}</summary>{rows}</details>')
    return "".join(folds)


def _margin(scored: ScoredArtefact, place: int) -> float:
    """How far the right answer is ahead of the best other one, in nats: of equal scores the clearest mistake first."""
    record = scored.records[place]
    right = [answer.total for number, answer in enumerate(record.answers) if number in record.gold]
    others = [answer.total for number, answer in enumerate(record.answers) if number not in record.gold]
    return max(right) - max(others) if right and others else 0.0


def _item(
    scored: ScoredArtefact,
    place: int,
    score: str,
    text_of: Callable[[list[int]], str | None],
    questions: dict[str, list[str]],
) -> str:
    record = scored.records[place]
    contexts = questions.get(record.item, [])
    lines = []
    for number, answer in enumerate(record.answers):
        text = text_of(answer.ids)
        shown = f"answer {number}" if text is None else text
        if len(contexts) > 1:  # each answer has its own
            shown = f"{_end(contexts[number])} | {shown}"
        mark = "✓" if number in record.gold and len(record.answers) > 1 else ""
        lines.append(f"<tr><td>{mark}</td><td dir=auto>{escape(shown)}</td><td>{answer.total:.2f} nats</td></tr>")
    for text in record.generated:
        lines.append(f"<tr><td></td><td dir=auto>{escape(text)}</td><td>written</td></tr>")
    for text in record.references[:3]:
        lines.append(f"<tr><td>✓</td><td dir=auto>{escape(text)}</td><td>right</td></tr>")
    notes = [f"item {record.number}", score, *([record.group] if record.group else []), *record.flags]
    question = _question(contexts[0]) if len(contexts) == 1 else ""
    head = f'<p class="note">{escape(" · ".join(notes))}</p>{question}'
    return f'<div class="item">{head}<table>{"".join(lines)}</table></div>'


def _question(text: str) -> str:
    return f"<p dir=auto class=question>{escape(_end(text))}</p>"


def _end(text: str) -> str:
    """A text, or the end of a long one, which the answer follows."""
    return text if len(text) <= _SHOWN else f"… {text[-_SHOWN:]}"


def _decoder(run: Path) -> Callable[[list[int]], str | None]:
    """Token ids to text by the run's tokenizer; None where it cannot be read."""
    from data_pipeline.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(run / "tokenizer")
    except UserError:
        return lambda ids: None

    def text_of(ids: list[int]) -> str | None:
        try:
            return tokenizer.decode(ids)
        except ValueError:
            return None

    return text_of


def _disagreements(comparisons: list[Comparison], questions: dict[str, dict[str, list[str]]]) -> str:
    folds = []
    for row in comparisons:
        if row.disagreements:
            names = Path(row.first).name, Path(row.second).name
            title = f"{row.task}: where {names[0]} and {names[1]} disagree"
            items = "".join(_disagreement(each, names, questions[row.first]) for each in row.disagreements)
            folds.append(f'<details class="card"><summary>{escape(title)}</summary>{items}</details>')
    return "".join(folds)


def _disagreement(each: Disagreement, names: tuple[str, str], questions: dict[str, list[str]]) -> str:
    asked = "".join(map(_question, questions.get(each.item, [])))
    head = asked or f'<p class="note">item {escape(each.item)}</p>'
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td dir=auto>{escape(said)}</td><td>{score:.4g}</td></tr>"
        for name, said, score in zip(names, each.said, each.scores, strict=True)
    )
    return f'<div class="item">{head}<table>{rows}</table></div>'
