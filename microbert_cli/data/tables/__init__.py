"""Files of rows, read strictly: named columns that know the line each row came from.

Nothing is guessed silently and nothing replaced: what a file shows of itself (its delimiter, a byte-order mark, the names of
its classes) is said aloud, and whatever cannot be read is an error that names its line. Only columns that are asked for can
be wrong: others may lack a name, share one, or be missing in some rows.
"""

from pathlib import Path

from microbert_cli.data.tables.arrow import read_arrow, read_parquet, read_saved_folder
from microbert_cli.data.tables.conll import read_conll
from microbert_cli.data.tables.content import decode, read_bytes
from microbert_cli.data.tables.delimited import read_delimited
from microbert_cli.data.tables.objects import read_objects
from microbert_cli.data.tables.table import NAME_COLUMNS, Table, empty
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.table_format import COLUMN_FILES, TableFormat

__all__ = ["AS_SHOWN", "NAME_COLUMNS", "Table", "read_lines", "read_table"]

AS_SHOWN = TableFormat()


def read_table(path: Path, form: TableFormat = AS_SHOWN, *, skip_broken_rows: int = 0, reporter: Reporter = SILENT) -> Table:
    """Reads a file by its suffix, or a folder written by save_to_disk.

    form              what is said of it; the rest it shows itself
    skip_broken_rows  how many rows with a wrong number of columns are passed over, with one warning
    Raises M252 (not there), M268 (several tables, or none), M350 (width of a row), M353 (encoding), M354 (quotes), M355 (JSON),
    M356 (damaged), M357 (no rows), M371, M372 (an archive beyond limits), M383 (another format than the suffix says).
    """
    if path.is_dir():
        return read_saved_folder(path)
    from microbert_cli.data.tables.streamed import read_large  # loads numpy

    if large := read_large(path, form, skip_broken_rows=skip_broken_rows, reporter=reporter):
        return large
    data, suffix = read_bytes(path)
    if suffix in (".parquet", ".pq"):
        return read_parquet(path, data)
    if suffix in (".arrow", ".feather"):
        return read_arrow(path, data)
    text = decode(data or b"", path, form.encoding, reporter=reporter)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return read_objects(path, text, skip_empty=form.skip_empty)
    if suffix in COLUMN_FILES:
        return read_conll(path, text)
    return read_delimited(path, text, suffix, form, skip_broken_rows=skip_broken_rows, reporter=reporter)


def read_lines(path: Path, name: str, form: TableFormat = AS_SHOWN, *, reporter: Reporter = SILENT) -> Table:
    """A file of plain text as a table with one column, `name`: a text a line, blank lines passed over.

    Only a line feed ends a line. Raises M252, M353, M356, M357, M383.
    """
    text = decode(read_bytes(path)[0] or b"", path, form.encoding, reporter=reporter)
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
    texts = [(number, line) for number, line in lines if line and not line.isspace()]
    if not texts:
        raise empty(path, "At least one line of text.")
    return Table(str(path), (name,), [number for number, _ in texts], lambda _: [line for _, line in texts])
