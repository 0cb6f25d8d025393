"""Rows of words with a tag each, as a table of texts and tags: lists, JSON lists as text, or words between spaces.

A row's text is its words with one space between two; so a word holds no space. Broken rows are told with the row and the word.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from microbert_cli.data.labels import and_more
from microbert_cli.data.tables import Table
from microbert_cli.errors import MbertError, nearest
from microbert_cli.models.words.tags import Scheme, all_tags, first_break, repaired, scheme_of
from microbert_cli.models.words.text import SPACES, join_words, split_text
from microbert_cli.recipe.task import ColumnName, Task
from microbert_cli.recipe.task_kinds import too_few_classes, wrong_labels
from microbert_cli.table_format import format_option
from microbert_cli.text import is_valid_text

ALIASES = {"tokens": ("tokens", "words"), "ner_tags": ("ner_tags", "tags")}  # of the columns that nobody names
MOST_TAGS = 500
Words = list[str]


def with_aliases(columns: Mapping[str, ColumnName]) -> dict[str, ColumnName]:
    """Returns the columns with the other names that tables of words have for them."""
    return {name: ALIASES.get(column, column) if isinstance(column, str) else column for name, column in columns.items()}


def as_sentences(
    table: Table,
    task: Task,
    columns: Mapping[str, ColumnName],
    *,
    labelled: bool,
    repair: bool = False,
    keep_empty: bool = False,
) -> Table:
    """Returns the table with the words of a row as one text, and its tags as a list; None for a row without tags.

    repair      broken tags are mended, see `tags.repaired`
    keep_empty  rows without words are left for the caller to pass over
    Raises M431 for words or tags that are none, M432 for a row of no words, M433 where there are more or fewer tags than words,
    M434 for tags that break their scheme, M351 for tags that the task does not have.
    """
    text_name = table.check_column(columns[task.text[0]], fix="Name the column of words: --text COLUMN")
    words = _words_of(table, text_name, keep_empty)
    texts = [join_words(row) for row in words]
    columns_of: dict[str, list[Any]] = {text_name: texts}
    if labelled:
        label_name = table.check_column(columns[task.label.column], fix="Name the column of tags: --label COLUMN")
        tags = _tags_of(table, label_name, words)
        columns_of[label_name] = _checked(table, words, tags, task, repair)
    return replace(table, read=lambda name: columns_of[name] if name in columns_of else table.read(name))


def tags_of_table(table: Table, task: Task, *, repair: bool) -> tuple[str, ...]:
    """Returns the tags of a task by its training rows: those that the file names, else those that occur, whole schemes of them.

    Raises what `as_sentences` raises, M358 for a single tag.
    """
    columns = with_aliases({name: name for name in (*task.text, task.label.column)})
    rows = as_sentences(
        table, task, columns, labelled=True, repair=repair, keep_empty=bool(task.files and task.files.skip_empty)
    )
    label_name = table.check_column(columns[task.label.column], fix="Name the column of tags: --label COLUMN")
    present = {tag for tags in rows.read(label_name) for tag in tags or ()}
    if len(present) < 2:
        raise too_few_classes(table.place, present, f"all words have the tag {' '.join(present)}" if present else "no tags")
    named = table.classes.get(label_name, ())
    if present <= set(named):
        return tuple(named)
    if len(present) > MOST_TAGS:
        raise _too_many(table.place, label_name, len(present))
    return tuple(all_tags(present))


def _words_of(table: Table, name: str, keep_empty: bool) -> list[Words]:
    rows = [_cells(value) for value in table.read(name)]
    wrong: dict[int, str] = {}
    for row, words in enumerate(rows):
        if words is None:
            if not keep_empty:
                wrong[row] = f'there are no words in column "{name}"'
            rows[row] = []
            continue
        for number, word in enumerate(words, 1):
            if not isinstance(word, str):
                wrong.setdefault(row, f"word {number} is no text but {type(word).__name__}")
            elif not word or any(space in word for space in SPACES):
                wrong.setdefault(row, f"word {number} ({word!r}) {'holds a space' if word else 'is empty'}")
            elif not word.isascii() and not is_valid_text(word):
                wrong.setdefault(row, f"word {number} holds half a character (a lone surrogate)")
    if wrong:
        first = min(wrong)
        raise _not_words(table.where_all(sorted(wrong)), wrong[first] + and_more(len(wrong)), name)
    if not keep_empty and (empty := [row for row, words in enumerate(rows) if not words]):
        raise _no_words(table.where_all(empty), name, len(empty))
    return [row or [] for row in rows]


def _cells(value: Any) -> list[Any] | None:
    """Returns the words of a cell; None where it is missing, or neither a list nor a text."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return None
    if value.startswith("[") and value.rstrip().endswith("]"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return split_text(value)
        if isinstance(parsed, list) and all(isinstance(each, str) for each in parsed):
            return parsed
    return split_text(value)


def _tags_of(table: Table, name: str, words: Sequence[Words]) -> list[list[str] | None]:
    """Returns the tags of every row; None for rows without any, where no row has one."""
    rows = [_cells(value) for value in table.read(name)]
    if all(not row for row in rows) and any(words):
        return [None] * len(rows)
    wrong: dict[int, str] = {}
    counts: dict[int, str] = {}
    for row, (tags, row_words) in enumerate(zip(rows, words, strict=True)):
        if len(tags or ()) != len(row_words):
            counts[row] = f"{len(row_words):,} words and {len(tags or ()):,} tags"
        for number, tag in enumerate(tags or (), 1):
            if isinstance(tag, bool) or not isinstance(tag, str | int) or split_text(str(tag)) != [str(tag)]:
                wrong.setdefault(row, f"the tag of word {number}{_shown(row_words, number)} is {tag!r}, and no name or number")
    if wrong:
        raise _not_words(table.where_all(sorted(wrong)), wrong[min(wrong)] + and_more(len(wrong)), name)
    if counts:
        raise _other_count(table.where_all(sorted(counts)), counts[min(counts)] + and_more(len(counts)))
    return [[str(tag) for tag in tags or ()] for tags in rows]


def _shown(words: Words, number: int) -> str:
    return f" ({words[number - 1]!r})" if number <= len(words) else ""


def _checked(
    table: Table, words: Sequence[Words], rows: list[list[str] | None], task: Task, repair: bool
) -> list[list[str] | None]:
    """Returns the rows' tags by name, mended where that is asked for."""
    names = task.kind.names
    if names and not any(name.isdecimal() for name in names):  # numbers stand for tags where no tag is one itself
        numbers = {str(i): name for i, name in enumerate(names)}
        rows = [None if tags is None else [numbers.get(tag, tag) for tag in tags] for tags in rows]
    scheme = scheme_of(names or {tag for tags in rows for tag in tags or ()})
    if repair:
        rows = [None if tags is None else repaired(tags, scheme) for tags in rows]
    breaks = {row: broken for row, tags in enumerate(rows) if tags is not None and (broken := first_break(tags, scheme))}
    if breaks:
        raise _broken(table, words, breaks, scheme)
    if names and (unknown := _unknown(rows, set(names))):
        raise _unknown_tag(table, words, rows, unknown, names)
    return rows


def _unknown(rows: Sequence[list[str] | None], names: set[str]) -> dict[int, int]:
    """Returns the number of the first word with a tag that is not the task's, by row."""
    return {
        row: next(number for number, tag in enumerate(tags) if tag not in names)
        for row, tags in enumerate(rows)
        if tags and not names.issuperset(tags)
    }


def _unknown_tag(
    table: Table, words: Sequence[Words], rows: Sequence[list[str] | None], unknown: Mapping[int, int], names: Sequence[str]
) -> MbertError:
    wrong = {}
    for row, number in unknown.items():
        tag = (rows[row] or [])[number]
        wrong[row] = f'the tag "{tag}" of word {number + 1}{_shown(words[row], number + 1)} is none of the task\'s'
    first = min(unknown)
    return wrong_labels(wrong, nearest((rows[first] or [])[unknown[first]], names), table.where_all)


def _broken(table: Table, words: Sequence[Words], breaks: Mapping[int, tuple[int, str]], scheme: Scheme) -> MbertError:
    first = min(breaks)
    number, what = breaks[first]
    return MbertError(
        "M434",
        f"word {number + 1}{_shown(words[first], number + 1)}: {what}{and_more(len(breaks))}",
        where=table.where_all(sorted(breaks)),
        allowed={
            "bio": "BIO: B-TYPE begins an entity, I-TYPE continues one of the same type, O is outside.",
            "bioes": "BIOES: B-TYPE begins an entity, I-TYPE continues it, E-TYPE ends it; S-TYPE is one word, O outside.",
        }[scheme],
        fix=f"Correct the row; or take entities as conlleval reads them (IOB1 too): {format_option('repair_tags', 'true')}",
    )


def _not_words(where: str, what: str, name: str) -> MbertError:
    return MbertError(
        "M431",
        what,
        where=where,
        allowed='A list of words, and a list of as many tags: {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}; '
        "words without spaces in them.",
        fix=f'Correct column "{name}", or name others: --text COLUMN --label COLUMN',
    )


def _no_words(where: str, name: str, count: int) -> MbertError:
    return MbertError(
        "M432",
        f'this row has no words in column "{name}"{and_more(count)}',
        where=where,
        allowed="At least one word in every row.",
        fix=f"Delete {'the row' if count == 1 else 'these rows'}; to pass over them: {format_option('skip_empty', 'true')}",
    )


def _other_count(where: str, what: str) -> MbertError:
    return MbertError(
        "M433",
        what,
        where=where,
        allowed="A tag for every word.",
        fix="Correct the row. Words and tags as text are split at spaces; a word that holds one is two.",
    )


def _too_many(place: str, column: str, count: int) -> MbertError:
    return MbertError(
        "M332",
        f'column "{column}" has {count:,} different tags',
        where=place,
        allowed=f"At most {MOST_TAGS} tags.",
        fix="Name the column that has the tags as the label.",
    )
