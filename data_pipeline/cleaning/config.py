"""Settings of the cleaning steps and of deduplication."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipeline.base.section import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
NgramSize = Annotated[int, Field(ge=1, le=50)]


class UnicodeStep(Section):
    """Changes text: one spelling for what Unicode can spell in several ways. Quotation marks stay as they are."""

    step: Literal["unicode"]
    """The step's name."""
    form: Literal["NFC", "NFKC"] = "NFC"
    """NFC composes accents and changes nothing that a reader sees; NFKC also replaces compatibility characters
    (ligatures, circled digits, full-width forms, and with them the Chinese comma, which becomes an ASCII one)."""
    half_width: Literal["keep", "alphanumeric", "all"] = "keep"
    """Full-width forms that become half-width as under NFKC, whatever `form` is: `alphanumeric` takes letters and
    digits and keeps Chinese punctuation, `all` takes every full-width form of ASCII and the ideographic space."""


class ControlCharactersStep(Section):
    """Changes text: every kind of line break becomes a newline; other C0 and C1 control characters but the tab,
    zero-width and bidirectional marks, byte-order marks and noncharacters are removed. A zero-width joiner stays where
    it may matter: after anything but ASCII and Chinese characters (emoji, Persian, Indic scripts)."""

    step: Literal["control_characters"]
    """The step's name."""
    replacement_character: Literal["keep", "remove", "drop"] = "keep"
    """What becomes of U+FFFD and of lone surrogates, the traces of broken encodings: `keep` (a lone surrogate, which
    no tokenizer can take, becomes U+FFFD), `remove` them, or `drop` the document that holds any."""


class HtmlStep(Section):
    """Changes text: a document that looks like HTML (starts as one, or holds three known tags or more) becomes its
    visible text, blocks on lines of their own. Escaped HTML within HTML is treated in the same way."""

    step: Literal["html"]
    """The step's name."""


class WhitespaceStep(Section):
    """Changes text: runs of spaces become one space, lines lose the space at both ends, and the document its blank
    lines at both ends."""

    step: Literal["whitespace"]
    """The step's name."""
    max_blank_lines: int = Field(default=1, ge=0, le=1_000_000)
    """Blank lines in a row that are kept."""
    keep_indentation: bool = False
    """Keep the space at the start of lines, for source code."""


class LengthStep(Section):
    """Drops documents by their length in Unicode characters."""

    step: Literal["length"]
    """The step's name."""
    min: int = Field(default=1, ge=0)
    """Fewest characters."""
    max: int | None = Field(default=None, ge=1)
    """Most characters; no limit by default."""


class RepetitionStep(Section):
    """Drops documents that repeat themselves (Rae et al. 2021, "Gopher", section A1.1 and table A1). A line,
    paragraph or n-gram is a duplicate when it occurred before in the document. Characters are counted without
    whitespace. In Chinese a sentence is a line, and n words are 2 n characters."""

    step: Literal["repetition"]
    """The step's name."""
    min_words: int = Field(default=50, ge=0)
    """Fewest words for the rules on n-grams to apply: the paper's limits are for documents that passed its rule on
    length."""
    duplicate_line_fraction: Fraction = 0.30
    """Most lines that are duplicates, as a fraction of the lines."""
    duplicate_paragraph_fraction: Fraction = 0.30
    """Most paragraphs (separated by blank lines) that are duplicates, as a fraction of the paragraphs."""
    duplicate_line_character_fraction: Fraction = 0.20
    """Most characters within duplicate lines, as a fraction of all characters."""
    duplicate_paragraph_character_fraction: Fraction = 0.20
    """Most characters within duplicate paragraphs, as a fraction of all characters."""
    top_ngram_character_fraction: dict[NgramSize, Fraction] = {2: 0.20, 3: 0.18, 4: 0.16}
    """By n: most characters within the n-gram of words that occurs most often, as a fraction of all characters."""
    duplicate_ngram_character_fraction: dict[NgramSize, Fraction] = {
        5: 0.15,
        6: 0.14,
        7: 0.13,
        8: 0.12,
        9: 0.11,
        10: 0.10,
    }
    """By n: most characters within n-grams of words that occurred before, each character counted once, as a fraction
    of all characters."""


class GopherQualityStep(Section):
    """Drops documents that are no prose (Rae et al. 2021, "Gopher", section A1.1); Chinese by adapted rules."""

    step: Literal["gopher_quality"]
    """The step's name."""
    min_words: int = Field(default=50, ge=0)
    """Fewest words; of Chinese, characters."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words; of Chinese, characters."""
    min_mean_word_length: float = Field(default=3, ge=0)
    """Least mean length of a word in characters; not applied to Chinese."""
    max_mean_word_length: float = Field(default=10, ge=0)
    """Greatest mean length of a word in characters; not applied to Chinese."""
    max_symbol_ratio: float = Field(default=0.1, ge=0)
    """Most hash signs per word, and most ellipses per word."""
    max_bullet_line_fraction: Fraction = 0.9
    """Most lines that start with a bullet, as a fraction of the lines."""
    max_ellipsis_line_fraction: Fraction = 0.3
    """Most lines that end with an ellipsis, as a fraction of the lines."""
    min_alphabetic_word_fraction: Fraction = 0.8
    """Fewest words with at least one letter, as a fraction of the words. In Chinese each character is a word with a
    letter, and punctuation is none."""
    min_stop_words: int = Field(default=2, ge=0)
    """Fewest different stop words: of English those of the paper (the, be, to, of, and, that, have, with), of Chinese
    common function words, modern and classical."""


class LanguageStep(Section):
    """Drops documents in other languages, as told by py3langid from the first 2,000 characters."""

    step: Literal["language"]
    """The step's name."""
    languages: list[str] = Field(default=["en", "zh"], min_length=1)
    """Languages to keep, by ISO 639 codes; zh includes Wu and Cantonese."""
    min_probability: Fraction = 0.5
    """Least probability of the document's likeliest language."""


CleaningStep = Annotated[
    UnicodeStep
    | ControlCharactersStep
    | HtmlStep
    | WhitespaceStep
    | LengthStep
    | RepetitionStep
    | GopherQualityStep
    | LanguageStep,
    Field(discriminator="step"),
]


class NearDeduplication(Section):
    """Near-duplicates by MinHash and locality-sensitive hashing over sets of shingles."""

    threshold: float = Field(default=0.8, gt=0, le=0.95)
    """Least Jaccard similarity, as the MinHash signatures estimate it, of documents taken for the same."""
    permutations: int = Field(default=128, ge=16, le=4096)
    """Hash values in a signature, 4 bytes each; the estimate's standard error at similarity s is
    sqrt(s (1 - s) / permutations)."""
    ngram: int = Field(default=5, ge=1)
    """Words in a shingle; of Chinese, characters."""


class DeduplicationConfig(Section):
    """Which documents `llmscale data prepare` leaves out because it has had them; the first one in the order of the
    sources stays."""

    exact: bool = True
    """Drop documents whose text, in Unicode form NFC and with each run of whitespace as one space, occurred before."""
    near: NearDeduplication | None = None
    """Drop near-duplicates; off by default."""

    @model_validator(mode="after")
    def _drops_something(self) -> "DeduplicationConfig":
        if not self.exact and self.near is None:
            raise ValueError("exact is false and near is not given, so nothing is dropped; set exact or near")
        return self
