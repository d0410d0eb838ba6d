"""The report as one HTML page: nothing is loaded from elsewhere, so it can be mailed, archived or opened offline."""

from __future__ import annotations

import io
import json
import math
import re
from html import escape
from typing import TYPE_CHECKING, Any

from llmscale.report.figures import GRID, INK, MUTED, PALETTE, PAPER
from llmscale.report.goodput import Goodput
from llmscale.report.record import TERMS, RunRecord
from llmscale.report.tasks import COMPARISON, TaskReport
from llmscale.report.theme import CSS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of the pictures that the page replaces by those of the reader's light or dark theme.
_THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(PALETTE)},
}


def render_page(runs: list[RunRecord], figures: dict[str, Figure], tasks: TaskReport) -> str:
    """The whole page as text; `figures` are drawn by name, in their order."""
    title = ", ".join(run.name for run in runs)
    charts = [f'<figure class="card">{_inline_svg(figure, name)}</figure>' for name, figure in figures.items()]
    parts = [
        f"<header><p>llmscale report</p><h1>{escape(title)}</h1>{_state_line(runs)}</header>",
        _tiles(runs[0]) if len(runs) == 1 else "",
        f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>',
        _bars(runs),
        _tasks(tasks),
        f'<h2>Summary</h2><div class="card scroll">{_table(runs)}</div>',
        _samples(runs),
        "<h2>Settings</h2>" + "".join(_settings(run, named=len(runs) > 1) for run in runs),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · llmscale report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(part for part in parts if part)}\n</main>\n</body>\n</html>\n"
    )


def _tasks(tasks: TaskReport) -> str:
    """Figures, pictures and items of tasks; nothing where there are none."""
    problems = "".join(f'<p class="note">{escape(problem)}</p>' for problem in tasks.problems)
    if not tasks.table:
        return problems
    charts = "".join(
        f'<figure class="card{" wide" * (name == COMPARISON)}">{_inline_svg(figure, escape(name))}</figure>'
        for name, figure in tasks.figures.items()
    )
    shown = f'<div class="charts tasks">{charts}</div>' if charts else ""
    return f'<h2>Tasks</h2><div class="card scroll">{tasks.table}</div>{shown}{tasks.items}{problems}'


def _inline_svg(figure: Figure, name: str) -> str:
    """`figure` as an <svg> element in the page's colours and font."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # ids differ between pictures, not between reports
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g)? id="[\w.]+_\d+"', r"\1", text)  # names of parts that nothing refers to
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{name}">', text)
    for colour, variable in _THEMED.items():
        text = text.replace(colour, variable)
    return text.replace(f'aria-label="{name}"', f'aria-label="{name.replace("_", " ")}"')


def _state_line(runs: list[RunRecord]) -> str:
    if len(runs) > 1:
        return f"<p>{len(runs)} runs compared</p>"
    figures = _figures(runs[0])
    counts = (("Steps", "steps"), ("Target tokens", "tokens"))
    shown = [f"{figures[name]} {unit}" for name, unit in counts if name in figures]
    shown += [figures["Time"]] if "Time" in figures else []
    state, reason = _state(runs[0]), runs[0].outcome.get("reason")
    why = f"<p>{escape(str(reason))}</p>" if reason else ""
    return f'<p><span class="pill {escape(state)}">{escape(state)}</span>{" · ".join(shown)}</p>{why}'


def _state(run: RunRecord) -> str:
    """done, preempted or failed as outcome.json says; a run that says running may have been killed since."""
    state = run.outcome.get("outcome", "no outcome yet")
    return "running or killed" if state == "running" else str(state)


def _tiles(run: RunRecord) -> str:
    """The figures to look at first."""
    held_out, figures = run.held_out, _figures(run)
    tiles = []
    for name, key, note in (
        ("Held-out loss", "loss", "nats per token"),
        ("Perplexity", "perplexity", "per token, held out"),
        ("Bits per byte", "bits_per_byte", _against_unigram(run)),
    ):
        if key in held_out:
            finite = f"{held_out[key]:.4g}" if key == "perplexity" else f"{held_out[key]:.3f}"
            tiles.append((name, finite if math.isfinite(held_out[key]) else "not finite", note))
    for name, note in (("Parameters", ""), ("Throughput", "tokens per second")):
        if name in figures:
            tiles.append((name, figures[name].removesuffix(" tokens/s"), note))
    cards = [
        f'<div class="card"><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>'
        for name, value, note in tiles
    ]
    return f'<dl class="tiles">{"".join(cards)}</dl>' if cards else ""


def _against_unigram(run: RunRecord) -> str:
    unigram, own = _baselines(run).get("unigram"), run.held_out.get("bits_per_byte")
    if not unigram or own is None or not math.isfinite(own):
        return "held out"
    change = 100 * (1 - own / unigram)
    return f"{abs(change):.0f} % {'below' if change >= 0 else 'above'} the unigram model"


def _baselines(run: RunRecord) -> dict[str, float]:
    """Bits per byte by name."""
    baselines = run.summary.get("baselines") or {}
    return {name: entry["bits_per_byte"] for name, entry in baselines.items()}


def _bars(runs: list[RunRecord]) -> str:
    """Bits per byte of the runs, and of the baselines where the runs agree on them."""
    rows = [
        (run.name, float(run.held_out["bits_per_byte"]), f"var(--series-{index % len(PALETTE)})")
        for index, run in enumerate(runs)
        if math.isfinite(run.held_out.get("bits_per_byte", math.nan))
    ]
    stated = [_baselines(run) for run in runs if _baselines(run)]
    if stated and all(entry == stated[0] for entry in stated):
        rows += [(name, value, "") for name, value in stated[0].items()]
    if not rows:
        return ""
    most = max(value for _, value, _ in rows)
    cells = []
    for name, value, colour in sorted(rows, key=lambda row: row[1]):
        look = f' class="run" style="width:{100 * value / most:.1f}%;background:{colour}"' if colour else ""
        look = look or f' style="width:{100 * value / most:.1f}%"'
        cells.append(f"<span>{escape(name)}</span><div><i{look}></i></div><b>{value:.3f}</b>")
    sizes = {run.held_out.get("bytes") for run in runs if "bits_per_byte" in run.held_out}
    note = "Lower is better."
    if len(sizes) > 1:
        note += " The runs were evaluated on different amounts of text, so their figures do not quite compare."
    bars = f'<div class="card bars">{"".join(cells)}</div>'
    return f'<h2>Bits per byte of held-out text</h2>{bars}<p class="note">{note}</p>'


def _table(runs: list[RunRecord]) -> str:
    columns = [{"State": _state(run), **_figures(run)} for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = ""
    if len(runs) > 1:
        keys = [f'<i class="key" style="background:var(--series-{i % len(PALETTE)})"></i>' for i in range(len(runs))]
        cells = [f"<th>{key}{escape(run.name)}</th>" for key, run in zip(keys, runs, strict=True)]
        head = f"<thead><tr><td></td>{''.join(cells)}</tr></thead>"
    rows = []
    for name in names:
        cells = [f"<td>{escape(column.get(name, '–'))}</td>" for column in columns]
        rows.append(f"<tr><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>")
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _figures(run: RunRecord) -> dict[str, str]:
    """What is known of the run, in the order of the table, as text with units."""
    held_out, summary, loss, goodput = run.held_out, run.summary, run.metrics["loss"], run.goodput
    known: dict[str, str | None] = {
        "Steps": _count(summary.get("steps") or (loss.step[-1] if len(loss.step) else None)),
        "Target tokens": _count(loss.tokens[-1] if len(loss.tokens) else None),
        "Parameters": _count(summary.get("parameters")),
        "Training loss": _number(summary.get("loss") or (loss.value[-1] if len(loss.value) else None)),
        **{TERMS[name]: _number(run.metrics[name].finite().value[-1]) for name in run.terms},
        "Held-out loss": _number(held_out.get("loss")),
        "Held-out perplexity": _number(held_out.get("perplexity"), 2),
        "Held-out bits per byte": _number(held_out.get("bits_per_byte")),
        **{f"Bits per byte of {name}": _number(value) for name, value in _baselines(run).items()},
        "Held-out documents": _count(held_out.get("documents")),
        "Held-out bytes": _count(held_out.get("bytes")),
        "Ranks": _count(summary.get("ranks")),
        "Time": _duration(summary.get("seconds")),
        "Throughput": _rate(run),
        "MFU": _utilisation(run),
        "Wall time of all attempts": _duration(goodput.wall) if goodput else None,
        "Goodput": f"{goodput.fraction:.1%}" if goodput else None,
        **({_SPENT[name]: _share(goodput, name) for name in _SPENT} if goodput else {}),
    }
    return {name: text for name, text in known.items() if text is not None}


_SPENT = {
    "compute": "Computing",
    "data": "Waiting for data",
    "start_up": "Starting up",
    "checkpoint": "Saving",
    "evaluation": "Evaluating",
    "other": "Other work",
    "lost": "Lost work",
    "waiting": "In the queue",
}


def _share(goodput: Goodput, name: str) -> str | None:
    seconds = goodput.seconds[name]
    return f"{_duration(seconds)} ({seconds / goodput.wall:.1%})" if seconds > 0 else None


def _utilisation(run: RunRecord) -> str | None:
    """The median, and the peak that it is a share of."""
    shares, peaks = run.metrics["mfu"].finite().value, run.metrics["peak_flops"].finite().value
    if not len(shares) or not len(peaks):
        return None
    return f"{sorted(shares)[len(shares) // 2]:.1%} of {peaks[-1] / 1e12:.4g} TFLOP/s a device"


def _rate(run: RunRecord) -> str | None:
    rates = run.metrics["tokens_per_second"].finite().value
    rate = run.summary.get("tokens_per_second") or (sorted(rates)[len(rates) // 2] if len(rates) else None)
    return None if rate is None or not math.isfinite(rate) else f"{_count(round(rate))} tokens/s"


def _number(value: float | None, digits: int = 4) -> str | None:
    if value is None:
        return None
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def _count(value: float | None) -> str | None:
    """Whole numbers with narrow spaces between thousands, large ones with a suffix."""
    if value is None or not math.isfinite(value):
        return None
    for size, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{int(value):,}".replace(",", "\u202f")


def _duration(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.3g} s"


def _samples(runs: list[RunRecord]) -> str:
    cards = []
    for run in runs:
        for sample in run.summary.get("samples") or []:
            name = f'<p class="note">{escape(run.name)}</p>' if len(runs) > 1 else ""
            text = f"<mark>{escape(sample['prompt'])}</mark>{escape(sample['text'])}"
            cards.append(f'<div class="card sample"><pre>{text}</pre>{name}</div>')
    return f"<h2>Samples</h2>{''.join(cards)}" if cards else ""


def _settings(run: RunRecord, named: bool) -> str:
    """The resolved config, and machine and versions where a file names them, each behind a fold."""
    of = f" of {escape(run.name)}" if named else ""
    known = {key: run.summary.get(key) or run.manifest.get(key) for key in ("machine", "versions")}
    folds = [("Resolved config", run.config), *((key.capitalize(), _lines(value)) for key, value in known.items())]
    return "".join(
        f'<details class="card"><summary>{name}{of}</summary><pre>{escape(text)}</pre></details>'
        for name, text in folds
        if text
    )


def _lines(value: Any, levels: int = 5) -> str:
    if isinstance(value, dict) and levels:
        return "\n".join(f"{key}: {_lines(child, levels - 1)}" for key, child in value.items())
    try:
        return value if isinstance(value, str) else json.dumps(value) if value is not None else ""
    except RecursionError:
        return "..."
