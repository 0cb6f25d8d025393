"""A task of long texts without a download: the functions in every CPython, of which some raise an exception.

python-raises   does the function raise an exception?       classes silent, raises

A text is the source of a function of the standard library, as `ast.unparse` writes it, without its docstring, of 30 to 300
words. What decides is one statement, which may stand anywhere: a model that reads the first 32 tokens has to guess, one that
reads all of a function does not. Of ten functions one is dev and one is test, by the hash of the text; rows come in the order
of their hashes, so that the first n are a fair sample.
"""

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from microbert_cli.data.corpus.python_docs import SKIPPED, SPLIT_OF_TENTH, stable_hash

RAISES = ("silent", "raises")
MIN_WORDS, MAX_WORDS = 30, 300


def raises_rows(split: str) -> tuple[list[str], list[str]]:
    """Returns texts and labels of `python-raises`."""
    rows = sorted((stable_hash(f"function: {text}"), text, label) for text, label in _functions().items())
    chosen = [(text, label) for _, text, label in rows if SPLIT_OF_TENTH[stable_hash(text) % 10] == split]
    return [text for text, _ in chosen], [RAISES[label] for _, label in chosen]


@cache
def _functions() -> dict[str, bool]:
    """Returns the text of every function, and whether it raises; it takes seconds and is cached."""
    root = Path(sysconfig.get_path("stdlib"))
    functions: dict[str, bool] = {}
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).with_suffix("").parts):
            functions |= dict(_functions_of(path))
    return functions


def _functions_of(path: Path) -> Iterator[tuple[str, bool]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some files of a distribution are of another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            words = ast.unparse(node).split()
            if MIN_WORDS <= len(words) <= MAX_WORDS:
                yield " ".join(words), any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
