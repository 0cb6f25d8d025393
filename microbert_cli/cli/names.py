"""`mbert list`, `mbert show`, `mbert copy`: what has a name."""

from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json
from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.registry import KINDS, Catalog, singular
from microbert_cli.runs.disk import is_standard_output, write_file

Kind = Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS))]
Include = Annotated[list[Path] | None, typer.Option("--include", help="A folder with names of your own.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list", epilog="Example: mbert list losses")(list_names)
    app.command("show", epilog="Example: mbert show methods tinybert")(show_name)
    app.command("copy", epilog="Example: mbert copy recipes quickstart -o mine.toml")(copy_name)


def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=", ".join(KINDS))] = None,
    include: Include = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Lists losses, methods, students, tasks, augmenters, recipes and machines, or one kind of them."""
    catalog = Catalog(include or ())
    names_by_kind = {each_kind: catalog.names(each_kind) for each_kind in ([_kind_name(kind)] if kind else KINDS)}
    if as_json:
        show_json(names_by_kind)
    elif kind:
        show("\n".join(names_by_kind[kind]))
    else:
        show("\n".join(f"{each_kind:<12}{', '.join(kind_names)}" for each_kind, kind_names in names_by_kind.items()))


def show_name(kind: Kind, name: str, include: Include = None) -> None:
    """Prints the file behind a name."""
    path = Catalog(include or ()).path(_kind_name(kind), name, where=f"mbert show {kind}")
    show(path.read_text(encoding="utf-8").rstrip())


def copy_name(
    kind: Kind,
    name: str,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to; default: its own file name, here.")] = None,
    include: Include = None,
) -> None:
    """Copies the file behind a name, to be edited."""
    path = Catalog(include or ()).path(_kind_name(kind), name, where=f"mbert copy {kind}")
    target = out / path.name if out and out.is_dir() else out or Path(path.name)
    if target.is_file() and not is_standard_output(target):
        raise MbertError(
            "M113",
            "this file exists already",
            where=f"-o {target}",
            allowed="A name that is not taken; nothing is overwritten.",
            fix=f"mbert copy {kind} {name} -o another{path.suffix}",
        )
    write_file(target, path.read_text(encoding="utf-8"))
    if not is_standard_output(target):
        show(str(target))


def _kind_name(kind: str) -> str:
    """Returns the name of a kind, also for its singular: `mbert show method microbert`."""
    names = {each_kind: each_kind for each_kind in KINDS} | {singular(each_kind): each_kind for each_kind in KINDS}
    if kind in names:
        return names[kind]
    raise MbertError(
        "M103", f'there is no kind "{kind}"', where="KIND", allowed=f"Kinds: {nearest(kind, KINDS)}", fix="mbert list"
    )
