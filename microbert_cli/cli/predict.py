"""`mbert predict`: labels for lines of text, a file, or what comes in on stdin."""

import os
import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from microbert_cli import distributed
from microbert_cli.cli.console import ConsoleReporter, show
from microbert_cli.cli.options import Speed
from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.registry import Catalog
from microbert_cli.runs.disk import check_writable, is_standard_output, write_file
from microbert_cli.table_format import TableFormat

FILE_KEYS = ("encoding", "delimiter", "header", "quoting")  # rows are never passed over: a line of output each

EPILOG = """Examples:

echo "a fine film" | mbert predict runs/sst2/task-distill

mbert predict runs/sst2/export --file reviews.jsonl --text review --json"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("predict", epilog=EPILOG)(predict)


def predict(
    model: Annotated[str, typer.Argument(help="Directory, export directory or Hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: lines of stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Lines of text, or a table with --text; - is stdin.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text column of a table; twice for pairs.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each line holds two texts with a tab between.")] = False,
    task: Annotated[str | None, typer.Option("--task", help="Which task of a model that answers several.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write here instead of stdout.")] = None,
    max_length: Annotated[int | None, typer.Option(min=4, help="Tokens; default: what the model was trained with.")] = None,
    speed: Speed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 64,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of --file, such as data.encoding=cp1252.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with probabilities.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")] = False,
) -> None:
    """One label a line, in the order of the texts; a score for regression."""
    distributed.require_single_process("mbert predict")
    from microbert_cli.data.tables.texts import open_inputs
    from microbert_cli.stages.predict import answer, as_lines

    if out is not None:
        check_writable(out)  # not after an hour of answers
        if file is not None and file.is_file() and out.is_file() and out.samefile(file):
            raise _same_file(out)
    reporter = ConsoleReporter(quiet=quiet)
    piped = sys.stdin.buffer if not texts and (file is None or str(file) == "-") else None
    form = _file_format(sets or [])
    inputs = open_inputs(texts or [], file, piped, columns=text or [], pairs=pairs, model=model, form=form, reporter=reporter)
    answers = answer(model, inputs, task=task, max_length=max_length, batch_size=batch_size, speed=speed, reporter=reporter)
    blocks = (as_lines(records, as_json=as_json) for records in answers)
    if out is not None:
        write_file(out, (f"{line}\n" for line in chain.from_iterable(blocks)))
        reporter.close()
        if not is_standard_output(out):  # the path would stand among the answers
            show(str(out))
    else:
        for lines in blocks:
            reporter.close()  # a bar and answers would be written over each other
            show("\n".join(lines))
        reporter.close()


def _same_file(out: Path) -> MbertError:
    return MbertError(
        "M147",
        "the answers would replace the texts that they are about",
        where=f"-o {out}",
        allowed="Another file than that of --file.",
        fix=f"Choose another name: -o {shlex.quote(f'{out}.answers')}",
    )


def _file_format(sets: list[str]) -> TableFormat:
    """Returns what is said of the file's format; raises M133 for a key of something else, and what a recipe's keys raise."""
    keys = [f"data.{key}" for key in FILE_KEYS]
    for text in sets:
        if (key := text.partition("=")[0].strip()) not in keys:
            raise MbertError(
                "M133",
                f'predict reads no key "{key}"',
                where=f"--set {text}",
                allowed=nearest(key, keys),
                fix="Leave it out; what a model is was said when it was trained.",
            )
    if not sets and not any(name.startswith("MBERT_SET_") for name in os.environ):
        return TableFormat()
    from microbert_cli.recipe.resolve import resolve

    data = resolve(catalog=Catalog(), sets=sets).recipe.data
    return TableFormat(**data.model_dump(include=set(FILE_KEYS)))
