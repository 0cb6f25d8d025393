"""`mbert report`: the page of a run, of several runs, or of a comparison."""

from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json, show_note

EPILOG = """Examples:

mbert report runs/quickstart

mbert report runs/small runs/large -o runs/both.html

mbert report runs/compare-quickstart"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("report", epilog=EPILOG)(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs and of `mbert compare`.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; default: report.html in the run's report.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows answered differently that are shown at most; 0: no texts.")] = 20,
    include: Annotated[list[Path] | None, typer.Option("--include", help="A folder with tasks of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the path of the page.")] = False,
) -> None:
    """Shows finished runs in one HTML file: results, curves, answers, lineage, costs; no model is loaded.

    The page of a run lies beside report.md of its stage `report`, and in the run's folder where there is none. A page of
    several runs or of a comparison has one table and one chart a task. A page that would be the same is left as it is.
    """
    from microbert_cli.evaluation.page.write import write_page
    from microbert_cli.recipe.registry import Catalog

    page, is_new = write_page(runs, out, rows=rows, catalog=Catalog(include or ()))
    if as_json:
        show_json({"page": str(page), "written": is_new})
        return
    if not (is_new or quiet):
        show_note("report: up to date")
    show(str(page))
