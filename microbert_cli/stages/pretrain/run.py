"""Masked-LM training of an encoder on a corpus, from a model or from a student description; trains a vocabulary when asked."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from microbert_cli import distributed
from microbert_cli.data.batching import endless_batches
from microbert_cli.data.corpus.blocks import HELDOUT, Blocks, BlockSettings, heldout_groups, make_blocks
from microbert_cli.data.corpus.documents import identify_corpus, read_documents
from microbert_cli.data.corpus.masking import Masking
from microbert_cli.data.corpus.vocabulary import train_vocabulary
from microbert_cli.models import factory
from microbert_cli.models.architectures import check_length
from microbert_cli.models.capture import Batch, OutputRequest, forward_outputs
from microbert_cli.models.device import choose_precision, pick_device, settle_precision
from microbert_cli.models.factory import build_model
from microbert_cli.models.load import LoadedModel, count_all_parameters, load_model, load_vocabulary
from microbert_cli.models.save import save_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results
from microbert_cli.stages.pretrain import STAGE
from microbert_cli.training import checkpoint
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import make_plan


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    source: str,
    tokenizer: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Trains a masked-LM; the loss on held-out text is in metrics.json.

    model      a directory or Hub id to go on from, or a student of the catalogue
    source     the corpus
    tokenizer  whose vocabulary a new model gets; with `vocabulary.size` one is trained on the corpus instead
    """
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "own_files": catalog.own_files(),
        "model": factory.identify(model, catalog),
        "tokenizer": factory.identify(tokenizer, catalog),
        "corpus": identify_corpus(source),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        loaded = _load_or_build(recipe, catalog, model, tokenizer, source, work.path, reporter)
        check_length(recipe.corpus.max_length, loaded.model.config, where="corpus.max_length")
        blocks, heldout_blocks = make_blocks(
            source,
            loaded.tokenizer,
            BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed),
            reporter=reporter,
        )
        metrics = _train(settle_precision(recipe, work, reporter), catalog, loaded, blocks, heldout_blocks, work.path, reporter)
        save_model(loaded.model, loaded.tokenizer, work.path)
        checkpoint.drop_states(work.path)
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={"model": identity["model"], "corpus": identity["corpus"]},
            sources={"model": model, "corpus": source},
            data={"corpus": source, "blocks": len(blocks), "heldout_blocks": len(heldout_blocks)},
            seeds=[recipe.seed],
        )


def _load_or_build(
    recipe: Recipe, catalog: Catalog, model: str, tokenizer: str | None, source: str, work: Path, reporter: Reporter
) -> LoadedModel:
    if not factory.is_description(model, catalog):
        return load_model(model, "masked-lm", where="pretrain.model", new_head=True, seed=recipe.seed)
    config = None
    if recipe.vocabulary.size:
        tokens = _train_vocabulary(recipe, source, reporter)
    elif tokenizer:
        tokens, config = load_vocabulary(tokenizer, where="base")
    else:
        raise factory.missing_vocabulary(model, "pretrain.model")
    description = read_student(model, catalog)
    built = build_model(description, kind="masked-lm", tokenizer=tokens, seed=recipe.seed, like=config, where="pretrain.model")
    return LoadedModel(built, tokens, model, [])


def _train_vocabulary(recipe: Recipe, source: str, reporter: Reporter) -> Any:
    reporter.note(f"vocabulary: at most {recipe.vocabulary.size} pieces from {source}")
    return train_vocabulary(
        lambda: read_documents(source, limit=recipe.corpus.documents),
        size=recipe.vocabulary.size or 0,
        lowercase=recipe.vocabulary.lowercase,
        max_length=512,
    )


def _train(
    recipe: Recipe,
    catalog: Catalog,
    loaded: LoadedModel,
    blocks: Blocks,
    heldout_blocks: Blocks,
    directory: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    spec = recipe.pretrain
    device = pick_device(recipe.device)
    precision = choose_precision(device, **recipe.numerics())
    model = precision.place(loaded.model)
    objective = Objective(make_terms({"masked_lm": (1.0, {})}, catalog), model, numerics=precision)

    masks = Masking(loaded.tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens)

    def masked(batch: dict[str, torch.Tensor], number: int) -> Batch:
        return {name: value.to(device) for name, value in masks.draw_for_rank(batch, number).items()}

    def batches(skip: int) -> Iterator[Batch]:
        order = endless_batches(
            blocks.lengths, batch_size=spec.batch_size, tokens=spec.batch_tokens, seed=recipe.seed, skip=skip
        )
        for number, indices in enumerate(order, skip):
            yield masked(blocks.batch(indices), number)

    groups = heldout_groups(heldout_blocks, spec.batch_size, reporter)

    def heldout() -> dict[str, float]:
        return masked_lm_scores(model, heldout_batches())

    def heldout_batches() -> Iterator[Batch]:
        for number, rows in enumerate(groups):
            yield masked(heldout_blocks.batch(rows), -1 - number)
            reporter.progress(HELDOUT, number + 1, len(groups))

    plan = make_plan(STAGE.name, spec, blocks.lengths, table="pretrain", seed=recipe.seed)
    trained = train(
        objective, batches, plan, directory=directory, seed=recipe.seed, score=heldout, primary="accuracy", reporter=reporter
    )
    return {
        "heldout": trained.best,
        "steps": trained.steps,
        "vocabulary": len(loaded.tokenizer),
        "parameters": count_all_parameters(model),
    }


def masked_lm_scores(model: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns accuracy, loss (nats) and perplexity at masked positions."""
    right, loss, count = 0.0, 0.0, 0.0  # numbers that processes share are floats
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            outputs = forward_outputs(model, batch, OutputRequest(token_logits=True))
            assert outputs.token_logits is not None
            labels = batch["token_labels"]
            right += float((outputs.token_logits.argmax(-1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(outputs.token_logits, labels, reduction="sum"))
            count += len(labels)
            distributed.release_memory()
    model.train(training)
    right, loss, count = distributed.all_reduce_mean({"right": right, "loss": loss, "count": count}).values()
    mean = loss / (count or 1)
    return {"accuracy": right / (count or 1), "loss": mean, "perplexity": math.exp(min(mean, 50.0))}
