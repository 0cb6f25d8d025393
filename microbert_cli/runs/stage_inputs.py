"""Which directory feeds which stage: explicit keys first, else what an earlier stage of the same run made.

Static: nothing is opened, torch is not imported, so `--dry-run` can tell what would happen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError, combine_errors, nearest
from microbert_cli.recipe.layers import Layer
from microbert_cli.recipe.loss_checks import check_stage
from microbert_cli.recipe.moe import EXPERT_TEACHER, expert_teacher_values
from microbert_cli.recipe.multitask import TASK_PLACEHOLDER, augmented_of, named_inputs, recipe_of_task, task_name, teachers_of
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import Resolved, overlay
from microbert_cli.recipe.schema import Recipe

RUNS = Path("runs")


@dataclass(frozen=True)
class Step:
    """One stage of a run: its kind, its recipe, where it writes, and what it reads (keyword arguments of the stage)."""

    name: str
    kind: str
    resolved: Resolved
    out: Path
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, str]:
        """The inputs that are names, one by one: of several teachers `teacher sst2`, `teacher mrpc 2`."""
        return dict(pair for name, value in self.inputs.items() for pair in named_inputs(name, value))


def default_root(resolved: Resolved, *, explicit: bool) -> Path:
    """`runs/<recipe>` for a named recipe, else `runs/<task>` or that of the user's own file, else `runs/mbert`."""
    if explicit:
        return RUNS / (resolved.name.strip(".") or "mbert")
    recipe = resolved.recipe
    named = recipe.task or "-".join(map(task_name, recipe.tasks)) or recipe.data.train_file or "mbert"
    return RUNS / (Path(named).name.split(".")[0] or "mbert")


def steps(resolved: Resolved, root: Path, catalog: Catalog) -> list[Step]:
    """The recipe's stages in order, variants resolved; raises every missing input at once."""
    made: list[Step] = []
    errors: list[MbertError] = []
    for name in resolved.recipe.stages:
        try:
            made.append(step(name, resolved, root, catalog, planned=[earlier.name for earlier in made]))
        except MbertError as error:
            errors.append(error)
    if errors:
        raise combine_errors(errors)
    return made


def step(
    name: str, resolved: Resolved, root: Path, catalog: Catalog, *, out: Path | None = None, planned: Sequence[str] = (),
    over: Sequence[Layer] = (),
) -> Step:  # fmt: skip
    """One stage with its inputs; `planned` are stages that will have run before it, `over` lies over the variant's values."""
    kind = name
    if variant := resolved.recipe.variant.get(name):
        values = dict(variant)
        kind = str(values.pop("stage", name))
        resolved = overlay(resolved, values, f"variant {name}", catalog)
    for layer in over:
        resolved = overlay(resolved, layer.values, layer.origin, catalog)
    if kind not in WIRES:
        raise _no_stage(name, kind)
    check_stage(kind, resolved.recipe.model_dump(), catalog, resolved.origins)
    made = _Made(root, tuple(planned))
    inputs = WIRES[kind](resolved.recipe, made, catalog)
    inputs = _of_task(inputs, resolved.recipe.task)
    if kind == EXPERT_TEACHER:
        if not isinstance(inputs["teacher"], str):
            raise _one_teacher(name)
        kind = "task-distill"
        resolved = overlay(resolved, expert_teacher_values(resolved.recipe), f"stage {EXPERT_TEACHER}", catalog)
    return Step(name, kind, resolved, out or root / name, inputs)


def _of_task(value: Any, task: str | None) -> Any:
    """`{task}` in an input is the task's name, so that one recipe finds each task's own: "runs/teacher-{task}"."""
    if isinstance(value, str):
        return value.replace(TASK_PLACEHOLDER, task_name(task)) if task else value
    if isinstance(value, Mapping):
        return {key: _of_task(inner, task) for key, inner in value.items()}
    return [_of_task(inner, task) for inner in value] if isinstance(value, list) else value


def split_by_task(step: Step) -> list[Step]:
    """A distillation of several tasks or teachers as steps of one task and one teacher each, to look at one by one.

    A task without a teacher is fine-tuned, with the tokens of another's teacher; any other step is as it is.
    """
    teacher = step.inputs.get("teacher")
    if step.kind != "task-distill" or isinstance(teacher, str) or teacher is None:
        return [step]
    recipe, of_each = step.resolved.recipe, isinstance(teacher, Mapping)
    named = {task_name(task): recipe_of_task(recipe, task) for task in recipe.tasks} if of_each else {"": recipe}
    teachers = teacher if of_each else {"": teacher}
    tokens = next((one for ones in teachers.values() for one in ones), recipe.base)
    return [
        _alone(step, " ".join(filter(None, (step.name, task, str(n) if n > 1 else ""))), named[task], task, one, tokens)
        for task, ones in teachers.items()
        for n, one in enumerate(ones or [None], 1)
    ]


def _alone(step: Step, name: str, recipe: Recipe, task: str, teacher: str | None, tokens: str | None) -> Step:
    varied = step.inputs["augmented"]
    augmented = varied.get(task) if isinstance(varied, Mapping) else varied
    kind, inputs = step.kind, {"teacher": teacher, "student": step.inputs["student"], "augmented": augmented}
    if teacher is None:
        kind, inputs = "finetune", {"model": step.inputs["student"], "tokenizer": tokens}
    return replace(step, name=name, kind=kind, resolved=replace(step.resolved, recipe=recipe), inputs=inputs)


@dataclass(frozen=True)
class _Made:
    """Outputs of earlier stages: of this run, and of stages run alone."""

    root: Path
    planned: tuple[str, ...]

    def of(self, stage: str) -> str | None:
        """The directory an earlier stage made or will have made."""
        if stage in self.planned:
            return str(self.root / stage)
        places = (self.root / stage, RUNS / "mbert" / stage)
        return next((str(place) for place in places if (place / "manifest.json").is_file()), None)

    def planned_of(self, stage: str) -> str | None:
        """The directory a stage of this run will have made."""
        return self.of(stage) if stage in self.planned else None

    def resolve(self, value: str | None) -> str | None:
        """A key's value: the name of an earlier stage stands for its output."""
        if value is None or Path(value).exists():
            return value
        return (self.of(value) if "/" not in value else None) or value


def _pretrain(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    model = made.resolve(recipe.pretrain.model) or recipe.base
    return {
        "model": _needed(model, "pretrain.model", "a model to go on from, or a student description", "--model bert-4x128"),
        "source": _corpus(recipe),
        "tokenizer": recipe.base if recipe.base != model else None,
    }


def _finetune(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    model = made.resolve(recipe.finetune.model) or _pretrained(recipe, made)
    tokenizer = recipe.base or made.of("pretrain") or made.resolve(recipe.teacher.model)
    return {
        "model": _needed(model, "finetune.model", "an encoder: a directory, a Hub id or a student", "--model DIR"),
        "tokenizer": tokenizer if tokenizer != model else None,
    }


def _general(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    teacher = made.resolve(recipe.base) or made.of("pretrain")
    return {
        "teacher": _needed(teacher, "base", "the pre-trained teacher of stage one", "--teacher google-bert/bert-base-uncased"),
        "student": _needed(made.resolve(recipe.student), "student", "a student of the catalogue", "--student tinybert-4l-312"),
        "source": _corpus(recipe),
        **_initial(recipe, made),
    }


def _augment(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    uses = recipe.augment.sources
    model = made.resolve(recipe.augment.masked_lm) or _pretrained(recipe, made)
    masked_lm = _needed(model, "augment.masked_lm", "the masked-LM that proposes words", "--masked-lm DIR")
    vectors = recipe.vectors.source or (masked_lm if "word_vectors" in uses else None)
    return {"masked_lm": masked_lm, "vectors": vectors}


def _expert_teacher(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    if recipe.tasks:
        raise _one_by_one(recipe.tasks)
    teacher = _needed(_teacher(recipe, made), "teacher.model", "a teacher fine-tuned on the task", "--teacher DIR")
    return {"teacher": teacher, "student": teacher, "augmented": _augmented(recipe, made)}


def _task_distill(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    return {
        "teacher": _teachers(recipe, made),
        "student": _student(recipe, made, catalog),
        "augmented": _augmented(recipe, made),
        **_initial(recipe, made),
    }


def _evaluate(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    model = made.resolve(recipe.evaluate.model) or made.of("task-distill") or made.of("finetune")
    return {
        "model": _needed(model, "evaluate.model", "the model to evaluate", "mbert evaluate DIR"),
        "teacher": _teacher(recipe, made),
    }


def _export(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    model = made.resolve(recipe.export.model) or made.of("task-distill")
    return {
        "model": _needed(model, "export.model", "the model to export", "mbert export DIR"),
        "teacher": _teacher(recipe, made),
    }


def _report(recipe: Recipe, made: _Made, catalog: Catalog) -> dict[str, Any]:
    kinds = {name: recipe.variant.get(name, {}).get("stage", name) for name in made.planned}
    models = {name: made.of(name) for name, kind in kinds.items() if kind in ("finetune", "task-distill")}
    return {"models": models, "exported": made.of("export")}


WIRES = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "general-distill": _general,
    "augment": _augment,
    EXPERT_TEACHER: _expert_teacher,
    "task-distill": _task_distill,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
}


def _pretrained(recipe: Recipe, made: _Made) -> str | None:
    """The masked-LM of this run; else the one the recipe names; else what `pretrain` left from a run before."""
    return made.planned_of("pretrain") or recipe.base or made.of("pretrain")


def _teacher(recipe: Recipe, made: _Made) -> str | None:
    """The one teacher of one task: as named, else what this run fine-tunes."""
    return made.resolve(recipe.teacher.model) or made.of("finetune")


def _teachers(recipe: Recipe, made: _Made) -> str | list[str] | dict[str, list[str]]:
    """The teacher of a task, several to be asked together, or those of every task of several."""
    if recipe.tasks:
        return {task: [str(made.resolve(one)) for one in named] for task, named in teachers_of(recipe).items()}
    if recipe.teacher.models:
        return [str(made.resolve(one)) for one in recipe.teacher.models]
    if recipe.moe.side in ("teacher", "both"):
        expert = made.planned_of(EXPERT_TEACHER) or made.resolve(recipe.teacher.model) or made.of(EXPERT_TEACHER)
        return _needed(expert, "teacher.model", "a teacher of experts (mbert expert-teacher)", "--teacher DIR")
    return _needed(_teacher(recipe, made), "teacher.model", "a teacher fine-tuned on the task", "--teacher DIR")


def _student(recipe: Recipe, made: _Made, catalog: Catalog) -> str:
    """`init` random, new: the description; teacher: that; a checkpoint: that; else the general checkpoint of this run, unless
    `student` names a checkpoint."""
    known = recipe.student is not None and not Path(recipe.student).is_dir()
    described = known and not list(catalog.check("students", str(recipe.student), ""))
    if recipe.init == "teacher":
        return _as_the_teacher(_teachers(recipe, made))
    if recipe.init not in ("auto", "random", "new"):
        return str(made.resolve(recipe.init))
    general = made.of("general-distill") if recipe.init == "auto" else None
    student = general if general and (described or recipe.student is None) else made.resolve(recipe.student)
    return _needed(student, "student", "a checkpoint, or a student of the catalogue", "--student DIR")


def _as_the_teacher(teachers: str | list[str] | dict[str, list[str]]) -> str:
    if isinstance(teachers, str):
        return teachers
    raise MbertError(
        "M043",
        f"the student is to begin as its teacher, and there are {len(teachers)} of them",
        where="init",
        allowed="One task and one teacher; or a student of its own.",
        fix="--set init=auto --student tinybert-4l-312",
    )


def _initial(recipe: Recipe, made: _Made) -> dict[str, Any]:
    """Whose weights a new student takes, where that is not said to be the stage's own teacher."""
    said = recipe.initialise
    if said.by == "random" or said.model is None:
        return {}
    place = recipe.base or made.of("pretrain") if said.model == "base" else made.resolve(said.model)
    return {"initial": place} if place else {}


def _augmented(recipe: Recipe, made: _Made) -> str | dict[str, str] | None:
    if recipe.tasks:
        return {task: str(made.resolve(place)) for task, place in augmented_of(recipe).items()} or None
    if recipe.augmented is False:
        return None
    return made.resolve(recipe.augmented) if recipe.augmented else made.of("augment")


def _corpus(recipe: Recipe) -> str:
    return _needed(recipe.corpus.source, "corpus.source", "plain text", "--corpus python-docs, or --corpus text.txt.gz")


def _one_by_one(tasks: Sequence[str]) -> MbertError:
    return MbertError(
        "M129",
        f"an expert teacher is made of one task's teacher, and this run is of {len(tasks)} tasks",
        where="tasks",
        allowed="One task at a time; a run of several then names each task's in [teachers], or by a pattern with {task}.",
        fix=f"mbert expert-teacher --task {tasks[0]} --teacher DIR -o runs/expert-{task_name(tasks[0])}",
    )


def _one_teacher(stage: str) -> MbertError:
    return MbertError(
        "M132",
        "an expert teacher is made of one fine-tuned teacher, and several are named here",
        where=f"stage {stage}",
        allowed="One task and one teacher; a recipe of several tasks has a variant for each.",
        fix='--task sst2 --teacher DIR, or a variant of the recipe with stage = "expert-teacher", tasks = [], task = "sst2"',
    )


def _no_stage(variant: str, kind: str) -> MbertError:
    return MbertError(
        "M024",
        f'the variant "{variant}" is of no stage: "{kind}"',
        where=f"variant.{variant}.stage",
        allowed=f"Stages: {nearest(kind, WIRES)}",
        fix=f'Say which stage it varies: variant.{variant}.stage = "finetune"',
    )


def _needed(value: str | None, key: str, what: str, fix: str) -> str:
    if value:
        return value
    raise MbertError(
        "M022",
        "nothing is named here, and no earlier stage made it",
        where=key,
        allowed=f"Wanted: {what}.",
        fix=f"Say {fix}, or put {key} into mbert.toml.",
    )
