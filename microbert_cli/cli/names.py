"""`mbert list`, `mbert show`, `mbert copy`: what has a name."""

import re
from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json, show_table
from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.registry import KINDS, Catalog, singular, stage_names
from microbert_cli.runs.disk import is_standard_output, write_file
from microbert_cli.runs.stage_registry import find_stage

KEYS = "keys"
Kind = Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS))]
Include = Annotated[list[Path] | None, typer.Option("--include", help="A folder with names of your own.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list", epilog="Example: mbert list keys task-distill")(list_names)
    app.command("show", epilog="Example: mbert show methods tinybert")(show_name)
    app.command("copy", epilog="Example: mbert copy recipes quickstart -o mine.toml")(copy_name)


def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=", ".join((*KINDS, KEYS)))] = None,
    stage: Annotated[str | None, typer.Argument(metavar="STAGE", help="Of keys: those that this stage reads.")] = None,
    include: Include = None,
    names_only: Annotated[bool, typer.Option("--names", help="Names alone, one a line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Lists what there is and what it is: losses, methods, students, tasks and so on, and the keys of a recipe."""
    if kind in (KEYS, "key"):
        _list_keys(stage, names_only, as_json)
        return
    if stage is not None:
        raise MbertError(
            "M170",
            f'{kind} are not listed by stage, and "{stage}" is one argument too many',
            where="STAGE",
            allowed="A stage after keys alone.",
            fix=f"mbert list {kind}, or mbert list keys {stage}",
        )
    catalog = Catalog(include or ())
    names_by_kind = {each_kind: catalog.names(each_kind) for each_kind in ([_kind_name(kind)] if kind else KINDS)}
    if as_json:
        show_json(names_by_kind)
    elif names_only:
        show("\n".join(name for kind_names in names_by_kind.values() for name in kind_names))
    else:
        for number, (each_kind, kind_names) in enumerate(names_by_kind.items()):
            if number:
                show("")
            _show_names(catalog, each_kind, kind_names)


def _show_names(catalog: Catalog, kind: str, names: list[str]) -> None:
    rows = [[name, *catalog.about(kind, name)] for name in names]
    rows = [[name, title, re.split(r";|\. ", source)[0]] for name, title, source in rows]
    columns = [kind, "what it is", "from"] if any(source for _, _, source in rows) else [kind, "what it is"]
    show_table("", columns, [row[: len(columns)] for row in rows], texts=columns[1:])


def _list_keys(stage: str | None, names_only: bool, as_json: bool) -> None:
    """Shows keys of a recipe: all, or those that a stage reads."""
    from microbert_cli.cli.key_reference import recipe_keys

    keys = [key for key in recipe_keys() if stage is None or key.table in _tables_of(stage)]
    if as_json:
        show_json({key.name: {"type": key.type, "default": key.default, "text": key.text} for key in keys})
    elif names_only:
        show("\n".join(key.name for key in keys))
    else:
        rows = [[key.name, key.default or "(none)", key.type, key.text] for key in keys]
        show_table(
            "", ["key", "default", "what it may be", "what it is"], rows, texts=("default", "what it may be", "what it is")
        )


def _tables_of(stage: str) -> set[str]:
    if stage not in stage_names():
        raise MbertError(
            "M171",
            f'there is no stage "{stage}"',
            where="STAGE",
            allowed=f"Stages: {nearest(stage, stage_names())}",
            fix="mbert list keys",
        )
    return find_stage(stage).tables


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
