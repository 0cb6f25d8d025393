"""Stage one: a small student learns a pre-trained teacher's behaviour on plain text, before it hears of any task."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from microbert_cli import distributed
from microbert_cli.data.batching import endless_batches
from microbert_cli.data.corpus.blocks import HELDOUT, Blocks, heldout_groups
from microbert_cli.data.corpus.documents import identify_corpus
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.distillation.dual.pair import join_vocabularies, student_tokenizer
from microbert_cli.distillation.dual.teacher import cut_vocabulary
from microbert_cli.distillation.general import (
    batch_maker,
    make_objective,
    make_student,
    make_teacher,
    make_text_blocks,
    required_heads,
)
from microbert_cli.models import factory
from microbert_cli.models.architectures import check_length
from microbert_cli.models.capture import Batch
from microbert_cli.models.device import settle_precision
from microbert_cli.models.load import count_all_parameters, load_model
from microbert_cli.models.save import save_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results
from microbert_cli.stages.general_distill import STAGE
from microbert_cli.training import checkpoint
from microbert_cli.training.loop import train
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import make_plan
from microbert_cli.training.progressive import check_step_count

TEACHER_FOLDER = "teacher"


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    teacher: str,
    student: str,
    source: str,
    initial: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Distils `teacher` into `student` on the corpus `source`; losses on held-out text are in metrics.json.

    teacher  a pre-trained encoder, not fine-tuned: a directory or a Hub id
    student  a student of the catalogue, or an encoder to go on from
    initial  whose weights a new student takes where the recipe says that it takes any; else the teacher's
    The output is the bare encoder, or where words are predicted a masked-LM; the trained map to the teacher's width lies
    under resume/ for stage two. A teacher that was trained too is kept in teacher/ where the recipe asks for it.
    """
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "own_files": catalog.own_files(),
        "teacher": factory.identify(teacher, catalog),
        "student": factory.identify(student, catalog),
        "corpus": identify_corpus(source),
        **({"initial": factory.identify(initial, catalog)} if initial else {}),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        _, head = required_heads(recipe, catalog)
        teacher_model = load_model(teacher, head, where="base", new_head=head == "encoder")
        tokenizer = student_tokenizer(recipe, catalog, teacher_model, student, source, reporter)
        student_model = make_student(recipe, catalog, teacher_model, student, initial, reporter, tokenizer)
        joint = join_vocabularies(recipe, teacher_model, student_model)
        asked = make_teacher(recipe, catalog, teacher_model, joint)
        objective = make_objective(settle_precision(recipe, work, reporter), catalog, asked, teacher_model, student_model)
        check_length(recipe.corpus.max_length, student_model.model.config, where="corpus.max_length")
        check_length(recipe.corpus.max_length, teacher_model.model.config, where="corpus.max_length")
        blocks, heldout = make_text_blocks(recipe, source, student_model.tokenizer, joint, reporter)
        metrics = _train(recipe, objective, blocks, heldout, student_model.tokenizer, work.path, reporter)
        projection = objective.projection.state_dict() if objective.projection is not None else None
        save_model(student_model.model, student_model.tokenizer, work.path, projection=projection)
        if joint is not None and recipe.general.dual.keep:
            if objective.trained_teacher is None:
                reporter.note("general.dual.keep: no loss trains the teacher, so there is nothing to keep")
            else:
                cut_vocabulary(teacher_model.model, joint)
                save_model(teacher_model.model, teacher_model.tokenizer, work.path / TEACHER_FOLDER)
        checkpoint.drop_states(work.path)
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics | {"parameters": count_all_parameters(student_model.model)} | _vocabularies(joint),
            inputs={name: value for name, value in identity.items() if name not in ("recipe", "own_files")},
            sources={"teacher": teacher, "student": student, "corpus": source, **({"initial": initial} if initial else {})},
            data={"corpus": source, "blocks": len(blocks), "heldout_blocks": len(heldout)},
            seeds=[recipe.seed],
        )


def _train(
    recipe: Recipe, objective: Objective, blocks: Blocks, held: Blocks, tokenizer: Any, directory: Path, reporter: Reporter
) -> dict[str, Any]:
    spec = recipe.general
    reference = recipe.normalisation == "reference"
    make = batch_maker(recipe, tokenizer, blocks)

    def batches(skip: int) -> Iterator[Batch]:
        order = endless_batches(
            blocks.lengths,
            batch_size=spec.batch_size,
            tokens=spec.batch_tokens,
            seed=recipe.seed,
            skip=skip,
            drop_last=reference,
        )
        for number, rows in enumerate(order, skip):
            yield make(blocks, rows, number)

    groups = heldout_groups(held, spec.batch_size, reporter)

    def heldout() -> dict[str, float]:
        batches = (make(held, rows, -1 - i) for i, rows in enumerate(groups))
        return _mean_losses(objective, batches, len(groups), reporter)

    before = heldout()
    plan = make_plan(STAGE.name, spec, blocks.lengths, table="general", drop_last=reference, seed=recipe.seed)
    if objective.progressive is not None:
        check_step_count(plan.steps, objective.progressive.layers)
    trained = train(
        objective, batches, plan, directory=directory, seed=recipe.seed, score=heldout, primary="minus_loss", reporter=reporter
    )
    return {"heldout": trained.best, "heldout_before": before, "steps": trained.steps, "best_step": trained.best_step}


def _vocabularies(joint: JointVocabulary | None) -> dict[str, Any]:
    """Returns what metrics.json says of a student's own vocabulary: its size, and how many pieces its teacher lacked."""
    return {"vocabulary": len(joint.student), "new_pieces": len(joint.new_pieces)} if joint is not None else {}


def _mean_losses(objective: Objective, batches: Iterable[Batch], count: int, reporter: Reporter) -> dict[str, float]:
    """Returns mean losses over `count` batches, dropout off; `minus_loss` is the one to maximise."""
    training = objective.student.training
    for model in objective.models:
        model.eval()
    sums: dict[str, float] = {"loss": 0.0}
    with torch.no_grad():
        for number, batch in enumerate(batches, 1):
            _, loss, parts = next(objective.losses(batch))  # the student's; an adversary's comes after it
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) / count
            reporter.progress(HELDOUT, number, count)
            distributed.release_memory()
    for model in objective.models:
        model.train(training)
    sums = distributed.all_reduce_mean(sums)
    return {**sums, "minus_loss": -sums["loss"]}
