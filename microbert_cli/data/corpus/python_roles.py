"""The built-in task of words: what is a name of Python source, once its punctuation is gone?

A row is a line of the standard library's source, as `tokenize` reads it: its names and keywords in their order, without
operators, strings, numbers and comments. Parts of a dotted name are words of one entity, so that tags are in BIO:

    if not os.path.exists(self.name): raise ValueError(name)
    if not os     path   exists self        name        raise ValueError name
    O  O   B-CALL I-CALL I-CALL B-ATTRIBUTE I-ATTRIBUTE O     B-CALL     O

CALL        what is called                    ATTRIBUTE   a dotted name that is not
DEFINITION  a function's or class's name      PARAMETER   of a function
MODULE      what is imported from             ARGUMENT    a name before = within a call

Rows of one file are of one split, by the hash of the file's name; lines of equal words count once, where they occur first.
"""

import keyword
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from microbert_cli.data.corpus.python_docs import SKIPPED, SPLIT_OF_TENTH, stable_hash

PACKAGES = """asyncio collections concurrent ctypes curses dbm email encodings html http importlib json logging multiprocessing
    sqlite3 tomllib unittest urllib wsgiref xml xmlrpc zoneinfo""".split()
FEWEST_WORDS, MOST_WORDS = 4, 20
TYPES = ("ARGUMENT", "ATTRIBUTE", "CALL", "DEFINITION", "MODULE", "PARAMETER")
Token = tuple[int, str]
Row = tuple[int, str, tuple[str, ...]]


def python_role_rows(split: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns texts and tags of the built-in task, in the order of their hashes, so that the first n are a fair sample."""
    rows = sorted(_rows()[split])
    return [text for _, text, _ in rows], [tags for _, _, tags in rows]


@cache
def _rows() -> dict[str, list[Row]]:
    root, earlier = Path(sysconfig.get_path("stdlib")), set[str]()
    rows: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).parts
            if SKIPPED.isdisjoint(parts):
                split = SPLIT_OF_TENTH[stable_hash(f"roles: {'/'.join(parts)}") % 10]
                for line in _lines(path):
                    words, tags = roles_of(line)
                    text = " ".join(words)
                    if FEWEST_WORDS <= len(words) <= MOST_WORDS and any(tag != "O" for tag in tags) and text not in earlier:
                        earlier.add(text)
                        rows[split].append((stable_hash(f"roles: {text}"), text, tuple(tags)))
    return rows


def _lines(path: Path) -> Iterator[list[Token]]:
    """Yields the logical lines of a file, as names and operators; those of a file that this Python cannot read up to there."""
    line: list[Token] = []
    try:
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.NEWLINE:
                    yield line
                    line = []
                elif token.type in (tokenize.NAME, tokenize.OP):
                    line.append((token.type, token.string))
    except (SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return


def roles_of(line: Sequence[Token]) -> tuple[list[str], list[str]]:
    """Returns the words of a logical line and their tags."""
    words: list[str] = []
    tags: list[str] = []
    texts = [text for _, text in line]
    is_definition = "def" in texts[:2]
    depth = number = 0
    while number < len(line):
        if line[number][0] != tokenize.NAME:
            depth += {"(": 1, ")": -1}.get(texts[number], 0)
            number += 1
            continue
        end = number + 1
        while end + 1 < len(line) and texts[end] == "." and line[end + 1][0] == tokenize.NAME:
            end += 2
        parts = texts[number:end:2]
        role = _role(
            parts, texts[number - 1] if number else "", texts[end] if end < len(line) else "", texts, depth, is_definition
        )
        words += parts
        tags += [f"{'I' if part else 'B'}-{role}" if role else "O" for part in range(len(parts))]
        number = end
    return words, tags


def _role(parts: Sequence[str], before: str, after: str, line: Sequence[str], depth: int, is_definition: bool) -> str:
    """Returns what a dotted name is, by what stands around it; "" for a keyword and for a plain variable."""
    if keyword.iskeyword(parts[0]):
        return ""
    if before in ("def", "class"):
        return "DEFINITION"
    if line[0] in ("import", "from") and before in ("import", "from", ","):
        return "MODULE" if line[0] == "import" or before == "from" else ""
    if is_definition and depth == 1 and before in ("(", ",", "*", "**"):
        return "PARAMETER"
    if after == "(":
        return "CALL"
    if depth and after == "=" and len(parts) == 1:
        return "ARGUMENT"
    return "ATTRIBUTE" if len(parts) > 1 else ""
