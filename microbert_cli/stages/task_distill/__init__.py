"""Stage two: the student learns a task, or several, from fine-tuned teachers, through all phases of the method."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.multitask import recipe_of_task, task_name, teachers_of
from microbert_cli.recipe.phase_data import taught_by_table, trained_splits, unused_transfer_note
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import PRECISION_KEYS, Recipe
from microbert_cli.recipe.task import writes_text
from microbert_cli.recipe.values import MULTITASK_KEYS
from microbert_cli.runs.stage_inputs import (
    EarlierOutputs,
    Step,
    augmented_input,
    initial_input,
    new_model_input,
    required_input,
    taught_input,
)
from microbert_cli.runs.stage_registry import Stage

Teachers = str | list[str] | dict[str, list[str]] | None


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns teachers, student and augmented rows, and the model that a new student takes weights from."""
    if writes_text(recipe, catalog):
        return _of_texts(recipe, earlier, catalog)
    student = _student(recipe, earlier, catalog)
    if taught_by_table(recipe):
        base = _base(recipe, earlier, catalog, student)
        return {"teacher": None, "student": student, "augmented": None, **base, **_vectors(recipe)}
    teacher = _teachers(recipe, earlier)
    for task, members in teacher.items() if isinstance(teacher, Mapping) else [("", teacher)]:
        _check_once(task, members)
    return {
        "teacher": teacher,
        "student": student,
        "augmented": _augmented(recipe, earlier, teacher),
        **(_tokens(recipe, earlier, catalog, student) if untaught(teacher) else initial_input(recipe, earlier)),
        **_vectors(recipe),
    }


def _check_once(task: str, members: str | list[str] | None) -> None:
    """Raises M075 for an ensemble that has a model twice: the mean would lean towards it."""
    if isinstance(members, list) and (twice := [member for member in members if members.count(member) > 1]):
        raise MbertError(
            "M075",
            f"an ensemble asks each of its models once, and this one is named {members.count(twice[0])} times: {twice[0]}",
            where=f"teachers.{task}" if task else "teacher.models",
            allowed="Different models; those of several seeds of one stage are STAGE/seed-1, STAGE/seed-2 ...",
            fix="Name each model once.",
        )


def untaught(teacher: object) -> bool:
    """Whether several tasks are learnt from labels alone, without a teacher for any of them."""
    return isinstance(teacher, Mapping) and not any(teacher.values())


def _tokens(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog, student: str) -> dict[str, str]:
    """Returns the model whose tokens a new student takes that nobody teaches; none for a checkpoint, which has its own."""
    if not _is_described(student, catalog):
        return {}
    base = earlier.resolve(recipe.base) or earlier.directory("pretrain")
    return {"initial": base} if base else {}


def _augmented(recipe: Recipe, earlier: EarlierOutputs, teacher: Teachers) -> str | dict[str, str] | None:
    """Returns the augmented rows; those of a task without a teacher are left out, since nobody could label them."""
    augmented = augmented_input(recipe, earlier)
    if not isinstance(augmented, Mapping) or not isinstance(teacher, Mapping):
        return augmented
    return {task: source for task, source in augmented.items() if teacher[task]} or None


def _of_texts(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the teacher that fills in targets and the student that writes them; M028 for what neither of them can do."""
    pruned = recipe.pruning_phase
    phases = recipe.run_phases.items()
    chunked, by_loss = (
        [name for name, spec in phases if getattr(spec, key) not in (None, "score")] for key in ("chunk_rows", "best_by")
    )
    conflicts = {
        "several tasks": (bool(recipe.tasks), "Name one task: --task TASK"),
        "several teachers": (bool(recipe.teacher.models), "--set 'teacher.models=[]' --teacher DIR"),
        "columns of a table that teach": (taught_by_table(recipe), "Leave out data.label_probabilities and data.label_score."),
        "a transfer set": (recipe.data.transfer_file is not None, "Leave out data.transfer_file."),
        "a student that begins as its teacher": (recipe.init == "teacher", "--set init=auto --student seq2seq"),
        "pruning": (pruned is not None, f"--set phases.{pruned}.prune=false"),
        "experts": (recipe.moe.side != "none", "--set moe.side=none"),
        "early exits": (recipe.early_exit.branch != "none", "--set early_exit.branch=none"),
        "an int8 teacher": (recipe.teacher.precision != "fp32", "--set teacher.precision=fp32"),
        "rows in chunks": (bool(chunked), "Leave out chunk_rows."),
        "the best weights by a loss": (bool(by_loss), f"--set phases.{'.'.join(by_loss[:1])}.best_by=score"),
    }
    for what, (is_there, fix) in conflicts.items():
        if is_there:
            raise MbertError(
                "M028",
                f"{what}: not where the task is to write a text",
                where="task-distill",
                allowed="One task, one teacher that fills in targets, one new student that writes, or one that was begun so.",
                fix=fix,
            )
    named = recipe.init if recipe.init not in ("auto", "random", "new") else None
    student = earlier.resolve(named) if named else new_model_input(recipe.student, "student", earlier, catalog)
    teacher = taught_input(recipe, earlier)
    return {
        "teacher": required_input(
            teacher, "teacher.model", "a teacher that fills in targets (mbert finetune)", "--teacher DIR"
        ),
        "student": required_input(student, "student", "a student that writes: seq2seq", "--student seq2seq"),
    }


def _vectors(recipe: Recipe) -> dict[str, str]:
    """Returns the word vectors that a new student begins with; none where it begins otherwise."""
    if recipe.initialise.by != "word-vectors":
        return {}
    what = "word vectors, such as GloVe's"
    return {"vectors": required_input(recipe.vectors.source, "vectors.source", what, "--set vectors.source=FILE")}


def _is_described(student: str, catalog: Catalog) -> bool:
    """Whether the student is one of the catalogue, not a checkpoint."""
    return not Path(student).is_dir() and not list(catalog.check("students", student, ""))


def _base(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog, student: str) -> dict[str, Any]:
    """Returns the model whose tokens and weights a new student takes where a table teaches; none for a checkpoint."""
    if not _is_described(student, catalog):
        return {}
    named = initial_input(recipe, earlier).get("initial") or earlier.resolve(recipe.base)
    return {"initial": required_input(named, "base", "a pre-trained model, for a new student's tokens", "--set base=MODEL")}


def _teachers(recipe: Recipe, earlier: EarlierOutputs) -> Teachers:
    """Returns the teacher of a task, several to be asked together, those of each of several tasks, or None for a table."""
    if taught_by_table(recipe):
        return None
    if recipe.tasks:
        return {task: [str(earlier.resolve(name)) for name in names] for task, names in teachers_of(recipe).items()}
    if recipe.teacher.models:
        return [str(earlier.resolve(name)) for name in recipe.teacher.models]
    if recipe.moe.side in ("teacher", "both"):
        in_this_run = earlier.directory_of_this_run("expert-teacher")
        # what this run makes comes before what the recipe names: the named one is the teacher that experts are made of
        expert = in_this_run or earlier.resolve(recipe.teacher.model) or earlier.directory("expert-teacher")
        return required_input(expert, "teacher.model", "a teacher of experts (mbert expert-teacher)", "--teacher DIR")
    return required_input(taught_input(recipe, earlier), "teacher.model", "a teacher fine-tuned on the task", "--teacher DIR")


def _student(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> str:
    """Returns the student as `init` says: the description (random, new), the teacher, or a checkpoint.

    With init = "auto" it is the general checkpoint of this run, unless `student` names a checkpoint.
    """
    if recipe.pruning_phase is not None:
        return _pruned(recipe, catalog, recipe.pruning_phase)
    if recipe.init == "teacher":
        return _single(_teachers(recipe, earlier))
    if recipe.init not in ("auto", "random", "new"):
        return str(earlier.resolve(recipe.init))
    general = earlier.directory("general-distill") if recipe.init == "auto" else None
    is_directory = recipe.student is not None and Path(recipe.student).is_dir()
    is_described = not is_directory and not list(catalog.check("students", str(recipe.student), ""))
    use_general = general and (recipe.student is None or is_described)
    student = general if use_general else new_model_input(recipe.student, "student", earlier, catalog)
    return required_input(student, "student", "a checkpoint, or a student of the catalogue", "--student DIR")


def _pruned(recipe: Recipe, catalog: Catalog, phase: str) -> str:
    """Returns the description of a student that begins as its teacher and is cut to its own shape; M425, M426 where it cannot.

    A phase that prunes is run once: every learning rate would need a student of the first shape again.
    """
    key, spec = f"phases.{phase}.prune", recipe.run_phases[phase]
    others = [name for name, other in recipe.run_phases.items() if other.prune and name != phase]
    if recipe.init != "teacher":
        raise _cannot_prune(key, f'the student begins as init = "{recipe.init}" says', "--set init=teacher")
    if recipe.student is None or Path(recipe.student).is_dir() or list(catalog.check("students", recipe.student, "")):
        what = f'student = "{recipe.student}" is no description' if recipe.student else "no student is named"
        raise _cannot_prune(key, f"{what}, so that there is no shape to cut it to", "--student bert-3x384x512")
    conflicts = {
        "a table that teaches": (taught_by_table(recipe), f"--set {key}=false --set init=new"),
        "several tasks": (bool(recipe.tasks), f"--set {key}=false"),
        "several teachers": (len(recipe.teacher.models) > 1, "--set 'teacher.models=[]' --teacher DIR"),
        "experts": (recipe.moe.side != "none", "--set moe.side=none"),
        "compile": (recipe.compile, "--set compile=false"),
        "a second phase that prunes": (bool(others), f"--set phases.{'.'.join(others[:1])}.prune=false"),
        "several learning rates": (len(spec.learning_rates) > 1, f"--set 'phases.{phase}.learning_rates=[]'"),
        "a phase in stages": (
            bool(staged := [name for name, other in recipe.run_phases.items() if other.unfreeze]),
            f"--set 'phases.{'.'.join(staged[:1])}.unfreeze=[]'",
        ),
        "rows in chunks": (spec.chunk_rows is not None, "Leave out chunk_rows, or name another phase to prune in."),
        "frozen layers": (any(part != "embeddings" for part in spec.freeze), f"--set 'phases.{phase}.freeze=[]'"),
    }
    for what, (is_there, fix) in conflicts.items():
        if is_there:
            raise MbertError(
                "M426",
                f"{what}: not together with pruning",
                where=key,
                allowed="One task, one teacher, one phase that prunes, one learning rate; embeddings may be frozen.",
                fix=fix,
            )
    return recipe.student


def _cannot_prune(key: str, what: str, fix: str) -> MbertError:
    return MbertError(
        "M425",
        f"a student that is pruned begins as its whole teacher, and {what}",
        where=key,
        allowed='init = "teacher", and a student of the catalogue (or a TOML file) for the shape that comes out.',
        fix=fix,
    )


def _single(teachers: Teachers) -> str:
    """Returns the one teacher that the student begins as; raises M043 where there are several."""
    if isinstance(teachers, str):
        return teachers
    raise MbertError(
        "M043",
        f"the student is to begin as its teacher, and there are {len(teachers or ())} of them",
        where="init",
        allowed="One task and one teacher; or a student of its own.",
        fix="--set init=auto --student tinybert-4l-312",
    )


def split_tasks(step: Step) -> list[Step]:
    """Splits a distillation of several tasks or teachers into steps of one task and one teacher each.

    A task without a teacher is fine-tuned, with the tokens of another's teacher; a step of one teacher stays as it is.
    """
    teacher = step.inputs["teacher"]
    if isinstance(teacher, str) or teacher is None:
        return [step]
    recipe, by_task = step.resolved.recipe, isinstance(teacher, Mapping)
    recipes = {task_name(task): recipe_of_task(recipe, task) for task in recipe.tasks} if by_task else {"": recipe}
    teachers = teacher if by_task else {"": teacher}
    tokenizer = next((name for names in teachers.values() for name in names), step.inputs.get("initial") or recipe.base)
    parts = []
    for task, names in teachers.items():
        for number, name in enumerate(names or [None], 1):
            label = " ".join(filter(None, (step.name, task, str(number) if number > 1 else "")))
            parts.append(_part(step, label, recipes[task], task, name, tokenizer))
    return parts


def _part(step: Step, label: str, recipe: Recipe, task: str, teacher: str | None, tokenizer: str | None) -> Step:
    augmented, student = step.inputs["augmented"], step.inputs["student"]
    if isinstance(augmented, Mapping):
        augmented = augmented.get(task)
    part = replace(step, name=label, resolved=replace(step.resolved, recipe=recipe))
    if teacher is None:
        return replace(part, kind="finetune", inputs={"model": student, "tokenizer": tokenizer})
    return replace(part, inputs={"teacher": teacher, "student": student, "augmented": augmented})


STAGE = Stage(
    "task-distill",
    inputs,
    input_keys={
        "teacher": ("teacher.model",), "student": ("student", "init"), "augmented": ("augmented",),
        "vectors": ("vectors.source",),
    },
    keys=(
        "task", "data", "teacher", "phases", "normalisation", "layer_map", "initialise", "moe", "early_exit", "cache",
        "seed", "seeds", "budget", *PRECISION_KEYS, *MULTITASK_KEYS,
    ),
    splits=trained_splits,
    phases=lambda recipe: {f"phases.{name}": phase for name, phase in recipe.run_phases.items()},
    distributed=True,
    reusable=True,
    compared=True,
    makes_model=True,
    is_method=True,
    heads=lambda recipe: {} if writes_text(recipe) else {"teacher": "classifier"},
    extras=lambda recipe: (
        ("text",) if writes_text(recipe) else ("onnx",) if recipe.teacher.precision == "int8" else ()
    ),
    remark=unused_transfer_note,
    split_tasks=split_tasks,
)  # fmt: skip
