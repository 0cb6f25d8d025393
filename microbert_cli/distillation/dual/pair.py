"""What stage one builds for a student with a vocabulary of its own: the vocabulary, both models, the teacher's batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from microbert_cli.data.corpus.blocks import Blocks
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary, check_word_piece, lowers_case
from microbert_cli.data.corpus.masking import Masking, with_teacher_part
from microbert_cli.data.corpus.mixed_blocks import MixedBlocks
from microbert_cli.data.corpus.vocabulary import corpus_vocabulary
from microbert_cli.distillation.dual.teacher import DualTeacher, extend_vocabulary
from microbert_cli.distillation.dual.weights import WeightPairs
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.architectures import model_shape, positions_of
from microbert_cli.models.capture import Batch
from microbert_cli.models.device import pick_device
from microbert_cli.models.load import LoadedModel
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.training.loss_terms import DualModels, LossTerm

MAX_LENGTH = 512  # tokens, where nothing limits the teacher
TEACHER_DRAWS, MASK_DRAWS = 1, 2  # keep the teacher's random numbers apart from each other and from the student's
TRAINED, PROJECTIONS = "trained_teacher.", "own.shared_projection."  # begin names of the objective's parameters


def student_tokenizer(
    recipe: Recipe, catalog: Catalog, teacher: LoadedModel, student: str, source: str, reporter: Reporter = SILENT
) -> Any:
    """Returns the vocabulary of a new student, trained on the corpus; None where it has its teacher's, or is a checkpoint.

    It reads capital letters as the teacher does. Raises M384 where the teacher's vocabulary is not WordPiece's.
    """
    if not (size := recipe.general.dual.vocabulary) or not factory.is_description(student, catalog):
        return None
    settings = vocabulary_settings(size, teacher.tokenizer, teacher.model.config)
    return corpus_vocabulary(source, documents=recipe.corpus.documents, reporter=reporter, **settings)


def vocabulary_settings(size: int, tokenizer: Any, config: Any) -> dict[str, Any]:
    """Returns what a student's vocabulary is trained with, by its teacher's tokenizer and configuration."""
    check_word_piece({"base": tokenizer})
    return {"size": size, "lowercase": lowers_case(tokenizer), "max_length": positions_of(config) or MAX_LENGTH}


def join_vocabularies(recipe: Recipe, teacher: LoadedModel, student: LoadedModel) -> JointVocabulary | None:
    """Returns both vocabularies as one, and gives the teacher rows for it; None where both read the same tokens.

    Raises M384 where one of them is not WordPiece's.
    """
    if not recipe.general.dual.vocabulary:
        return None
    joint = joint_vocabulary(teacher.tokenizer, student.tokenizer, teacher.model.config)
    extend_vocabulary(teacher.model, joint)
    return joint


def joint_vocabulary(teacher: Any, student: Any, config: Any) -> JointVocabulary:
    """Returns both vocabularies as one, behind the rows of the table of the teacher's configuration; raises M384."""
    check_word_piece({"base": teacher, "student": student})
    return JointVocabulary(teacher, student, model_shape(config).vocabulary)


def check_random_start(recipe: Recipe) -> None:
    """Raises M389 where a student with a vocabulary of its own is to take weights."""
    if recipe.initialise.by not in ("random", "auto"):
        raise MbertError(
            "M389",
            f'a student with a vocabulary of its own begins with random weights, and initialise is "{recipe.initialise.by}"',
            where="initialise, general.dual.vocabulary",
            allowed="random: the rows of its teacher's tables are those of other tokens.",
            fix="--set initialise=random",
        )


def dual_models(recipe: Recipe, terms: Sequence[LossTerm], teacher: DualTeacher, student: Any) -> DualModels:
    """Returns teacher and student as an objective takes them; raises M388 where a loss compares weights that do not match."""
    compared = any("weights" in term.needs for term in terms)
    pairs = WeightPairs(teacher.model, student, torch.from_numpy(teacher.joint.student_ids)) if compared else ()
    rates = {TRAINED: recipe.general.dual.teacher_rate, PROJECTIONS: recipe.general.dual.projection_rate}
    return DualModels(
        teacher.model if teacher.trained else None,
        lambda: pairs,
        {prefix: rate for prefix, rate in rates.items() if rate is not None},
    )


def with_teacher_rows(
    recipe: Recipe, joint: JointVocabulary, make: Callable[[Blocks, Any, int], Batch]
) -> Callable[[Blocks, Any, int], Batch]:
    """Returns a function as `make`, whose batches have the teacher's rows too, of the same texts, with words masked."""
    spec, seed, device = recipe.general, recipe.seed, pick_device(recipe.device)
    pad_to = recipe.corpus.max_length if recipe.normalisation == "reference" else None
    masks = Masking(joint, spec.masked, 0.0, seed + MASK_DRAWS, np.zeros(0)) if spec.masked else None

    def make_both(blocks: Blocks, rows: Any, number: int) -> Batch:
        assert isinstance(blocks, MixedBlocks)
        batch = make(blocks, rows, number)
        if masks is None:
            return batch
        mixed = blocks.mixed(rows, spec.dual.share, (seed, TEACHER_DRAWS, number % 2**32), pad_to)
        part = masks.draw_for_rank(mixed, number)
        return with_teacher_part(batch, {name: value.to(device) for name, value in part.items() if name != "idle"})

    return make_both
