"""What every stage of a recipe will cost, before it runs; what one stage costs says its own `plan.py`.

Steps, rows, padded tokens and FLOPs are counted from the batches that the loop will draw; seconds are those of a calibration
of this machine, or of a machine on paper.
"""

from collections.abc import Container, Sequence
from pathlib import Path

from microbert_cli.errors import Exit, MbertError
from microbert_cli.models.device import choose_precision
from microbert_cli.plan.calibration import Calibration
from microbert_cli.plan.expected_inputs import ExpectedInputs
from microbert_cli.plan.hardware import Hardware
from microbert_cli.plan.stage_cost import Costs, StagePlan
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.pipeline import recorded_keys, step_state
from microbert_cli.runs.reuse import matching_output
from microbert_cli.runs.stage_inputs import Step


def plan_steps(
    steps: Sequence[Step],
    *,
    catalog: Catalog,
    here: Calibration,
    machine: Hardware | None = None,
    reporter: Reporter = SILENT,
) -> list[StagePlan]:
    """The plan of every stage, in order. A stage whose inputs are not at hand is listed with the reason.

    here     prices of this machine;  machine: one on paper, for everything an accelerator does
    Raises an input's error if nothing at all can be planned.
    """
    seen = ExpectedInputs(catalog, here, reporter)
    plans: list[StagePlan] = []
    missing: list[MbertError] = []
    anew: set[str] = set()
    for step in steps:
        plan = StagePlan(step.name, step.kind, step_state(step))
        if plan.state == "new" and (source := _copied_from(step, anew)):
            plan.state = "copied"
            plan.notes.append(f"copied from {source}, where it was made of the same inputs")
        if not plan.is_done:
            anew.update(step.outputs)
        try:
            precision = choose_precision(here.device, **step.resolved.recipe.numerics()).precision
            step.stage.plan(step, seen, Costs(plan, here, machine, precision))
            plan.parts = [part for part in plan.parts if part.flops or part.seconds is None or part.seconds > 0]
        except MbertError as error:
            if error.exit_code != Exit.INPUT:
                raise
            missing.append(error)
            plan.unknown = str(error)
        plans.append(plan)
    if missing and len(missing) == len(plans):
        raise missing[0]
    return plans


def _copied_from(step: Step, anew: Container[str]) -> Path | None:
    """Where another run made the like (`reuse`); of `anew`, what this run has yet to make, nothing is copied."""
    if any(place in anew for place in step.places.values()):
        return None
    return matching_output(step.resolved.recipe.reuse, step.kind, recorded_keys(step))
