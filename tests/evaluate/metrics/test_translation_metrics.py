"""BLEU, chrF and TER beside sacrebleu's public functions."""

import random

import pytest
import sacrebleu

from llmscale.evaluate.metrics import figure_of, per_item
from tests.evaluate.metrics.records import written

ENGLISH = "the cat sat on the red mat while two dogs were barking at it ."
CHINESE = "猫坐在红色的垫子上，两只狗在叫。"


def pairs(words, joint, n, seed):
    """Texts with one or two references that share words with them."""
    rng = random.Random(seed)

    def text():
        start = rng.randrange(len(words) // 2)
        return joint.join(words[start : start + rng.randint(3, 9)] + rng.sample(list(words), 1))

    return [written(text(), *[text() for _ in range(rng.randint(1, 2))]) for _ in range(n)]


def streams(records):
    texts = [record.generated[0] for record in records]
    first = [record.references[0] for record in records]
    second = [record.references[1] if len(record.references) > 1 else None for record in records]
    return texts, [first, second]


@pytest.mark.parametrize(
    ("name", "options", "oracle"),
    [
        ("bleu", {}, sacrebleu.metrics.BLEU()),
        ("bleu", {"tokenize": "zh"}, sacrebleu.metrics.BLEU(tokenize="zh")),
        ("bleu", {"tokenize": "char", "lowercase": True}, sacrebleu.metrics.BLEU(tokenize="char", lowercase=True)),
        ("chrf", {}, sacrebleu.metrics.CHRF()),
        ("chrf", {"word_order": 2}, sacrebleu.metrics.CHRF(word_order=2)),
        ("ter", {}, sacrebleu.metrics.TER()),
        ("ter", {"normalized": True, "asian": True}, sacrebleu.metrics.TER(normalized=True, asian_support=True)),
    ],
)
@pytest.mark.parametrize(("words", "joint"), [(ENGLISH.split(), " "), (list(CHINESE), "")])
def test_equal_to_sacrebleu(name, options, oracle, words, joint):
    records = pairs(words, joint, n=25, seed=11)
    figure = figure_of(name, records, options)
    expected = oracle.corpus_score(*streams(records))
    assert figure.value == pytest.approx(expected.score, rel=1e-12)
    assert figure.signature == f"{name}|{oracle.get_signature()}"
    if figure.value:  # else no word of a Chinese text is another's, since nothing parts them
        assert 0 <= figure.low < figure.value < figure.high
    # Of a part of the records: what the jackknife and comparisons ask for.
    half = figure_of(name, records[:12], options).value
    assert half == pytest.approx(oracle.corpus_score(*streams(records[:12])).score, rel=1e-12)


def test_a_sentence_alone():
    record = pairs(ENGLISH.split(), " ", n=1, seed=2)[0]
    text, references = record.generated[0], record.references
    assert per_item("bleu", record) == pytest.approx(sacrebleu.sentence_bleu(text, references).score)
    assert per_item("chrf", record) == pytest.approx(sacrebleu.sentence_chrf(text, references).score)
    assert per_item("ter", record) == pytest.approx(sacrebleu.sentence_ter(text, references).score)


def test_the_signature_names_the_chinese_tokenization():
    signature = figure_of("bleu:tokenize=zh", [written(CHINESE, CHINESE)]).signature
    assert signature.startswith("bleu|nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:")
    assert figure_of("bleu:tokenize=zh", [written(CHINESE, CHINESE)]).value == pytest.approx(100)


def test_lower_is_better_for_edits():
    assert not figure_of("ter", [written("a b", "a b")]).higher_is_better
    assert figure_of("ter", [written("a b", "a b")]).value == 0
