"""Stage two: the student learns a task, or several, from fine-tuned teachers, through all phases of the method."""

from collections.abc import Mapping
from pathlib import Path

from microbert_cli.data.task_data import facts_of, fingerprints_of, load_all_task_data
from microbert_cli.distillation.distiller import Distiller, Teachers
from microbert_cli.distillation.results import summarize
from microbert_cli.models import factory
from microbert_cli.models.device import settle_precision
from microbert_cli.models.moe.convert import check_expert_teacher
from microbert_cli.recipe.multitask import named_inputs, untaught_note
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results
from microbert_cli.stages.task_distill import STAGE, untaught
from microbert_cli.stages.task_distill.generation import distil_text
from microbert_cli.training.budget import record_of_budget
from microbert_cli.training.phases import train_over_seeds


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    teacher: Teachers,
    student: str,
    augmented: str | Mapping[str, str] | None = None,
    initial: str | None = None,
    vectors: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Distils the fine-tuned `teacher` into `student`; dev scores beside the teacher's are in metrics.json.

    teacher    a classifier fine-tuned on the task, or several to be asked together; of several tasks those of each by its name;
               None where columns of the task's table teach
    student    the output of general-distill, any encoder, or a student of the catalogue (random weights)
    augmented  a directory made by `augment`, of several tasks one by name; without it the original training set is used
    vectors    a file of word vectors, where a new student begins with them
    initial    whose weights a new student takes where the recipe says that it takes any; else the teacher's
    """
    if remark := STAGE.remark(recipe, catalog):
        reporter.warn(remark)
    if note := untaught_note(recipe, catalog):
        reporter.note(note)
    data = load_all_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), augmented=augmented, reporter=reporter)
    input_sources = dict(named_inputs("teacher", teacher)) | {"student": student}
    if untaught(teacher):  # a new student's tokens are those of the base model
        recipe, initial = recipe.model_copy(update={"base": initial or recipe.base}), None
    if len(input_sources) == 1 and recipe.base is not None:
        input_sources["base"] = recipe.base
    input_sources |= {name: source for name, source in (("initial", initial), ("vectors", vectors)) if source}
    inputs = {name: factory.identify(source, catalog) for name, source in input_sources.items()}
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "own_files": catalog.own_files(),
        **inputs,
        **({"vectors_limit": recipe.vectors.limit} if vectors else {}),
        "data": fingerprints_of(data),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        settled = settle_precision(recipe, work, reporter)
        if data[0].task.kind.writes:
            metrics = distil_text(settled, catalog, data[0], str(teacher), student, inputs["teacher"], work.path, reporter)
            return write_results(
                work,
                stage=STAGE.name,
                recipe=recipe.keys(*STAGE.keys),
                metrics=metrics | record_of_budget(work.path),
                inputs=inputs,
                sources=input_sources,
                data=facts_of(data),
                seeds=recipe.seeds or [recipe.seed],
            )
        for _, source in named_inputs("teacher", teacher) if recipe.moe.side in ("teacher", "both") else ():
            check_expert_teacher(source, side=recipe.moe.side, experts=recipe.moe.experts)
        distiller = Distiller(settled, catalog, data, teacher, student, inputs, reporter, initial, vectors)
        distiller.work = work.path
        task_set, seeds = distiller.task_set, recipe.seeds or [recipe.seed]
        teacher_scores = task_set.score_teachers()
        metrics = train_over_seeds(seeds, work.path, task_set.primary, distiller.train_one, distiller.choices, reporter)
        metrics |= summarize(task_set, metrics, teacher_scores, work.path, reporter) | distiller.start_record
        metrics |= record_of_budget(work.path)
        augmented_inputs: dict[str, str | None] = {**dict(named_inputs("augmented", augmented))} or {"augmented": None}
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={**inputs, **{name: manifest.identify(source) for name, source in augmented_inputs.items()}},
            sources={**input_sources, **augmented_inputs},
            data=facts_of(data),
            seeds=seeds,
        )
