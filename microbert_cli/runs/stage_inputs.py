"""Which directory feeds which stage: explicit keys first, else what an earlier stage of the same run made.

Static: nothing is opened, torch is not imported, so `--dry-run` can tell what would happen.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microbert_cli.errors import MAX_ERRORS, MbertError, combine_errors, nearest
from microbert_cli.recipe.layers import Layer
from microbert_cli.recipe.loss_checks import check_stage
from microbert_cli.recipe.multitask import (
    TASK_PLACEHOLDER,
    augmented_of,
    check_several_labels,
    named_inputs,
    recipe_of_task,
    single_teacher,
    task_name,
)
from microbert_cli.recipe.registry import Catalog, stage_names
from microbert_cli.recipe.resolve import Resolved, overlay
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import has_several_labels, writes_text
from microbert_cli.recipe.words.checks import check_words, labels_words
from microbert_cli.runs.stage_registry import Stage, find_stage
from microbert_cli.table_format import name_of_files

RUNS = Path("runs")
SEED = re.compile(r"seed-\d+")  # the directory of one of several seeds in a stage's output
TRIM, DISTIL, CASCADE = "trim", "task-distill", "cascade"


@dataclass(frozen=True)
class Step:
    """One stage of a run: its kind, its recipe, where it writes, and what it reads (keyword arguments of the stage)."""

    name: str
    kind: str
    resolved: Resolved
    out: Path
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        """Returns the record of its kind."""
        return find_stage(self.kind)

    @property
    def outputs(self) -> list[str]:
        """Returns the directories that later stages may take as models: the output, and the model of each of several seeds."""
        seeds = self.resolved.recipe.seeds if self.stage.compared else []
        return [str(self.out), *(str(self.out / f"seed-{seed}") for seed in seeds if len(seeds) > 1)]

    @property
    def distils(self) -> bool:
        """Whether a student learns from a teacher in it."""
        return "student" in self.inputs

    @property
    def vocabulary(self) -> str | None:
        """Returns the model whose tokens a new student of a distillation takes: its teacher's; else the base model's."""
        inputs = self.inputs
        source = inputs["teacher"] or inputs.get("initial") or self.resolved.recipe.base or inputs["student"]
        return source if isinstance(source, str) else None

    @property
    def places(self) -> dict[str, str]:
        """Returns the inputs that are names, one by one: of several teachers `teacher sst2`, `teacher mrpc 2`."""
        return dict(pair for name, value in self.inputs.items() for pair in named_inputs(name, value))


def default_root(resolved: Resolved, *, explicit: bool) -> Path:
    """Returns `runs/<recipe>` for a named recipe, else `runs/<task>` or that of the user's own file, else `runs/mbert`."""
    if explicit:
        return RUNS / (resolved.name.strip(".") or "mbert")
    recipe = resolved.recipe
    named = recipe.task or "-".join(map(task_name, recipe.tasks))
    if not named and recipe.data.train_file:
        return _root_of_file(recipe.data.train_file)
    return RUNS / (Path(named or "mbert").name.split(".")[0] or "mbert")


def _root_of_file(file: str) -> Path:
    """Returns the folder of a user's own file; `runs/train` of a train.csv where earlier runs are there already."""
    root, by_stem = RUNS / name_of_files(file), RUNS / Path(file).name.split(".")[0]
    return by_stem if by_stem.is_dir() and not root.exists() else root


def steps(resolved: Resolved, root: Path, catalog: Catalog) -> list[Step]:
    """Returns the recipe's stages in order, variants resolved; raises every missing input at once.

    A stage about one task is there for each of several tasks.
    """
    planned: list[Step] = []
    errors: list[MbertError] = []
    for name in resolved.recipe.stages:
        try:
            names = [earlier.name for earlier in planned]
            whole = step(name, resolved, root, catalog, planned=names)
            errors += {str(error): error for error in _unfit_members(whole, planned)}.values()
            planned += _by_task(whole, EarlierOutputs(root, tuple(names)))
        except MbertError as error:
            errors.append(error)
        if len(errors) > MAX_ERRORS:
            break
    if errors:
        raise combine_errors(errors)
    return planned


def _by_task(whole: Step, earlier: "EarlierOutputs") -> list[Step]:
    """Returns a stage about one task once for each of the recipe's several, in `NAME-TASK`; any other stage as it is."""
    recipe = whole.resolved.recipe
    if not (whole.stage.by_task and recipe.tasks):
        return [whole]
    parts = []
    for task in recipe.tasks:
        name = f"{whole.name}-{task_name(task)}"
        alone = recipe_of_task(recipe, task).model_copy(update={"teachers": {}})
        inputs = {**whole.inputs, "teacher": earlier.resolve(single_teacher(recipe, task))}
        inputs = _fill_in_task(inputs, task)
        parts.append(
            replace(
                whole, name=name, out=whole.out.with_name(name), inputs=inputs, resolved=replace(whole.resolved, recipe=alone)
            )
        )
    return parts


def step(
    name: str, resolved: Resolved, root: Path, catalog: Catalog, *, out: Path | None = None, planned: Sequence[str] = (),
    over: Sequence[Layer] = (),
) -> Step:  # fmt: skip
    """Returns one stage with its inputs; `planned` are stages that run before it, `over` lies over the variant's values."""
    kind = name
    if variant := resolved.recipe.variant.get(name):
        values = dict(variant)
        kind = str(values.pop("stage", name))
        resolved = overlay(resolved, values, f"variant {name}", catalog)
    for layer in over:
        resolved = overlay(resolved, layer.values, layer.origin, catalog)
    if kind not in stage_names():
        raise _unknown_stage(name, kind)
    check_stage(kind, resolved.recipe.model_dump(), catalog, resolved.origins)
    stage = find_stage(kind)
    if stage.no_texts and writes_text(resolved.recipe, catalog):
        raise _no_texts(stage, resolved.recipe)
    if kind in ("task-distill", "expert-teacher") and has_several_labels(resolved.recipe, catalog):
        check_several_labels(resolved.recipe)
    if labels_words(resolved.recipe, catalog):
        check_words(kind, resolved.recipe, stage.no_words)
    inputs = _fill_in_task(stage.inputs(resolved.recipe, EarlierOutputs(root, tuple(planned)), catalog), resolved.recipe.task)
    if stage.runs_as is not None:
        resolved = overlay(resolved, stage.overrides(resolved.recipe), f"stage {kind}", catalog)
    return Step(name, stage.runs_as or kind, resolved, out or root / name, inputs)


def _fill_in_task(value: Any, task: str | None) -> Any:
    """Replaces `{task}` in an input by the task's name, so that one recipe finds each task's own: runs/teacher-{task}."""
    if isinstance(value, str):
        return value.replace(TASK_PLACEHOLDER, task_name(task)) if task else value
    if isinstance(value, Mapping):
        return {key: _fill_in_task(inner, task) for key, inner in value.items()}
    return [_fill_in_task(inner, task) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class EarlierOutputs:
    """The outputs of earlier stages, which feed the later ones. `planned`: stages of this run that come before."""

    root: Path
    planned: tuple[str, ...]

    def directory(self, stage: str) -> str | None:
        """Returns the directory that an earlier stage, of this run or run alone, made or will have made."""
        if stage in self.planned:
            return str(self.root / stage)
        candidates = (self.root / stage, RUNS / "mbert" / stage)
        return next((str(directory) for directory in candidates if (directory / "manifest.json").is_file()), None)

    def directory_of_this_run(self, stage: str) -> str | None:
        """Returns the directory that a stage of this run will have made."""
        return self.directory(stage) if stage in self.planned else None

    def resolve(self, value: str | None) -> str | None:
        """Returns a key's value; the name of an earlier stage stands for its output, `STAGE/seed-1` for one seed's model."""
        if value is None or Path(value).exists():
            return value
        stage, _, seed = value.partition("/")
        directory = self.directory(stage) if not seed or SEED.fullmatch(seed) else None
        return str(Path(directory) / seed) if directory else value


def new_model_input(value: str | None, key: str, earlier: EarlierOutputs, catalog: Catalog) -> str | None:
    """Returns a model or the name of a new one: a student of the catalogue, whatever an earlier run called its outputs.

    Any other name of a stage stands for its output. Raises M025 for a student that a stage of this run is named after.
    """
    if value is None or list(catalog.check("students", value, "")):
        return earlier.resolve(value)
    if value in earlier.planned:
        raise MbertError(
            "M025",
            f'"{value}" is a stage of this run and a student of the catalogue',
            where=key,
            allowed="A name that stands for one model.",
            fix=f"Give the stage another name in stages and in its table: [variant.{value}-stage]",
        )
    return value


def masked_lm_input(recipe: Recipe, earlier: EarlierOutputs) -> str | None:
    """Returns the masked-LM of this run, else the one that the recipe names, else what `pretrain` made in an earlier run."""
    return earlier.directory_of_this_run("pretrain") or recipe.base or earlier.directory("pretrain")


def teacher_input(recipe: Recipe, earlier: EarlierOutputs) -> str | None:
    """Returns the one teacher of one task: the one that the recipe names, else what `finetune` made."""
    return earlier.resolve(recipe.teacher.model) or earlier.directory("finetune")


def taught_input(recipe: Recipe, earlier: EarlierOutputs) -> str | None:
    """Returns the teacher that a student learns from: the trimmed one of this run, else the teacher itself.

    A key that names a stage of this run, such as teacher.model = "finetune", says which of the two.
    """
    planned = earlier.planned
    before = planned[: planned.index(TRIM)] if TRIM in planned else ()
    is_of_teacher = TRIM in planned and DISTIL not in before and ("finetune" in before or "finetune" not in planned)
    if is_of_teacher and recipe.teacher.model not in planned:
        return earlier.directory(TRIM)
    return teacher_input(recipe, earlier)


def student_output(earlier: EarlierOutputs) -> str | None:
    """Returns the student of this run or an earlier one; the trimmed one where this run trims behind its distillation."""
    planned = earlier.planned
    is_trimmed = TRIM in planned and DISTIL in planned[: planned.index(TRIM)]
    return earlier.directory(TRIM if is_trimmed else DISTIL)


def initial_input(recipe: Recipe, earlier: EarlierOutputs) -> dict[str, Any]:
    """Returns the model whose weights a new student takes, as `initial`; empty where that is the stage's own teacher."""
    initialise = recipe.initialise
    if initialise.by == "random" or initialise.model is None:
        return {}
    is_base = initialise.model == "base"
    model = recipe.base or earlier.directory("pretrain") if is_base else earlier.resolve(initialise.model)
    return {"initial": model} if model else {}


def augmented_input(recipe: Recipe, earlier: EarlierOutputs) -> str | dict[str, str] | None:
    """Returns the augmented rows of the task, or of each of several tasks; None to train on the original rows alone."""
    if recipe.tasks:
        return {task: str(earlier.resolve(source)) for task, source in augmented_of(recipe).items()} or None
    if recipe.augmented is False:
        return None
    return earlier.resolve(recipe.augmented) if recipe.augmented else earlier.directory("augment")


def corpus_input(recipe: Recipe) -> str:
    """Returns the corpus; raises M022 where none is named."""
    return required_input(recipe.corpus.source, "corpus.source", "plain text", "--corpus python-docs, or --corpus text.txt.gz")


def _unfit_members(step: Step, planned: Sequence[Step]) -> Iterator[MbertError]:
    """Yields an error for each input that a stage of this run will not make: of a seed or of a task that it has not."""
    for name, place in step.places.items():
        maker = next((earlier for earlier in planned if place in earlier.outputs or Path(place).parent == earlier.out), None)
        if maker is None:
            continue
        recipe, role = maker.resolved.recipe, name.split()
        if place not in maker.outputs:
            yield _no_such_seed(maker, Path(place).name, name)
        elif recipe.tasks and role[0] == "teacher" and len(role) > 1 and step.resolved.recipe.tasks:
            if role[1] not in (tasks := [task_name(task) for task in recipe.tasks]):
                yield _task_not_learnt(maker.name, role[1], tasks)


def _no_such_seed(maker: Step, seed: str, name: str) -> MbertError:
    places = [Path(place).name for place in maker.outputs[1:]]
    return MbertError(
        "M029",
        f'"{maker.name}/{seed}" is wanted as {name}, and the stage {maker.name} makes no such model',
        where=f"variant.{maker.name}, seeds",
        allowed=f"Models of its seeds: {', '.join(f'{maker.name}/{place}' for place in places)}."
        if places
        else f'One model, of its one seed: "{maker.name}".',
        fix=f"Name one of these, or add the seed: seeds = [1, 2, 3] for {maker.name}.",
    )


def _task_not_learnt(maker: str, task: str, tasks: Sequence[str]) -> MbertError:
    return MbertError(
        "M054",
        f'{maker} is to teach "{task}", and it does not learn that task',
        where=f"teachers.{task}",
        allowed=f"A model that learns it; {maker} learns {', '.join(tasks)}.",
        fix=f"Add {task} to the tasks of {maker}, or leave out teachers.{task}: it is then learnt from labels alone.",
    )


def _unknown_stage(variant: str, kind: str) -> MbertError:
    return MbertError(
        "M024",
        f'the variant "{variant}" is of no stage: "{kind}"',
        where=f"variant.{variant}.stage",
        allowed=f"Stages: {nearest(kind, stage_names())}",
        fix=f'Say which stage it varies: variant.{variant}.stage = "finetune"',
    )


def _no_texts(stage: Stage, recipe: Recipe) -> MbertError:
    return MbertError(
        "M149",
        f"{stage.name} is not for a task whose answers are texts: {stage.no_texts}",
        where=f"task {recipe.task or recipe.data.train_file or recipe.data.dev_file or recipe.data.test_file}",
        allowed="Stages for it: pretrain, finetune, task-distill, evaluate. What task-distill makes is a plain directory, "
        "which AutoModelForSeq2SeqLM of transformers loads.",
        fix=f"Leave {stage.name} out of the stages.",
    )


def required_input(value: str | None, key: str, what: str, fix: str) -> str:
    """Returns the value of an input that a stage cannot do without; raises M022 where there is none."""
    if value:
        return value
    raise MbertError(
        "M022",
        "nothing is named here, and no earlier stage made it",
        where=key,
        allowed=f"Wanted: {what}.",
        fix=f"Say {fix}, or put {key} into mbert.toml.",
    )
