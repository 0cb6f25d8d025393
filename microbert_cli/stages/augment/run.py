"""Varies a task's training set; works in shards, so that a stopped run goes on where it was."""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from microbert_cli import distributed
from microbert_cli.augmentation.algorithm import DatasetAugmenter, concatenate, settings_of
from microbert_cli.augmentation.word_vectors import load_word_table
from microbert_cli.data.examples import Examples
from microbert_cli.data.load import load_augmented, write_augmented
from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.models.device import pick_device
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results
from microbert_cli.stages.augment import STAGE

SAVE_SECONDS = 3.0
FIRST_ROWS = 8  # made before the pace is known
SHARD_FILES = "?????????-?????????-*.parquet"  # first row, end, checksum


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    masked_lm: str | None = None,
    vectors: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Writes OUT/augmented.parquet (or .tsv): every original row, then its variants, labels copied and rows flagged; then new
    rows that were made for it, flagged too and without a label.

    masked_lm  proposes words for single-piece words: a directory or Hub id; None where no source asks it
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
        loaded = load_model(masked_lm, "masked-lm", where="augment.masked_lm") if masked_lm else None
        model = None
        if loaded:
            assert masked_lm is not None
            loaded.model.to(pick_device(recipe.device)).eval()
            model = _int8_copy(recipe, loaded, masked_lm, data, reporter) or loaded.model
        table = load_word_table(vectors, limit=recipe.vectors.limit, reporter=reporter) if vectors else None
        driver = DatasetAugmenter(
            data.rows["train"],
            tokenizer=loaded and loaded.tokenizer,
            masked_lm_model=model,
            vectors=table,
            settings=settings_of(recipe),
            dev=data.rows.get("dev"),
            tags=data.task.kind.names if data.task.kind.of_words else None,
            catalog=catalog,
            reporter=reporter,
        )
        shards = work.path / "shards"
        shards.mkdir(exist_ok=True)
        writer = _ShardWriter(driver, shards, data.task)
        distributed.barrier()  # before any process writes, all have seen what an earlier run left
        for number in range(driver.shards())[distributed.rank() :: distributed.world_size()]:
            writer.write(number)
        distributed.barrier()
        target = work.path / f"augmented.{recipe.augment.format}"
        rows_out, unlabelled = distributed.on_main_process(
            lambda: _join_shards(shards, target, data.task, recipe.augment.format)
        )
        metrics: dict[str, Any] = {
            "task": data.task.name,
            "rows_in": len(data.rows["train"]),
            "rows_out": rows_out,
            **({"unlabelled": unlabelled} if unlabelled else {}),
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


def _int8_copy(recipe: Recipe, loaded: Any, source: str, data: TaskData, reporter: Reporter) -> Any:
    """Returns the masked language model as an int8 copy, where the recipe asks for it and it runs on a CPU; else None."""
    if recipe.augment.precision != "int8":
        return None
    if loaded.model.device.type != "cpu":
        reporter.note("augment.precision: int8 is for CPUs; the masked language model answers in float32 on this device")
        return None
    from microbert_cli.augmentation.int8_masked_lm import Int8MaskedLm

    weights = str(manifest.identify(source))
    return Int8MaskedLm(loaded.model, loaded.tokenizer, weights=weights, rows=data.rows["train"], reporter=reporter)


class _ShardWriter:
    """Makes shards, and writes what it has every few seconds, so that a run that is stopped at any time loses no more.

    A file holds a range of rows and is named after it. A row's copies depend on that row alone, so that the ranges, which
    follow the clock, leave no trace in the result.
    """

    def __init__(self, driver: DatasetAugmenter, shards: Path, task: Any):
        self.driver, self.shards, self.task = driver, shards, task
        self.saved = _saved_ranges(shards, driver.reporter)
        self.rows_at_once = min(FIRST_ROWS, driver.chunk_size)

    def write(self, number: int) -> None:
        """Makes the rows of a shard that are not saved yet."""
        rows = self.driver.rows_of(number)
        position = rows.start
        while position < rows.stop:
            if position not in self.saved:
                gap_end = min(start for start in (*self.saved, rows.stop) if start > position)
                self._fill(position, min(gap_end, rows.stop))
            position = self.saved[position]

    def _fill(self, first: int, stop: int) -> None:
        """Makes the rows from `first` on, up to `stop` at most, for a few seconds, and saves them."""
        begun, position = time.monotonic(), first
        chunks: list[Examples] = []
        while position < stop and (not chunks or time.monotonic() - begun < SAVE_SECONDS):
            if chunks:  # as many rows as may be made in a third of the time, so that progress is shown, too
                pace = max(1, round((position - first) / max(time.monotonic() - begun, 1e-3) * SAVE_SECONDS / 3))
                self.rows_at_once = min(pace, 4 * self.rows_at_once, self.driver.chunk_size)
            rows = range(position, min(position + self.rows_at_once, stop))
            chunks.append(self.driver.chunk(rows))
            position = rows.stop
        unnamed = self.shards / f".begun-{distributed.rank()}"
        write_augmented(concatenate(chunks), unnamed, self.task, format="parquet")
        atomic.rename_by_checksum(unnamed, f"{first:09d}-{position:09d}", ".parquet")
        self.saved[first] = position


def _saved_ranges(shards: Path, reporter: Reporter) -> dict[int, int]:
    """Returns the ranges of rows that are saved, end by start; files that are not what their names say are removed."""
    saved = {}
    for path in sorted(shards.glob(SHARD_FILES)):
        if atomic.matches_name_checksum(path):
            first, end, _ = path.stem.split("-")
            saved[int(first)] = int(end)
        else:
            reporter.warn(f"{path} is damaged and is made anew")
            path.unlink()
    return saved


def _join_shards(shards: Path, target: Path, task: Any, form: Literal["parquet", "tsv"]) -> tuple[int, int]:
    """Joins all shards, whoever made them, into one file; returns the number of its rows, and of those without a label."""
    rows = concatenate([load_augmented(path, task) for path in sorted(shards.glob(SHARD_FILES))])
    with atomic.atomic_write(target) as temporary:
        write_augmented(rows, temporary, task, format=form)
    shutil.rmtree(shards)
    return len(rows), sum(label is None for label in rows.labels or ())
