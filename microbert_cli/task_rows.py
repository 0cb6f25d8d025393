"""A recipe's task with its rows at hand: read once, encoded once per tokenizer, scored on request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microbert_cli import durable, models, scoring
from microbert_cli.answering import Answers
from microbert_cli.catalog import Catalog
from microbert_cli.data import Rows, complete, load_augmented, load_split, load_transfer, own_task
from microbert_cli.encoding import Encoded, encode, rules_of
from microbert_cli.errors import MbertError
from microbert_cli.models import Loaded
from microbert_cli.recipe import Recipe
from microbert_cli.several import recipe_of, task_name, transfer_of
from microbert_cli.splits import TRANSFER
from microbert_cli.task import Task, load_task
from microbert_cli.tracking import SILENT, Talk


@dataclass
class TaskRows:
    """Rows of the splits a stage asked for, and what they encode to. `number`: the task's, in a run of several."""

    task: Task
    rows: dict[str, Rows]
    max_length: int
    talk: Talk = SILENT
    number: int | None = None
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)
    _rules: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def encode(self, split: str, loaded: Loaded | Answers, *, where: str) -> Encoded:
        """The split's token ids; raises M012 where a text may outgrow the model."""
        models.check_length(self.max_length, loaded.model.config, where=where)
        key = (split, self._rules_of(loaded.tokenizer))
        if key not in self._encoded:
            encoded = encode(self.rows[split], loaded.tokenizer, self.max_length)
            self._encoded[key] = replace(encoded, task=self.number)
            if cut := self._encoded[key].truncated:
                self.talk.note(
                    f"{self.task.name} {split}: {cut} of {len(self.rows[split])} rows cut to {self.max_length} tokens"
                )
        return self._encoded[key]

    def logits(self, split: str, model: Any, loaded: Loaded | Answers, *, batch_size: int = 64) -> Any:
        """The model's logits [n, C] on a split."""
        encoded = self.encode(split, loaded, where="model")
        pad_id = loaded.tokenizer.pad_token_id
        return scoring.logits_of(model, encoded, pad_id=pad_id, batch_size=batch_size, talk=self.talk)

    def score(self, split: str, model: Any, loaded: Loaded) -> dict[str, float]:
        """The task's metrics of a model on a split."""
        return scoring.score(self.task, self.logits(split, model, loaded), self.rows[split])

    def majority(self, split: str) -> float:
        """The primary metric of always answering the commonest class."""
        return scoring.majority_score(self.task, list(self.rows[split].labels or []))

    def _rules_of(self, tokenizer: Any) -> str:
        """The tokenizer's rules, worked out once; it is kept, so that its id stays its own."""
        if id(tokenizer) not in self._rules:
            self._rules[id(tokenizer)] = (tokenizer, rules_of(tokenizer))
        return self._rules[id(tokenizer)][1]

    def fingerprints(self) -> dict[str, Any]:
        """What identifies the data: the question and its metrics, every split's texts and labels, the maximum length."""
        task = self.task.model_dump(mode="json", exclude={"name", "title", "hub", "folder", "files", "submission"})
        splits = {split: rows.fingerprint for split, rows in self.rows.items()}
        return {"task": durable.digest(task), "max_length": self.max_length, **splits}

    def facts(self) -> dict[str, Any]:
        """Rows and fingerprints for the manifest."""
        return {
            split: {"rows": len(rows), "fingerprint": rows.fingerprint, "task": self.task.name}
            for split, rows in self.rows.items()
        }


def fingerprints_of(tasks: Sequence[TaskRows]) -> dict[str, Any]:
    """What identifies the data of a run: of its one task, or of several by name."""
    return {one.task.name: one.fingerprints() for one in tasks} if tasks[0].number is not None else tasks[0].fingerprints()


def facts_of(tasks: Sequence[TaskRows]) -> dict[str, Any]:
    """Rows and fingerprints for the manifest; of several tasks every split under `TASK SPLIT`."""
    if tasks[0].number is None:
        return tasks[0].facts()
    return {f"{one.task.name} {split}": facts for one in tasks for split, facts in one.facts().items()}


def open_task(
    recipe: Recipe,
    catalog: Catalog,
    *,
    splits: Sequence[str],
    augmented: str | Path | None = None,
    talk: Talk = SILENT,
) -> TaskRows:
    """Reads the recipe's task: one of the catalogue, a task TOML, or the user's own files named by `data.*` keys.

    splits     of the task; "transfer" is the recipe's transfer set, whole: `data.limit` is about train
    augmented  a directory made by `mbert augment`; its rows are the split "augmented"
    """
    task = find_task(recipe, catalog, talk=talk)
    rows = {split: _split(recipe, task, split, talk) for split in splits}
    if augmented is not None:
        rows["augmented"] = load_augmented(Path(augmented), task)
    return TaskRows(task, rows, recipe.data.max_length or task.max_length, talk)


def open_tasks(
    recipe: Recipe,
    catalog: Catalog,
    *,
    splits: Sequence[str],
    augmented: str | Mapping[str, str] | None = None,
    talk: Talk = SILENT,
) -> list[TaskRows]:
    """Reads the recipe's task, or every one of its several tasks, called as the recipe calls them and numbered by name.

    augmented  what `mbert augment` made of the task, or of each by name
    """
    if not recipe.tasks:
        assert not isinstance(augmented, Mapping)
        return [open_task(recipe, catalog, splits=splits, augmented=augmented, talk=talk)]
    made = augmented if isinstance(augmented, Mapping) else {}
    found, numbers = [], sorted(map(task_name, recipe.tasks))
    for named in recipe.tasks:
        place = made.get(task_name(named))
        data = open_task(recipe_of(recipe, named), catalog, splits=splits, augmented=place, talk=talk)
        called = data.task.model_copy(update={"name": task_name(named)})
        found.append(replace(data, task=called, number=numbers.index(called.name)))
    return found


def find_task(recipe: Recipe, catalog: Catalog, *, talk: Talk = SILENT) -> Task:
    """The task a recipe names; raises M020 where it names none."""
    data = recipe.data
    if data.train_file or data.dev_file or data.test_file:
        text = (data.text,) if isinstance(data.text, str) else tuple(data.text or ("text",))
        return own_task(
            train_file=data.train_file,
            dev_file=data.dev_file,
            test_file=data.test_file,
            text=text,
            label=data.label or "label",
            labels=data.labels,
            kind=data.kind,
            name=recipe.task,
            talk=talk,
        )
    if recipe.task is None:
        raise MbertError(
            "M020",
            "no task is named",
            where="task",
            allowed=f"A task of the catalogue ({', '.join(catalog.names('tasks'))}), a task TOML, or own files.",
            fix="--task sst2, or --train-file reviews.csv --text text --label stars",
        )
    return complete(load_task(catalog.path("tasks", recipe.task, where="task")), talk)


def _split(recipe: Recipe, task: Task, split: str, talk: Talk) -> Rows:
    if split == TRANSFER and (place := transfer_of(recipe)):
        return load_transfer(Path(place), task, talk)
    folder = Path(recipe.data.folder) if recipe.data.folder else None
    return load_split(task, split, data_dir=folder, limit=recipe.data.limit if split == "train" else None, talk=talk)
