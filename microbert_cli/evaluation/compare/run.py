"""Runs a comparison: the stages before the rows, the trials of grids, the rows. Finished directories stay as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microbert_cli.errors import DivergedError, MbertError, combine_errors
from microbert_cli.evaluation.compare.grid_search import Values, describe_values, trials_of
from microbert_cli.evaluation.compare.rows import ComparisonPlan, Row
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.pipeline import run_step
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.trials import best_trial


@dataclass(frozen=True)
class Entry:
    """A finished row: its stage, the values that a grid chose for it, and the dev score of every trial (None: it diverged)."""

    row: Row
    step: Step
    chosen: Values
    tried: list[dict[str, Any]]

    @property
    def out(self) -> Path:
        return self.step.out

    def identity(self) -> dict[str, Any]:
        """Returns what identifies the row in a comparison, beside its files."""
        return {"name": self.row.name, "of": self.row.of, "chosen": self.chosen, "tried": self.tried}


def run_plans(
    plans: Sequence[ComparisonPlan],
    grid: Mapping[str, Sequence[Any]],
    *,
    catalog: Catalog,
    reporter: Reporter = SILENT,
    force: bool = False,
    resume: bool = True,
) -> dict[str, list[Entry]]:
    """Runs every row of every task, one after the other.

    A row that fails does not stop the others, whose trainings may take days; its error is raised when they are done.
    """
    options: dict[str, Any] = {"catalog": catalog, "reporter": reporter, "force": force, "resume": resume, "renew": True}
    entries: dict[str, list[Entry]] = {}
    errors: list[MbertError] = []
    for plan in plans:
        for step in plan.before:
            _note_state(step.name, run_step(step, **options).up_to_date, reporter)
        entries[plan.task] = []
        for row in plan.rows:
            try:
                entries[plan.task].append(_run_row(row, grid, plan, catalog, reporter, options))
            except MbertError as error:
                reporter.warn(f"{plan.task}, {row.name}: {error.what}; the other rows go on")
                errors.append(error)
    if errors:
        raise combine_errors(errors)
    return entries


def _run_row(
    row: Row,
    grid: Mapping[str, Sequence[Any]],
    plan: ComparisonPlan,
    catalog: Catalog,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> Entry:
    tried = []
    for trial in trials_of(row, grid, plan, catalog):
        score = _dev_score(trial.step, options)
        reporter.note(f"{row.name}, {describe_values(trial.values)}: {'diverged' if score is None else f'{score:.4f} on dev'}")
        tried.append({"values": trial.values, "dev": score, "directory": str(trial.step.out)})
    chosen = _best_values(tried, row)
    step = row.step(catalog, chosen)
    _note_state(row.name, run_step(step, **options).up_to_date, reporter)
    return Entry(row, step, chosen, tried)


def _dev_score(step: Step, options: Mapping[str, Any]) -> float | None:
    """Returns the dev score of a trial; None where training diverged, as a grid of learning rates often finds."""
    try:
        metrics = run_step(step, **options).metrics
    except DivergedError:
        return None
    score: float = metrics["dev"][metrics["primary"]]
    return score


def _best_values(tried: Sequence[dict[str, Any]], row: Row) -> Values:
    """Returns the values with the best dev score, the first of equals; raises M067 where all trials diverged."""
    if not tried:
        return {}
    best = best_trial([trial["dev"] for trial in tried])
    if best is None:
        raise MbertError(
            "M067",
            f'with every value of the grid the training of "{row.name}" diverged',
            where="--grid",
            allowed="At least one choice of values that can be trained.",
            fix="Smaller learning rates, for instance: --grid phases.prediction.learning_rate=1e-5,3e-5",
        )
    values: Values = tried[best]["values"]
    return values


def _note_state(name: str, up_to_date: bool, reporter: Reporter) -> None:
    reporter.note(f"{name}: {'up to date' if up_to_date else 'done'}")
