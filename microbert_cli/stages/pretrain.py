"""Masked-LM training of an encoder on a corpus, from a model or from a student description; trains a vocabulary when asked."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from microbert_cli import building, checkpoint, corpus, models, numerics, places, processes
from microbert_cli.batching import endless, in_order
from microbert_cli.blocks import Blocks, BlockSettings, make_blocks
from microbert_cli.capture import Want, look
from microbert_cli.catalog import Catalog
from microbert_cli.loop import train
from microbert_cli.masking import Masks
from microbert_cli.models import Loaded
from microbert_cli.objective import Batch, Objective
from microbert_cli.output import working
from microbert_cli.phases import make_plan
from microbert_cli.recipe import NUMERICS, Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.terms import make_terms
from microbert_cli.tracking import SILENT, Talk
from microbert_cli.vocabulary import train_vocabulary

NAME = "pretrain"
KEYS = ("corpus", "vocabulary", "pretrain", "seed", *NUMERICS)


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
    talk: Talk = SILENT,
) -> StageResult:
    """Trains a masked-LM; the loss on held-out text is in metrics.json.

    model      a directory or Hub id to go on from, or a student of the catalogue
    source     the corpus
    tokenizer  whose vocabulary a new model gets; with `vocabulary.size` one is trained on the corpus instead
    """
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        "model": places.identify(model, catalog),
        "tokenizer": places.identify(tokenizer, catalog),
        "corpus": corpus.identify(source),
    }
    with working(
        out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, talk=talk
    ) as work:
        if work.done:
            return up_to_date(NAME, out)
        loaded = _model(recipe, catalog, model, tokenizer, source, work.path, talk)
        models.check_length(recipe.corpus.max_length, loaded.model.config, where="corpus.max_length")
        blocks, held = make_blocks(
            source,
            loaded.tokenizer,
            BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed),
            talk=talk,
        )
        metrics = _train(recipe, catalog, loaded, blocks, held, work.path, talk)
        checkpoint.save_model(loaded.model, loaded.tokenizer, work.path)
        checkpoint.drop_states(work.path)
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics,
            inputs={"model": identity["model"], "corpus": identity["corpus"]},
            sources={"model": model, "corpus": source},
            data={"corpus": source, "blocks": len(blocks), "heldout_blocks": len(held)},
            seeds=[recipe.seed],
        )


def _model(recipe: Recipe, catalog: Catalog, model: str, tokenizer: str | None, source: str, work: Path, talk: Talk) -> Loaded:
    if not places.is_description(model, catalog):
        return models.load(model, "masked-lm", where="pretrain.model", new_head=True, seed=recipe.seed)
    config = None
    if recipe.vocabulary.size:
        tokens = _vocabulary(recipe, source, talk)
    elif tokenizer:
        tokens, config = models.load_vocabulary(tokenizer, where="base")
    else:
        raise places.no_vocabulary(model, "pretrain.model")
    description = places.describe(model, catalog)
    built = building.build(
        description, kind="masked-lm", tokenizer=tokens, seed=recipe.seed, like=config, where="pretrain.model"
    )
    return Loaded(built, tokens, model, [])


def _vocabulary(recipe: Recipe, source: str, talk: Talk) -> Any:
    talk.note(f"vocabulary: at most {recipe.vocabulary.size} pieces from {source}")
    return train_vocabulary(
        lambda: corpus.documents(source, limit=recipe.corpus.documents),
        size=recipe.vocabulary.size or 0,
        lowercase=recipe.vocabulary.lowercase,
        max_length=512,
    )


def _train(
    recipe: Recipe, catalog: Catalog, loaded: Loaded, blocks: Blocks, held: Blocks, directory: Path, talk: Talk
) -> dict[str, Any]:
    spec = recipe.pretrain
    device = places.device(recipe.device)
    how = numerics.choose(device, **recipe.numerics())
    model = how.place(loaded.model)
    objective = Objective(make_terms({"masked_lm": (1.0, {})}, catalog), model, numerics=how)

    masks = Masks(loaded.tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens)

    def masked(batch: dict[str, torch.Tensor], number: int) -> Batch:
        return {name: value.to(device) for name, value in masks.own(batch, number).items()}

    def batches(skip: int) -> Iterator[Batch]:
        order = endless(blocks.lengths, batch_size=spec.batch_size, tokens=spec.batch_tokens, seed=recipe.seed, skip=skip)
        for number, indices in enumerate(order, skip):
            yield masked(blocks.batch(indices), number)

    def heldout() -> dict[str, float]:
        groups = in_order(held.lengths, batch_size=spec.batch_size)
        return masked_lm_scores(model, [masked(held.batch(rows), -1 - i) for i, rows in enumerate(groups)])

    plan = make_plan(NAME, spec, blocks.lengths, seed=recipe.seed)
    trained = train(
        objective, batches, plan, directory=directory, seed=recipe.seed, score=heldout, primary="accuracy", talk=talk
    )
    return {
        "heldout": trained.best,
        "steps": trained.steps,
        "vocabulary": len(loaded.tokenizer),
        "parameters": models.parameters(model),
    }


def masked_lm_scores(model: Any, batches: list[Batch]) -> dict[str, float]:
    """Accuracy and loss (nats) at masked positions."""
    right, loss, count = 0, 0.0, 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            seen = look(model, batch, Want(token_logits=True))
            assert seen.token_logits is not None
            labels = batch["token_labels"]
            right += int((seen.token_logits.argmax(-1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(seen.token_logits, labels, reduction="sum"))
            count += len(labels)
    model.train(training)
    right, loss, count = processes.mean({"right": right, "loss": loss, "count": count}).values()
    mean = loss / (count or 1)
    return {"accuracy": right / (count or 1), "loss": mean, "perplexity": math.exp(min(mean, 50.0))}
