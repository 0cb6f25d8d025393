"""A small and a big model as one: the small one answers where it is sure, as often as a wish allows that is checked on dev."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import scoring
from microbert_cli.evaluation.alternatives.gather import training_rows
from microbert_cli.evaluation.label_order import check_order
from microbert_cli.exporting.cascade_card import cascade_card
from microbert_cli.exporting.cascade_directory import check_part, file_names, latency, measure_speed, write_labels, write_part
from microbert_cli.models.cascade.answers import BIG, PARTS, SMALL, Rule
from microbert_cli.models.onnx import require_onnx
from microbert_cli.models.predictor import Predictor, open_predictor
from microbert_cli.recipe.multitask import task_name
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, place_seen_from, up_to_date, write_results
from microbert_cli.stages.cascade import STAGE
from microbert_cli.stages.cascade.choose import Choice, check_rows, choose


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    small: str,
    big: str,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Writes a directory that predict, evaluate, bench and export take like a model; see models/cascade/answers.py.

    Some rows of dev choose the threshold and the temperatures, the others check what they come to.
    metrics.json: threshold, temperatures, agreement or accuracy with its lower bound, share of rows sent on, scores,
    calibration errors, milliseconds a row.
    Raises M136 (no classes), M137 (models of other tasks), M282 (too few rows), M614 (the wish cannot be granted).
    """
    data = load_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    _check_task(data, small, big)
    check_rows(recipe, data)
    sources = {SMALL: small, BIG: big}
    for part, source in sources.items():
        check_part(source, data, where=f"cascade.{part}")
    identity: dict[str, Any] = {
        "recipe": recipe.identity(*STAGE.keys),
        **{part: manifest.identify(source) for part, source in sources.items()},
        "forms": {part: Path(source).name for part, source in sources.items() if Path(source).is_file()},
        "data": data.fingerprints(),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        require_onnx("onnx", "onnxscript", "onnxruntime")
        train = training_rows(recipe, catalog)[0] if recipe.cascade.precision == "int8" else None
        with _cleared_on_refusal(work.path):
            parts = {
                part: write_part(
                    source, work.path / part, data, precision=recipe.cascade.precision, where=f"cascade.{part}", train=train
                )
                for part, source in sources.items()
            }
            logits = {part: _answers(data, predictor, sources[part], part, reporter) for part, predictor in parts.items()}
            choice = choose(recipe, data, logits, reporter)
        columns = {part: predictor.columns for part, predictor in parts.items()}
        Rule(choice.threshold, choice.temperature, columns, choice.sent).write(work.path)
        write_labels(work.path, parts[SMALL], data)
        metrics = {
            "task": data.task.name,
            "primary": data.task.primary,
            **{part: place_seen_from(out, source) for part, source in sources.items()},
            "files": file_names(work.path),
            **choice.metrics,
            **_measure(work.path, data, choice, reporter),
        }
        (work.path / "README.md").write_text(cascade_card(out.name, data, metrics, sources), encoding="utf-8")
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={part: identity[part] for part in PARTS},
            sources={part: source for part, source in sources.items()},
            data=data.facts(),
        )


@contextmanager
def _cleared_on_refusal(directory: Path) -> Iterator[None]:
    """Removes the files of both models where they are refused: the same -o is then free for other models, or a smaller wish."""
    try:
        yield
    except MbertError:
        for part in PARTS:
            shutil.rmtree(directory / part, ignore_errors=True)
        raise


def _answers(data: TaskData, predictor: Predictor, source: str, part: str, reporter: Reporter) -> np.ndarray:
    """Returns a model's logits on dev, in the order of the task's labels; raises M322 where that order seems another."""
    logits = scoring.predict_logits(data, "dev", predictor.answers, predictor)
    if not predictor.order_is_settled:
        where, labels = f"cascade.{part} {source}", data.rows["dev"].labels or []
        check_order(data.task, logits, labels, columns=predictor.columns, where=where, reporter=reporter)
    return logits


def _measure(directory: Path, data: TaskData, choice: Choice, reporter: Reporter) -> dict[str, Any]:
    """Asks the cascade as anybody would who opens its directory: scores on all of dev, and speed beside both models."""
    cascade = open_predictor(str(directory), data.task, where="cascade", in_the_making=True)
    scores = scoring.score(data.task, scoring.predict_logits(data, "dev", cascade.answers, cascade), data.rows["dev"])
    speeds = measure_speed(directory, cascade, data, reporter)
    milliseconds = latency(speeds, choice.sent)
    reporter.note("ms a row: " + ", ".join(f"{name} {value:.2f}" for name, value in milliseconds.items()))
    return {"dev": scores, "latency_ms": milliseconds, "speed": speeds}


def _check_task(data: TaskData, small: str, big: str) -> None:
    """Checks that there are classes to be sure of, and that both models answer for the same task as far as is written."""
    if not data.task.kind.exclusive:
        raise MbertError(
            "M136",
            f"{data.task.name} has no classes ({data.task.kind.describe()}), and a cascade compares the surest of them",
            where=f"task {data.task.name}",
            allowed="A task whose labels are classes.",
            fix="Take the big model alone, or the small one: mbert evaluate says what each is worth",
        )
    tasks = {source: _task_of(source) for source in (small, big)}
    if None not in tasks.values() and len(set(tasks.values())) > 1:
        raise MbertError(
            "M137",
            f"the small model was made for {tasks[small]}, the big one for {tasks[big]}",
            where=f"cascade.big {big}",
            allowed="Two models of one task.",
            fix=f"Name a model of {tasks[small]}: mbert cascade {small} BIG",
        )


def _task_of(source: str) -> str | None:
    """Returns the task of the catalogue that a model was made for, as its manifest says; None where it says nothing."""
    path = Path(source)
    output = manifest.output_of(manifest.model_home(path))
    task = manifest.read(output).get("recipe", {}).get("task") if output else None
    return task_name(task) if isinstance(task, str) and task else None
