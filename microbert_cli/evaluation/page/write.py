"""Writes pages: renders the template, and leaves a page alone that already says the same."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.page.run_folder import RunFolder, comparison_of, read_output, read_run, run_of
from microbert_cli.evaluation.page.run_page import run_context
from microbert_cli.evaluation.page.several import several_context
from microbert_cli.recipe.registry import Catalog
from microbert_cli.runs import atomic
from microbert_cli.runs.manifest import PAGE
from microbert_cli.text import safe_text
from microbert_cli.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
MARK = "<!-- written by mbert -->"
ROWS = 20  # differing rows that are shown, where nobody says how many


def write_page(
    places: Sequence[Path], out: Path | None = None, *, rows: int = ROWS, catalog: Catalog | None = None
) -> tuple[Path, bool]:
    """Writes the page of a run, or one of several runs and comparisons; returns where it lies and whether it was written.

    places  folders of runs, outputs in them, and folders of `mbert compare`
    out     the file; default: report.html beside a run's report or a comparison's table, else in the folder of the first place
    rows    how many rows that student and teacher answer differently are shown at most, of a single run
    A page that would be the same stays as it is. Raises M227 where a place is neither, M138 where `out` is another file.
    """
    chosen = list(dict.fromkeys(places))
    folders = {place: folder for place in chosen if (folder := comparison_of(place)) is not None}
    runs = [_read(place) for place in chosen if place not in folders]
    if len(runs) == 1 == len(chosen):
        target = out or runs[0].page_place()
        return target, _write(target, _render("run.html.jinja", run_context(runs[0], rows=rows, catalog=catalog or Catalog())))
    alone = next(iter(folders.values())) if len(chosen) == 1 else chosen[0].absolute().parent
    target = out or alone / PAGE
    comparisons = [read_output(folder) for folder in folders.values()]
    return target, _write(target, _render("several.html.jinja", several_context(runs, comparisons, target)))


def _read(place: Path) -> RunFolder:
    root = run_of(place)
    if root is None:
        raise MbertError(
            "M227",
            "there is nothing here to show: no finished output of a stage" if place.is_dir() else "there is no such folder",
            where=str(place),
            allowed="The folder of a run, such as runs/quickstart, or several; or a folder of `mbert compare`.",
            fix="Look what is there: ls runs",
        )
    return read_run(root)


def _write(path: Path, text: str) -> bool:
    """Writes a page atomically, unless the same lies there; says whether it did."""
    try:
        before = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        before = ""
    except (OSError, ValueError):
        before = "something else"
    if before == text:
        return False
    if before and MARK not in before:
        raise MbertError(
            "M138",
            "this is no page that mbert wrote, and it would be written over",
            where=f"-o {path}",
            allowed="A new file, or a page of mbert's.",
            fix=f"Choose another: -o {path.stem}-mbert.html",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, text)
    return True


def _render(template: str, context: dict[str, Any]) -> str:
    text: str = _environment().get_template(template).render(context, version=__version__, mark=Markup(MARK))
    return text


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters |= {"number": _number, "duration": _duration}
    return environment


def _finalize(value: Any) -> Any:
    """Takes secrets and control characters out of every text of a run; markup of the templates is left as it is."""
    return safe_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None, form: str) -> Markup | str:
    """Returns a number as text beside the whole of it for machines; an empty text for what was not measured."""
    return "" if value is None else Markup('<data value="{}">{}</data>').format(value, format(value, form))


def _duration(seconds: float | None) -> Markup | str:
    """Returns a duration such as `0:12:31`, beside its seconds for machines."""
    if seconds is None:
        return ""
    whole = round(seconds)
    text = f"{seconds:.1f} s" if seconds < 60 else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return Markup('<data value="{}">{}</data>').format(round(seconds, 3), text)
