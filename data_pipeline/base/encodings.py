"""Encodings of text files: which can be named, which can be cut at newlines, and which one unknown bytes are in."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

UTF8 = "utf-8"
SAMPLE_BYTES = 1 << 16
"""Bytes at a file's start that are enough to judge it."""
MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks, besides UTF-8's; the longer ones first, since one begins like another."""
_SWITCHES = ((b"\x1b$B", "iso2022_jp_2"), (b"\x1b$@", "iso2022_jp_2"), (b"\x1b$)C", "iso2022_kr"))
"""What ISO-2022 switches to Japanese and Korean with, besides which its text is ASCII."""
_SHOWN = 24
"""Characters of a file that a message shows in the encoding that it is probably in."""
_LEAST_SCORE = 0.5
_NO_FILES = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "unicode-escape", "raw-unicode-escape")
"""Codecs of texts that no file is in as a whole."""


def normal_name(name: str) -> str:
    """Python's own name of a text encoding; raises ValueError for one that Python does not know."""
    try:
        codec = codecs.lookup(name)
        known = codec.name not in _NO_FILES and "a".encode(codec.name).decode(codec.name) == "a"
    except (LookupError, ValueError):
        known = False
    if not known:
        raise ValueError(f"Python knows no text encoding {name!r}; name one such as utf-8, gb18030, cp1252 or utf-16")
    # A byte order mark is taken off in any case.
    return UTF8 if codec.name == "utf-8-sig" else codec.name


@functools.cache
def later_bytes(encoding: str) -> frozenset[int]:
    """The bytes that can stand behind the first one of a character, among all characters below U+10000."""
    found: set[int] = set()
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x10000)):
        found.update(chr(code).encode(encoding, errors="ignore")[1:])
    return frozenset(found)


@functools.cache
def cuts_at_newlines(encoding: str) -> bool:
    """Whether the byte 0x0A is always a newline and what follows it can be read without what stands before it.

    Then a file can be cut anywhere. It holds for all supersets of ASCII without states, and for neither UTF-16 and
    UTF-32, nor for encodings that switch between states.
    """
    if encoding in (UTF8, "ascii"):
        return True
    ascii_bytes = bytes(code for code in (*b"\n\r\t", *range(0x20, 0x7F)) if code not in _VARYING)
    if ascii_bytes.decode().encode(encoding, errors="replace") != ascii_bytes:
        return False
    # These switch between states by sequences of ASCII.
    return not encoding.startswith(("iso2022", "hz", "utf_7", "utf-7")) and 0x0A not in later_bytes(encoding)


_VARYING = b"\\~"
"""At their places some Japanese encodings have the yen sign and the overline."""


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a character, such as Python makes of arguments that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decodes(data: bytes, encoding: str, *, complete: bool = True) -> bool:
    """Whether bytes are text of an encoding; where they are not `complete`, the last character may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(data, final=complete)
    except UnicodeError:
        return False
    return True


def _as_mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


_MARKED = "llmscale.marked"
codecs.register_error(_MARKED, _as_mark)


def to_utf8(data: bytes, encoding: str) -> bytes:
    """Text in another encoding as UTF-8. What is invalid becomes the byte 0xFF, which is as invalid in UTF-8, so that
    whoever reads that replaces and counts it."""
    return data.decode(encoding, errors=_MARKED).encode(errors="surrogateescape")


class ToUtf8:
    """The same for bytes that come in pieces."""

    def __init__(self, encoding: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)(errors=_MARKED)

    def feed(self, data: bytes, *, final: bool) -> bytes:
        """What is known of the text with another piece, the last one where it is `final`."""
        return self._decoder.decode(data, final).encode(errors="surrogateescape")


def mostly_invalid(lines: list[bytes], encoding: str) -> bool:
    """Whether lines of a file are so often invalid that the file as a whole is in another encoding.

    Most lines with anything besides ASCII are invalid then, these are a good part of all, and what is invalid is more
    than a stray byte.
    """
    full = [line for line in lines if line.strip()]
    other = [line for line in full if not line.isascii()]
    texts = [line.decode(encoding, errors="replace") for line in other if not decodes(line, encoding)]
    replaced = sum(text.count("\ufffd") for text in texts)
    valid = sum(sum(map("\x7f".__lt__, text)) for text in texts) - replaced
    characters = sum(map(len, texts))
    if replaced < 2 or valid > replaced or 500 * replaced < characters or 2 * len(texts) <= len(other):
        return False
    return 2 * len(texts) >= len(full) or (len(texts) >= 10 and 10 * len(texts) >= len(full))


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by its zeros; None where there are few of them."""
    if len(data) < 4 or 10 * data.count(0) < len(data):
        return None
    zeros = [data[i::4].count(0) for i in range(4)]
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if 10 * sum(zeros) > 7 * len(data):
        found = "utf-32-le" if zeros[0] < zeros[3] else "utf-32-be"
    elif 10 * min(even, odd) > max(even, odd):
        return None
    else:
        found = "utf-16-le" if even < odd else "utf-16-be"
    text = data.decode(found, errors="replace")
    strange = sum(mark < " " and mark not in "\t\n\f\r" for mark in text) + text.count("\ufffd")
    return found if 20 * strange <= len(text) else None


def switching_encoding(data: bytes) -> str | None:
    """The encoding of bytes of ASCII that switch to other characters by escape sequences; None where they do not."""
    for switch, encoding in _SWITCHES:
        if switch in data and decodes(data, encoding, complete=False):
            return encoding
    return None


class Guess(NamedTuple):
    """What bytes probably are."""

    encoding: str
    """Python's name."""
    known_as: str
    """What people call it, or what it is used for."""


def guess(data: bytes) -> Guess | None:
    """The encoding that bytes with much besides ASCII, which are not UTF-8, are probably in; None for anyone's guess.

    An encoding scores by the share of characters besides ASCII that are common where it is used.
    """
    scores = [(_score(data, candidate), candidate) for candidate in _CANDIDATES]
    best, found = max(scores, key=lambda scored: scored[0])
    return found.guess if best >= _LEAST_SCORE else None


def shown_in(found: Guess, data: bytes) -> str:
    """The encoding that bytes are probably in, with their first characters in it."""
    shown = " ".join(data.decode(found.encoding, errors="replace").split())[:_SHOWN]
    return f"{found.encoding} ({found.known_as}), in which it has {shown!r}"


class _Candidate(NamedTuple):
    guess: Guess
    weigh: Callable[[str], float]
    """The sum of the weights, from 0 to 1, of the characters of a text."""


def _score(data: bytes, candidate: _Candidate) -> float:
    text = data.decode(candidate.guess.encoding, errors="replace")
    other = sum(map("\x7f".__lt__, text))
    replaced = text.count("\ufffd")
    if not other or 10 * replaced > other:
        return 0.0
    return (candidate.weigh(text) - replaced) / other


def _han(encoding: str, leads: range, more: str, frequent: str) -> Callable[[str], float]:
    """Weighs the characters of the commoner half of a table, by their first byte, and marks; frequent ones fully."""

    @functools.cache
    def tables() -> tuple[frozenset[str], frozenset[str]]:
        pairs = (bytes([lead, trail]) for lead in leads for trail in range(0x40, 0xFF))
        rows = "".join(pair.decode(encoding, errors="ignore") for pair in pairs)
        return frozenset(mark for mark in rows + more if mark > "\x7f"), frozenset(frequent)

    def weigh(text: str) -> float:
        common, often = tables()
        return sum(0.8 for mark in text if mark in common) + sum(0.2 for mark in text if mark in often)

    return weigh


def _letters(pattern: str, weight: float = 0.75) -> Callable[[str], float]:
    """Weighs what a regular expression finds, but for ASCII: less than common characters of the large tables, since
    bytes that can be read as these by chance are fewer."""
    compiled = re.compile(pattern)
    return lambda text: weight * sum(sum(map("\x7f".__lt__, part)) for part in compiled.findall(text))


def _alphabet(lower: str, upper: str) -> Callable[[str], float]:
    """Words of an alphabet apart from ASCII's, in lower case but for the first letter, or in capitals, which are less
    likely: in one encoding of Cyrillic there are the small letters where another has the capitals."""
    before, behind = f"(?<![A-Za-z{lower}{upper}])", f"(?![A-Za-z{lower}{upper}])"
    words = _letters(f"{before}[{upper}]?[{lower}]+{behind}")
    capitals = _letters(f"{before}[{upper}]+{behind}", 0.7)
    return lambda text: words(text) + capitals(text)


def _accents(letters: str, most: int = 2) -> Callable[[str], float]:
    """Letters that stand among ASCII's, at `most` so many side by side, and the marks of print."""
    return _letters(f"(?<![À-ɏ])[{letters}]{{1,{most}}}(?![À-ɏ])|[“”‘’„–—…«»€£§°]")


_MARKS = "，。、；：？！「」『』“”‘’（）《》〈〉【】—…·　－～"
_KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30FB)))) + "ー"
_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多"
    "经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全"
    "三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常"
    "先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计今"
)
_TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡裏用道行所然家種事成方多"
    "經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全"
    "三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給世位次度門任常"
    "先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變四神總何電數安少報才結反受目太量再感建務做接必場件計今"
)
_HANGUL = (
    "이다는의에을고가하지를은로어한기아그도나사서리있것해들시인자라대만수일게여정보없과으와스전제부면장니주구거조적상우안원때내생오"
    "동말무유연람된공소모녀진위되경국마으신비세성려금았었했러야음할던며않습처까았너저요그많같년월명문학교방중관화분단발방실형더데"
)

_WIDE = "[、-〕ぁ-ヿ一-龥가-힣，。！？А-яؠ-ي]"
"""Any two bytes of ASCII are one of these, so they weigh little."""

_CANDIDATES = (
    _Candidate(Guess("gb18030", "GBK"), _han("gb2312", range(0xB0, 0xD8), _MARKS, _SIMPLIFIED + _MARKS)),
    _Candidate(Guess("big5hkscs", "Big5"), _han("big5", range(0xA4, 0xC7), _MARKS, _TRADITIONAL + _MARKS)),
    _Candidate(Guess("cp932", "Shift JIS"), _han("shift_jis", range(0x88, 0x98), _MARKS + _KANA, _KANA + "、。の")),
    _Candidate(Guess("euc_jp", "EUC-JP"), _han("euc_jp", range(0xB0, 0xD0), _MARKS + _KANA, _KANA + "、。の")),
    _Candidate(Guess("cp949", "EUC-KR"), _han("euc_kr", range(0xB0, 0xC9), _MARKS, _HANGUL + _MARKS)),
    _Candidate(Guess("cp1252", "Latin-1"), _accents("éèàùâêîôûçäöüßñáíóúãõåøæœëïìòÉÀÈÊÄÖÜÇÑÁÍÓÚÅØŒª¿¡º")),
    _Candidate(Guess("cp1250", "Central European"), _accents("ąćęłńóśźżáčďéěíňřšťúůýžőűăâîşţäöüôŚŁŻŽŠČŘ", 4)),
    _Candidate(Guess("cp1254", "Turkish"), _accents("ığşçöüİŞÇÖÜâîû")),
    _Candidate(Guess("cp1251", "Cyrillic"), _alphabet("а-яёіїєґўђћљњџј", "А-ЯЁІЇЄҐЎЂЋЉЊЏЈ")),
    _Candidate(Guess("koi8_r", "KOI8-R"), _alphabet("а-яё", "А-ЯЁ")),
    _Candidate(Guess("cp866", "Cyrillic of DOS"), _alphabet("а-яё", "А-ЯЁ")),
    _Candidate(Guess("iso8859_5", "ISO Cyrillic"), _alphabet("а-яё", "А-ЯЁ")),
    _Candidate(Guess("cp1253", "Greek"), _alphabet("α-ωάέήίόύώϊϋΐΰ", "Α-ΩΆΈΉΊΌΎΏ")),
    _Candidate(Guess("cp1255", "Hebrew"), _letters("(?<![A-Za-z])[א-ת\u05b0-\u05c2]+(?![A-Za-z])")),
    _Candidate(Guess("cp1256", "Arabic"), _letters("(?<![A-Za-z])[ء-ي،؟پچژگ]+(?![A-Za-z])")),
    _Candidate(Guess("cp874", "Thai"), _letters("(?<![A-Za-z])[ก-ฺเ-๎]+(?![A-Za-z])")),
    _Candidate(Guess("utf-16-le", "without a byte order mark"), _letters(_WIDE, 0.55)),
    _Candidate(Guess("utf-16-be", "without a byte order mark"), _letters(_WIDE, 0.55)),
)
