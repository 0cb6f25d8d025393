"""Strange inputs as hypothesis strategies: text from every plane of Unicode, damaged files, TOML and JSON of any shape.

TEXTS                 one text; `HALVES` beside it holds half characters (lone surrogates), as damaged JSON or argv bring them
damaged(files)        the bytes of one of these files with up to four spots cut, doubled or overwritten; also as UTF-16,
                      gzipped, with other line ends, or no file at all but random bytes
values(...)           what a TOML or JSON document can hold, known words among it
replaced(document)    a document with one value, at any depth, exchanged, added or taken out
"""

import copy
import gzip
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from tiny_glue import WORDS

MEGABYTE = 1_000_000

ODD = (
    "\0", "\x01", "\x1b[31m", "\x7f", "\x85", "\x0b", "\x0c", "\x1c", "\x1f", "\r", "\n", "\r\n", "\t", " ", "\xa0",
    "\u3000", "\u2028", "\u2029", "\ufeff", "\ufffd", "\ufffe", "\u200b", "\u200d", "\u2060", "\u202e", "\u2066", "\u061c",
    "\xad", "\ue000", "\U000e0001", "\U0010ffff", "\u0301", "\u0489", "e\u0301\u0302\u0303", "\u1160", '"', "'", '""',
    "\\", ",", ";", "#", "=", "[", "]", "{", "}", "[MASK]", "[SEP]", "[PAD]", "[UNK]", "##s", "##", "\u0130", "\xdf",
    "\ufb03", "\u01c5", "\u0663", "\xb2", "\xbd", "1_0", "1e5", "-1", "nan", "0" * 40, "中文", "한국어", "हिन्दी", "ไทย", "שלום",
    "مرحبا", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "☠️", "1️⃣", "Ω", "ﷺ", "don't", "a.b", "B.C.",
)  # fmt: skip

PLANES = [
    st.characters(min_codepoint=plane << 16, max_codepoint=(plane << 16) + 0xFFFF, exclude_categories=("Cs",))
    for plane in range(17)
]
PIECES = st.one_of(st.sampled_from(WORDS), st.sampled_from(ODD), st.one_of(PLANES), st.text(max_size=4))
TEXTS = st.builds(str.join, st.sampled_from((" ", "")), st.lists(PIECES, max_size=10))
HALVES = st.builds(
    lambda before, half, after: before + half + after, TEXTS, st.sampled_from(("\ud800", "\udcff", "\udfff\ud800")), TEXTS
)
LONG_UNITS = st.one_of(st.sampled_from(("a", "word ", ". ", '"', ',"', "\u0301", "中", "👍🏽", "A. B ", "1")), PIECES)


def long(size: int = MEGABYTE) -> st.SearchStrategy[str]:
    """A text of about a million characters, one short piece again and again."""
    return LONG_UNITS.filter(bool).map(lambda unit: unit * (size // len(unit) + 1))


JUNK = (
    b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"\xff", b"\xe9", b"\xed\xa0\x80", b"\xc0\x80",
    b"\xf4\x90\x80\x80", b"\xe2\x80\xa8", b"\xc2\x85", b'"', b'""', b"'", b",", b"\t", b" ", b"\n", b"\r", b"\r\n",
    b"\n\n", b"\\", b"\\ud800", b"\\u0000", b"#", b"=", b".", b"{", b"}", b"[", b"]", b"[" * 3000, b'{"a":' * 3000,
    b"a." * 2000, b"9" * 5000, b"1e999", b"-1", b"NaN", b"nan", b"inf", b"null", b"true", b"{}", b"[]", b"\x1a",
    b"\x1f\x8b\x08", b"PK\x03\x04", b"PAR1", b" 0.5", b"-0", b"2021-13-45", b"1979-05-27T07:32:00Z",
)  # fmt: skip
SPOTS = st.tuples(
    st.integers(0, 2**16 - 1),
    st.sampled_from((0, 0, 1, 1, 2, 7, 40, 10**9)),
    st.one_of(st.sampled_from(JUNK), st.binary(max_size=4), TEXTS.map(str.encode)),
    st.booleans(),
)


def _damage(data: bytes, spots: Sequence[tuple[int, int, bytes, bool]]) -> bytes:
    for place, length, junk, doubled in spots:
        start = place * (len(data) + 1) >> 16
        cut = data[start : start + length] * 2 if doubled else b""
        data = data[:start] + cut + junk + data[start + length :]
    return data


def _as_utf16(data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode("utf-16")


FORMS = st.sampled_from(
    (
        bytes, bytes, bytes, bytes, bytes, bytes,
        _as_utf16,
        gzip.compress,
        lambda data: gzip.compress(data)[:-5],
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\r", 3),
    )
)  # fmt: skip


def damaged(files: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of these files, damaged; some come whole."""
    spoiled = st.builds(_damage, st.sampled_from(files), st.lists(SPOTS, max_size=4))
    return st.one_of(spoiled, spoiled, st.builds(lambda form, data: form(data), FORMS, spoiled), st.binary(max_size=80))


def values(*likely: Any, toml: bool = False) -> st.SearchStrategy[Any]:
    """Anything a TOML or JSON document can hold."""
    nothing = st.sampled_from((True, False)) if toml else st.sampled_from((True, False, None))
    scalars = st.one_of(
        st.sampled_from([*likely, "", "x", 0, 1, -1, 2, 0.5, 10**30, 1e308, float("inf"), float("nan")]),
        nothing,
        st.integers(),
        st.floats(),
        TEXTS,
        st.sampled_from(["a" * 300, "a/b/" * 1500, "a\0b", "a" * 300 + ".toml", "/", ".", ".."]),
    )
    return st.recursive(
        scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=5
    )


def _places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [at]
    if isinstance(document, dict):
        places += [place for key, value in document.items() for place in _places(value, (*at, key))]
    if isinstance(document, list):
        places += [place for i, value in enumerate(document) for place in _places(value, (*at, i))]
    return places


@st.composite
def replaced(draw: st.DrawFn, document: Any, others: st.SearchStrategy[Any]) -> Any:
    """The document with up to three values exchanged, added or taken out."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(changed)))
        if not place:
            if draw(st.integers(0, 9)) == 0 or not isinstance(changed, dict):
                return draw(others)
            changed[draw(TEXTS)] = draw(others)
            continue
        *path, last = place
        parent = changed
        for key in path:
            parent = parent[key]
        if draw(st.integers(0, 4)) == 0:
            del parent[last]
        else:
            parent[last] = draw(others)
    return changed
