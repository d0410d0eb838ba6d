"""The filters against the same measures worked out the slow way, and on texts with known answers."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.cleaning.config import GopherQualityStep, LanguageStep, LengthStep, RepetitionStep
from data_pipeline.cleaning.filters import reject_language, reject_length, reject_low_quality
from data_pipeline.cleaning.repetition import duplicate_fractions, reject_repetition, repeated_ngrams
from data_pipeline.cleaning.text import is_chinese, split_lines, split_paragraphs, split_words

ENGLISH = """The lighthouse keeper climbed two hundred steps every evening to light the lamp.
From the gallery he could see fishing boats that were coming home with their catch.
Some nights a storm hid everything, and he rang the heavy bronze bell instead.
Nobody in the village knew how he spent his mornings, for he slept until noon
and never answered when visitors knocked on the door to ask about his work."""
CHINESE = """守塔人每天傍晚都要登上两百级台阶，把灯点亮。
从高处望出去，他能看见渔船带着一天的收获回港。
有些夜晚，暴风雨遮住了一切，他便敲响那口沉重的铜钟。
村里没有人知道他上午做些什么，因为他总是睡到中午，也不回答来访者的提问。"""


# Words, lines, paragraphs


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        (ENGLISH, False),
        (CHINESE, True),
        ("", False),
        ("2024-11-23 10:00", False),
        ("我用 Python 写程序", True),
        ("The word 你好 means hello in Chinese", False),
        ("你好 hello", True),
        ("𠮷野家", True),
        ("これはひらがなです", False),
    ],
)
def test_a_text_is_chinese_when_half_its_words_are(text, chinese):
    assert is_chinese(text) is chinese


def test_words_lines_and_paragraphs_of_both_languages():
    assert split_words('He said: "no", twice.', chinese=False) == ["He", "said:", '"no",', "twice."]
    assert split_words("他说：“用 PyTorch 2.13 写 C++，3 天！”", chinese=True) == [
        *"他说用",
        "PyTorch",
        "2.13",
        "写",
        "C++",
        "3",
        "天",
    ]
    assert split_lines("  one. two.\n\n three \n", chinese=False) == ["one. two.", "three"]
    assert split_lines("一。二！”三？！\n四", chinese=True) == ["一。", "二！”", "三？！", "四"]
    assert split_paragraphs("a\nb\n\n  c \n \n\nd\n") == ["a\nb", "c", "d"]


# Repetition


def covered_fraction(words: list[str], places: set[int]) -> float:
    return sum(len(words[i]) for i in places) / sum(map(len, words))


def slow_fractions(words: list[str], width: int) -> tuple[float, float]:
    """Top and duplicate n-gram character fractions from their definitions."""
    grams = [tuple(words[i : i + width]) for i in range(len(words) - width + 1)]
    counts = Counter(grams)
    repeated = [gram for gram in grams if counts[gram] > 1]
    if not repeated:
        return 0.0, 0.0
    top = max(repeated, key=lambda gram: (counts[gram], len("".join(gram)), -grams.index(gram)))
    within_top, within_duplicates = set(), set()
    for i, gram in enumerate(grams):
        if gram == top:
            within_top |= set(range(i, i + width))
        if gram in grams[:i]:
            within_duplicates |= set(range(i, i + width))
    return covered_fraction(words, within_top), covered_fraction(words, within_duplicates)


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "bb", "ccc", "中", "文", "dd"]), min_size=1, max_size=60),
    step=st.just(1) | st.just(2),
)
def test_ngram_fractions_equal_the_definition(words, step):
    for ngrams, n in zip(repeated_ngrams(words, step), range(1, 12), strict=False):
        assert (ngrams.n, ngrams.width) == (n, n * step)
        expected = slow_fractions(words, n * step)
        assert (ngrams.top_fraction(), ngrams.duplicate_fraction()) == pytest.approx(expected)


def test_duplicate_lines_and_paragraphs():
    # The second and third "ab c" are duplicates: 2 of 4 parts and 6 of 11 characters.
    assert duplicate_fractions(["ab c", "ab c", "de", "ab c"]) == (2 / 4, 6 / 11)
    assert duplicate_fractions([]) == (0, 0)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "", "   ", "one", "一"])
def test_prose_is_not_repetitive(text):
    assert reject_repetition(RepetitionStep(step="repetition"))(text) is None


ENGLISH_WORDS = [f"word{number:03}" for number in range(1000)]
CHINESE_WORDS = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]


def repeat(units: list[str], first: int, again: int) -> list[str]:
    """The first units, and some of them a second time at the end."""
    return units[:first] + units[:again]


def between(units: list[str], size: int, phrase: str, times: int) -> list[str]:
    """A phrase after every `size` units."""
    return [unit for i in range(times) for unit in (*units[i * size : (i + 1) * size], phrase)]


@pytest.mark.parametrize(
    ("rule", "english", "chinese", "limits"),
    [
        ("duplicate lines", "buy\n" * 4 + ENGLISH, "买。" * 4 + CHINESE, {}),
        ("characters in duplicate lines", "a\nb\nc\nlong line\nlong line", "一。二。三。四五六七。四五六七。", {}),
        ("duplicate paragraphs", "x\n\nx\n\n" + ENGLISH, "一\n\n一\n\n" + CHINESE, {}),
        (
            "characters in duplicate paragraphs",
            "a\n\nb\n\nc\n\nlong line\n\nlong line",
            "一\n\n二\n\n三\n\n四五六七\n\n四五六七",
            {"duplicate_line_character_fraction": 1},
        ),
        (
            "top 2-gram",
            " ".join(between(ENGLISH_WORDS, 2, "click here", 40)),
            "".join(between(CHINESE_WORDS, 4, "点击此处", 40)),
            {},
        ),
        (
            "top 3-gram",
            " ".join(between(ENGLISH_WORDS, 7, "press this key", 40)),
            "".join(between(CHINESE_WORDS, 20, "请按下此按键", 40)),
            {},
        ),
        (
            "top 4-gram",
            " ".join(between(ENGLISH_WORDS, 11, "come home very soon", 40)),
            "".join(between(CHINESE_WORDS, 38, "早点回到家里来吧", 40)),
            {},
        ),
        ("duplicate 5-grams", " ".join(repeat(ENGLISH_WORDS, 50, 10)), "".join(repeat(CHINESE_WORDS, 100, 20)), {}),
        ("duplicate 10-grams", " ".join(repeat(ENGLISH_WORDS, 179, 21)), "".join(repeat(CHINESE_WORDS, 358, 42)), {}),
    ],
)
def test_each_rule_on_repetition_drops_english_and_chinese(rule, english, chinese, limits):
    reject = reject_repetition(RepetitionStep(step="repetition", **limits))
    assert (reject(english), reject(chinese)) == (rule, rule)


def test_rules_on_ngrams_wait_for_fifty_words():
    assert reject_repetition(RepetitionStep(step="repetition"))("= = Early life = = and so = =") is None
    assert (
        reject_repetition(RepetitionStep(step="repetition", min_words=0))("= = Early life = = and so = =")
        == "top 2-gram"
    )


def test_the_limits_are_those_of_the_paper():
    config = RepetitionStep(step="repetition")
    assert (config.duplicate_line_fraction, config.duplicate_line_character_fraction) == (0.3, 0.2)
    assert (config.duplicate_paragraph_fraction, config.duplicate_paragraph_character_fraction) == (0.3, 0.2)
    assert config.top_ngram_character_fraction == {2: 0.2, 3: 0.18, 4: 0.16}
    assert config.duplicate_ngram_character_fraction == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}


# Quality


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, ENGLISH + "\n" + CHINESE])
def test_prose_has_quality(text):
    assert reject_low_quality(GopherQualityStep(step="gopher_quality"))(text) is None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("too few words", "The end of that."),
        ("too few words", "他说了这句话。"),
        ("too few words", "   "),
        ("too many words", ENGLISH + " and" * 100_000),
        ("too many words", CHINESE + "的" * 100_000),
        ("short words", "a b to of I x y " * 20),
        ("long words", "the to " + "internationalisation " * 60),
        ("hash signs", ENGLISH + " #tag" * 10),
        ("hash signs", CHINESE + "#话题" * 20),
        ("ellipses", ENGLISH + " well... then" * 12),
        ("ellipses", CHINESE + "嗯……" * 20),
        ("bullet lines", "\n".join("• " + line for line in ENGLISH.split("\n"))),
        ("bullet lines", "\n".join("- " + line for line in ENGLISH.split("\n"))),
        ("bullet lines", "\n".join("●" + line for line in CHINESE.split("\n"))),
        ("ellipsis lines", "\n".join(line[:-6] + "..." for line in ENGLISH.split("\n"))),
        ("ellipsis lines", "\n".join(line[:-3] + "……”" for line in CHINESE.split("\n"))),
        ("words without letters", ENGLISH + " 1234" * 30),
        ("words without letters", CHINESE + "，3.14" * 40),
        ("too few stop words", "fresh cheap sneakers " * 25),
        ("too few stop words", "北京搬家公司电话上海空调维修价格" * 5),
    ],
)
def test_each_rule_on_quality_drops_what_breaks_it(rule, text):
    assert reject_low_quality(GopherQualityStep(step="gopher_quality"))(text) == rule


def slow_quality(text: str) -> set[str]:
    """The rules that a text breaks, from the paper's wording; only for the words that the test below draws."""

    def chinese_character(character: str) -> bool:
        return unicodedata.name(character, "").startswith("CJK UNIFIED")

    han = sum(map(chinese_character, text))
    pieces = text.split()
    latin = sum(any(c.isascii() and c.isalpha() for c in piece) for piece in pieces)
    words = pieces
    if chinese := han > 0 and han >= latin:
        words = [
            w
            for piece in pieces
            for w in (piece if chinese_character(piece[0]) else [piece])
            if w not in ("。", "...", "……")
        ]
    if len(words) < 20:
        return {"too few words"}
    broken = set()
    mean = sum(map(len, words)) / len(words)
    if not chinese and mean < 3:
        broken.add("short words")
    if not chinese and mean > 10:
        broken.add("long words")
    if text.count("#") / len(words) > 0.1:
        broken.add("hash signs")
    if (pieces.count("...") + pieces.count("……")) / len(words) > 0.1:
        broken.add("ellipses")
    lines = [line.split() for line in text.split("\n") if line.strip()]
    if sum(line[0] == "•" for line in lines) / len(lines) > 0.9:
        broken.add("bullet lines")
    if sum(line[-1] in ("...", "……") for line in lines) / len(lines) > 0.3:
        broken.add("ellipsis lines")
    if sum(any(unicodedata.category(c).startswith("L") for c in word) for word in words) / len(words) < 0.8:
        broken.add("words without letters")
    stop = {"我", "的", "了", "也"} if chinese else {"the", "of", "with"}
    if len(stop & {word.lower() for word in words}) < 2:
        broken.add("too few stop words")
    return broken


TOKENS = ["the", "of", "With", "lighthouse", "internationalisation", "x", "42", "#", "...", "……", "•", "\n", "\n• "]
CHINESE_TOKENS = ["我的灯", "亮了", "也好", "守塔人每天傍晚登上台阶", "一", "42", "#", "……", "。", "\n", "\n• "]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([TOKENS, CHINESE_TOKENS]).flatmap(lambda tokens: st.lists(st.sampled_from(tokens), max_size=80)))
def test_quality_rules_equal_the_definition(tokens):
    text = " ".join(tokens)
    broken = slow_quality(text)
    found = reject_low_quality(GopherQualityStep(step="gopher_quality", min_words=20))(text)
    assert found in broken if broken else found is None


# Length and language


def test_length_counts_characters_and_both_limits_are_allowed():
    reject = reject_length(LengthStep(step="length", min=2, max=4))
    assert [reject(text) for text in ("a", "中", "ab", "中文汉字", "中文汉字！")] == [
        "too short",
        "too short",
        None,
        None,
        "too long",
    ]
    assert reject_length(LengthStep(step="length"))("x" * 10**6) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (ENGLISH, None),
        (CHINESE, None),
        ("學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？", None),
        ("Der Leuchtturmwärter stieg jeden Abend die Treppe hinauf, um die Lampe anzuzünden.", "language de"),
        ("灯台守は毎晩二百段の階段を上って灯をともしました。", "language ja"),
        ("Смотритель маяка каждый вечер поднимался по лестнице.", "language ru"),
        ("213-484-0480", "uncertain language"),
        ("", "uncertain language"),
    ],
)
def test_language(text, rule):
    found = reject_language(LanguageStep(step="language"), "here")(text)
    # Of a text without letters, which language comes first says nothing.
    assert found == rule or (rule == "uncertain language" and found is not None)


def test_language_probability_and_codes():
    short = "The keeper climbed."
    assert reject_language(LanguageStep(step="language", min_probability=0.1), "here")(short) is None
    assert reject_language(LanguageStep(step="language", min_probability=1), "here")(short) == "uncertain language"
    assert reject_language(LanguageStep(step="language", languages=["de"]), "here")(ENGLISH) == "language en"
    with pytest.raises(UserError, match=r"data\.cleaning\[2\]\.languages has 'english', which py3langid does not know"):
        reject_language(LanguageStep(step="language", languages=["english"]), "data.cleaning[2]")
