"""Varies a task's training set; works in shards, so that a stopped run goes on where it was."""

import shutil
from pathlib import Path
from typing import Any, Literal

from microbert_cli import distributed
from microbert_cli.augmentation.algorithm import DatasetAugmenter, concatenate, settings_of
from microbert_cli.augmentation.word_vectors import load_word_table
from microbert_cli.data.load import load_augmented, write_augmented
from microbert_cli.data.task_data import load_task_data
from microbert_cli.models.device import pick_device
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results
from microbert_cli.stages.augment import STAGE


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
    reporter: Reporter = SILENT,
) -> StageResult:
    """Writes OUT/augmented.parquet (or .tsv): every original row, then its variants, labels copied and rows flagged.

    masked_lm  proposes words for single-piece words: a directory or Hub id
    vectors    word vectors for the others: GloVe text or zip, or a BERT directory for its input embeddings
    """
    data = load_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "own_files": catalog.own_files(),
        "masked_lm": manifest.identify(masked_lm),
        "vectors": manifest.identify(vectors),
        "data": data.fingerprints(),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        loaded = load_model(masked_lm, "masked-lm", where="augment.masked_lm")
        loaded.model.to(pick_device(recipe.device)).eval()
        table = load_word_table(vectors, limit=recipe.vectors.limit, reporter=reporter) if vectors else None
        driver = DatasetAugmenter(
            data.rows["train"],
            tokenizer=loaded.tokenizer,
            masked_lm_model=loaded.model,
            vectors=table,
            settings=settings_of(recipe),
            catalog=catalog,
            reporter=reporter,
        )
        shards = work.path / "shards"
        shards.mkdir(exist_ok=True)
        for number in range(driver.shards())[distributed.rank() :: distributed.world_size()]:
            _write_shard(driver, number, shards, data.task)
        distributed.barrier()
        target = work.path / f"augmented.{recipe.augment.format}"
        rows_out = distributed.on_main_process(lambda: _join_shards(shards, target, data.task, recipe.augment.format))
        metrics: dict[str, Any] = {
            "task": data.task.name,
            "rows_in": len(data.rows["train"]),
            "rows_out": rows_out,
            "stop_words": driver.stop_words.digest,
        }
        inputs = {"masked_lm": identity["masked_lm"], "vectors": identity["vectors"]}
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs=inputs,
            sources={"masked_lm": masked_lm, "vectors": vectors},
            data=data.facts(),
            seeds=[recipe.seed],
        )


def _write_shard(driver: DatasetAugmenter, number: int, shards: Path, task: Any) -> None:
    """Makes a shard, unless it is there and is what its name says."""
    for path in shards.glob(f"{number:06d}-*.parquet"):
        if atomic.matches_name_checksum(path):
            return
        driver.reporter.warn(f"{path} is damaged and is made anew")
        path.unlink()
    unnamed = shards / f".begun-{distributed.rank()}"
    write_augmented(driver.shard(number), unnamed, task, format="parquet")
    atomic.rename_by_checksum(unnamed, f"{number:06d}", ".parquet")


def _join_shards(shards: Path, target: Path, task: Any, form: Literal["parquet", "tsv"]) -> int:
    """Joins all shards, whoever made them, into one file; returns the number of its rows."""
    rows = concatenate([load_augmented(path, task) for path in sorted(shards.glob("*.parquet"))])
    with atomic.atomic_write(target) as temporary:
        write_augmented(rows, temporary, task, format=form)
    shutil.rmtree(shards)
    return len(rows)
