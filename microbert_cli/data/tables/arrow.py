"""Parquet, Arrow and Feather files, and folders written by `datasets.Dataset.save_to_disk`: columns with their types.

The features of Hugging Face data sets, kept beside the columns, say which numbers are classes and what these are called.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microbert_cli.data.tables.table import Table, damaged, empty, not_one_table, unreadable
from microbert_cli.errors import MbertError

MANY_ROWS = 100_000  # of a Parquet file; from here on its texts go to the disk
ROWS_AT_ONCE = 8192
FEATURES_KEY = b"huggingface"
INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"


def read_parquet(path: Path, data: bytes | None) -> Table:
    """A Parquet file as a table, or the bytes of one that was packed. Raises M252, M356, M357."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path if data is None else pa.BufferReader(data))
        schema, count = file.schema_arrow, file.metadata.num_rows
    except FileNotFoundError as error:
        raise unreadable(path, error) from None
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise damaged(path, f"it is no whole Parquet file: {_first_line(error)}") from None
    table = _table(path, schema, count, lambda name: file.read(columns=[name]).column(name), {})
    if data is not None or count < MANY_ROWS:
        return table

    def read(name: str) -> Sequence[Any]:
        from microbert_cli.data.tables.streamed import stored_column  # loads numpy

        is_text = schema.names.count(name) == 1 and schema.field(name).type in (pa.string(), pa.large_string())
        stored = stored_column(path, name, lambda: _blocks(file, name)) if is_text else None
        return table.read(name) if stored is None else stored

    return replace(table, read=read)


def _blocks(file: Any, name: str) -> Iterator[list[Any]]:
    """Yields the values of a Parquet file's column, some rows at a time."""
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[name]):
        yield batch.column(0).to_pylist()


def read_arrow(path: Path, data: bytes | None) -> Table:
    """An Arrow file or stream (`.arrow`, `.feather`) as a table. Raises M252, M356, M357."""
    table = _arrow_table(path, data)
    return _table(path, table.schema, table.num_rows, table.column, {})


def read_saved_folder(folder: Path) -> Table:
    """A folder written by save_to_disk as a table. Raises M268 for another folder, M356, M357."""
    import pyarrow as pa

    if (folder / SPLITS).is_file():
        raise _several_splits(folder)
    if not (folder / STATE).is_file():
        raise _no_table(folder)
    state, info = _json_file(folder / STATE), _json_file(folder / INFO) if (folder / INFO).is_file() else {}
    if state.get("_indices_data_files"):
        raise damaged(
            folder, "its rows are chosen by a second file of positions; save it again: flatten_indices(), save_to_disk()"
        )
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (LookupError, TypeError) as error:
        raise damaged(folder / STATE, f"it does not say which files there are: {error}") from None
    if not names or any(Path(name).name != name for name in names):
        raise damaged(folder / STATE, "it names no files, or files outside this folder")
    try:
        parts = [_arrow_table(folder / name, None) for name in names]
        table = pa.concat_tables(parts)
    except pa.ArrowException as error:
        raise damaged(folder, f"its files do not belong together: {_first_line(error)}") from None
    features = info.get("features")
    return _table(folder, table.schema, table.num_rows, table.column, features if isinstance(features, dict) else {})


def _arrow_table(path: Path, data: bytes | None) -> Any:
    """The whole file; a file begins with ARROW1, a stream does not."""
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path)) if data is None else pa.BufferReader(data)
        start = source.read(6)
        source.seek(0)
        reader = pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)
        return reader.read_all()
    except FileNotFoundError as error:
        raise unreadable(path, error) from None
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise damaged(path, f"it is no whole Arrow file: {_first_line(error)}") from None


def _table(path: Path, schema: Any, count: int, column: Callable[[str], Any], features: Mapping[str, Any]) -> Table:
    import pyarrow as pa

    if not count:
        raise empty(path, "At least one row.")
    classes = class_names(features or _features_of(schema.metadata))

    def read(name: str) -> list[Any]:
        try:
            values: list[Any] = column(name).to_pylist()
        except (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
            raise damaged(path, f'column "{name}" cannot be read: {_first_line(error)}') from None
        if len(values) != count:
            raise damaged(path, f'column "{name}" has {len(values)} values, not {count}')
        return named_classes(values, classes[name]) if name in classes else values

    return Table(str(path), tuple(schema.names), range(1, count + 1), read, unit="row", classes=classes)


def _features_of(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What the `datasets` library writes into a schema of its columns; nothing where it is not there or not whole."""
    try:
        features = json.loads((metadata or {})[FEATURES_KEY])["info"]["features"]
    except (LookupError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, of those features that are a ClassLabel, or a list of them, with names all different."""
    classes = {}
    for name, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if (
            isinstance(names, list)
            and all(isinstance(label, str) and label.strip() for label in names)
            and len({*names}) == len(names)
        ):
            classes[name] = tuple(names)
    return classes


def named_classes(values: list[Any], names: tuple[str, ...]) -> list[Any]:
    """Class numbers as names, in lists too; what is no number of a class, such as -1 for hidden, stays."""
    if any(isinstance(value, list) for value in values):
        return [named_classes(value, names) if isinstance(value, list) else value for value in values]
    return [names[value] if type(value) is int and 0 <= value < len(names) else value for value in values]


def _json_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"it cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise damaged(path, "it is JSON, but no object")
    return values


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _several_splits(folder: Path) -> MbertError:
    splits = sorted(file.parent.name for file in folder.glob(f"*/{STATE}"))
    return not_one_table(
        folder,
        "this is a saved data set of several splits, and one is wanted",
        allowed=f"One of its splits: {', '.join(splits) or 'there are none'}.",
        fix=f"Name its folder: {folder / (splits[0] if splits else 'train')}",
    )


def _no_table(folder: Path) -> MbertError:
    files = sorted(file.name for file in folder.iterdir())[:10]
    return not_one_table(
        folder,
        "this is a folder, and no data set that save_to_disk wrote",
        allowed=f"A file of rows, or a folder with {STATE} and {INFO}; in it there are: {', '.join(files) or 'no files'}.",
        fix=f"Name the file: {folder / (files[0] if files else 'train.csv')}",
    )
