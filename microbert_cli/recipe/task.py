"""The description of a task: sources of rows, text and label columns, metrics, submission.

A task is one TOML file. `text` and `label.column` are LOGICAL names; `[hub.columns]` and `[folder.columns]` say what a
source calls them where it calls them otherwise. Splits are train, dev, test, or any other name, such as
dev_mismatched.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from microbert_cli.errors import MbertError, combine_errors, nearest
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task_kinds import MEAN, KindName, TaskKind, all_metrics, check_primary, kind_class, kinds
from microbert_cli.recipe.toml import read_toml
from microbert_cli.table_format import TABLE_FILES, Delimiter, Encoding, TableFormat, is_table

ColumnName = str | Annotated[int, Field(ge=0)] | Annotated[tuple[str, ...], Field(min_length=1)]
CLASSES = "classes"  # the kind that names alone stand for
LABELS = "labels"  # the kind that several columns stand for
OWN_SPLITS = ("train", "dev", "test")


class Strict(BaseModel):
    """A table whose keys are all known and whose values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HubSource(Strict):
    """A data set on the Hub. `splits`: ours -> theirs; `columns`: logical name -> theirs."""

    id: str
    config: str | None = None
    splits: dict[str, str]
    columns: dict[str, str] = {}
    row_id: str = "idx"


class SplitFile(Strict):
    """The file of one split: the first of `files` that is there. Without a header, columns are positions from 0."""

    files: tuple[str, ...]
    header: bool = True
    columns: dict[str, ColumnName] = {}


class FolderSource(Strict):
    """A folder of tab-separated files.

    quoting           False: a quotation mark is a character like any other, as in GLUE
    row_id            headers of the column that names a row; the first that is there, else its position
    skip_broken_rows  how many rows with too few or too many columns may be passed over, with a warning
    """

    name: str
    splits: dict[str, SplitFile]
    columns: dict[str, ColumnName] = {}
    quoting: bool = False
    row_id: tuple[str, ...] = ("index", "id")
    skip_broken_rows: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """`train = "train.tsv"` beside the other keys, or `[folder.splits]` with names, lists of names, or tables."""
        if not isinstance(values, Mapping) or not isinstance(values.get("splits", {}), Mapping):
            return values
        given = dict(values)
        splits = {name: given.pop(name) for name in ("train", "dev", "test") if name in given}
        splits |= dict(given.get("splits", {}))
        return given | {"splits": {name: _split_file(value) for name, value in splits.items()}}


class FileSource(Strict):
    """A user's own files, relative to the task's TOML; the format follows from the suffix, and as `TableFormat` has it."""

    train: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    encoding: Encoding = None
    delimiter: Delimiter = None
    header: bool = True
    quoting: bool | None = None
    skip_empty: bool = False
    repair_tags: bool = False

    @field_validator("train", "dev", "test")
    @classmethod
    def _known_format(cls, path: Path | None) -> Path | None:
        if path is not None and not is_table(path):
            raise ValueError(f'"{path.suffix or path.name}" is no suffix of a file of rows')
        return path

    @property
    def format(self) -> TableFormat:
        """What is said of the files' format."""
        return TableFormat(**self.model_dump(include=set(TableFormat.model_fields)))

    def path(self, split: str) -> Path | None:
        """Returns the file of a split, if one is named."""
        return {"train": self.train, "dev": self.dev, "test": self.test}.get(split)


class Label(Strict):
    """What is to be predicted: one or any of `names`, in the order of the model's outputs, or a score within `range`.

    columns  of 0 and 1, one for each label of rows that may have several; the labels are called so, unless `names` says others
    `kind` None, or classes without names, only with a user's own files: the training file says.
    """

    column: str = "label"
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    names: tuple[str, ...] | None = None
    kind: KindName | None = None
    range: tuple[float, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_means_classes(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("columns"):
            given = {key: value for key, value in values.items() if value is not None}
            return {"kind": LABELS, "names": values["columns"], **given}
        if isinstance(values, Mapping) and values.get("names") and values.get("kind") is None:
            return {**values, "kind": CLASSES}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "Label":
        self.task_kind.check()
        if self.columns and (self.kind != LABELS or len(self.columns) != len(self.names or ())):
            raise ValueError("columns are those of several labels a row, one for each name")
        return self

    @property
    def task_kind(self) -> TaskKind:
        """The kind of task with these names and this range; classes, as long as nothing says otherwise."""
        return kind_class(self.kind or CLASSES)(self.names or (), self.range)


class Submission(Strict):
    """The files a benchmark's server takes: name and official number of rows by split, and the form of a prediction.

    filler  the prediction that stands in every row where there is no model for the task
    """

    files: dict[str, str]
    rows: dict[str, int] = {}
    labels: Literal["names", "ids", "score"]
    filler: str

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "file" in values:
            rest = {key: value for key, value in values.items() if key != "file"}
            return {**rest, "files": {"test": values["file"]}}
        return values

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in files.values() if not re.fullmatch(r"\w[\w.-]*", name)]:
            raise ValueError(f'"{wrong[0]}" is no plain file name such as RTE.tsv')
        return files


class Task(Strict):
    """A task, whole: sources, columns, labels, metrics. `primary` is the metric by which checkpoints are chosen."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    title: str = ""
    version: int = 1
    hub: HubSource | None = None
    folder: FolderSource | None = None
    files: FileSource | None = None
    builtin: str | None = None
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    label: Label
    metrics: tuple[str, ...] = ()
    primary: str = ""
    max_length: int = Field(default=128, ge=4)
    allow_empty: bool = False
    submission: Submission | None = None
    _typed: str | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _default_metrics(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        label = values.get("label", {})
        kind = str(label.kind if isinstance(label, Label) else _kind_of_label(label))
        names = label.names if isinstance(label, Label) else label.get("names") if isinstance(label, Mapping) else None
        metrics = values.get("metrics") or (kinds()[kind].default_metrics_of(names or ()) if kind in kinds() else ())
        first = metrics[0] if isinstance(metrics, list | tuple) and metrics else ""
        values |= {"metrics": metrics, "primary": values.get("primary") or first}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        if not (self.hub or self.folder or self.files or self.builtin):
            raise ValueError("there must be a source of rows: [folder], [hub], [files] or builtin")
        if self.files is None and not self.kind.is_complete:
            raise ValueError('label needs names, or kind = "score"')
        if self.kind.of_words and len(self.text) > 1:
            raise ValueError("labels of words are those of one text a row: name one column of words")
        if len({*self.text, self.label.column}) <= len(self.text) or {*self.text} & {*(self.label.columns or ())}:
            raise ValueError("text columns and label column must be different columns")
        for metric in self.metrics:
            if metric not in all_metrics():
                raise ValueError(f'there is no metric "{metric}"; known: {nearest(metric, all_metrics())}')
        if self.kind.is_complete:
            self.kind.check_metrics(self.metrics)
        if self.metrics and set(self.metrics) == {MEAN}:
            raise ValueError('"mean" is that of the other metrics: name one')
        if self.metrics and self.primary not in self.metrics:
            raise ValueError(f'primary "{self.primary}" must be one of the metrics: {", ".join(self.metrics)}')
        return self

    @property
    def kind(self) -> TaskKind:
        """What the task's labels are; everything that depends on their form is asked of it."""
        return self.label.task_kind

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that any source has."""
        names = [*(self.folder.splits if self.folder else ()), *(self.hub.splits if self.hub else ())]
        if self.files or self.builtin:
            names += OWN_SPLITS
        return tuple(dict.fromkeys(names))

    def typed_as(self, name: str) -> "Task":
        """Returns the task, which remembers how the user named it: a name of the catalogue or a path."""
        self._typed = name
        return self

    def selected_by(self, metric: str | None) -> "Task":
        """Returns the task with another primary metric; None leaves it as it is. Raises M444 where it has none of that name."""
        if metric is None or metric == self.primary:
            return self
        check_primary(self.kind, metric, self.metrics)
        metrics = self.metrics if metric in self.metrics else (*self.metrics, metric)
        return self.model_copy(update={"primary": metric, "metrics": metrics})

    @property
    def options(self) -> str:
        """The options of a command that name this task again."""
        if self._typed is not None or self.files is None:
            return f"--task {shlex.quote(self._typed or self.name)}"
        files = self.files.model_dump(mode="json", exclude_defaults=True)
        words = [word for split in ("train", "dev", "test") if split in files for word in (f"--{split}-file", files.pop(split))]
        words += [word for column in self.text for word in ("--text", column)]
        words += ["--label", self.label.column]
        columns = {"label_columns": list(self.label.columns)} if self.label.columns else {}
        settings = {**files, **columns, "kind": self.label.kind or CLASSES}
        words += [word for key, value in settings.items() for word in ("--set", f"data.{key}={json.dumps(value)}")]
        return shlex.join(words)


def load_task(source: str | Path | Mapping[str, Any], *, folder: Path | None = None) -> Task:
    """Loads a task from a TOML file, or from the tables themselves with paths relative to `folder`.

    A task of a user's own files that leaves the label's names open is completed by `data.complete`.
    Raises M030 for everything that does not fit, M201 where there is no such file, M001 for what is not TOML.
    """
    if isinstance(source, Mapping):
        values, where, folder = dict(source), "task", folder or Path()
    else:
        path = Path(source)
        values, where, folder = read_toml(path, "tasks"), str(path), path.parent
        values = {"name": path.stem, **values}
    if isinstance(values.get("files"), Mapping):
        files = values["files"]
        paths = {split: folder / files[split] for split in OWN_SPLITS if isinstance(files.get(split), str)}
        values["files"] = {**files, **paths}
    try:
        return Task.model_validate(values)
    except ValidationError as error:
        raise combine_errors(_task_error(dict(e), where) for e in error.errors()) from None


def writes_text(recipe: Any, catalog: Catalog | None = None) -> bool:
    """Whether the task of a recipe is to write a text, as far as its keys and the task's TOML say."""
    return any(kind.writes for kind in _kinds_of(recipe, catalog or Catalog()))


def has_several_labels(recipe: Any, catalog: Catalog) -> bool:
    """Whether rows of a recipe's task may have several labels, likewise."""
    return any(kind.independent for kind in _kinds_of(recipe, catalog))


def _kinds_of(recipe: Any, catalog: Catalog) -> list[type[TaskKind]]:
    data = recipe.data
    if data.train_file or data.dev_file or data.test_file:
        return [kind_class(data.kind or (LABELS if data.label_columns else CLASSES))]
    names = [recipe.task] if recipe.task else recipe.tasks
    paths = [catalog.path("tasks", name, where="task") for name in names if not list(catalog.check("tasks", name, "task"))]
    return [type(load_task(path).kind) for path in paths]


def _split_file(value: Any) -> Any:
    if isinstance(value, str):
        return {"files": (value,)}
    return {"files": value} if isinstance(value, list | tuple) else value


def _kind_of_label(label: Any) -> Any:
    if not isinstance(label, Mapping):
        return None
    return label.get("kind") or (LABELS if label.get("columns") else CLASSES if label.get("names") else None)


def _task_error(error: Mapping[str, Any], where: str) -> MbertError:
    parts = [str(part) for part in error["loc"]]
    key = ".".join(parts) or "task"
    if error["type"] == "extra_forbidden":
        what, allowed = f'there is no key "{key}"', f"Known here: {nearest(parts[-1], _known_keys(parts))}"
    elif error["type"] == "missing":
        what, allowed = f'"{key}" is missing', "Every task names its text columns, its label, and a source of rows."
    else:
        what, allowed = str(error["msg"]).removeprefix("Value error, "), "A task as `mbert show tasks rte` shows one."
    fix = "Start from one: mbert copy tasks rte"
    if parts[:1] == ["files"] and parts[-1] in OWN_SPLITS:
        allowed = f"{TABLE_FILES}."
        fix = 'Give the file the suffix that it is, or save its rows as CSV (of a spreadsheet as "CSV UTF-8") and name that.'
    return MbertError("M030", what, where=f"{where}, {key}", allowed=allowed, fix=fix)


def _known_keys(parts: list[str]) -> list[str]:
    tables: dict[str, type[Strict]] = {
        "hub": HubSource,
        "folder": FolderSource,
        "files": FileSource,
        "label": Label,
        "submission": Submission,
    }
    model = Task if len(parts) == 1 else SplitFile if "splits" in parts else tables.get(parts[0], Task)
    return list(model.model_fields)
