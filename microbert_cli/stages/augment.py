"""Varies a task's training set; works in shards, so that a stopped run goes on where it was."""

import shutil
from pathlib import Path
from typing import Any

from microbert_cli import durable, manifest, models, places, processes
from microbert_cli.augmentation import Augmentation, AugmentSettings, join
from microbert_cli.catalog import Catalog
from microbert_cli.data import load_augmented, write_augmented
from microbert_cli.output import working
from microbert_cli.recipe import Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.task_rows import open_task
from microbert_cli.tracking import SILENT, Talk
from microbert_cli.word_table import load_word_table

NAME = "augment"
KEYS = ("task", "data", "augment", "vectors", "seed")


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    masked_lm: str,
    vectors: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Writes OUT/augmented.parquet (or .tsv): every original row, then its variants, labels copied and rows flagged.

    masked_lm  proposes words for single-piece words: a directory or Hub id
    vectors    word vectors for the others: GloVe text or zip, or a BERT directory for its input embeddings
    """
    data = open_task(recipe, catalog, splits=("train",), talk=talk)
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        "masked_lm": manifest.identify(masked_lm),
        "vectors": manifest.identify(vectors),
        "data": data.fingerprints(),
    }
    with working(
        out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, talk=talk
    ) as work:
        if work.done:
            return up_to_date(NAME, out)
        loaded = models.load(masked_lm, "masked-lm", where="augment.masked_lm")
        loaded.model.to(places.device(recipe.device)).eval()
        table = load_word_table(vectors, limit=recipe.vectors.limit, talk=talk) if vectors else None
        driver = Augmentation(
            data.rows["train"],
            tokenizer=loaded.tokenizer,
            masked_lm_model=loaded.model,
            vectors=table,
            settings=settings_of(recipe),
            catalog=catalog,
            talk=talk,
        )
        shards = work.path / "shards"
        shards.mkdir(exist_ok=True)
        for number in range(driver.shards())[processes.rank() :: processes.world()]:
            _shard(driver, number, shards, data.task)
        processes.wait()
        target = work.path / f"augmented.{recipe.augment.format}"
        rows_out = processes.on_main(lambda: _join(shards, target, data.task, recipe.augment.format))
        metrics: dict[str, Any] = {
            "task": data.task.name,
            "rows_in": len(data.rows["train"]),
            "rows_out": rows_out,
            "stop_words": driver.stop_words.digest,
        }
        inputs = {"masked_lm": identity["masked_lm"], "vectors": identity["vectors"]}
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics,
            inputs=inputs,
            sources={"masked_lm": masked_lm, "vectors": vectors},
            data=data.facts(),
            seeds=[recipe.seed],
        )


def _shard(driver: Augmentation, number: int, shards: Path, task: Any) -> None:
    """Makes a shard, unless it is there and is what its name says."""
    for path in shards.glob(f"{number:06d}-*.parquet"):
        if durable.is_as_named(path):
            return
        driver.talk.warn(f"{path} is damaged and is made anew")
        path.unlink()
    begun = shards / f".begun-{processes.rank()}"
    write_augmented(driver.shard(number), begun, task, format="parquet")
    durable.name_by_content(begun, f"{number:06d}", ".parquet")


def _join(shards: Path, target: Path, task: Any, form: str) -> int:
    """All shards as one file, whoever made them; returns its rows."""
    rows = join([load_augmented(path, task) for path in sorted(shards.glob("*.parquet"))])
    with durable.writing(target) as begun:
        write_augmented(rows, begun, task, format=form)
    shutil.rmtree(shards)
    return len(rows)


def settings_of(recipe: Recipe) -> AugmentSettings:
    """The numbers of Algorithm 1 as a recipe says them."""
    spec = recipe.augment
    return AugmentSettings(
        copies=spec.copies,
        replace_probability=spec.replace_probability,
        candidates_per_word=spec.candidates_per_word,
        query=spec.query,
        candidates=spec.candidates,
        stop_words=spec.stop_words,
        seed=recipe.seed,
        batch_size=spec.batch_size,
        vectors_limit=recipe.vectors.limit,
        sources=tuple(spec.sources),
    )
