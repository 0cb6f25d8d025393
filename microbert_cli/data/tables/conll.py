"""Column files of words: a word a line with its tags, a blank line after every sentence (CoNLL-2003 and its like).

Columns are separated by tabs where a line has any, else by spaces. The first column is "tokens", the last "tags"; by number
they are "0", "1", ... Lines of -DOCSTART- are left out, and before a sentence those that begin with "# ".
"""

import shlex
from pathlib import Path

from microbert_cli.data.tables.table import Table, empty, rows_location
from microbert_cli.errors import MbertError

DOCUMENT = "-DOCSTART-"
WORDS, TAGS = "tokens", "tags"


def read_conll(path: Path, text: str) -> Table:
    """Returns a table of sentences, each a list of cells a column, by the line of its first word.

    Raises M357 for a file without words, M430 where a line has another number of columns than the first.
    """
    lines: list[int] = []
    sentences: list[list[list[str]]] = []
    width, wrong, at_end = 0, [], True
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith(DOCUMENT):
            at_end = True
            continue
        if line.startswith("# ") and at_end:  # before a sentence: a comment, as CoNLL-U has it
            continue
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
        width = width or len(cells)
        if len(cells) != width or width < 2:
            wrong.append(number)
        if at_end:
            lines.append(number)
            sentences.append([])
            at_end = False
        sentences[-1].append(cells)
    if not sentences:
        raise empty(path, "At least one line of a word and its tag.")
    if wrong:
        raise _other_width(path, wrong, width)
    numbers = {str(i): i for i in range(width)} | {WORDS: 0, TAGS: width - 1}

    def read(name: str) -> list[list[str]]:
        column = numbers[name]
        return [[cells[column] for cells in sentence] for sentence in sentences]

    return Table(str(path), (WORDS, TAGS, *map(str, range(width))), lines, read)


def _other_width(path: Path, lines: list[int], width: int) -> MbertError:
    return MbertError(
        "M430",
        "a line of a word has at least two columns" if width < 2 else f"this line has not {width} columns, as the first has",
        where=rows_location(str(path), "line", lines),
        allowed="A word and its tags in every line, with tabs or spaces between them; a blank line after every sentence.",
        fix=f"Look at it: sed -n {lines[0]}p {shlex.quote(str(path))}",
    )
