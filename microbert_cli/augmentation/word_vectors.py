"""A table of word vectors: unit rows, nearest words by cosine.

    source   GloVe or fastText text, plain, .gz or .zip (`vectors.zip/member.txt` names one of several members),
             or a BERT directory or Hub id, whose input embeddings serve
    kept     the first 100,000 words by default, as the released TinyBERT code does

Of a BERT's vocabulary only whole words of letters are neighbours; a word of several pieces is looked up by the mean of
their vectors. A parsed text file is kept in the cache by the hash of its bytes.
"""

import lzma
import re
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from microbert_cli.augmentation.words import Spelling, is_letters
from microbert_cli.data.limits import bounded_lines, check_zip, open_gzip
from microbert_cli.data.tables.content import conversion_command
from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import cache
from microbert_cli.runs.atomic import digest, file_digest

Matrix = NDArray[np.float32]

MAX_WORDS = 100_000
WORDS_PER_PRODUCT = 256  # queries a product
EXTRA_NEIGHBOURS = 32  # neighbours looked at beyond those asked for, so that rounding cannot lose one
CACHE_VERSION = 1
SUFFIXES = (".txt", ".vec", ".gz", ".zip")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


# What gzip and zipfile raise: damage, methods they do not know (NotImplementedError), passwords (RuntimeError), odd names.
ARCHIVE_ERRORS = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error, RuntimeError, ValueError, LookupError
)  # fmt: skip


class WordTable:
    """W words and their unit vectors [W, D]; `compose` makes vectors of words that the table lacks, or returns None."""

    def __init__(self, words: Sequence[str], vectors_WD: Matrix, *, compose: Callable[[str], Matrix | None] | None = None):
        self.words = list(words)
        self.vectors_WD = _unit(vectors_WD)
        self._compose = compose
        self._index = {word: i for i, word in reversed(list(enumerate(self.words)))}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._index

    def vector(self, word: str) -> Matrix | None:
        """Returns the unit vector [D] of a word, as written or in lower case; None where there is none."""
        index = self._place(word)
        if index is not None:
            return self.vectors_WD[index]
        composed = self._compose(word) if self._compose else None
        return None if composed is None else _unit(composed[None])[0]

    def neighbours(self, words: Sequence[str], count: int) -> list[list[str]]:
        """Returns the `count` nearest words of each word, nearest first, without itself; none for an unknown word.

        Cosines are ranked in float64, one word at a time, and equal ones by place in the table: the answer for a word
        does not depend on the others asked with it.
        """
        vectors = {word: vector for word in words if (vector := self.vector(word)) is not None and vector.any()}
        in_table = list(vectors)
        nearest: dict[str, list[str]] = {}
        for start in range(0, len(in_table), WORDS_PER_PRODUCT):
            block = in_table[start : start + WORDS_PER_PRODUCT]
            cosines_QW = np.stack([vectors[word] for word in block]) @ self.vectors_WD.T
            nearest |= {
                word: self._ranked(word, vectors[word], row, count) for word, row in zip(block, cosines_QW, strict=True)
            }
        return [nearest.get(word, []) for word in words]

    def _ranked(self, word: str, vector_D: Matrix, cosines_W: Matrix, count: int) -> list[str]:
        candidate_count = min(count + EXTRA_NEIGHBOURS, len(self.words))
        candidates = np.sort(np.argpartition(-cosines_W, candidate_count - 1)[:candidate_count])
        cosines = (self.vectors_WD[candidates].astype(np.float64) * vector_D.astype(np.float64)).sum(1)
        order = candidates[np.argsort(-cosines, kind="stable")]
        own_index = self._place(word)
        return [self.words[i] for i in order if i != own_index][:count]

    def _place(self, word: str) -> int | None:
        return self._index.get(word, self._index.get(word.lower()))


def load_word_table(
    source: str | Path, *, limit: int = MAX_WORDS, reporter: Reporter = SILENT, where: str = "vectors.source"
) -> WordTable:
    """Loads the word table of a text file, an archive, or a BERT; see the module.

    Raises M242 (no such file), M243 (no member of that name), M341 (a line that does not fit, with its number), M342
    (not UTF-8), M343 (damaged archive), and for a model what `load_model` raises.
    """
    path = Path(source)
    archive, member = _archive_and_member(path)
    if archive.is_file():
        return _cached(archive, member, limit, reporter, where)
    if path.suffix not in SUFFIXES:
        return _from_bert(source, limit, where)
    raise MbertError(
        "M242",
        "there are no word vectors here",
        where=f"{where} {path}",
        allowed="GloVe text (.txt, .gz, .zip), a BERT directory, or a Hub id.",
        fix="Fetch glove.6B.zip from nlp.stanford.edu/projects/glove, or name a model: its input embeddings serve.",
    )


def read_vectors(lines: Iterator[bytes], *, limit: int, name: str) -> tuple[list[str], Matrix]:
    """Parses words and vectors [W, D] of GloVe or fastText lines: a word, then D numbers, separated by single spaces.

    D is that of the first line; a header of two integers (fastText, word2vec) is passed over; of a word that comes
    twice the first is kept. Raises M341, M342 with the line's number.
    """
    words: dict[str, None] = {}
    rows: list[Matrix] = []
    width = 0
    for number, line in enumerate(lines, 1):
        text = _text(line, name, number)
        if not text or (number == 1 and re.fullmatch(r"\d+ \d+", text)):
            continue
        width = width or text.count(" ")
        word, values = _parse_line(text, width, name, number)
        if word not in words:
            words[word] = None
            rows.append(values)
        if len(rows) == limit:
            break
    if not rows:
        raise _invalid_line("no line has a word and its numbers", name, 1)
    return list(words), np.stack(rows)


def _text(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode("utf-8").removeprefix("\ufeff").rstrip(" \r\n")
    except UnicodeDecodeError as error:
        raise MbertError(
            "M342",
            f"byte {error.start + 1} of this line is not UTF-8",
            where=f"{name}, line {number}",
            allowed="UTF-8 text, one word and its numbers a line.",
            fix=f"Fetch the file again, or convert it: {conversion_command(line, error.start, name)}",
        ) from error


def _parse_line(text: str, width: int, name: str, number: int) -> tuple[str, Matrix]:
    word, *fields = text.rsplit(" ", width) if width else [text]
    too_many = " " in word and NUMBER.fullmatch(word.rpartition(" ")[2])
    if not fields or len(fields) != width or too_many:
        number_count = sum(bool(NUMBER.fullmatch(field)) for field in text.split(" ")[1:])
        raise _invalid_line(f"this line has {number_count} numbers after the word, those before it {width}", name, number)
    try:
        values = np.fromiter(map(float, fields), dtype=np.float32, count=width)
    except ValueError as error:
        raise _invalid_line(f"a number cannot be read: {error}", name, number) from error
    if not np.isfinite(values).all():
        raise _invalid_line("a number is not finite", name, number)
    return word, values


def _invalid_line(what: str, name: str, number: int) -> MbertError:
    return MbertError(
        "M341",
        what,
        where=f"{name}, line {number}",
        allowed="GloVe text: a word and the same number of numbers on every line, separated by single spaces.",
        fix=f"Look at the line: sed -n {number}p {shlex.quote(name)}; a file cut short is best fetched again.",
    )


def _archive_and_member(path: Path) -> tuple[Path, str | None]:
    return (path.parent, path.name) if path.parent.suffix == ".zip" and path.parent.is_file() else (path, None)


def _cached(path: Path, member: str | None, limit: int, reporter: Reporter, where: str) -> WordTable:
    key = digest({"file": file_digest(path), "member": member, "limit": limit, "format": CACHE_VERSION})
    with cache.entry("word-vectors", key, reporter=reporter) as (folder, ready):
        if not ready:
            with _opened(path, member, reporter, where) as lines:
                words, vectors_WD = read_vectors(lines, limit=limit, name=str(path))
            np.save(folder / "vectors.npy", vectors_WD)
            (folder / "words.txt").write_bytes("\n".join(words).encode())
        words = (folder / "words.txt").read_bytes().decode().split("\n")
        return WordTable(words, np.load(folder / "vectors.npy", allow_pickle=False))


@contextmanager
def _opened(path: Path, member: str | None, reporter: Reporter, where: str) -> Iterator[Iterator[bytes]]:
    try:
        with _stream(path, member, reporter, where) as stream:
            yield bounded_lines(stream, str(path))
    except (*ARCHIVE_ERRORS, RuntimeError) as error:  # the last: a password
        raise MbertError(
            "M343",
            f"this file cannot be read: {str(error) or type(error).__name__}",
            where=f"{where} {path}",
            allowed="GloVe text, or a whole .gz or .zip of it, without a password.",
            fix="Fetch the file again; an interrupted download is the usual reason.",
        ) from error


def _stream(path: Path, member: str | None, reporter: Reporter, where: str) -> IO[bytes]:
    if path.suffix == ".gz":
        return open_gzip(path)
    if path.suffix != ".zip":
        return path.open("rb")
    archive = zipfile.ZipFile(path)
    check_zip(archive, path)
    sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
    member_name = member or max(sizes, key=lambda name: sizes[name], default="")
    if member_name not in sizes:
        raise MbertError(
            "M243",
            f'this archive has no "{member_name}"',
            where=f"{where} {path}",
            allowed=f"One of: {', '.join(sorted(sizes)) or '(it is empty)'}.",
            fix=f"Name one as {path}/MEMBER, or {path} alone for the largest.",
        )
    if member is None and len(sizes) > 1:
        reporter.note(f"{path.name}: {member_name}, the largest of {len(sizes)} members")
    return archive.open(member_name)


def _from_bert(source: str | Path, limit: int, where: str) -> WordTable:
    from microbert_cli.models.load import load_model

    loaded = load_model(source, "encoder", where=where)
    embedding_VD: Matrix = loaded.model.get_input_embeddings().weight.detach().cpu().numpy().copy()
    spelling = Spelling(loaded.tokenizer)
    whole_words = [(word, i) for i, word in enumerate(spelling.words) if word is not None and is_letters(word)][:limit]
    compose = _MeanOfPieces(spelling, embedding_VD)
    return WordTable([word for word, _ in whole_words], embedding_VD[[i for _, i in whole_words]], compose=compose)


class _MeanOfPieces:
    """Makes vectors of words that a vocabulary lacks: the mean of their pieces' vectors."""

    def __init__(self, spelling: Spelling, embedding_VD: Matrix):
        self._spelling, self._embedding_VD = spelling, embedding_VD

    def __call__(self, word: str) -> Matrix | None:
        pieces = self._spelling.pieces(word)
        if not pieces or self._spelling.tokenizer.unk_token_id in pieces:
            return None
        mean_D: Matrix = self._embedding_VD[list(pieces)].mean(0)
        return mean_D


def _unit(vectors_WD: Any) -> Matrix:
    norms_W1 = np.linalg.norm(vectors_WD, axis=1, keepdims=True)
    unit_WD: Matrix = (vectors_WD / np.where(norms_W1 == 0, 1, norms_W1)).astype(np.float32)
    return unit_WD
