"""The stages as Python functions: keyword arguments in, a `StageResult` out; nothing is printed, errors are `MbertError`.

Every function takes
    out      the output directory, as -o
    recipe   a recipe's file or name, as the positional argument of the command
    **keys   any recipe key, dots written as two underscores: finetune__epochs=1, data__max_length=64
and returns a StageResult: `.out` (the directory), `.metrics` (what is in metrics.json), `.up_to_date`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import Resolved, resolve
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.pipeline import run_step, run_steps
from microbert_cli.runs.stage_inputs import step, steps
from microbert_cli.runs.stage_result import StageResult

Place = str | Path


def pretrain(*, out: Place, model: Place | None = None, corpus: Place | None = None, **keys: Any) -> StageResult:
    """Trains `model` (a directory, Hub id or student description) as a masked-LM on `corpus`."""
    return _stage("pretrain", out, keys, pretrain__model=model, corpus__source=corpus)


def finetune(*, out: Place, model: Place | None = None, task: Place | None = None, **keys: Any) -> StageResult:
    """Trains `model` on the labels of `task`; the best checkpoint on dev is kept."""
    return _stage("finetune", out, keys, finetune__model=model, task=task)


def general_distill(
    *, out: Place, teacher: Place | None = None, student: Place | None = None, corpus: Place | None = None, **keys: Any
) -> StageResult:
    """Stage one: distils a pre-trained `teacher` into `student` on plain text."""
    return _stage("general-distill", out, keys, base=teacher, student=student, corpus__source=corpus)


def augment(
    *, out: Place, task: Place | None = None, masked_lm: Place | None = None, vectors: Place | None = None, **keys: Any
) -> StageResult:
    """Varies the training set of `task` by masked-LM and word-vector neighbours."""
    return _stage("augment", out, keys, task=task, augment__masked_lm=masked_lm, vectors__source=vectors)


def trim(
    *, out: Place, model: Place | None = None, task: Place | None = None, corpus: Place | None = None,
    augmented: Place | None = None, **keys: Any,
) -> StageResult:  # fmt: skip
    """Cuts the vocabulary of `model` to what the texts of `task`, `augmented` rows and the commonest tokens of `corpus` use."""
    return _stage("trim", out, keys, trim__model=model, task=task, corpus__source=corpus, augmented=augmented)


def distill(
    *,
    out: Place,
    teacher: Place | None = None,
    student: Place | None = None,
    task: Place | None = None,
    augmented: Place | None = None,
    **keys: Any,
) -> StageResult:
    """Stage two: distils a fine-tuned `teacher` into `student` on `task`, through all phases of the method."""
    return _stage("task-distill", out, keys, teacher__model=teacher, student=student, task=task, augmented=augmented)


def cascade(
    *, out: Place, small: Place | None = None, big: Place | None = None, task: Place | None = None, **keys: Any
) -> StageResult:
    """Makes one model of `small` and `big`, which answers where the small one is not sure; checked on dev rows of `task`."""
    return _stage("cascade", out, keys, cascade__small=small, cascade__big=big, task=task)


def evaluate(
    *, out: Place, model: Place | None = None, task: Place | None = None, teacher: Place | None = None,
    submission: bool = False, **keys: Any,
) -> StageResult:  # fmt: skip
    """Scores `model` on `task`; with `teacher`, agreement and KL; with `submission`, GLUE's files and zip."""
    options = {"submit": True} if submission else {}
    return _stage("evaluate", out, keys, options, evaluate__model=model, task=task, teacher__model=teacher)


def extract(*, out: Place, model: Place, task: Place | None = None, **keys: Any) -> StageResult:
    """Extracts the plain BERT of `task`, or of every task, from a `model` of several; parity checked on dev rows."""
    from microbert_cli.stages.extract import run as stage

    controls = _controls(keys)
    include, recipe = keys.pop("include", ()), keys.pop("recipe", None)
    resolved = _resolved(recipe, {**keys, **({} if task is None else {"task": str(task)})}, include)
    return stage(resolved.recipe, Path(out), catalog=Catalog(include), model=str(model), **controls)


def export(*, out: Place, model: Place | None = None, task: Place | None = None, **keys: Any) -> StageResult:
    """Writes a directory to ship: safetensors, ONNX fp32 and int8, a model card; parity checked on the task's dev rows."""
    return _stage("export", out, keys, export__model=model, task=task)


def predict(
    model: Place, texts: Sequence[str | tuple[str, ...]], *, task: str | None = None, max_length: int | None = None
) -> list[dict[str, Any]]:
    """Returns labels with probabilities (or scores) for texts or pairs of texts; `task` of a model that answers several."""
    from microbert_cli.stages.predict import run as stage

    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    return stage(str(model), rows, task=task, max_length=max_length)


def run(recipe: Place, *, out: Place, force: bool = False, reporter: Reporter = SILENT, **keys: Any) -> list[StageResult]:
    """Runs all stages of a recipe; what is up to date is skipped."""
    catalog = Catalog()
    reporter = keys.pop("talk", reporter)  # its earlier name
    resolved = _resolved(recipe, keys)
    return list(run_steps(steps(resolved, Path(out), catalog), catalog=catalog, reporter=reporter, force=force))


def _stage(
    kind: str, out: Place, keys: dict[str, Any], options: dict[str, Any] | None = None, **input_keys: Place | None
) -> StageResult:
    controls = _controls(keys)
    include = keys.pop("include", ())
    recipe = keys.pop("recipe", None)
    flags = {key: str(value) for key, value in input_keys.items() if value is not None}
    resolved = _resolved(recipe, {**keys, **flags}, include)
    planned = step(kind, resolved, Path(out).parent, Catalog(include), out=Path(out))
    return run_step(planned, catalog=Catalog(include), **controls, **(options or {}))


def _controls(keys: dict[str, Any]) -> dict[str, Any]:
    """Takes the keyword arguments that are no recipe keys out of `keys`; `talk` is the earlier name of `reporter`."""
    if "talk" in keys:
        keys["reporter"] = keys.pop("talk")
    return {name: keys.pop(name) for name in ("force", "resume", "reporter") if name in keys}


def _resolved(recipe: Place | None, keys: dict[str, Any], include: Sequence[Place] = ()) -> Resolved:
    dotted = {key.replace("__", "."): str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    return resolve(catalog=Catalog(include), recipe=recipe, flags=dotted)
