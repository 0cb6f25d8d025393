"""Pages of reference, made of the code when the site is built, and the files of the project that pages link to."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+\.(?:toml|json|py))\)")  # links to files beside docs/
FOLDERS = re.compile(r"\[([^\]]+)\]\(\.\./[\w/-]+\)")  # and to folders, which a site has not


def on_files(files, config):
    """Adds the pages of reference, and what is linked to."""
    pages = {"reference/commands.md": commands(), "reference/keys.md": keys(), "reference/names.md": names()}
    for path in (ROOT / "docs").glob("*.md"):
        for name in OUTSIDE.findall(path.read_text(encoding="utf-8")):
            pages[f"files/{name}"] = (ROOT / name).read_text(encoding="utf-8")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links at the copies."""
    return FOLDERS.sub(r"\1", OUTSIDE.sub(r"](files/\1)", markdown))


def commands() -> str:
    """The help of every command."""
    import typer

    from microbert_cli.cli.main import app

    group = typer.main.get_command(app)
    parts = ["# Commands", "", "`mbert COMMAND --help` shows the same."]
    for name, command in group.commands.items():
        context = command.make_context(f"mbert {name}", [], resilient_parsing=True)
        context.terminal_width = context.max_content_width = 110
        parts += ["", f"## mbert {name}", "", "```text", command.get_help(context).strip(), "```"]
    return "\n".join(parts) + "\n"


def keys() -> str:
    """Every key of a recipe, table by table."""
    from microbert_cli.cli.key_reference import recipe_keys

    parts = ["# Keys of a recipe", "", "`mbert list keys` shows the same, `mbert list keys STAGE` those that a stage reads."]
    table = None
    for key in recipe_keys():
        top = key.name.rpartition(".")[0]
        if top != table:
            table = top
            title = f"[{top}]" if top else "Of the recipe itself"
            parts += ["", f"## {title}", "", "| key | default | what it may be | what it is |", "|---|---|---|---|"]
        cells = [f"`{key.name.rpartition('.')[2]}`", f"`{key.default}`" if key.default else "", key.type, key.text]
        parts.append(_row(cells))
    return "\n".join(parts) + "\n"


def names() -> str:
    """What `mbert list` shows."""
    from microbert_cli.recipe.registry import KINDS, Catalog

    catalog = Catalog()
    parts = ["# What has a name", "", "`mbert list KIND` shows the same, `mbert show KIND NAME` the file behind a name."]
    for kind in KINDS:
        parts += ["", f"## {kind.capitalize()}", "", "| name | what it is | from |", "|---|---|---|"]
        for name in catalog.names(kind):
            parts.append(_row([f"`{name}`", *catalog.about(kind, name)]))
    return "\n".join(parts) + "\n"


def _row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
