"""A recipe's task with its rows: read once, tokenized once per tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.data.encoded.cascade import for_cascade
from microbert_cli.data.examples import Examples
from microbert_cli.data.load import complete, load_augmented, load_split, load_transfer, own_task
from microbert_cli.data.soft_labels import SoftColumns
from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples, tokenizer_fingerprint
from microbert_cli.data.windows.choice import WindowChoice
from microbert_cli.data.windows.examples import WindowedExamples, tokenize_windows
from microbert_cli.data.words.starts import unread_words
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import check_length, check_texts, positions_of
from microbert_cli.models.graphs.products import evenly
from microbert_cli.models.windows.settings import WindowSettings, windows_of_model
from microbert_cli.recipe.multitask import recipe_of_task, task_name, transfer_of
from microbert_cli.recipe.phase_data import TRANSFER
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Task, load_task
from microbert_cli.recipe.task_kinds import TOKENS as WORDS
from microbert_cli.recipe.task_kinds import ClassWeights, LabelForm, Standardisation, TaskKind, kind_class
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic
from microbert_cli.table_format import TableFormat, is_column_file

if TYPE_CHECKING:
    from microbert_cli.models.load import LoadedModel
    from microbert_cli.models.predictor import Predictor


@dataclass
class TaskData:
    """The splits that a stage asked for, and their token ids.

    number           the task's, in a run of several
    class_weights    how much hard labels of each class count, as the recipe says
    length_is_given  the recipe names the maximum length; else it is the task's, or what a model with fewer positions can read
    windows          what the recipe says of texts that are longer
    """

    task: Task
    rows: dict[str, Examples]
    max_length: int
    reporter: Reporter = SILENT
    number: int | None = None
    length_is_given: bool = True
    windows: WindowChoice = WindowChoice()
    class_weights: ClassWeights = None
    _encoded: dict[tuple[str, str], TokenizedExamples] = field(default_factory=dict)
    _rules: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def encode(self, split: str, loaded: "LoadedModel | Predictor", *, where: str) -> TokenizedExamples:
        """Returns the split's token ids; raises M012 where a text may be longer than the model's positions."""
        length = self.length_for(loaded.model.config, where=where)
        windows = self.windows_for(loaded.model.config, split, where=where)
        key = (split, f"{length} {windows or ''} {self._rules_of(loaded.tokenizer)}")
        if key not in self._encoded:
            encoded = (
                tokenize_windows(self.rows[split], loaded.tokenizer, windows, self.task.kind)
                if windows
                else tokenize_examples(self.rows[split], loaded.tokenizer, length, self.task.kind)
            )
            self._note_long_rows(split, encoded, length)
            if self.has_window_rows(split, loaded.model.config, where=where):
                encoded = encoded.windows
            self._encoded[key] = replace(encoded, task=self.number)
        if (big := getattr(loaded, "sends_to", None)) is not None:
            return for_cascade(self._encoded[key], self.encode(split, big, where=where), big.tokenizer.pad_token_id)
        return self._encoded[key]

    def _note_long_rows(self, split: str, encoded: TokenizedExamples, length: int) -> None:
        """Says how many rows are cut, and how many are read in windows."""
        rows, parts = len(encoded), len(encoded.windows)
        name = f"{self.task.name} {split}"
        if isinstance(encoded, WindowedExamples):
            self.reporter.note(f"{name}: {rows} rows are {parts} windows of at most {length} tokens")
        elif encoded.truncated:
            lost = self._lost_words(split, encoded)
            self.reporter.note(f"{name}: {encoded.truncated} of {rows} rows cut to {length} tokens{lost}")

    def _lost_words(self, split: str, encoded: TokenizedExamples) -> str:
        if encoded.words is None:
            return ""
        return "; {:,} of {:,} words have no answer".format(*unread_words(self.rows[split].texts, encoded.words))

    def windows_for(self, config: Any, split: str = "", *, where: str) -> WindowSettings | None:
        """Returns the windows in which a model reads long rows of a split; None where it reads their beginning."""
        length = self.length_for(config, where=where)
        settings = self.windows.settings(config, length, where=where)
        if settings is None and self._windows_are_rows(split) and self.windows.transfer:
            return self.windows.of_length(length)
        return settings

    def has_window_rows(self, split: str, config: Any, *, where: str) -> bool:
        """Whether every window of a split is a row of its own, where there are windows."""
        return self._windows_are_rows(split) and self.windows_for(config, split, where=where) is not None

    def _windows_are_rows(self, split: str) -> bool:
        """Whether every window of a split is a row of its own; answers that a table has are those of whole texts."""
        return split == TRANSFER and self.windows.transfer is not False and self.rows[split].soft is None

    def calibration_rows(
        self, loaded: "LoadedModel | Predictor", *, where: str, train: Examples | None = None
    ) -> list[dict[str, list[int]]]:
        """Returns rows for the scales of an int8 file: some of `train`, else of the training split, else of dev; no labels."""
        rows = train if train is not None else self.rows.get("train", self.rows["dev"])
        chosen = rows.take(evenly(len(rows)))
        encoded = tokenize_examples(chosen, loaded.tokenizer, self.length_for(loaded.model.config, where=where), self.task.kind)
        return [encoded.row(index) for index in range(len(encoded))]

    @property
    def standardisation(self) -> Standardisation | None:
        """The units that the task's labels are learnt in, by those of its training rows; None = as they are."""
        train = self.rows.get("train")
        if train is None or not (train.labels or train.soft):
            return None
        return self.task.kind.standardisation(train.labels or [values[0] for values in train.soft or ()])

    @property
    def label_form(self) -> LabelForm:
        """What losses must know of the task's labels; weights by those of its training rows. Raises M440, M441."""
        kind = self.task.kind
        return LabelForm(kind.independent, kind.of_words, kind.class_weights(self._train_labels, self.class_weights))

    @property
    def head_bias(self) -> tuple[float, ...] | None:
        """What the bias of a new head starts with, by the labels of the training rows; None = 0."""
        labels = self._train_labels
        return self.task.kind.head_bias(labels, self.label_form.weights) if labels else None

    @property
    def _train_labels(self) -> Sequence[Any]:
        """The labels of the training rows; empty where there are no such rows, or none with labels."""
        return (self.rows["train"].labels if "train" in self.rows else None) or ()

    def check_class_weights(self) -> None:
        """Raises M440 and M441 where the recipe weighs classes that the task has not."""
        _ = self.label_form

    def length_for(self, config: Any, *, where: str) -> int:
        """Returns how many tokens of a row a model reads; raises M012 where the recipe names more than it has positions.

        Raises M324 for a model of pairs and a task of single texts.
        """
        check_texts(len(self.task.text), config, where=where)
        if self.length_is_given:
            check_length(self.max_length, config, where=where)
        length = self.max_length
        if not self.length_is_given and self.windows.pool is None and (windows := windows_of_model(config, where=where)):
            length = windows.max_length
        return min(length, positions_of(config) or length)

    def fit_length(self, config: Any, *, where: str) -> None:
        """Makes all models read as many tokens as this one can: those of a distillation get the same batches."""
        self.max_length = self.length_for(config, where=where)

    def _rules_of(self, tokenizer: Any) -> str:
        """Returns the tokenizer's fingerprint, padding side and segments; it is kept too, as a freed object's id is reused."""
        if id(tokenizer) not in self._rules:
            form = f"{tokenizer.padding_side} {'token_type_ids' in tokenizer.model_input_names}"
            self._rules[id(tokenizer)] = (tokenizer, f"{tokenizer_fingerprint(tokenizer)} {form}")
        return self._rules[id(tokenizer)][1]

    def fingerprints(self) -> dict[str, Any]:
        """Returns what identifies the data: the task and its metrics, texts and labels of every split, the maximum length."""
        task = self.task.model_dump(mode="json", exclude={"name", "title", "hub", "folder", "files", "submission"})
        if self.task.label.columns is None:  # a key that came later: older outputs keep their identity
            del task["label"]["columns"]
        splits = {split: rows.fingerprint for split, rows in self.rows.items()}
        return {"task": atomic.digest(task), "max_length": self.max_length, **splits}

    def facts(self) -> dict[str, Any]:
        """Returns row counts and fingerprints for the manifest."""
        return {
            split: {"rows": len(rows), "fingerprint": rows.fingerprint, "task": self.task.name}
            for split, rows in self.rows.items()
        }


def fingerprints_of(tasks: Sequence[TaskData]) -> dict[str, Any]:
    """Returns the fingerprints of a run's one task, or of several by name."""
    return {data.task.name: data.fingerprints() for data in tasks} if tasks[0].number is not None else tasks[0].fingerprints()


def facts_of(tasks: Sequence[TaskData]) -> dict[str, Any]:
    """Returns row counts and fingerprints for the manifest; of several tasks every split under `TASK SPLIT`."""
    if tasks[0].number is None:
        return tasks[0].facts()
    return {f"{data.task.name} {split}": facts for data in tasks for split, facts in data.facts().items()}


def load_task_data(
    recipe: Recipe,
    catalog: Catalog,
    *,
    splits: Sequence[str],
    augmented: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> TaskData:
    """Loads the recipe's task: one of the catalogue, a task TOML, or the user's own files of the `data.*` keys.

    splits     of the task; "transfer" is the recipe's transfer set, whole: `data.limit` is about train
    augmented  a directory made by `mbert augment`; its rows are the split "augmented"
    """
    task = find_task(recipe, catalog, reporter=reporter)
    rows = {split: _split(recipe, task, split, reporter) for split in splits}
    if augmented is not None:
        rows["augmented"] = load_augmented(Path(augmented), task)
    length = recipe.data.max_length
    data = TaskData(
        task,
        rows,
        length or task.max_length,
        reporter,
        length_is_given=length is not None,
        windows=WindowChoice.of(recipe, task),
        class_weights=recipe.data.class_weights,
    )
    data.check_class_weights()
    return data


def load_all_task_data(
    recipe: Recipe,
    catalog: Catalog,
    *,
    splits: Sequence[str],
    augmented: str | Mapping[str, str] | None = None,
    reporter: Reporter = SILENT,
) -> list[TaskData]:
    """Loads the recipe's task, or each of its several tasks, under the recipe's names and numbered by sorted name.

    augmented  what `mbert augment` made of the task, or of each by name
    """
    if not recipe.tasks:
        assert not isinstance(augmented, Mapping)
        return [load_task_data(recipe, catalog, splits=splits, augmented=augmented, reporter=reporter)]
    augmented_dirs = augmented if isinstance(augmented, Mapping) else {}
    all_data, numbers = [], sorted(map(task_name, recipe.tasks))
    for reference in recipe.tasks:
        augmented_dir = augmented_dirs.get(task_name(reference))
        data = load_task_data(
            recipe_of_task(recipe, reference), catalog, splits=splits, augmented=augmented_dir, reporter=reporter
        )
        named_task = data.task.model_copy(update={"name": task_name(reference)})
        all_data.append(replace(data, task=named_task, number=numbers.index(named_task.name)))
    return all_data


def find_task(recipe: Recipe, catalog: Catalog, *, reporter: Reporter = SILENT) -> Task:
    """Returns the task that a recipe names; raises M020 where it names none."""
    data = recipe.data
    if data.train_file or data.dev_file or data.test_file:
        kind = data.kind or (WORDS if is_column_file(data.train_file or data.dev_file or data.test_file or "") else None)
        text_column, label_column = (kind_class(kind) if kind else TaskKind).columns
        text = (data.text,) if isinstance(data.text, str) else tuple(data.text or (text_column,))
        task = own_task(
            train_file=data.train_file,
            dev_file=data.dev_file,
            test_file=data.test_file,
            text=text,
            label=data.label or label_column,
            labels=data.labels,
            columns=data.label_columns,
            kind=kind,
            name=recipe.task,
            form=format_of(recipe),
            soft=SoftColumns.of(recipe),
            reporter=reporter,
        )
        return task.selected_by(data.primary)
    if recipe.task is None:
        raise MbertError(
            "M020",
            "no task is named",
            where="task",
            allowed=f"A task of the catalogue ({', '.join(catalog.names('tasks'))}), a task TOML, or own files.",
            fix="--task sst2, or --train-file reviews.csv --text text --label stars",
        )
    task = _with_format(load_task(catalog.path("tasks", recipe.task, where="task")), recipe)
    task = complete(task, reporter, SoftColumns.of(recipe)).selected_by(recipe.data.primary)
    return task.typed_as(recipe.task)


def format_of(recipe: Recipe) -> TableFormat:
    """What a recipe says of the format of the user's own files."""
    return TableFormat(**recipe.data.model_dump(include=set(TableFormat.model_fields)))


def _with_format(task: Task, recipe: Recipe) -> Task:
    """The task with what the recipe says of its files' format; it rules over what the task's TOML says."""
    values = format_of(recipe).model_dump(exclude_defaults=True)
    return task.model_copy(update={"files": task.files.model_copy(update=values)}) if task.files and values else task


def _split(recipe: Recipe, task: Task, split: str, reporter: Reporter) -> Examples:
    if split == TRANSFER and (transfer_file := transfer_of(recipe)):
        form = task.files.format if task.files else format_of(recipe)
        return load_transfer(Path(transfer_file), task, reporter, form, SoftColumns.of(recipe))
    folder = Path(recipe.data.folder) if recipe.data.folder else None
    limit = recipe.data.limit if split == "train" else None
    return load_split(task, split, data_dir=folder, limit=limit, soft=SoftColumns.of(recipe), reporter=reporter)
