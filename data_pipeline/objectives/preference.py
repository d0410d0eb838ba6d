"""Preferences: a better and a worse answer to a prompt, or answers that are each desirable or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_pipeline.document import Document
from data_pipeline.objectives.answers import Answers, AnswersSettings, Pairs
from data_pipeline.objectives.labels import written
from data_pipeline.objectives.packing import Stored
from data_pipeline.tokenizer import Tokenizer

NAME = "preference"
DESIRABLE = "desirable"
"""Labels of answers that stand alone: 1 where one is desirable."""
_MISMATCHED = "mismatched"
_BLOCK = 256
"""Records among which the answer of another one is looked for."""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class PreferenceObjective(AnswersSettings):
    """The better of two answers to a prompt: `fields: {chosen: NAME, rejected: NAME}`; with loss kto answers that are
    each desirable or not: `fields: {answer: NAME, label: NAME}`, whose label is true or false."""

    name: Literal["preference"] = "preference"
    """The better of two answers."""
    loss: Literal["dpo", "ipo", "orpo", "kto"] = "dpo"
    """dpo: direct preference optimisation (Rafailov et al. 2023, equation 7); ipo: identity preference optimisation
    (Azar et al. 2023, equation 17) of mean log-probabilities per token, as the authors' own code and trl have them;
    orpo: odds ratios beside the likelihood of the better answer, without a reference (Hong et al. 2024, equations 6 and
    7); kto: Kahneman-Tversky optimisation (Ethayarajh et al. 2024, equation 8), whose reference point is the mean
    over the global batch of each prompt's log-ratio with the answer of the record before it."""
    beta: Positive = 0.1
    """How strongly the model is kept near the reference: of dpo, ipo (its tau) and kto."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Of dpo: the probability that a preference is the wrong way around (Mitchell 2023, conservative DPO)."""
    odds_weight: NotNegative = 0.1
    """Of orpo: weight of the odds ratio's term (lambda)."""
    desirable_weight: NotNegative = 1.0
    """Of kto: weight of desirable answers."""
    undesirable_weight: NotNegative = 1.0
    """Of kto: weight of the others."""
    nll_weight: NotNegative = 0.0
    """Of dpo and ipo: weight of the better answer's negative log-likelihood per token beside the loss (Pang et al.
    2024, equation 1)."""
    reference: str | None = None
    """A run or checkpoint with the model that dpo, ipo and kto compare with; when not given train.init_from. Its
    log-probabilities are computed once, before the training starts, and kept in the run's cache."""

    @model_validator(mode="after")
    def _used(self) -> PreferenceObjective:
        of = {
            "label_smoothing": ("dpo",),
            "odds_weight": ("orpo",),
            "desirable_weight": ("kto",),
            "undesirable_weight": ("kto",),
            "nll_weight": ("dpo", "ipo"),
            "reference": ("dpo", "ipo", "kto"),
        }
        for key, losses in of.items():
            value = getattr(self, key)
            if self.loss not in losses and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {value}, but loss is {self.loss}, which has none; it is for {' and '.join(losses)}:"
                    f" leave it out"
                )
        return self

    @property
    def compares(self) -> bool:
        """Whether there is a reference."""
        return self.loss != "orpo"

    @property
    def stored(self) -> Stored:
        return Stored(values=("answer", "label", _MISMATCHED) if self.loss == "kto" else ("chosen", "rejected"))

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Answers:
        return (Alone if self.loss == "kto" else Pairs)(self, tokenizer, sequence_length)


class Alone(Answers):
    """Records of a prompt with one answer, in the first half; in the second the prompt with the answer of the record
    before it in its block of the source (of the first one, with that of the last), as far as there is room."""

    names = ("answer",)

    def halves(self, values: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        return values["answer"], values[_MISMATCHED]

    def labels(self, values: Mapping[str, Any]) -> dict[str, int]:
        return {DESIRABLE: int(_truth(values["label"]) or False)}

    def problem(self, values: Mapping[str, Any]) -> str | None:
        wrong = self.require_text(values, "answer")
        if wrong is None and values.get("label") is None:
            return "the record has no label; give it true or false, or leave the record out"
        if wrong is None and _truth(values["label"]) is None:
            return f"the label is {written(values['label'])}, but must be true or false; correct the record"
        return wrong

    @property
    def given(self) -> tuple[str, ...]:
        return ("answer", "label")

    def checked(
        self, documents: Iterable[Document], place: Callable[[Document], str], counts: Counter[str] | None = None
    ) -> Iterator[Document]:
        block: list[Document] = []
        for document in super().checked(documents, place, counts):
            block.append(document)
            if len(block) == _BLOCK:
                yield from _with_neighbours(block)
                block = []
        yield from _with_neighbours(block)


def _with_neighbours(block: list[Document]) -> Iterator[Document]:
    """The documents, each with the answer of the one before."""
    for document, before in zip(block, [*block[-1:], *block[:-1]], strict=True):
        values, others = dict(document.values or {}), before.values or {}
        yield document._replace(values={**values, _MISMATCHED: others["answer"]})


def _truth(value: Any) -> bool | None:
    """A label's value; None where it is none. Tables of text have it as a word."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None
