"""Settings of the objectives: what becomes of a sample before the model sees it, and what it must predict."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.base.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class CausalObjective(Section):
    """The next token (GPT)."""

    name: Literal["causal"] = "causal"
    """causal: the next token; prefix: the rest after a prefix; masked: hidden tokens; denoising: spans that were cut
    out; seq2seq: a target text from a source text."""
    separate_documents: bool = False
    """Whether the documents packed into one sample are kept apart: tokens see their own document only, and positions
    start again with each."""
    fim_rate: Share = 0.0
    """Fraction of the documents' parts that are rearranged so that the model learns to fill in their middle (Bavarian
    et al. 2022). The three marks that it takes push out as many tokens at the sample's end."""
    fim_suffix_first_rate: Share = 0.5
    """Of those, the fraction with the suffix in front of the prefix (SPM), the rest with the prefix in front (PSM)."""


class PrefixObjective(Section):
    """The rest of a sample after a prefix whose tokens all see each other (prefix LM; Raffel et al. 2020, 3.2.1)."""

    name: Literal["prefix"] = "prefix"
    """The rest after a prefix."""
    least_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The prefix is uniformly long between this fraction of the sample and one minus it."""


class MaskedObjective(Section):
    """Hidden tokens from both sides (BERT; Devlin et al. 2019, section 3.1)."""

    name: Literal["masked"] = "masked"
    """Hidden tokens."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Fraction of the tokens to predict."""
    mask_share: Share = 0.8
    """Of those, the fraction replaced by the mask token."""
    random_share: Share = 0.1
    """Of those, the fraction replaced by a random token; the others stay as they are."""
    whole_words: bool = False
    """Choose whole words rather than single tokens."""
    next_sentence: bool = False
    """Samples are two parts of one document, or of two documents, and the model tells which (next sentence prediction).
    Otherwise samples are packed from whole documents."""
    short_rate: Share = 0.1
    """With next_sentence: the fraction of samples that are made shorter than data.sequence_length, by any amount."""


class DenoisingObjective(Section):
    """The spans that were cut out of a text (T5; Raffel et al. 2020, section 3.1.4); for encoder-decoder models."""

    name: Literal["denoising"] = "denoising"
    """Spans that were cut out."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Fraction of the tokens that are cut out."""
    mean_span: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a cut span, in tokens."""


class PairsObjective(Section):
    """A target text from a source text: sources need `target_field`."""

    name: Literal["seq2seq"] = "seq2seq"
    """A target text from a source text."""
    target_length: Annotated[int, Field(gt=0)] = 128
    """Tokens that are kept of a target, its end token included. Sources are cut at data.sequence_length, likewise."""
    concatenate: bool = False
    """For decoders: source and target follow each other in one sample of data.sequence_length + target_length tokens,
    and only the target is predicted. Otherwise the source goes to an encoder."""


ObjectiveConfig = Annotated[
    CausalObjective | PrefixObjective | MaskedObjective | DenoisingObjective | PairsObjective,
    Field(discriminator="name"),
]
