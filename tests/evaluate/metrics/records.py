"""Records to compute metrics of, by hand and at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from llmscale.evaluate.artefact import Answer, Record

WORDS = "the a of cat sat mat running 3.5 $18 #### 7 , . 猫 坐在 垫子 上"


def answer(
    log_probabilities: Sequence[float], characters: int = 4, bytes: int | None = None, greedy: bool = True
) -> Answer:
    """An answer of tokens with these log-probabilities."""
    count = len(log_probabilities)
    size = characters if bytes is None else bytes
    spans = [(0, size)] * count
    return Answer(list(range(count)), spans, list(log_probabilities), [greedy] * count, size, characters)


def choice(totals: Sequence[float], gold: Sequence[int] = (0,), **further: Any) -> Record:
    """An item with answers of one token each."""
    return Record(0, "", answers=[answer([total]) for total in totals], gold=list(gold), **further)


def written(text: str | Sequence[str], *references: str, **further: Any) -> Record:
    """An item of which a text, or samples of it, was generated."""
    texts = [text] if isinstance(text, str) else list(text)
    return Record(0, "", generated=texts, references=list(references), **further)


def labelled(probabilities: Sequence[float], gold: int) -> Record:
    """An item of a fine-tuned head."""
    return Record(0, "", probabilities=list(probabilities), gold=[gold])


def random_records(kind: str, n: int, seed: int, clusters: bool = False, groups: bool = False) -> list[Record]:
    """Records as a task of a kind leaves them."""
    rng = random.Random(seed)
    records = []
    for number in range(n):
        further = {
            "cluster": f"c{rng.randrange(max(n // 2, 1))}" if clusters else None,
            "group": f"g{number % 3}" if groups else None,
        }
        records.append(Record(number=number, item=f"{number:016x}", **_fields(kind, rng), **further))
    return records


def _fields(kind: str, rng: random.Random) -> dict[str, Any]:
    if kind in ("choice", "minimal_pair"):
        count = 2 if kind == "minimal_pair" else 4
        answers = [_random_answer(rng) for _ in range(count)]
        neutral = [-rng.expovariate(0.2) for _ in answers]
        return {"answers": answers, "neutral": neutral, "gold": [rng.randrange(count)]}
    if kind == "classify":
        weights = [rng.random() for _ in range(3)]
        return {"probabilities": [weight / sum(weights) for weight in weights], "gold": [rng.randrange(3)]}
    if kind == "tag":
        count, tags = rng.randint(1, 9), ("O", "B-X", "I-X", "B-Y")
        return {"generated": rng.choices(tags, k=count), "references": rng.choices(tags, k=count)}
    if kind in ("likelihood", "perplexity"):
        return {"answers": [_random_answer(rng)], "scored_bytes": rng.randint(5, 50), "scored_words": rng.randint(1, 9)}
    return {"generated": [_random_text(rng)], "references": [_random_text(rng) for _ in range(rng.randint(1, 3))]}


def _random_answer(rng: random.Random) -> Answer:
    log_probabilities = [-rng.expovariate(0.5) for _ in range(rng.randint(1, 5))]
    return answer(log_probabilities, rng.randint(2, 20), greedy=rng.random() < 0.5)


def _random_text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS.split()) for _ in range(rng.randint(1, 9)))
