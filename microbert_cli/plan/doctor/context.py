"""A recipe under examination: what is there of its inputs, and what stands for what is yet to be made.

An output that an earlier stage will make is known by its configuration and tokenizer, as planning knows it; where a model must
be run, random weights stand for it. Every input is looked for once: who asks again gets the same model, or the same error.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from microbert_cli.data.corpus.blocks import Blocks, BlockSettings, cut_blocks, find_blocks
from microbert_cli.data.corpus.documents import BUILT_IN_CORPUS, CORPUS_SUFFIXES, read_documents
from microbert_cli.data.task_data import TaskData, find_task
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.errors import MbertError
from microbert_cli.hub import is_hub_id, unreachable
from microbert_cli.models import factory
from microbert_cli.models.find import cached_model, find_model
from microbert_cli.models.load import LoadedModel
from microbert_cli.plan.calibration import Calibration
from microbert_cli.plan.doctor.findings import Later
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo, standing_in
from microbert_cli.recipe.phase_data import TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import Task
from microbert_cli.runs import atomic
from microbert_cli.runs.pipeline import step_state
from microbert_cli.runs.stage_inputs import Step

MODELS = ("model", "teacher", "student", "tokenizer", "masked_lm")  # inputs that are models or descriptions of some
DOCUMENTS, SENTENCES = 50, 40  # of a corpus that one batch is cut from


class DoctorContext:
    """The stages of a recipe, and everything found out about their inputs so far.

    offline  whether the run may not ask the Hub either: what is not here then is an error, not a matter of time
    """

    def __init__(self, steps: Sequence[Step], root: Path, catalog: Catalog, *, offline: bool):
        self.steps = [part for step in steps for part in step.stage.split_tasks(step)]
        self.root, self.catalog, self.offline = root, catalog, offline
        self.seen = ExpectedInputs(catalog, Calibration(device="cpu", catalog=catalog, counts_only=True))
        self.to_come = _to_come(steps)
        self._kept: dict[Any, tuple[Any, Exception | None]] = {}

    @property
    def task_steps(self) -> list[Step]:
        """The steps that train on the rows of a task."""
        return [step for step in self.steps if step.stage.learns_task]

    def directory(self, name: str, where: str) -> Path:
        """A model's directory; of a Hub id its copy in the Hub's cache. Raises Later, and what `sources.find` raises."""
        return self._once(("directory", name), lambda: self._directory(name, where))

    def known(self, name: str, *, where: str, tokenizer: str | None = None, like: Any = None) -> ModelInfo:
        """Configuration and tokenizer of a model, a description, or what a stage will have made."""
        if name in self.to_come:
            return self.output(self.to_come[name])
        if not factory.is_description(name, self.catalog):
            return self._once(("known", name), lambda: self.seen.model(str(self.directory(name, where)), where=where))
        if tokenizer is None:
            raise factory.no_vocabulary(name, where)
        source = self.known(tokenizer, where="tokenizer")
        return self.seen.described(name, source.tokenizer, like=like or source.config, where=where)

    def output(self, step: Step) -> ModelInfo:
        """What a stage will have made, or goes on training."""
        return self._once(("output", step.name), lambda: self._output(step))

    def rows(self, step: Step, splits: tuple[str, ...]) -> TaskData:
        """A stage's rows; raises Later where the Hub will give them."""
        recipe = step.resolved.recipe
        return self._once(("rows", atomic.digest(recipe.keys("task", "data")), splits), lambda: self._rows(step, splits))

    def data(self, step: Step) -> TaskData:
        """The rows that a stage trains on and selects by, a transfer set that it takes among them."""
        return self.rows(step, self.splits(step))

    def splits(self, step: Step) -> tuple[str, ...]:
        """What they are called."""
        return step.stage.splits_of(step.resolved.recipe, self.catalog)

    def data_sets(self) -> dict[str, Step]:
        """A stage for every set of rows that is trained on, by the names of all stages that have the same."""
        found: dict[str, list[Step]] = {}
        for step in self.task_steps:
            found.setdefault(atomic.digest(step.resolved.recipe.keys("task", "data")), []).append(step)
        alone = len(found) == 1
        return {"" if alone else ", ".join(step.name for step in steps): steps[0] for steps in found.values()}

    def encoded(self, step: Step, split: str = TRAIN) -> TokenizedExamples:
        """A split of a stage's rows as its model sees them; raises M012 where they may outgrow it."""
        data, known = self.data(step), self.output(step)
        asked = LoadedModel(SimpleNamespace(config=known.config), known.tokenizer, "doctor", [])
        return data.encode(split, asked, where="data.max_length")

    def find_corpus(self, step: Step) -> str:
        """How a stage gets its text; raises Later where the Hub streams it, and M637 where it may not."""
        source = step.inputs["source"]
        return self._once(("corpus", source), lambda: self._find_corpus(step, source))

    @contextmanager
    def blocks(self, step: Step) -> Iterator[Blocks]:
        """Blocks of the stage's corpus: those in the cache, or some cut from its first documents."""
        self.find_corpus(step)
        tokenizer, settings = self.output(step).tokenizer, _settings(step)
        if found := find_blocks(step.inputs["source"], tokenizer, settings):
            yield found[0]
            return
        documents = read_documents(step.inputs["source"], limit=settings.documents)
        few = [document[:SENTENCES] for document in islice(documents, DOCUMENTS)]
        with tempfile.TemporaryDirectory() as folder:
            yield cut_blocks(few, tokenizer, settings, Path(folder))[0]

    @contextmanager
    def standing(self, name: str, head: str, *, where: str, task: Task | None = None) -> Iterator[str]:
        """A model that can be loaded now: itself, or random weights for what is yet to be made; a description as it is.

        task  whose outputs a head of random weights gets
        Errors inside name the model as the recipe does.
        """
        if factory.is_description(name, self.catalog):
            yield name
            return
        known = self.known(name, where=where)
        if known.directory is None and task is not None:
            known = known.classifying(task)
        with standing_in(known, head) as directory:
            try:
                yield str(directory)
            except MbertError as error:
                error.where, error.fix = (text.replace(str(directory), name) for text in (error.where, error.fix))
                raise

    def _once(self, key: Any, look: Callable[[], Any]) -> Any:
        if key not in self._kept:
            try:
                self._kept[key] = look(), None
            except (MbertError, Later) as error:
                self._kept[key] = None, error
        found, failure = self._kept[key]
        if failure is not None:
            raise failure
        return found

    def _directory(self, name: str, where: str) -> Path:
        if not is_hub_id(name):
            return find_model(name, where=where)
        if copy := cached_model(name):
            return find_model(copy, where=where)
        if self.offline:
            raise unreachable(name, where, LookupError("its local cache has no whole copy"))
        raise Later(f"{name} comes from the Hub")

    def _output(self, step: Step) -> ModelInfo:
        recipe, given = step.resolved.recipe, step.inputs
        if step.distils:
            teacher = self.known(given["teacher"], where=step.stage.input_keys["teacher"][0])
            found = self.known(given["student"], where="student", tokenizer=given["teacher"], like=teacher.config)
        elif trains_vocabulary(step) and factory.is_description(given["model"], self.catalog):
            self.find_corpus(step)
            tokenizer, _ = self.seen.vocabulary(recipe, given["source"])
            found = self.seen.described(given["model"], tokenizer, like=None, where="pretrain.model")
        else:
            found = self.known(given["model"], where=f"{step.kind}.model", tokenizer=given.get("tokenizer"))
        return ModelInfo(found.config, found.tokenizer)

    def _rows(self, step: Step, splits: tuple[str, ...]) -> TaskData:
        recipe = step.resolved.recipe
        try:
            return self.seen.task(recipe, splits)[0]
        except MbertError as error:
            from_hub = error.code == "M250" and not self.offline and recipe.data.folder is None
            if from_hub and find_task(recipe, self.catalog).hub is not None:
                raise Later("the rows come from the Hub") from None
            raise

    def _find_corpus(self, step: Step, source: str) -> str:
        if not _on_hub(source):
            next(iter(read_documents(source)), None)
            return "built in" if source == BUILT_IN_CORPUS else "here"
        if self._has_blocks(step, source):
            return "its blocks are in the cache"
        if not self.offline:
            raise Later(f"{source} is streamed from the Hub")
        raise MbertError(
            "M637",
            f"{source} is streamed from the Hub, and its blocks are not in the cache",
            where="corpus.source",
            allowed="A file or folder of text, or a Hub data set while the Hub may be asked.",
            fix="HF_HUB_OFFLINE is set: unset it, or name a file: --corpus texts.txt.gz",
        )

    def _has_blocks(self, step: Step, source: str) -> bool:
        """Whether a corpus was cut before, so that its text is not needed; a vocabulary would be trained on the text itself."""
        if trains_vocabulary(step):
            return False
        try:
            return find_blocks(source, self.output(step).tokenizer, _settings(step)) is not None
        except (MbertError, Later):
            return False


def trains_vocabulary(step: Step) -> bool:
    """Whether the stage trains a vocabulary on its corpus, instead of taking another model's."""
    return "vocabulary" in step.stage.keys and step.resolved.recipe.vocabulary.size is not None


def inputs_of(step: Step) -> dict[str, str]:
    """A stage's inputs that are names, by their role; those of a table of models by the stage that made them."""
    found: dict[str, str] = {}
    for role, value in step.inputs.items():
        named = value if isinstance(value, dict) else {role: value}
        found |= {str(key): one for key, one in named.items() if isinstance(one, str)}
    return found


def localised(step: Step, case: DoctorContext) -> Step:
    """The stage with directories for Hub ids; raises Later where one is not here yet."""

    def local(role: str, value: Any) -> Any:
        named = role in MODELS and isinstance(value, str) and value not in case.to_come
        if not named or factory.is_description(value, case.catalog):
            return value
        return str(case.directory(value, f"{step.kind}.{role}"))

    return replace(step, inputs={role: local(role, value) for role, value in step.inputs.items()})


def _to_come(steps: Sequence[Step]) -> dict[str, Step]:
    """Outputs that this run will make or make anew, since something before them is."""
    found: dict[str, Step] = {}
    for step in steps:
        if step_state(step) != "done" or any(place in found for place in step.places.values()):
            found[str(step.out)] = step.stage.split_tasks(step)[0]
    return found


def _settings(step: Step) -> BlockSettings:
    recipe = step.resolved.recipe
    return BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed)


def _on_hub(source: str) -> bool:
    named = source != BUILT_IN_CORPUS and Path(source).suffix not in CORPUS_SUFFIXES
    return named and not Path(source).exists() and is_hub_id(source.partition(":")[0])
