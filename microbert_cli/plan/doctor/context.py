"""The inputs of a recipe as the checks see them: those that exist, and stand-ins for those that are yet to be made.

An output that an earlier stage will make is described by its configuration and tokenizer, as in a plan; where a model must be
run, it gets random weights. Every input is looked up once: a second call returns the same model, or raises the same error.
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
from microbert_cli.data.corpus.documents import BUILT_IN_CORPUS, is_corpus_file, read_documents
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.data.corpus.mixed_blocks import cut_mixed_blocks, find_mixed_blocks
from microbert_cli.data.task_data import TaskData, find_task
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.errors import MbertError, RowsMissingError
from microbert_cli.hub import is_hub_id, unreachable
from microbert_cli.models import factory
from microbert_cli.models.find import cached_model, find_model
from microbert_cli.models.load import LoadedModel
from microbert_cli.plan.calibration import Calibration
from microbert_cli.plan.doctor.findings import Later
from microbert_cli.plan.dual import own_vocabulary
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo, standing_in
from microbert_cli.plan.static_checks import LOADED
from microbert_cli.recipe.phase_data import TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import Task
from microbert_cli.runs import atomic
from microbert_cli.runs.pipeline import step_state
from microbert_cli.runs.stage_inputs import CASCADE, Step

DOCUMENTS, SENTENCES = 50, 40  # of a corpus that one batch is cut from


class DoctorContext:
    """The stages of a recipe, and what was found out about their inputs so far.

    offline  whether the run may not ask the Hub either: what is not here then is an error, not a matter of time
    """

    def __init__(self, steps: Sequence[Step], root: Path, catalog: Catalog, *, offline: bool):
        self.steps = [part for step in steps for part in step.stage.split_tasks(step)]
        self.root, self.catalog, self.offline = root, catalog, offline
        self.seen = ExpectedInputs(catalog, Calibration(device="cpu", catalog=catalog, counts_only=True))
        self.to_come = _to_come(steps)
        self._results: dict[Any, tuple[Any, Exception | None]] = {}

    @property
    def task_steps(self) -> list[Step]:
        """The steps that train on the rows of a task."""
        return [step for step in self.steps if step.stage.learns_task]

    def directory(self, name: str, where: str) -> Path:
        """Returns a model's directory; of a Hub id its copy in the Hub's cache. Raises Later, and what `find_model` raises."""
        return self._once(("directory", name), lambda: self._directory(name, where))

    def info(self, name: str, *, where: str, tokenizer: str | None = None, like: Any = None) -> ModelInfo:
        """Returns configuration and tokenizer of a model, a description, or what a stage will have made."""
        if name in self.to_come:
            return self.output(self.to_come[name])
        if not factory.is_description(name, self.catalog):
            return self._once(("known", name), lambda: self.seen.model(str(self.directory(name, where)), where=where))
        if tokenizer is None:
            raise factory.missing_vocabulary(name, where)
        source = self.info(tokenizer, where="tokenizer")
        return self.seen.described(name, source.tokenizer, like=like or source.config, where=where)

    def output(self, step: Step) -> ModelInfo:
        """Returns the model that a stage will have made, or goes on training."""
        return self._once(("output", step.name), lambda: self._output(step))

    def rows(self, step: Step, splits: tuple[str, ...]) -> TaskData:
        """Returns a stage's rows; raises Later where the Hub will give them."""
        recipe = step.resolved.recipe
        return self._once(("rows", atomic.digest(recipe.keys("task", "data")), splits), lambda: self._rows(step, splits))

    def data(self, step: Step) -> TaskData:
        """Returns the rows that a stage trains on and selects by, a transfer set that it takes among them."""
        return self.rows(step, self.splits(step))

    def splits(self, step: Step) -> tuple[str, ...]:
        """Returns the names of the splits that a stage trains on and selects by."""
        return step.stage.splits_of(step.resolved.recipe, self.catalog)

    def data_sets(self) -> dict[str, Step]:
        """Returns a stage for every set of rows that is trained on, by the names of all stages with the same rows."""
        steps_by_data: dict[str, list[Step]] = {}
        for step in self.task_steps:
            steps_by_data.setdefault(atomic.digest(step.resolved.recipe.keys("task", "data")), []).append(step)
        has_one = len(steps_by_data) == 1
        return {"" if has_one else ", ".join(step.name for step in steps): steps[0] for steps in steps_by_data.values()}

    def encoded(self, step: Step, split: str = TRAIN) -> TokenizedExamples:
        """Returns a split of a stage's rows as its model reads them; raises M012 where they may outgrow it."""
        data, model = self.data(step), self.output(step)
        loaded = LoadedModel(SimpleNamespace(config=model.config), model.tokenizer, "doctor", [])
        return data.encode(split, loaded, where="data.max_length")

    def find_corpus(self, step: Step) -> str:
        """Returns how a stage gets its text; raises Later where the Hub streams it, and M637 where it may not."""
        source = step.inputs["source"]
        return self._once(("corpus", source), lambda: self._find_corpus(step, source))

    @contextmanager
    def blocks(self, step: Step, joint: JointVocabulary | None = None) -> Iterator[Blocks]:
        """Yields blocks of the stage's corpus, in one vocabulary or two: those in the cache, or some of its first documents."""
        self.find_corpus(step)
        tokenizer, settings = self.output(step).tokenizer, _settings(step)
        source = step.inputs["source"]
        if cached := find_mixed_blocks(source, joint, settings) if joint else find_blocks(source, tokenizer, settings):
            yield cached[0]
            return
        documents = read_documents(step.inputs["source"], limit=settings.documents)
        sample = [document[:SENTENCES] for document in islice(documents, DOCUMENTS)]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            cut = cut_mixed_blocks(sample, joint, settings, place) if joint else cut_blocks(sample, tokenizer, settings, place)
            yield cut[0]

    @contextmanager
    def standing(self, name: str, head: str, *, where: str, task: Task | None = None) -> Iterator[str]:
        """Yields a model that can be loaded now: itself, or random weights for what is yet to be made; a description as it is.

        task  whose outputs a head of random weights gets
        Errors inside name the model as the recipe does.
        """
        if factory.is_description(name, self.catalog):
            yield name
            return
        model = self.info(name, where=where)
        if model.directory is None and task is not None:
            model = model.classifying(task)
        with standing_in(model, head) as directory:
            try:
                yield str(directory)
            except MbertError as error:
                error.where, error.fix = (text.replace(str(directory), name) for text in (error.where, error.fix))
                raise

    def _once(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._results:
            try:
                self._results[key] = compute(), None
            except (MbertError, Later) as error:
                self._results[key] = None, error
        result, failure = self._results[key]
        if failure is not None:
            raise failure
        return result

    def _directory(self, name: str, where: str) -> Path:
        if not is_hub_id(name):
            return find_model(name, where=where, cascade=True)  # which stages take one, `check_cascade` says
        if copy := cached_model(name):
            return find_model(copy, where=where)
        if self.offline:
            raise unreachable(name, where, LookupError("its local cache has no whole copy"))
        raise Later(f"{name} comes from the Hub")

    def _output(self, step: Step) -> ModelInfo:
        recipe, inputs = step.resolved.recipe, step.inputs
        if step.distils:
            source = str(step.vocabulary)
            teacher = self.info(source, where=step.stage.input_keys["teacher"][0])
            if trains_vocabulary(step) and factory.is_description(inputs["student"], self.catalog):
                self.find_corpus(step)
                tokenizer, _ = own_vocabulary(self.seen, recipe, inputs["source"], teacher)
                return self.seen.described(inputs["student"], tokenizer, like=teacher.config, where="student")
            model = self.info(inputs["student"], where="student", tokenizer=source, like=teacher.config)
        elif trains_vocabulary(step) and factory.is_description(inputs["model"], self.catalog):
            self.find_corpus(step)
            tokenizer, _ = self.seen.vocabulary(recipe, inputs["source"])
            model = self.seen.described(inputs["model"], tokenizer, like=None, where="pretrain.model")
        else:
            role = "small" if step.kind == CASCADE else "model"  # of a cascade the labels and tokens that it reads
            model = self.info(inputs[role], where=f"{step.kind}.{role}", tokenizer=inputs.get("tokenizer"))
        return ModelInfo(model.config, model.tokenizer)

    def _rows(self, step: Step, splits: tuple[str, ...]) -> TaskData:
        recipe = step.resolved.recipe
        try:
            return self.seen.task(recipe, splits)[0]
        except RowsMissingError:
            may_ask_hub = not self.offline and recipe.data.folder is None
            if may_ask_hub and find_task(recipe, self.catalog).hub is not None:
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
        """Whether a corpus was cut before, so that its text is not needed; vocabularies are trained and trimmed on the text."""
        if trains_vocabulary(step) or "trim" in step.stage.keys:
            return False
        try:
            return find_blocks(source, self.output(step).tokenizer, _settings(step)) is not None
        except (MbertError, Later):
            return False


def trains_vocabulary(step: Step) -> bool:
    """Whether the stage trains a vocabulary on its corpus, instead of taking another model's."""
    recipe = step.resolved.recipe
    if "pretrain" in step.stage.keys:
        return recipe.vocabulary.size is not None
    return "general" in step.stage.keys and bool(recipe.general.dual.vocabulary)


def inputs_of(step: Step) -> dict[str, str]:
    """Returns a stage's inputs that are names, by their role; those of a table of models by the stage that made them."""
    names: dict[str, str] = {}
    for role, value in step.inputs.items():
        values = value if isinstance(value, dict) else {role: value}
        names |= {str(key): name for key, name in values.items() if isinstance(name, str)}
    return names


def localised(step: Step, context: DoctorContext) -> Step:
    """Returns the stage with directories for Hub ids; raises Later where one is not here yet."""

    def directory_of(role: str, value: Any) -> Any:
        is_model = role in LOADED and isinstance(value, str) and value not in context.to_come
        if not is_model or factory.is_description(value, context.catalog):
            return value
        return str(context.directory(value, f"{step.kind}.{role}"))

    return replace(step, inputs={role: directory_of(role, value) for role, value in step.inputs.items()})


def _to_come(steps: Sequence[Step]) -> dict[str, Step]:
    """Returns the outputs that this run will make, or make anew because an input of theirs is made anew."""
    to_come: dict[str, Step] = {}
    for step in steps:
        if step_state(step) != "done" or any(place in to_come for place in step.places.values()):
            to_come |= dict.fromkeys(step.outputs, step.stage.split_tasks(step)[0])
    return to_come


def _settings(step: Step) -> BlockSettings:
    recipe = step.resolved.recipe
    return BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed)


def _on_hub(source: str) -> bool:
    may_be_hub = source != BUILT_IN_CORPUS and not is_corpus_file(Path(source))
    return may_be_hub and not Path(source).exists() and is_hub_id(source.partition(":")[0])
