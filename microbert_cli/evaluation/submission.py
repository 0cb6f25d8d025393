"""Files for GLUE's test server: one TSV a task, and the zip that holds all eleven.

What a file is called, how a label is written, how many rows it must have and what stands in for a missing one is data
of the tasks. Source: https://gluebenchmark.com/faq. STS-B is clipped to its range and has three decimals.
"""

import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.task import Submission, Task, load_task
from microbert_cli.reporter import SILENT, Reporter

TASKS = Path(__file__).parents[1] / "catalog" / "tasks"
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")
HEADER = "index\tprediction\n"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold: equal files make equal bytes


def file_name(task: Task, split: str) -> str:
    """Returns the name of the split's file, such as MNLI-mm.tsv; raises M257 for a split that is not submitted."""
    submission = _submission(task)
    if split not in submission.files:
        raise MbertError(
            "M257",
            f'"{split}" is not submitted',
            where=f"task {task.name}, submission",
            allowed=nearest(split, submission.files),
            fix="Predict one of these splits.",
        )
    return submission.files[split]


def format_predictions(task: Task, predictions: Iterable[Any]) -> list[str]:
    """Returns predictions as the server wants them: names, ids, or numbers within the range with three decimals."""
    form = _submission(task).labels
    return [task.kind.submission_text(prediction, form) for prediction in predictions]


def write_submission(
    task: Task, split: str, ids: Sequence[str], predictions: Collection[Any], path: Path, *, reporter: Reporter = SILENT
) -> None:
    """Writes `index<TAB>prediction`, then one row a test example; warns if the official file has another number of rows.

    ids  the row's index in the official test file;  predictions  class ids or scores
    """
    if len(ids) != len(predictions):
        raise ValueError(f"{len(ids)} ids for {len(predictions)} predictions")
    name, official = file_name(task, split), _submission(task).rows.get(split)
    if official not in (None, len(ids)):
        reporter.warn(f"{name}: {len(ids)} rows, but the official test set has {official}; the server will refuse the file")
    rows = zip(ids, format_predictions(task, predictions), strict=True)
    path.write_text(HEADER + "".join(f"{i}\t{text}\n" for i, text in rows), encoding="utf-8", newline="\n")


def assemble_zip(
    files: Mapping[str, Path], out: Path, *, tasks: Sequence[Task] | None = None, reporter: Reporter = SILENT
) -> list[str]:
    """Writes a flat zip of all eleven files; returns the names of the missing ones, which are filled with a constant.

    files  file name, such as "RTE.tsv", -> the file `write_submission` made;  tasks  GLUE's ten unless given
    The same files give the same bytes. Raises M258 for a file that cannot be read, M259 for one that GLUE does not know,
    M362 for one of another form.
    """
    expected = _expected_files(tasks or [load_task(TASKS / f"{name}.toml") for name in GLUE])
    if unknown := [name for name in files if name not in expected]:
        raise _no_such_file(unknown[0], list(expected))
    contents = {name: _read(files[name], count, reporter) for name, (count, _) in expected.items() if name in files}
    missing = [name for name in expected if name not in files]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, (count, filler) in expected.items():
            text = contents[name] if name in contents else constant(count, filler)
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            bundle.writestr(entry, text)
    for name in missing:
        reporter.warn(f'{name} is missing: all its {expected[name][0]} rows say "{expected[name][1]}"')
    return missing


def constant(count: int, filler: str) -> str:
    """Returns the text of a file with the same prediction in every row."""
    return HEADER + "".join(f"{i}\t{filler}\n" for i in range(count))


def _expected_files(tasks: Sequence[Task]) -> dict[str, tuple[int, str]]:
    """Returns the official number of rows and the filler of every file."""
    return {
        name: (submission.rows[split], submission.filler)
        for submission in map(_submission, tasks)
        for split, name in submission.files.items()
    }


def _read(path: Path, count: int, reporter: Reporter) -> str:
    try:
        text = path.read_bytes().decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MbertError(
            "M258",
            f"the file of predictions cannot be read: {error}",
            where=str(path),
            allowed="A file that `mbert evaluate --submission` made.",
            fix="Make it again: mbert evaluate MODEL --task TASK --submission",
        ) from None
    lines = text.removesuffix("\n").split("\n")
    if not text.startswith(HEADER) or any(line.count("\t") != 1 for line in lines):
        raise MbertError(
            "M362",
            "this is no file of predictions",
            where=str(path),
            allowed="The header index<TAB>prediction, then one index and one prediction a line.",
            fix="Make it again: mbert evaluate MODEL --task TASK --submission",
        )
    if len(lines) - 1 != count:
        reporter.warn(f"{path.name}: {len(lines) - 1} rows, but the official test set has {count}")
    return text


def _submission(task: Task) -> Submission:
    if task.submission is None:
        raise MbertError(
            "M130",
            "this task has no server to submit to",
            where=f"task {task.name}",
            allowed=f"The tasks of GLUE: {', '.join(GLUE)}.",
            fix="Leave --submission out; predictions are in predictions.parquet.",
        )
    return task.submission


def _no_such_file(name: str, expected: list[str]) -> MbertError:
    return MbertError(
        "M259",
        f'"{name}" is no file of a GLUE submission',
        where="submission",
        allowed=nearest(name, expected),
        fix="Name the file as the server does.",
    )
