"""The English prose in every CPython as a corpus: docstrings of the standard library and help topics.

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
    """One paragraph of prose as sentences; `document` counts the docstrings, in the order of their sources; `module` is its."""

    document: int
    sentences: tuple[str, ...]
    module: str = ""

    @property
    def split(self) -> str:
        """Of ten passages one is dev and one is test, by the hash of the words."""
        return SPLIT_OF_TENTH[stable_hash(" ".join(map(words_of, self.sentences))) % 10]


def stable_hash(text: str) -> int:
    """Returns a number that depends on the text alone, not on the process or the machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def words_of(sentence: str) -> str:
    """Returns the sentence as lower-case runs of letters; sentences equal in these count as duplicates."""
    return " ".join(WORD.findall(sentence.lower()))


def docstrings() -> Iterator[Docstring]:
    """Yields every docstring of the standard library in the order of file names, then the help topics of `pydoc_data`."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.isdisjoint(parts):
            yield from _docstrings_of(path, ".".join(parts).removesuffix(".__init__"))
    for name, text in _topics(root / "pydoc_data" / "topics.py").items():
        yield Docstring("topics", name, text)


def _docstrings_of(path: Path, module: str) -> Iterator[Docstring]:
    tree = _parsed(path)
    pending: list[tuple[str, ast.AST]] = [("", tree)] if tree else []
    while pending:
        qualname, node = pending.pop(0)
        if text := ast.get_docstring(node):  # type: ignore[arg-type]
            yield Docstring(module, qualname, text)
        for child in node.body:  # type: ignore[attr-defined]
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                pending.append((f"{qualname}.{child.name}".strip("."), child))


def _parsed(path: Path) -> ast.Module | None:
    """Returns the syntax tree, or None for a file that this Python cannot parse; distributions patch such files in."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def _topics(path: Path) -> dict[str, str]:
    """Reads the one dictionary of the file as a literal."""
    tree = _parsed(path) if path.is_file() else None
    literals = (node.value for node in (tree.body if tree else []) if isinstance(node, ast.Assign))
    return next((ast.literal_eval(value) for value in literals if isinstance(value, ast.Dict)), {})


def paragraphs(text: str) -> Iterator[list[str]]:
    """Yields the paragraphs that are prose, as sentences without markup; code, grammar, tables and headings are left out."""
    for block in re.split(r"\n\s*\n", text):
        if NOT_PROSE.search(block):
            continue
        items = BULLET.split(block)
        sentences = [
            sentence for item in items for sentence in SENTENCE_END.split(_without_markup(item)) if _is_prose(sentence)
        ]
        if sentences:
            yield sentences


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
    """Returns every passage once, without sentences of earlier passages; it takes a few seconds and is cached."""
    earlier: set[str] = set()
    collected = []
    for number, docstring in enumerate(docstrings()):
        for sentences in paragraphs(docstring.text):
            by_words = {words_of(sentence): sentence for sentence in reversed(sentences)}
            new_sentences = tuple(sentence for words, sentence in reversed(by_words.items()) if words not in earlier)
            earlier.update(by_words)
            if new_sentences:
                collected.append(Passage(number, new_sentences, docstring.module))
    return tuple(collected)


def python_documents(*, exclude_dev: bool = True) -> Iterator[list[str]]:
    """Yields the corpus `python-docs`: one list of sentences a docstring, without dev and test passages by default."""
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
    """Returns texts and labels of the built-in task: were the two halves of the sentence exchanged?

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
    """Returns the row's hash, its text, and 1 where the halves are exchanged; each half has at least two words."""
    row_hash = stable_hash(f"row: {' '.join(words)}")  # other bits than those that chose the split
    rotated = row_hash % 2
    cut = 2 + row_hash // 2 % (len(words) - 3) if rotated else 0
    return row_hash, " ".join(words[cut:] + words[:cut]), rotated
