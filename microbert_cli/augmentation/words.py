"""Words: how a sentence is split into them, which may be replaced, and how a tokenizer spells them.

The cut is that of BERT's basic tokenizer: control characters vanish, each CJK character and each punctuation mark
stands alone, white space separates. An uncased tokenizer also lower-cases and strips accents. Joined by single
spaces, the words give WordPiece the same token ids as the sentence they came from; other tokenizers see white space, so
that for them words are joined as they stood."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from microbert_cli.data.tables.content import conversion_command
from microbert_cli.errors import MbertError

CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

# English function words, by what they do. The last group is what an apostrophe leaves when punctuation is split off.
STOP_WORDS = frozenset(
    """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself
    she her hers herself it its itself they them their theirs themselves one oneself
    who whom whose which what that this these those such
    a an the some any each every all both either neither none no few more most other another own same
    am is are was were be been being do does did doing done have has had having
    can could may might must shall should will would ought cannot
    about above across after against along among around at before behind below beneath beside between beyond by down
    during for from in into near of off on onto out over past per since through throughout till to toward towards
    under until up upon via with within without
    and but or nor so yet if unless because as than though although while whereas whether
    not only very too just also then there here now again once ever never further when where why how
    s t d ll m re ve don didn doesn isn aren wasn weren hasn haven hadn
    won wouldn shouldn couldn mustn needn mightn shan ain
    's 're 't 'd 'll 'm 've n't
    """.split()
)
CLITICS = frozenset({"'s", "'re"})


@dataclass(frozen=True)
class Splitter:
    """Splits text into words as BERT's basic tokenizer does."""

    lowercase: bool = True
    strip_accents: bool = True

    def split(self, text: str) -> list[str]:
        """Returns the words of a text, with punctuation marks as words of their own."""
        if self.strip_accents:
            decomposed = unicodedata.normalize("NFD", text)
            text = unicodedata.normalize("NFC", "".join(c for c in decomposed if unicodedata.category(c) != "Mn"))
        if self.lowercase:
            text = text.replace("Σ", "σ").lower()  # by itself, as tokenizers do: Python has another one for the end of a word
        return "".join(map(_separated, text)).split()

    def spaces(self, text: str) -> tuple[bool, ...]:
        """Returns for each word of a text whether it has white space before it there; the first one has."""
        chunks = ("".join(map(_separated, chunk)).split() for chunk in text.split())
        return tuple(number == 0 for words in chunks for number in range(len(words)))


@dataclass(frozen=True)
class StopWords:
    """Words that are never replaced, in lower case; `digest` is the sha256 of the sorted list."""

    words: frozenset[str]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.words)).encode()).hexdigest()

    def keeps(self, word: str) -> bool:
        """Whether this word is never replaced: a stop word, or not made of letters."""
        return word.lower() in self.words or not is_letters(word)


def is_letters(word: str) -> bool:
    """Whether a word is letters of any script; combining marks may follow the first, as vowels do in Hindi."""
    return word[:1].isalpha() and all(c.isalpha() or unicodedata.category(c)[0] == "M" for c in word)


def has_substance(word: str) -> bool:
    """Whether this is more than punctuation."""
    return any(c.isalnum() for c in word)


def stop_words(source: str = "builtin") -> StopWords:
    """Returns the stop words of `source`: "builtin" (English), "nltk" (NLTK's English list), or a file with one word a line.

    Raises M240 (NLTK's list is not installed), M241 (no such file), M344 (the file is not UTF-8).
    """
    if source == "builtin":
        return StopWords(STOP_WORDS)
    if source == "nltk":
        return StopWords(frozenset(_nltk_words()) | CLITICS)
    return StopWords(frozenset(_words_of_file(Path(source))))


def join_words(words: Sequence[str], spaces: Sequence[bool] | None) -> str:
    """Returns a sentence of words: with white space where it was, or between all of them where that is not known."""
    if spaces is None or len(words) != len(spaces):  # a rewriter may add words and leave some out
        return " ".join(words)
    return "".join(f" {word}" if space else word for word, space in zip(words, spaces, strict=True)).strip()


class Spelling:
    """How a tokenizer spells words: into which pieces, and which of its pieces are words of their own.

    WordPiece marks pieces that continue a word ("##"); byte-level and SentencePiece tokenizers mark those that begin
    one."""

    def __init__(self, tokenizer: Any = None):
        self.tokenizer = tokenizer
        self._pieces: dict[str, tuple[int, ...]] = {}

    @cached_property
    def splitter(self) -> Splitter:
        """Splits text as this tokenizer does; by its normalisation of an accented capital; without a tokenizer case stays."""
        if self.tokenizer is None:
            return Splitter(lowercase=False, strip_accents=False)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        normalizer = getattr(backend, "normalizer", None)
        if normalizer is None:
            lowercase = backend is None and bool(getattr(self.tokenizer, "do_lower_case", False))
            return Splitter(lowercase, lowercase)
        normalised = unicodedata.normalize("NFC", normalizer.normalize_str("É"))
        return Splitter(lowercase="é" in normalised or "e" in normalised, strip_accents="e" in normalised or "E" in normalised)

    def spaces(self, text: str) -> tuple[bool, ...] | None:
        """Returns where a text's words have white space before them; None where that changes no token, as for WordPiece."""
        if self.tokenizer is not None and not self.begins:
            return None
        spaces = self.splitter.spaces(text)
        return spaces if len(spaces) == len(self.splitter.split(text)) else None

    @cached_property
    def words(self) -> list[str | None]:
        """Returns by token id the word that a piece is alone; None for continuations and special tokens."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        special = set(self.tokenizer.all_special_ids)
        return [None if i in special or not token else self._word(token) for i, token in enumerate(tokens)]

    @cached_property
    def begins(self) -> str:
        """Returns the mark of a piece that begins a word; empty for WordPiece."""
        tokens = self.tokenizer.get_vocab() if self.tokenizer is not None else {}
        if any(token.startswith("##") for token in tokens):
            return ""
        marks = {mark: sum(token.startswith(mark) for token in tokens) for mark in ("\u0120", "\u2581")}
        best = max(marks, key=lambda mark: marks[mark])
        return best if marks[best] else ""

    def pieces(self, word: str) -> tuple[int, ...]:
        """Returns the token ids of one word inside a sentence."""
        if word not in self._pieces:
            text = f" {word}" if self.begins else word
            self._pieces[word] = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._pieces[word]

    def _word(self, token: str) -> str | None:
        if not self.begins:
            return None if token.startswith("##") else token
        if not token.startswith(self.begins):
            return None
        return str(self.tokenizer.convert_tokens_to_string([token])).strip() or None


@lru_cache(maxsize=65536)
def _separated(char: str) -> str:
    if char in "\t\n\r":
        return " "
    category = unicodedata.category(char)
    if category[0] == "C" or char == "\ufffd":
        return ""
    if char.isspace():  # after the control characters: Python counts some of them as space, the tokenizers do not
        return " "
    alone = category[0] == "P" or char in ASCII_PUNCTUATION or any(low <= ord(char) <= high for low, high in CJK)
    return f" {char} " if alone else char


def _nltk_words() -> Iterable[str]:
    from nltk.corpus import stopwords

    try:
        words: list[str] = stopwords.words("english")
        return words
    except LookupError as error:
        raise MbertError(
            "M240",
            "NLTK's English stop words are not installed",
            where="augment.stop_words = nltk",
            allowed='"builtin" (English, needs nothing), "nltk", or a file with one word a line.',
            fix="python -m nltk.downloader stopwords, or point NLTK_DATA at a folder that has corpora/stopwords.",
        ) from error


def _words_of_file(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise MbertError(
            "M241",
            f"these stop words cannot be read: {error.strerror}",
            where=f"augment.stop_words = {path}",
            allowed='"builtin", "nltk", or a UTF-8 file with one word a line.',
            fix="Check the path, or: --set augment.stop_words=builtin",
        ) from error
    return [word for number, line in enumerate(lines, 1) if (word := _decoded(line, path, number).strip().lower())]


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MbertError(
            "M344",
            f"byte {error.start + 1} of this line is not UTF-8",
            where=f"{path}, line {number}",
            allowed="A UTF-8 file with one word a line.",
            fix=f"Convert it, and name the new file: {conversion_command(line, error.start, str(path))}",
        ) from error
