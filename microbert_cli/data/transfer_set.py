"""A transfer set: texts of a task's kind without labels, for which teachers give the targets.

A table (CSV, TSV, JSONL, Parquet) with the task's text columns, of which a label column is not read; or, where the task asks
one text, a `.txt` of one text a line, whose blank lines are passed over. `.gz` after the suffix is fine.
"""

from pathlib import Path

from microbert_cli.data.examples import Examples, unlabelled
from microbert_cli.data.soft_labels import SoftColumns
from microbert_cli.data.tables import AS_SHOWN, read_lines, read_table
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import Task
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.table_format import TABLE_FILES, TableFormat, is_table, unpacked_suffix

TEXT_SUFFIX = ".txt"


def load_transfer(
    path: Path, task: Task, reporter: Reporter = SILENT, form: TableFormat = AS_SHOWN, soft: SoftColumns | None = None
) -> Examples:
    """Loads the texts of a transfer set; a label column is not read, columns of soft labels are.

    Raises M253 for a text column that is not there, M357 where there are no rows, M367 for a file that is no transfer set of
    this task, and what `read_table` raises.
    """
    suffix = unpacked_suffix(path)
    if suffix == TEXT_SUFFIX:
        return _lines(path, task, form, reporter)
    if not is_table(path):
        raise _not_a_transfer_set(path, f'"{suffix or path.name}" is no suffix of a file of rows')
    table = read_table(path, form, reporter=reporter)
    for name in task.text:
        # No option names these columns, as one does those of a user's own files.
        table.check_column(name, fix=f"Call its columns as the task {task.name} does: {', '.join(task.text)}.")
    return unlabelled(table, task, reporter, soft=soft, skip_empty=form.skip_empty)


def _lines(path: Path, task: Task, form: TableFormat, reporter: Reporter) -> Examples:
    if len(task.text) > 1:
        raise _not_a_transfer_set(path, f"a {TEXT_SUFFIX} holds one text a row, and the task {task.name} asks {len(task.text)}")
    table = read_lines(path, task.text[0], form, reporter=reporter)
    cells = table.column(0)[0].split("\t")
    if len(cells) > 1 and task.text[0] in cells:
        raise _not_a_transfer_set(
            path, f'its first line names columns, "{task.text[0]}" among them, so this is a table and no plain text'
        )
    return unlabelled(table, task, reporter)


def _not_a_transfer_set(path: Path, what: str) -> MbertError:
    return MbertError(
        "M367",
        what,
        where=str(path),
        allowed=f"A table with the task's text columns ({TABLE_FILES}); of one text a row also a {TEXT_SUFFIX} of lines.",
        fix="Rename the file if it is one of these, or name another: data.transfer_file.",
    )
