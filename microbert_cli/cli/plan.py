"""`mbert plan`: what a recipe will take, before it runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from microbert_cli.cli.console import show, show_json, show_table
from microbert_cli.cli.execute import recipe_steps
from microbert_cli.cli.options import CommonOptions, DataDir, RecipeName, TaskName, with_options
from microbert_cli.text import counted

if TYPE_CHECKING:
    from microbert_cli.plan.stage_cost import StagePlan


EPILOG = """Examples:

mbert plan quickstart --dry-run

mbert plan sst2-tinybert --data GLUE --on h200:8 --dry-run"""
COLUMNS = ["stage", "state", "steps", "tokens", "useful", "FLOPs", "memory", "disk", "time"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("plan", epilog=EPILOG)(plan)


@with_options
def plan(
    recipe_name: RecipeName = None,
    task: TaskName = None,
    data: DataDir = None,
    on: Annotated[
        str | None, typer.Option("--on", help="A machine on paper: h200, a100:8 ...; default: this one, calibrated.")
    ] = None,  # noqa: E501
    renew: Annotated[bool, typer.Option("--renew", help="Measure this machine anew, whatever is in the cache.")] = False,
    *,
    common: CommonOptions,
) -> None:
    """Steps, tokens, FLOPs, memory, disk and time of every stage; this machine is calibrated for seconds, once.

    Times are those of the stages; the start of the program comes on top. Stages that exist are planned as if they did not.
    """
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(task=task, data__folder=data)
    if (planned := recipe_steps(common, resolved)) is None:
        return
    steps, _ = planned
    from microbert_cli.models.device import pick_device
    from microbert_cli.plan.calibration import Calibration
    from microbert_cli.plan.hardware import find_hardware
    from microbert_cli.plan.stage_cost import PRECISION
    from microbert_cli.plan.stages import plan_steps

    catalog, reporter = common.catalog(), common.reporter()
    machine = find_hardware(on, catalog) if on else None
    try:
        here = Calibration(device=pick_device(resolved.recipe.device), catalog=catalog, renew=renew, reporter=reporter)
        plans = plan_steps(steps, catalog=catalog, here=here, machine=machine, reporter=reporter)
    finally:
        reporter.close()
    basis = machine.assumptions(PRECISION) if machine else _describe_machine(here)
    if common.as_json:
        show_json({"recipe": resolved.name, "on": on or "here", "basis": basis, **_as_dict(plans)})
        return
    _show(plans, basis)


def _describe_machine(here: Any) -> str:
    facts = here.machine
    load = "unknown" if here.load is None else here.load
    return f"this machine: {facts['name']}, {counted(facts['threads'], 'thread')}, torch {facts['torch']}, load {load} before"


def _as_dict(plans: "list[StagePlan]") -> dict[str, Any]:
    return {"stages": [plan.as_dict() for plan in plans], "totals": _totals(plans), "left": _totals(_unfinished(plans))}


def _unfinished(plans: "list[StagePlan]") -> "list[StagePlan]":
    """Returns the plans of stages that are not done."""
    return [plan for plan in plans if not plan.is_done]


def _totals(plans: "list[StagePlan]") -> dict[str, Any]:
    """Returns sums over the stages that are known; of memory the largest."""
    counts = ("steps", "tokens", "useful", "flops")
    sums: dict[str, Any] = {name: sum(getattr(plan, name) or 0 for plan in plans) for name in counts}
    sums |= {"memory": max((plan.memory for plan in plans), default=0), "disk": sum(plan.disk for plan in plans)}
    sums["scratch"] = max((plan.scratch for plan in plans), default=0)
    return sums | {
        "seconds": sum(plan.seconds or 0.0 for plan in plans),
        "unknown": [p.name for p in plans if p.seconds is None],
    }


def _show(plans: "list[StagePlan]", basis: str) -> None:
    rows = [_row(plan.name, plan.state, {**plan.as_dict(), "flops": plan.flops, "seconds": plan.seconds}) for plan in plans]
    rows.append(_row("all", "", _totals(plans)))
    if len(unfinished := _unfinished(plans)) < len(plans):
        rows.append(_row("left", "", _totals(unfinished)))
    show_table("", COLUMNS, rows)
    if scratch := _totals(plans)["scratch"]:
        show(f"while it runs, resume states take up to {_with_unit(scratch)}B more")
    for plan in plans:
        for note in [*plan.notes, *([plan.unknown] if plan.unknown else [])]:
            show(f"{plan.name}: {note}")
    show(basis)


def _row(name: str, state: str, sums: dict[str, Any]) -> list[str]:
    if isinstance(sums.get("unknown"), str):
        return [name, state, *["?"] * 7]
    tokens = sums["tokens"]
    return [
        name,
        state,
        f"{sums['steps']:,}" if sums["steps"] else "",
        _with_unit(tokens) if tokens else "",
        f"{sums['useful'] / tokens:.0%}" if tokens else "",
        "?" if sums["flops"] is None else _with_unit(sums["flops"]) if sums["flops"] else "",
        f"{_with_unit(sums['memory'])}B",
        f"{_with_unit(sums['disk'])}B" if sums["disk"] else "",
        "?" if sums["seconds"] is None else clock(sums["seconds"]),
    ]


def clock(seconds: float) -> str:
    """Formats seconds for a person: 4.2 s, 1:05 min, 3:20 h, 2.5 days."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    if seconds < 48 * 3600:
        return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"
    return f"{seconds / 86400:.1f} days"


def _with_unit(number: float) -> str:
    """Formats 1,234,567 as 1.23 M."""
    units = ["", "k", "M", "G", "T", "P", "E"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}".rstrip()
