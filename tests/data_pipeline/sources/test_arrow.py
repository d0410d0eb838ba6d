"""Arrow files of other writers than pyarrow, which are laid out otherwise than a stream with a footer."""

from __future__ import annotations

import base64
import contextlib
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.corpus import Corpus

# polars.DataFrame({"text": ["a", "b"]}).write_ipc(path), Polars 2.1; compressed by zlib.
TWO_TEXTS = (
    "c-nIe3i1y(WME)nU|{(4|Nnmx1`wMONOCc7GjIS&7KR@{aUP%u2N1$!LF(TC#dUzR0uW08F(Z%=U=RYz2`~tP)q-"
    ">}F#G|kV_{$c>nTaCC;^E9h5pY#GRJ`d0wDG?19b|6&Ef&_o&n{Vpz<L=tN~TWz`zHzmj$Rs04&1DfC`uxa03M-"
    "HX|0bAhAR=ei8%m0OUUgH2+z^{RaveA)u>SfT6?#HoF3<Zvm8cKr@f(aWE6ea0Ev_0C|=^k^"
)
# polars.DataFrame({"text": TEXTS, "n": [1, 2, 3, 4, 5]}).with_columns(polars.col("text").cast(polars.Categorical)
# .alias("kind")).write_ipc(path, compression="zstd", record_batch_size=2), likewise.
TEXTS = ["one", "two, a longer text than twelve bytes", "one", None, "三"]
BATCHES = (
    "c-"
    "rk&L2DC16n>Lz>Q)z7V+x4~P9TRI3Z^ZBkV`@k5eh9q@K`G@Rt%d`w^nZzJSceR!JpvKqe8vq*rUHdJQTfn5)lz4elt6hPNrG2X?"
    "t|w?VI=Jy*D%OeLFMFc6;g89Fapr-}?Q2fkdC-dz#LWi?2f+=*4&zv=4eivHfT0UxB{_t$}WXiXc|Z(*;-"
    "*se}j~`Bab*h0k~RaBvSK#vFWI^lSB6eRE;HjxOwpR+bl6TFsl+t}nH3w3>_aq}osT$G)zN_(R1bnu5lm9ktd6_rtqFy9>FhVhRt"
    "IiQ|ZMG=wbm({df6AA-JOY!;jk_9OiBu<_}fjN-"
    "`{zvWzx+*cGlj)V@Xev!p{6>(%xv^cL>c%GNB#LhorTrG#*g06z9YR<TwrHinOGgy?NR5<ztUxq#BFn)@X+nnMJ#jhy7ZP{tLta#"
    "5F*K*0w2|Q#hyKypCy!!6)AI=$*LAqfuFsO)RZgpo9_ERzaD`h5a`6};p!+XI77iHkl+G@z7t)TNL;CG%x!9&B}H~sym2MNtks^*"
    "&hZZj4brEUTru7Qt6N_@Odi4Piqk10c+xA1UjLOf`HJy{YS*cd!8i_3hn>4|cA7*Ctnm<ALh{%L$s58)xJ6i&MNkGuYnc%q}@N!K"
    "X}Pwa&8WVf<~FS6v)7`)9`cw!0pPLfB~bAR{6k?WD0tR9Z(@03%YD`q|S=%Ak4L-"
    "ouI)ziKUMSV4Vqhs7B*?+8WA>lsJwXl6_W<F{&jP~^ZIXLKbg|a?9`_fuxCwktCe3FsR=jyFeP&yB}^yTgE$%QPd>A7`4t*edsO4"
    "jFgFE_03S^3yem-7b;=l|bSDc@A@5uqs`seb`nJt+|"
)


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def corpus(path: Path, source: dict[str, Any] | None = None) -> Corpus:
    return Corpus([SourceConfig.model_validate({"kind": "arrow", "paths": [str(path)], **(source or {})})])


def pairs(found: Corpus) -> list[tuple[str, str | None]]:
    return [(document.text, document.target) for document in found.documents()]


def test_files_of_polars_are_read(tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(unpacked(TWO_TEXTS))
    assert pairs(corpus(tmp_path / "two")) == [("a", None), ("b", None)]
    (tmp_path / "many").write_bytes(unpacked(BATCHES))
    found = corpus(tmp_path / "many", {"target_field": "kind"})
    assert pairs(found) == [(text, text) for text in TEXTS if text is not None]
    assert [(span.start, span.stop) for span in found.spans] == [(0, 2), (2, 4), (4, 5)]
    assert [bad.row for bad in found.bad] == [3]
    documents = list(found.documents())
    assert found.read(found.spans[1], 2)[0] == documents[2:3]
    assert found.read(found.spans[2], 4)[0] == documents[3:]


def odd_layout(data: bytes) -> bytes:
    """A file of pyarrow whose schema's message has no prefix, as Polars writes it: only its footer tells what it is."""
    length = int.from_bytes(data[12:16], "little")
    return data[:8] + data[16 : 16 + length] + bytes(8) + data[16 + length :]


VALUES = ["a", "a longer text than twelve bytes", "é\n", "a"] * 20
TYPES = {
    "strings": pyarrow.string(),
    "large strings": pyarrow.large_string(),
    "views": pyarrow.string_view(),
    "views of bytes": pyarrow.binary_view(),
    "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    "dictionary of large strings": pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
}


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("name", TYPES)
def test_the_footer_says_where_everything_is(tmp_path: Path, name: str, compression: str | None) -> None:
    column = pyarrow.array(VALUES).cast(pyarrow.binary_view() if name == "views of bytes" else TYPES[name])
    table = pyarrow.table({"n": list(range(len(VALUES))), "text": column, "aim": column})
    options = pyarrow.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=True)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.slice(0, 30), max_chunksize=17)
        writer.write_table(table.slice(30), max_chunksize=17)
    plain = sink.getvalue().to_pybytes()
    for data in (plain, odd_layout(plain)):
        (tmp_path / "a").write_bytes(data)
        found = corpus(tmp_path / "a", {"target_field": "aim"})
        assert pairs(found) == list(zip(VALUES, VALUES, strict=True))
        assert len(found.spans) == 5
    # What a stream's reader makes of the second is nothing.
    with pytest.raises((pyarrow.ArrowInvalid, OSError)):
        pyarrow.ipc.open_stream(odd_layout(plain)[8:])


@pytest.mark.parametrize("name", TYPES)
def test_invalid_utf8_is_mended_in_columns_of_every_type(tmp_path: Path, name: str) -> None:
    raw = pyarrow.array([b"a", b"b\xff", b"c"])
    kind = TYPES[name]
    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    through = {
        pyarrow.large_string(): pyarrow.large_binary(),
        pyarrow.string_view(): pyarrow.binary_view(),
        pyarrow.binary_view(): pyarrow.binary_view(),
    }
    column = raw.cast(through.get(values, pyarrow.binary())).view(values)
    if values is not kind:
        column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1, 2], kind.index_type), column)
    table = pyarrow.table({"text": column})
    with pyarrow.ipc.new_file(str(tmp_path / "a"), table.schema) as writer:
        writer.write_table(table)
    found = corpus(tmp_path / "a")
    assert [text for text, _ in pairs(found)] == ["a", "b\ufffd", "c"]
    assert [(bad.reason, bad.row) for bad in found.bad] == [("invalid UTF-8 replaced", 1)]


def test_no_damage_to_a_small_file_is_more_than_a_mistake_of_the_user(tmp_path: Path) -> None:
    data = unpacked(TWO_TEXTS)
    for place in range(len(data)):
        (tmp_path / "a").write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        with contextlib.suppress(UserError):
            pairs(corpus(tmp_path / "a"))
    for size in range(1, len(data), 9):
        (tmp_path / "a").write_bytes(data[:size])
        with pytest.raises(UserError):
            pairs(corpus(tmp_path / "a"))


def test_feather_of_the_first_version_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"FEA1" + bytes(60) + b"FEA1")
    with pytest.raises(UserError, match="Feather file of version 1, which is no Arrow file; write it again"):
        corpus(tmp_path / "a")


def test_runs_on_files_of_pyarrow_keep_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = pyarrow.table({"text": pyarrow.array(VALUES).dictionary_encode(), "aim": VALUES})
    with pyarrow.ipc.new_file("a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=17)
    found = corpus(Path("a.arrow"), {"target_field": "aim"})
    # Where the messages are told from one another by going through them, as it was before; from pyarrow's own footer.
    with pyarrow.OSFile("a.arrow") as file:
        assert pyarrow.ipc.open_file(file).num_record_batches == len(found.spans) == 5
    sizes = [span.size for span in found.spans]
    data = Path("a.arrow").read_bytes()
    lengths, place = [], 8
    while place < len(data) and (length := int.from_bytes(data[place + 4 : place + 8], "little")):
        message = pyarrow.ipc.read_message(data[place:])
        lengths.append(8 + length + (message.body.size if message.body else 0))
        place += lengths[-1]
    # The schema and the dictionary come first.
    assert sizes == lengths[2:]
