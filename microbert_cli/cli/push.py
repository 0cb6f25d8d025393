"""`mbert push`: a finished output to a repository of the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json, show_note, show_table

EPILOG = """Examples:

mbert push runs/sst2/export me/tiny-sentiment --dry-run

mbert push runs/sst2/export me/tiny-sentiment --revision v2 --message "Retrained" --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("push", epilog=EPILOG)(push_output)


def push_output(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An export, or another output with a model in it.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face Hub.")],
    public: Annotated[bool, typer.Option("--public", help="A repository that everybody sees; without, a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; ask nobody.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="A branch, made where there is none; main.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the address of the commit.")] = False,
) -> None:
    """Sends a finished output to the Hugging Face Hub: files that answer and the card, in one commit, private by default.

    The directory is compared with its manifest before. Manifest, metrics, logs and recipe stay here.
    The token is that of `hf auth login` or HF_TOKEN.
    """
    from microbert_cli.exporting.push import check_repository, files_to_push, push

    check_repository(repository)
    files = files_to_push(directory)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    plan = {
        "directory": str(directory),
        "repository": repository,
        "revision": revision or "main",
        "public": public,
        "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
        "bytes": sum(sizes.values()),
    }
    total = f"{len(files)} files, {sum(sizes.values()) / 1e6:,.1f} MB"
    if "README.md" not in files and not quiet:
        show_note("push: there is no README.md, so the repository will have no card; mbert export writes one")
    if dry_run:
        if as_json:
            show_json(plan | {"sent": False})
            return
        show_table("", ["file", "kB"], [[name, f"{size / 1e3:,.1f}"] for name, size in sizes.items()])
        show(f"{total} to {repository}, {'public' if public else 'private'}; nothing was sent")
        return
    text = message or f"{directory.absolute().name}, by mbert"
    if not quiet:
        show_note(f"push: {total} to {repository}")
    pushed = push(files, repository, message=text, public=public, revision=revision)
    if as_json:
        result = {"repository": pushed.repository, "commit": pushed.commit, "url": pushed.url, "private": pushed.private}
        show_json(plan | result | {"removed": list(pushed.removed), "sent": True})
        return
    if pushed.removed and not quiet:
        show_note(f"push: of an earlier export, and removed: {', '.join(pushed.removed)}")
    show(pushed.url)
