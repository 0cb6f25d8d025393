"""`mbert doctor`: small checks of a recipe, executed before it runs."""

from typing import TYPE_CHECKING, Any

import typer

from microbert_cli.cli.console import broken_below, show_json, show_marked
from microbert_cli.cli.execute import recipe_steps
from microbert_cli.cli.options import CommonOptions, DataDir, RecipeName, TaskName, with_options
from microbert_cli.errors import MbertError
from microbert_cli.hub import is_offline, no_network
from microbert_cli.text import escape_control_characters

if TYPE_CHECKING:
    from microbert_cli.plan.doctor.findings import Finding, Result


EPILOG = """Examples:

mbert doctor quickstart --dry-run

mbert doctor sst2-tinybert --data GLUE --dry-run"""
MARKS = {"pass": ("✓", "green"), "fail": ("✗", "bold red"), "warn": ("!", "yellow"), "later": ("·", "dim")}
INDENT = 17  # columns before what was found: number, mark, name


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor", epilog=EPILOG)(doctor)


@with_options
def doctor(
    recipe_name: RecipeName = None,
    task: TaskName = None,
    data: DataDir = None,
    *,
    common: CommonOptions,
) -> None:
    """Makes small checks of a recipe before it runs: packages, device, inputs, labels, one step of training, disk and more.

    A tick passes, a cross fails (exit code 1), ! is for you to judge, a dot is not there yet. Nothing is left behind, and the
    network is not asked.
    """
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(task=task, data__folder=data)
    if (planned := recipe_steps(common, resolved)) is None:
        return
    steps, root = planned
    offline, results = is_offline(), []
    with no_network():
        from microbert_cli.plan.doctor.checks import examine

        for result in examine(steps, root, catalog=common.catalog(), offline=offline):
            results.append(result)
            if not common.as_json:
                _show(result)
    crosses = [result for result in results if result.state == "fail"]
    report = {"recipe": resolved.name, "checks": [result.as_dict() for result in results], "passed": not crosses}
    if crosses:
        raise _checks_failed(crosses, report)
    if common.as_json:
        show_json(report)


def _show(result: "Result") -> None:
    for finding in result.findings:
        mark, style = MARKS[finding.state]
        about = f"{finding.about}: " if finding.about else ""
        text = broken_below(escape_control_characters(f"{about}{finding.what}"), INDENT)
        lines = [f" {result.name:<11} {text}", *_error_lines(finding)]
        show_marked(f"{result.number:>2} ", mark, "\n".join(lines), style)


def _error_lines(finding: "Finding") -> list[str]:
    """Returns the other parts of an error, indented below its line."""
    if (error := finding.error) is None:
        return []
    parts = (f"[{error.code}] {error.where}", error.allowed, error.fix)
    return [f"{'':<{INDENT}}{line}" for part in parts for line in part.splitlines()]


def _checks_failed(crosses: "list[Result]", report: dict[str, Any]) -> MbertError:
    error = MbertError(
        "M630",
        f"{len(crosses)} of {len(report['checks'])} checks failed: {', '.join(result.name for result in crosses)}",
        where=f"recipe {report['recipe']}",
        allowed="A recipe without a cross.",
        fix="Mend what stands below each cross, then the same command again.",
    )
    error.details = report
    return error
