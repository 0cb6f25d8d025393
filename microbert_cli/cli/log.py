"""`mbert log`: the training of a finished run to a tracker, from what it wrote down."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli.cli.console import ConsoleReporter, show, show_json
from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import TrackedReporter
from microbert_cli.runs.pipeline import check_tracker

LOG = "log.jsonl"
NO_NUMBERS = {"phase", "step", "seconds", "dev"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("log", epilog="Example: mbert log runs/sst2 --to tensorboard")(send_log)


def send_log(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or the output of one stage.")],
    to: Annotated[str, typer.Option("--to", help="A tracker: tensorboard, trackio, wandb, mlflow, or one of your own.")],
    include: Annotated[list[Path] | None, typer.Option("--include", help="A folder with trackers of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Sends the losses, rates and dev scores of a finished run to a tracker, from its log.jsonl."""
    catalog = Catalog(include or ())
    module = catalog.module("trackers", catalog.path("trackers", to, where="--to").stem)
    check_tracker(to, module.NEEDS, catalog)
    logs = sorted(run.rglob(LOG)) if run.is_dir() else []
    if not logs:
        raise MbertError(
            "M228",
            "there is no log of a training",
            where=str(run),
            allowed=f"A folder with {LOG} in it or below: of a stage that trains, or of its run.",
            fix="mbert log runs/NAME --to TRACKER",
        )
    reporter = ConsoleReporter()
    for log in logs:
        name = "-".join(log.parent.absolute().relative_to(run.absolute().parent).parts)
        tracked = TrackedReporter(reporter, {to: partial(module.Tracker, name, run, {"log": str(log)})})
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            tracked.progress(record["phase"], record["step"], 0, **numbers_of(record))
        tracked.close()
    reporter.close()
    if as_json:
        show_json({"out": str(run), "logs": [str(log) for log in logs]})
    else:
        show(str(run))


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of the log: losses, rate and norm, scores on dev as `dev/NAME`."""
    numbers = {key: value for key, value in record.items() if key not in NO_NUMBERS and isinstance(value, int | float)}
    scores = {f"dev/{key}": value for key, value in (record.get("dev") or {}).items() if isinstance(value, int | float)}
    return numbers | scores
