"""What general distillation builds: the student, its losses, the objective, and batches of text blocks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from microbert_cli import distributed
from microbert_cli.data.corpus.blocks import Blocks, BlockSettings, make_blocks
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.data.corpus.masking import Masking
from microbert_cli.data.corpus.mixed_blocks import MixedBlocks, make_mixed_blocks
from microbert_cli.distillation.dual.pair import check_random_start, dual_models, with_teacher_rows
from microbert_cli.distillation.dual.teacher import DualTeacher
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.pair_checks import check_pair
from microbert_cli.distillation.start.initialise import initial_weights
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import Batch
from microbert_cli.models.device import choose_precision, pick_device
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.tokenizers import same_tokens
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.training.loss_terms import (
    DUAL_INPUTS,
    ENCODER_OUTPUTS,
    PAIR_INPUTS,
    TOKEN_INPUTS,
    LossTerm,
    check_depth,
    make_terms,
)
from microbert_cli.training.objective import Objective
from microbert_cli.training.progressive import Progressive, check_layers

PREDICTED = frozenset({"token_labels", "teacher_token_labels"})


def make_student(
    recipe: Recipe, catalog: Catalog, teacher: LoadedModel, name: str, initial: str | None = None, reporter: Reporter = SILENT,
    tokenizer: Any = None,
) -> LoadedModel:  # fmt: skip
    """Returns the student before training: the checkpoint `name`, or a new model that starts as `initialise` says.

    tokenizer  of a new student; None = its teacher's
    """
    start = None
    if tokenizer is not None:
        check_random_start(recipe)
    elif factory.is_description(name, catalog):
        settings = recipe.initialise
        config = partial(factory.student_config, name, catalog, teacher)
        start = initial_weights(settings.by, settings.layers, teacher, initial, student=config, reporter=reporter)
    head, _ = required_heads(recipe, catalog)
    student = factory.encoder(
        name, catalog, seed=recipe.seed, teacher=teacher, where="student", start=start, head=head, tokenizer=tokenizer
    )
    if not recipe.general.dropout:
        _disable_dropout(student.model)
    return student


def make_teacher(recipe: Recipe, catalog: Catalog, loaded: LoadedModel, joint: JointVocabulary | None) -> Teacher | DualTeacher:
    """Returns what is asked: a frozen model, or one of two vocabularies, which may learn with its student."""
    if joint is None:
        return Teacher(loaded)
    teacher = DualTeacher(loaded.model, joint, trained=trains_teacher(recipe, catalog))
    if not recipe.general.dropout:
        _disable_dropout(teacher.model)
    return teacher


def trains_teacher(recipe: Recipe, catalog: Catalog) -> bool:
    """Whether the teacher learns with its student: where it predicts its own hidden words."""
    return any("teacher_token_labels" in term.needs for term in general_terms(recipe, catalog))


def make_objective(
    recipe: Recipe, catalog: Catalog, teacher: Teacher | DualTeacher, loaded_teacher: LoadedModel, student: LoadedModel
) -> Objective:
    """Returns the stage's losses over the layer map, on the run's device; checks first that they can compare the two models."""
    terms = general_terms(recipe, catalog)
    terms_by_key = {f"general.losses.{term.name}": term for term in terms}
    teacher_shape, student_shape = model_shape(loaded_teacher.model.config), model_shape(student.model.config)
    check_pair(terms_by_key, loaded_teacher, student, where="student")
    dual = None
    if isinstance(teacher, DualTeacher):
        dual = dual_models(recipe, terms, teacher, student.model)
    else:
        same_tokens(loaded_teacher.tokenizer, student.tokenizer, where="student")
    check_depth(terms_by_key, student_shape.layers)
    precision = choose_precision(pick_device(recipe.device), **recipe.numerics())
    torch.manual_seed(recipe.seed)  # for the projection and the losses' own modules, which are drawn here
    objective = Objective(
        terms,
        student.model,
        ask_teacher=teacher.ask,
        map_layers=layer_map(
            recipe.layer_map,
            teacher_layers=teacher_shape.layers,
            student_layers=student_shape.layers,
        ),
        student_width=student_shape.width,
        teacher_width=teacher_shape.width,
        teacher_layers=teacher_shape.layers,
        normalisation=recipe.normalisation,
        numerics=precision,
        progressive=_progressive(recipe, terms_by_key, student),
        dual=dual,
    )
    # A checkpoint that was distilled before brings the projection that its hidden states were trained with.
    if objective.projection is not None and student.projection is not None:
        objective.projection.load_state_dict(student.projection)
    for model in (teacher.model, student.model):
        precision.place(model)
    return objective.to(precision.device)


def general_terms(recipe: Recipe, catalog: Catalog) -> list[LossTerm]:
    """Returns the stage's losses; raises M091 where one predicts masked words and the recipe masks none."""
    losses = {name: (term.weight, term.parameters) for name, term in recipe.general.losses.items()}
    if not recipe.general.dual.vocabulary:
        _check_one_vocabulary(recipe, catalog)
    inputs = (
        ENCODER_OUTPUTS | TOKEN_INPUTS | PAIR_INPUTS | {"teacher"} | (DUAL_INPUTS if recipe.general.dual.vocabulary else set())
    )
    terms = make_terms(losses, catalog, available=inputs, where="general.losses")
    if (predicting := [term.name for term in terms if term.needs & PREDICTED]) and not recipe.general.masked:
        raise _no_masked_words(predicting[0])
    return terms


def _progressive(recipe: Recipe, terms: Mapping[str, LossTerm], student: LoadedModel) -> Progressive | None:
    """Returns the schedule of layer-by-layer training, if the recipe has any; `terms` by their keys in the recipe."""
    if not (rates := recipe.general.layer_by_layer):
        return None
    layers = model_shape(student.model.config).layers
    check_layers(student.model, [(key, term.over) for key, term in terms.items()], layers=layers)
    return Progressive(layers, *rates)


def _disable_dropout(model: nn.Module) -> None:
    """Turns dropout off in memory only: the configuration, which stage two trains with, keeps its rates."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT keeps a bare number here
            module.attention_dropout = 0.0


def required_heads(recipe: Recipe, catalog: Catalog) -> tuple[str, str]:
    """Returns the model kinds of student and teacher: "encoder", or "masked-lm" where a loss predicts words.

    With `initialise.by = "teacher-ends"` both are masked-LMs, since the student starts with the teacher's head; with two
    vocabularies too, since the teacher may learn words, and the weights of both heads are compared.
    """
    terms = general_terms(recipe, catalog)
    if recipe.initialise.by == "teacher-ends" or recipe.general.dual.vocabulary:
        return "masked-lm", "masked-lm"
    word_losses = [term for term in terms if term.needs & TOKEN_INPUTS]
    teacher_predicts = any("token_head" in term.needs and term.asks_teacher for term in word_losses)
    return "masked-lm" if word_losses else "encoder", "masked-lm" if teacher_predicts else "encoder"


def make_text_blocks(
    recipe: Recipe, source: str, tokenizer: Any, joint: JointVocabulary | None, reporter: Reporter = SILENT
) -> tuple[Blocks, Blocks]:
    """Returns training and held-out blocks of the corpus, in one vocabulary or in two."""
    settings = BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed)
    if joint is None:
        return make_blocks(source, tokenizer, settings, reporter=reporter)
    return make_mixed_blocks(source, joint, settings, reporter=reporter)


def batch_maker(recipe: Recipe, tokenizer: Any, blocks: Blocks) -> Callable[[Blocks, Any, int], Batch]:
    """Returns a function (blocks, rows, batch number) -> this process's rows, with words masked where the recipe masks any."""
    make = _student_batches(recipe, tokenizer, blocks)
    return with_teacher_rows(recipe, blocks.joint, make) if isinstance(blocks, MixedBlocks) else make


def _student_batches(recipe: Recipe, tokenizer: Any, blocks: Blocks) -> Callable[[Blocks, Any, int], Batch]:
    spec, device = recipe.general, pick_device(recipe.device)
    # The released code pads to the full length, and its means count padding.
    pad_to = recipe.corpus.max_length if recipe.normalisation == "reference" else None
    masks = Masking(tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens) if spec.masked else None

    def make(blocks: Blocks, rows: Any, number: int) -> Batch:
        if masks is None:
            batch = distributed.rank_batch(lambda rank_rows: blocks.batch(rank_rows, pad_to), rows)
        else:  # masks are drawn for the whole batch, so that they do not depend on the number of processes
            batch = masks.draw_for_rank(blocks.batch(rows, pad_to), number)
        return {name: value.to(device) for name, value in batch.items()}

    return make


def _check_one_vocabulary(recipe: Recipe, catalog: Catalog) -> None:
    """Raises M396 where a loss is about a teacher of two vocabularies and there is one."""
    for name, term in recipe.general.losses.items():
        if term.weight and DUAL_INPUTS & set(catalog.loss_facts(name).get("needs") or ()):
            raise MbertError(
                "M396",
                "this loss is about a student with a vocabulary of its own, and this one takes its teacher's",
                where=f"general.losses.{name}",
                allowed="A number of pieces of the student's vocabulary; 4928 in DualTrain.",
                fix=f"--set general.dual.vocabulary=4928, or leave the loss out: --set general.losses.{name}=0",
            )


def _no_masked_words(loss: str) -> MbertError:
    return MbertError(
        "M091",
        "this loss is about words that were hidden from the model, and the recipe hides none",
        where=f"general.losses.{loss}",
        allowed="A share of words above 0 that are masked, 0.15 in BERT and DistilBERT.",
        fix=f"--set general.masked=0.15, or leave the loss out: --set general.losses.{loss}=0",
    )
