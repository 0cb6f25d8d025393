"""The English prose inside every CPython, as text to learn from: docstrings of the standard library and help topics.

Nothing is downloaded and nothing is imported: sources are parsed with `ast`. A PASSAGE (one paragraph of prose) belongs
to train, dev or test by the hash of its words alone, so the split is the same on every machine that has the same text.
A sentence that occurs twice counts once, where it occurs first; those of dev and test passages are in no corpus.

The counts differ a little from one Python version to the next; 3.11 has about 14,000 passages, 19,600 sentences and
266,000 words.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SPLITS = ("train", "dev", "test")
SPLIT_OF_TENTH = ("dev", "test") + ("train",) * 8
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "ensurepip"}
MIN_WORDS, MIN_LETTER_SHARE = 3, 0.7
LABELS = ("whole", "rotated")
MIN_ROW_WORDS, MAX_ROW_WORDS = 6, 24  # words
MARKUP = (
    (re.compile(r":[\w:]+:`([^`]*)`"), r"\1"),  # :func:`open`
    (re.compile(r"``?([^`']+)(?:``?|'')"), r"\1"),
    (re.compile(r"\*(\*?[\w ./-]+)\*(?!\w)"), r"\1"),  # *name*
    (re.compile(r"\s+"), " "),
)
NOT_PROSE = re.compile(r">>>|::=|^\s*[=*~^-]{3,}\s*$|^\s*[+|]|^\s*#|__all__", re.MULTILINE)
BULLET = re.compile(r"^\s*(?:[*-]|\d+\.|\(\d+\))\s+", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"'\]][.!?])\s+(?=[A-Z\"'(])")
WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Docstring:
    """One docstring as it stands in the source, or one topic of `pydoc_data` (module "topics")."""

    module: str
    qualname: str
    text: str


@dataclass(frozen=True)
class Passage:
    """One paragraph of prose as sentences; `document` counts the docstrings, in the order of their sources."""

    document: int
    sentences: tuple[str, ...]

    @property
    def split(self) -> str:
        """Of ten passages one is dev and one is test, by the hash of the words."""
        return SPLIT_OF_TENTH[stable_hash(" ".join(map(words_of, self.sentences))) % 10]


def stable_hash(text: str) -> int:
    """A number that depends on the text alone, not on the process or the machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def words_of(sentence: str) -> str:
    """The sentence as lower-case runs of letters: what makes two sentences the same."""
    return " ".join(WORD.findall(sentence.lower()))


def docstrings() -> Iterator[Docstring]:
    """Every docstring of the standard library in the order of the file names, then the help topics of `pydoc_data`."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.isdisjoint(parts):
            yield from _docstrings_of(path, ".".join(parts).removesuffix(".__init__"))
    for name, text in _topics(root / "pydoc_data" / "topics.py").items():
        yield Docstring("topics", name, text)


def _docstrings_of(path: Path, module: str) -> Iterator[Docstring]:
    tree = _parsed(path)
    found: list[tuple[str, ast.AST]] = [("", tree)] if tree else []
    while found:
        qualname, node = found.pop(0)
        if text := ast.get_docstring(node):  # type: ignore[arg-type]
            yield Docstring(module, qualname, text)
        for child in node.body:  # type: ignore[attr-defined]
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((f"{qualname}.{child.name}".strip("."), child))


def _parsed(path: Path) -> ast.Module | None:
    """The syntax tree, or None: a distribution may patch in a file that this Python cannot read."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def _topics(path: Path) -> dict[str, str]:
    """The one dictionary of the file, read as a literal."""
    tree = _parsed(path) if path.is_file() else None
    literals = (node.value for node in (tree.body if tree else []) if isinstance(node, ast.Assign))
    return next((ast.literal_eval(value) for value in literals if isinstance(value, ast.Dict)), {})


def paragraphs(text: str) -> Iterator[list[str]]:
    """The paragraphs that are prose, as sentences without markup; code, grammar, tables and headings are left out."""
    for block in re.split(r"\n\s*\n", text):
        if NOT_PROSE.search(block):
            continue
        items = BULLET.split(block)
        cut = [one for item in items for one in SENTENCE_END.split(_without_markup(item)) if _is_prose(one)]
        if cut:
            yield cut


def _without_markup(text: str) -> str:
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    plain = sum(word.strip("\"'`.,;:!?()[]").replace("-", "").isalpha() for word in words)
    return len(words) >= MIN_WORDS and plain >= MIN_LETTER_SHARE * len(words)


@cache
def passages() -> tuple[Passage, ...]:
    """Every passage once, with sentences that no earlier passage had; read in a few seconds, then kept."""
    seen: set[str] = set()
    kept = []
    for number, docstring in enumerate(docstrings()):
        for sentences in paragraphs(docstring.text):
            first = {words_of(one): one for one in reversed(sentences)}
            new = tuple(one for words, one in reversed(first.items()) if words not in seen)
            seen.update(first)
            if new:
                kept.append(Passage(number, new))
    return tuple(kept)


def python_documents(*, exclude_dev: bool = True) -> Iterator[list[str]]:
    """The corpus `python-docs`: one list of sentences a docstring; without dev and test passages unless asked for."""
    document: list[str] = []
    number = -1
    for passage in passages():
        if passage.document != number and document:
            yield document
            document = []
        number = passage.document
        if not exclude_dev or passage.split == "train":
            document.extend(passage.sentences)
    if document:
        yield document


def python_task_rows(split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of the built-in task: was the sentence cut in two, and the halves exchanged?

    A sentence of 6 to 24 words becomes one row, in lower case and without its last punctuation mark. Half of them, chosen
    by hash, are written from a random word to the end and then from the beginning: only one pair of neighbours is new, so
    a model that counts words and word pairs sees next to nothing. Labels are "whole" and "rotated"; rows come in the
    order of their hashes, so the first n are a fair sample.
    """
    rows = [
        _row(words)
        for passage in passages()
        if passage.split == split
        for sentence in passage.sentences
        if MIN_ROW_WORDS <= len(words := sentence.lower().rstrip(".:;,!?").split()) <= MAX_ROW_WORDS
    ]
    rows.sort()
    return [text for _, text, _ in rows], [LABELS[rotated] for _, _, rotated in rows]


def _row(words: list[str]) -> tuple[int, str, int]:
    """The row's place, its text, and 1 where the halves were exchanged; each half keeps two words."""
    place = stable_hash(f"row: {' '.join(words)}")  # other bits than those that chose the split
    rotated = place % 2
    cut = 2 + place // 2 % (len(words) - 3) if rotated else 0
    return place, " ".join(words[cut:] + words[:cut]), rotated
