"""`mbert verify`: whether a directory still is what was made, and what it was made from."""

from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json, show_table
from microbert_cli.errors import MbertError
from microbert_cli.runs.verify import VerifiedDirectory, verify_directory

EPILOG = """Examples:

mbert verify runs/quickstart/task-distill

mbert verify runs/quickstart --json"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("verify", epilog=EPILOG)(verify)


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An output of a stage, or the folder of a whole run.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Checks a directory and everything that it was made from against the hashes in their manifests; exit 5 if one differs."""
    if not directory.is_dir():
        raise _missing_directory(directory)
    directories = verify_directory(directory)
    report = {"directories": [directory_state.as_dict() for directory_state in directories]}
    wrong = [directory_state for directory_state in directories if directory_state.is_wrong]
    if wrong:
        error = _changed_directories(wrong, len(directories))
        error.details = report
    if not as_json:
        columns = ["directory", "state", "what", *(["found"] if any(each.notes for each in directories) else [])]
        rows = [[each.place, each.state, each.role, ", ".join(each.notes)][: len(columns)] for each in directories]
        show_table("", columns, rows, texts=columns[1:])
    if wrong:
        raise error
    if as_json:
        show_json(report)
    else:
        show(f"{len(directories)} examined, nothing wrong")


def _changed_directories(wrong: list[VerifiedDirectory], count: int) -> MbertError:
    return MbertError(
        "M307",
        f"{len(wrong)} of {count} are not what they were: {', '.join(f'{path.place} is {path.state}' for path in wrong[:3])}",
        where=wrong[0].place,
        allowed="Directories and files as they were when a stage made or read them.",
        fix="Fetch the right ones from where they were copied, or run the recipe again: what is damaged is made anew.",
    )


def _missing_directory(directory: Path) -> MbertError:
    return MbertError(
        "M207",
        "there is no such directory",
        where=str(directory),
        allowed="An output of a stage, such as runs/quickstart/task-distill, or the folder of a whole run.",
        fix="Look what is there: ls runs",
    )
