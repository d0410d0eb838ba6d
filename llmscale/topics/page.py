"""Topics as one HTML page: nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from llmscale.report.theme import CSS
from llmscale.topics.found import Topic, Topics

_POINTS = 3000
"""Most texts on the map, evenly chosen."""
_WIDTH, _HEIGHT, _MARGIN = 900, 520, 16
_EXCERPT = 280
_STYLE = """
.map { display: block; width: 100%; height: auto; }
.map circle { fill-opacity: 0.65; }
.map text { font-size: 15px; font-weight: 650; fill: var(--ink); text-anchor: middle; paint-order: stroke;
  stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.map .narrow { display: none; font-size: 40px; stroke-width: 8px; }
@media (max-width: 560px) { .map .narrow { display: inline; } .map .wide { display: none; } .map circle { r: 6px; } }
.topics { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px; }
.topics h3 { margin: 0 0 2px; font-size: 16px; overflow-wrap: anywhere; }
.topics .bars { margin: 10px 0; font-size: 14px; gap: 4px 12px; }
.topics blockquote { margin: 8px 0 0; padding-left: 10px; border-left: 3px solid var(--line); font-size: 13px;
  overflow-wrap: anywhere; }
.topics .note { margin: 0; }
"""


def render(found: Topics, texts: Sequence[str], title: str) -> str:
    """The page as text."""
    parts = [
        f"<header><p>llmscale topics</p><h1>{escape(title)}</h1></header>",
        _tiles(found, len(texts)),
        f'<h2>Map</h2><div class="card">{_map(found, texts)}<p class="note">The first two principal components of the'
        " vectors; a point is a text.</p></div>",
        f'<h2>Topics</h2><div class="topics">{"".join(_card(topic, texts) for topic in found.topics)}</div>',
        _labels(found),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · llmscale topics</title>\n<style>{CSS}{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(part for part in parts if part)}\n</main>\n</body>\n</html>\n"
    )


def _colour(topic: int) -> str:
    """Hues by the golden angle, so that any number of topics has different ones."""
    return f"hsl({topic * 137.508 % 360:.0f} 58% 50%)"


def _name(topic: Topic) -> str:
    return " · ".join(word for word, _ in topic.terms[:3]) or "no words"


def _tiles(found: Topics, texts: int) -> str:
    figures = [("Texts", f"{texts:,}", ""), ("Topics", f"{len(found.topics):,}", "")]
    if found.coherence is not None:
        figures.append(("Coherence", f"{found.coherence:.3f}", "NPMI, -1 to 1"))
    if found.purity is not None and found.mutual_information is not None:
        figures.append(("Purity", f"{100 * found.purity:.1f} %", "of the labels"))
        figures.append(("Mutual information", f"{found.mutual_information:.3f}", "with the labels, 0 to 1"))
    cards = (f'<div class="card"><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>' for a, b, c in figures)
    return f'<dl class="tiles">{"".join(cards)}</dl>'


def _map(found: Topics, texts: Sequence[str]) -> str:
    low, high = found.map.min(0), found.map.max(0)
    size = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    points = _MARGIN + (found.map - low) / np.maximum(high - low, 1e-12) * size
    points[:, 1] = _HEIGHT - points[:, 1]
    count = len(texts)
    chosen = range(count) if count <= _POINTS else [number * count // _POINTS for number in range(_POINTS)]
    dots = "".join(
        f'<circle cx="{points[number, 0]:.1f}" cy="{points[number, 1]:.1f}" r="3.5"'
        f' fill="{_colour(found.of_texts[number])}"><title>{escape(_excerpt(texts[number], 120))}</title></circle>'
        for number in chosen
    )
    numbers = np.array(found.of_texts)
    names = []
    for topic in found.topics:
        x, y = np.median(points[numbers == topic.number], axis=0)
        # Words in the middle of the picture stay in it.
        for look, name in (("wide", _name(topic)), ("narrow", str(topic.number))):
            place = f'x="{min(max(x, 90), _WIDTH - 90):.0f}" y="{y:.0f}"'
            names.append(f'<text class="{look}" {place}>{escape(name)}</text>')
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="map of the texts">{dots}'
        f"{''.join(names)}</svg>"
    )


def _card(topic: Topic, texts: Sequence[str]) -> str:
    most = max((weight for _, weight in topic.terms), default=1.0)
    bars = "".join(
        f'<span>{escape(word)}</span><div><i class="run" style="width:{100 * weight / most:.1f}%;background:'
        f'{_colour(topic.number)}"></i></div><b></b>'
        for word, weight in topic.terms
    )
    notes = [f"{topic.size:,} text{'s' * (topic.size != 1)}"]
    if topic.coherence is not None:
        notes.append(f"coherence {topic.coherence:.2f}")
    notes += [f"{escape(label)} {100 * count / topic.size:.0f} %" for label, count in list(topic.labels.items())[:2]]
    quotes = "".join(f"<blockquote>{escape(_excerpt(texts[number]))}</blockquote>" for number in topic.examples)
    return (
        f'<section class="card"><h3><span class="key" style="background:{_colour(topic.number)}"></span>'
        f'{topic.number} {escape(_name(topic))}</h3><p class="note">{" · ".join(notes)}</p>'
        f'<div class="bars">{bars}</div>{quotes}</section>'
    )


def _labels(found: Topics) -> str:
    """How many texts of each label each topic has."""
    names = sorted({label for topic in found.topics for label in topic.labels})
    if not names:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{topic.number} {escape(_name(topic))}</th>"
        + "".join(f"<td>{topic.labels.get(name, 0) or ''}</td>" for name in names)
        + "</tr>"
        for topic in found.topics
    )
    return (
        f'<h2>Labels</h2><div class="card scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _excerpt(text: str, most: int = _EXCERPT) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most].rstrip()}…"
