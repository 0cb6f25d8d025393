"""`mbert cache`: what the cache holds, and what of it may go."""

import time
from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json, show_note, show_table
from microbert_cli.errors import MbertError
from microbert_cli.runs import cache
from microbert_cli.text import seconds_of

NOBODY = "(not noted)"  # made before users were noted, or by no stage


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("cache", epilog="Example: mbert cache --clean --older 30d --dry-run")(show_cache)


def show_cache(
    runs: Annotated[bool, typer.Option("--runs", help="By the outputs that were made with it, instead of by kind.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Remove entries: all, or those of --kind, --run and --older.")] = False,
    kind: Annotated[str | None, typer.Option("--kind", help="Entries of this kind alone.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Entries that this run or output alone was made with.")] = None,
    older: Annotated[
        str | None, typer.Option("--older", help="Entries that nobody has used for so long, such as 30d or 12h.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --clean: say what would go; touch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Sizes of what is cached (token blocks, answers of teachers) by kind or by run; --clean removes it. Runs make it again."""
    entries = _chosen(cache.entries(), kind, run, older)
    if clean:
        _clean(entries, dry_run, as_json)
        return
    groups = _by_run(entries) if runs else _by_kind(entries)
    total = sum(entry.size for entry in entries)
    if as_json:
        rows = {name: {"entries": len(each), "bytes": sum(e.size for e in each)} for name, each in groups.items()}
        show_json({"folder": str(cache.root()), "bytes": total, "runs" if runs else "kinds": rows})
        return
    rows_of_table = [_row(name, each) for name, each in groups.items()]
    show_table(
        f"{cache.root()}: {_megabytes(total)} MB", ["run" if runs else "kind", "entries", "MB", "last used"], rows_of_table
    )
    if runs:
        show_note("an entry that several outputs were made with counts for each of them")


def _clean(entries: list[cache.Entry], dry_run: bool, as_json: bool) -> None:
    removed = [entry for entry in entries if dry_run or cache.remove(entry)]
    size = sum(entry.size for entry in removed)
    if as_json:
        show_json({"removed": [str(entry.directory) for entry in removed], "bytes": size, "dry_run": dry_run})
        return
    show(f"{'would remove' if dry_run else 'removed'} {len(removed)} of {len(entries)} entries, {_megabytes(size)} MB")
    if len(removed) < len(entries):
        show_note(f"{len(entries) - len(removed)} are in use by a run, and stay")


def _chosen(entries: list[cache.Entry], kind: str | None, run: Path | None, older: str | None) -> list[cache.Entry]:
    """Returns the entries of a kind, of a run alone, and unused for so long; raises M172 and M173."""
    if kind is not None:
        kinds = sorted({entry.kind for entry in entries})
        if kind not in kinds:
            raise MbertError(
                "M172",
                f'the cache holds nothing of the kind "{kind}"',
                where="--kind",
                allowed=f"Kinds in it: {', '.join(kinds) or 'none'}",
                fix="mbert cache",
            )
        entries = [entry for entry in entries if entry.kind == kind]
    if run is not None:
        entries = [entry for entry in entries if entry.users and all(_is_within(user, run) for user in entry.users)]
    if older is not None:
        limit = time.time() - _seconds(older)
        entries = [entry for entry in entries if entry.used < limit]
    return entries


def _seconds(duration: str) -> float:
    try:
        return seconds_of(duration)
    except ValueError as error:
        raise MbertError(
            "M173",
            f'"{duration}" is no length of time',
            where="--older",
            allowed=f"{str(error).capitalize()}.",
            fix="mbert cache --clean --older 30d --dry-run",
        ) from None


def _is_within(user: str, run: Path) -> bool:
    return Path(user).is_relative_to(run.absolute())


def _by_kind(entries: list[cache.Entry]) -> dict[str, list[cache.Entry]]:
    return {kind: [e for e in entries if e.kind == kind] for kind in dict.fromkeys(entry.kind for entry in entries)}


def _by_run(entries: list[cache.Entry]) -> dict[str, list[cache.Entry]]:
    """Returns the entries of each folder that an output lies in, which is a run's."""
    groups: dict[str, list[cache.Entry]] = {}
    for entry in entries:
        for run in dict.fromkeys(str(Path(user).parent) for user in entry.users) or [NOBODY]:
            groups.setdefault(run, []).append(entry)
    return dict(sorted(groups.items()))


def _row(name: str, entries: list[cache.Entry]) -> list[str]:
    last = time.strftime("%Y-%m-%d", time.localtime(max(entry.used for entry in entries)))
    if name.startswith("/") and not Path(name).is_dir():
        name += " (gone)"
    return [name, str(len(entries)), _megabytes(sum(entry.size for entry in entries)), last]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
