"""The inputs that a stage will have when it starts: models by their configuration, rows and blocks by their lengths.

What exists is looked at; what an earlier stage has yet to make is worked out from that stage's own inputs. Lengths of rows
are exact; those of blocks are where the corpus is small or was cut before, else a sample's, scaled.
"""

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microbert_cli.data.corpus.blocks import BlockSettings, cut_blocks, find_blocks
from microbert_cli.data.corpus.documents import identify_corpus
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.data.corpus.mixed_blocks import cut_mixed_blocks, find_mixed_blocks
from microbert_cli.data.corpus.vocabulary import train_vocabulary
from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.data.tokenized import tokenizer_fingerprint
from microbert_cli.models import factory
from microbert_cli.models.cascade.answers import PARTS, SMALL, Rule
from microbert_cli.models.config import read_config
from microbert_cli.models.find import find_model, is_cascade
from microbert_cli.models.generation.writer import describes_writer, student_config
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.moe.extract import is_routed
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.models.words.head import set_answers
from microbert_cli.plan.corpus_sample import CorpusSample, sample_corpus
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.recipe.task import Task
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache

if TYPE_CHECKING:
    from microbert_cli.plan.calibration import Calibration


TOKENS = 2  # bytes of a token id on disk
BLOCK = 32  # bytes of a block's ranges
SENTENCE = 8 / 25  # bytes a token for the sentences' positions, at 25 tokens a sentence


@dataclass(frozen=True)
class ModelInfo:
    """A model before its weights are there: configuration, tokenizer, and the directory if it exists."""

    config: Any
    tokenizer: Any
    directory: Path | None = None

    def classifying(self, task: Task) -> "ModelInfo":
        """The same with this task's outputs."""
        config = copy.deepcopy(self.config)
        if task.kind.of_words:
            set_answers(config, task.kind, where="model")
        else:
            config.num_labels = task.kind.num_outputs
            config.problem_type = task.kind.problem_type
        if getattr(config, "siamese", False) is None:  # what a new classifier of this task decides
            config.siamese = len(task.text) == 2
        return ModelInfo(config, self.tokenizer, self.directory)


@dataclass(frozen=True)
class CorpusBlocks:
    """Blocks to come: lengths in tokens of those trained on and held out, seconds and bytes that making them costs."""

    lengths: np.ndarray
    held: np.ndarray
    seconds: float
    bytes: int
    note: str = ""


@dataclass
class ExpectedInputs:
    """The inputs known so far, each looked up once; `planned_models` are the outputs of stages already planned."""

    catalog: Catalog
    prices: "Calibration"
    reporter: Reporter = SILENT
    planned_models: dict[str, ModelInfo] = field(default_factory=dict)
    planned_cascades: dict[str, list[tuple[ModelInfo, float]]] = field(default_factory=dict)
    augmented: dict[str, float] = field(default_factory=dict)  # rows, by the directory of a planned stage
    _tasks: dict[str, tuple[TaskData, float]] = field(default_factory=dict)
    _vocabularies: dict[str, tuple[Any, float]] = field(default_factory=dict)
    _corpora: dict[str, CorpusSample] = field(default_factory=dict)
    _planned_blocks: set[str] = field(default_factory=set)
    _identified: set[str] = field(default_factory=set)

    def model(self, name: str, *, where: str, tokenizer: str | None = None, like: Any = None) -> ModelInfo:
        """Returns the model that a name stands for: an output to come, a description, or a checkpoint."""
        if name in self.planned_models:
            return self.planned_models[name]
        if not factory.is_description(name, self.catalog):
            directory = find_model(name, where=where, cascade=True)
            if is_cascade(directory):  # what decides labels and length is as in its small model
                return self._part(directory, SMALL, where)
            config = read_config(directory, where=where)
            config = config.plain() if is_routed(config) else config  # of several tasks, the part that answers one
            return ModelInfo(config, load_tokenizer(directory, config, where=where), directory)
        if tokenizer is None:
            raise factory.missing_vocabulary(name, where)
        source = self.model(tokenizer, where="tokenizer")
        return self.described(name, source.tokenizer, like=like or source.config, where=where)

    def answering(self, name: str, *, where: str) -> list[tuple[ModelInfo, float]]:
        """Returns the models that answer under a name, each with the share of rows that it is asked: of a cascade both."""
        if name in self.planned_cascades:
            return self.planned_cascades[name]
        if name in self.planned_models or not is_cascade(Path(name)):
            return [(self.model(name, where=where), 1.0)]
        small, big = (self._part(Path(name), part, where) for part in PARTS)
        rule = Rule.read(Path(name), small.config.num_labels, where=where)
        return [(small, 1.0), (big, rule.sent)]

    def _part(self, directory: Path, part: str, where: str) -> ModelInfo:
        """Returns a model of a cascade; it has no weights but its ONNX file, so that random ones stand in for them."""
        config = read_config(directory / part, where=where)
        return ModelInfo(config, load_tokenizer(directory / part, config, where=where))

    def described(self, name: str, tokenizer: Any, *, like: Any, where: str) -> ModelInfo:
        """Returns a student of the catalogue with this vocabulary; its weights are not allocated."""
        if describes_writer(name, self.catalog):
            return ModelInfo(student_config(read_student(name, self.catalog), tokenizer, where=where), tokenizer)
        return ModelInfo(factory.described_config(name, self.catalog, tokenizer=tokenizer, like=like, where=where), tokenizer)

    def task(self, recipe: Recipe, splits: tuple[str, ...]) -> tuple[TaskData, float]:
        """Reads the task's rows; returns them and the seconds that reading took."""
        key = atomic.digest([recipe.keys("task", "data"), splits])
        if key not in self._tasks:
            started = time.perf_counter()
            rows = load_task_data(recipe, self.catalog, splits=splits, reporter=self.reporter)
            self._tasks[key] = rows, time.perf_counter() - started
        return self._tasks[key]

    def lengths(self, data: TaskData, split: str, model: ModelInfo) -> tuple[np.ndarray, float]:
        """Returns the tokens of every row of a split, or of every window of rows, and the seconds that encoding takes."""
        loaded = LoadedModel(SimpleNamespace(config=model.config), model.tokenizer, "plan", [])
        length = data.length_for(model.config, where="data.max_length")

        def measure() -> dict[str, Any]:
            started = time.perf_counter()
            lengths = data.encode(split, loaded, where="plan").windows.lengths
            return {"lengths": lengths.tolist(), "seconds": time.perf_counter() - started}

        key: list[Any] = [data.rows[split].fingerprint, tokenizer_fingerprint(model.tokenizer), length]
        if windows := data.windows_for(model.config, split, where="data.max_length"):
            key.append([vars(windows), data.has_window_rows(split, model.config, where="plan")])
        stored = self.prices.once("rows", key, measure)
        return np.asarray(stored["lengths"]), stored["seconds"]

    def identify(self, source: str) -> float:
        """Returns the seconds that hashing the corpus takes; 0 after the first time, since a run does it once."""
        if source in self._identified:
            return 0.0
        self._identified.add(source)
        started = time.perf_counter()
        identify_corpus(source)
        return time.perf_counter() - started

    def vocabulary(self, recipe: Recipe, source: str, settings: Mapping[str, Any] | None = None) -> tuple[Any, float]:
        """Returns the tokenizer that a stage would train, from a sample of a large corpus, and the seconds it takes.

        settings  size, lowercase and max_length; None = those of `pretrain`
        """
        from transformers import AutoTokenizer

        vocabulary = recipe.vocabulary
        settings = settings or {"size": vocabulary.size or 0, "lowercase": vocabulary.lowercase, "max_length": 512}
        key = atomic.digest([identify_corpus(source), dict(settings), recipe.corpus.documents])
        if key not in self._vocabularies:
            with self._vocabulary_directory(key) as (directory, ready):
                if not ready:
                    self._train_vocabulary(recipe, source, settings, directory)
                seconds = float((directory / "seconds").read_text(encoding="utf-8"))
                self._vocabularies[key] = AutoTokenizer.from_pretrained(directory, trust_remote_code=False), seconds
        return self._vocabularies[key]

    @contextmanager
    def _vocabulary_directory(self, key: str) -> Iterator[tuple[Path, bool]]:
        """(directory, whether the tokenizer is in it already): an entry of the cache, unless nothing may be kept there."""
        if not self.prices.counts_only:
            with cache.entry("plan-vocabulary", key) as (directory, ready):
                yield directory, ready
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder), False

    def blocks(self, recipe: Recipe, source: str, tokenizer: Any, joint: JointVocabulary | None = None) -> CorpusBlocks:
        """Returns the corpus's blocks; they cost nothing if cached, or made by an earlier stage of this run.

        joint  of two vocabularies, where each word is kept in both
        """
        settings = BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed)
        cached = find_mixed_blocks(source, joint, settings) if joint else find_blocks(source, tokenizer, settings)
        if cached:
            return CorpusBlocks(cached[0].lengths, cached[1].lengths, 0.0, 0)
        key = [identify_corpus(source), tokenizer_fingerprint(tokenizer), vars(settings)]
        key += [tokenizer_fingerprint(joint.teacher)] if joint else []
        stored = self.prices.once("blocks", key, lambda: self._measure_blocks(recipe, source, tokenizer, settings, joint))
        is_planned = atomic.digest(key) in self._planned_blocks
        self._planned_blocks.add(atomic.digest(key))
        scale = stored["scale"]
        lengths, held = (_scaled(stored[part], scale) for part in ("lengths", "held"))
        tokens, blocks = int(lengths.sum()), len(lengths) + len(held)
        texts = 2 if joint else 1  # the teacher's pieces, and positions in them
        size = 0 if is_planned else int(texts * tokens * (TOKENS + SENTENCE) + blocks * BLOCK)
        note = "" if scale == 1.0 else f"blocks from a sample of the corpus, 1 in {scale:.1f}"
        return CorpusBlocks(lengths, held, 0.0 if is_planned else stored["seconds"], size, note)

    def _train_vocabulary(self, recipe: Recipe, source: str, settings: Mapping[str, Any], directory: Path) -> None:
        sample = self.sample(recipe, source)
        started = time.perf_counter()
        tokenizer = train_vocabulary(lambda: sample.documents, **settings)
        seconds = (time.perf_counter() - started) * sample.scale + 2 * sample.read_seconds
        tokenizer.save_pretrained(directory)
        (directory / "seconds").write_text(str(seconds), encoding="utf-8")

    def _measure_blocks(
        self, recipe: Recipe, source: str, tokenizer: Any, settings: BlockSettings, joint: JointVocabulary | None
    ) -> dict[str, Any]:
        sample = self.sample(recipe, source)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            parts = (
                cut_mixed_blocks(sample.documents, joint, settings, Path(folder))
                if joint
                else cut_blocks(sample.documents, tokenizer, settings, Path(folder))
            )
            seconds = (time.perf_counter() - started) * sample.scale + sample.read_seconds
            lengths, held = (part.lengths.tolist() for part in parts)
        return {"lengths": lengths, "held": held, "scale": sample.scale, "seconds": seconds}

    def sample(self, recipe: Recipe, source: str) -> CorpusSample:
        """Returns a sample of the corpus, read once."""
        key = f"{source} {recipe.corpus.documents}"
        if key not in self._corpora:
            self._corpora[key] = sample_corpus(source, limit=recipe.corpus.documents)
        return self._corpora[key]


def _scaled(lengths: list[int], scale: float) -> np.ndarray:
    """Repeats the lengths of a sample until there are as many as the whole corpus has."""
    return np.resize(np.asarray(lengths), max(1, round(len(lengths) * scale)))


@contextmanager
def standing_in(model: ModelInfo, head: str) -> Iterator[Path]:
    """Yields the directory of a model; of one that is not there yet, a temporary one with random weights."""
    from microbert_cli.plan.rehearsal import random_model

    if model.directory is not None:
        yield model.directory
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        random_model(model.config, head).save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        yield Path(folder)
