"""A model's logits on a set of rows, and the task's metrics of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli import distributed
from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.errors import DivergedError, MbertError
from microbert_cli.evaluation import metrics
from microbert_cli.evaluation.words.logits import broken_rows, rows_of_words, stacked
from microbert_cli.evaluation.words.word_metrics import word_scores
from microbert_cli.recipe.task import Task
from microbert_cli.recipe.task_kinds import TaskKind
from microbert_cli.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from microbert_cli.data.task_data import TaskData
    from microbert_cli.models.load import LoadedModel
    from microbert_cli.models.predictor import Predictor


NAMED_ROWS = 10  # of those that are wrong
EVALUATION_BATCH = 64  # rows a forward pass, where the recipe does not say


def logits_of(
    model: Any,
    encoded: TokenizedExamples,
    *,
    pad_id: int,
    batch_size: int = EVALUATION_BATCH,
    reporter: Reporter = SILENT,
    name: str = "evaluate",
    place: str = "row",
    before: int = 0,
    total: int | None = None,
) -> np.ndarray:
    """Logits [n, C] in the rows' order, of words [n, W, C] with NaN where a row has no such word.

    `model` is a torch model, or anything with `logits(batch) -> [B, C]`, of tokens [B, T, C].

    Several processes share the batches and gather all logits, so every process returns what one alone would.
    place   what a row is called, before its number: "dev, row"
    before  how many rows were answered in earlier calls, of `total` in all calls; 0 where nobody knows
    Raises M317 naming the rows whose logits are no finite numbers; for a torch model, which is in training, M401.
    """
    windows = encoded.windows
    groups = batches_by_length(windows.lengths, batch_size=batch_size)
    outputs: list[tuple[np.ndarray, Any]] = []
    finite: list[tuple[np.ndarray, np.ndarray]] = []  # of words
    done = 0
    for number, indices in enumerate(groups):
        if number % distributed.world_size() == distributed.rank():
            batch = windows.batch_for(model, indices, pad_id)
            answered = _answer(model, batch)
            if "words" in batch:
                words = np.asarray(batch["words"])
                finite.append((indices, broken_rows(answered, words)))
                outputs.append((indices, list(rows_of_words(answered, words))))
            else:
                outputs.append((indices, answered))
        done += len(indices)
        reporter.progress(name, before + done * len(encoded) // len(windows), len(encoded) if total is None else total)
    logits = _in_order(distributed.gather(outputs), len(windows))
    of_words = encoded.words is not None
    checked = np.stack(_in_order(distributed.gather(finite), len(encoded))) if of_words else encoded.pooled(np.stack(logits))
    check_finite(checked, place=place, in_training=not hasattr(model, "logits"), before=before)
    return stacked(logits) if of_words else checked


def _in_order(outputs: Sequence[tuple[np.ndarray, Any]], count: int) -> list[np.ndarray]:
    rows: list[np.ndarray | None] = [None] * count
    for indices, values in outputs:
        for i, row in zip(indices, values, strict=True):
            rows[i] = row
    return [row for row in rows if row is not None]


def check_finite(logits: np.ndarray, *, place: str, in_training: bool = False, before: int = 0) -> None:
    """Raises M317, in training M401, where a row's logits are no finite numbers: any class would be an arbitrary answer.

    before  rows that were checked earlier, and are counted too
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(-1)) + 1 + before
    if not len(broken):
        return
    numbers = ", ".join(map(str, broken[:NAMED_ROWS])) + (", ..." if len(broken) > NAMED_ROWS else "")
    what = f"the logits of {len(broken)} of {before + len(logits)} rows are no finite numbers"
    if in_training:
        raise DivergedError(
            what,
            where=f"{place} {numbers}",
            allowed="Finite logits; a smaller learning rate or a longer warm-up usually mends it.",
            fix="The same command with --no-resume and a smaller learning rate",
        )
    raise MbertError(
        "M317",
        what,
        where=f"{place} {numbers}",
        allowed="A model that answers every text with finite numbers; NaN would be the first class for every row.",
        fix="Leave those rows out, or take another checkpoint: an earlier one, or one that was saved in float32.",
    )


def _answer(model: Any, batch: dict[str, Any]) -> np.ndarray:
    if hasattr(model, "logits"):
        return np.asarray(model.logits(batch))
    import torch

    from microbert_cli.models.capture import OutputRequest, forward_outputs

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        seen = forward_outputs(model, {name: value.to(device) for name, value in batch.items()}, OutputRequest(logits=True))
    model.train(was_training)
    assert seen.logits is not None
    return seen.logits.float().cpu().numpy()


def score(task: Task, logits: np.ndarray, rows: Examples, *, kind: TaskKind | None = None) -> dict[str, float]:
    """Returns the task's metrics; raises M260 where the labels are hidden.

    kind  the task's as the model answers it (`TaskKind.answered_by`); None: as the task has it
    """
    if rows.labels is None:
        raise hidden_labels(task)
    return _scores_of(task, (kind or task.kind).predictions(logits), rows.labels)


def _scores_of(task: Task, predictions: Any, labels: Any) -> dict[str, float]:
    if task.kind.of_words:
        return word_scores(task.metrics, predictions, labels, task.kind.names)
    return metrics.compute(task.metrics, predictions, labels)


def score_predictor(data: "TaskData", predictor: "Predictor", split: str = "dev") -> dict[str, float]:
    """Returns the task's metrics of an open classifier on a split, its logits read as its configuration says."""
    kind = data.task.kind.answered_by(predictor.model.config, predictor.columns)
    return score(data.task, predict_logits(data, split, predictor.answers, predictor), data.rows[split], kind=kind)


def hidden_labels(task: Task, split: str = "") -> MbertError:
    """Returns the error for a split that cannot be scored, since it shows no labels."""
    allowed = "A split with labels, such as dev. Hidden labels are predicted, for a submission."
    fix = f"mbert evaluate MODEL {task.options} --submission"
    if task.submission is None:
        allowed, fix = "A split with labels, such as dev.", "--set 'evaluate.splits=[\"dev\"]'"
    if task.files is not None:
        columns = task.label.columns or (task.label.column,)
        key = "data.label_columns" if task.label.columns else "--label COLUMN"
        named = ", ".join(f'"{column}"' for column in columns)
        allowed = f"A file with the labels in its column{'s' * (len(columns) > 1)} {named}."
        fix = f"Name the column of the labels: {key}; texts without labels: mbert predict MODEL --file FILE"
    return MbertError(
        "M260",
        "the labels of this split are hidden, so nothing can be scored",
        where=f"task {task.name} {split}".rstrip(),
        allowed=allowed,
        fix=fix,
    )


def majority_score(task: Task, labels: list[Any]) -> float:
    """Returns the primary metric of always predicting the commonest class, or the mean score."""
    return _scores_of(task, task.kind.constant_predictions(labels), labels)[task.primary]


def predict_logits(
    data: "TaskData", split: str, model: Any, loaded: "LoadedModel | Predictor", *, batch_size: int = EVALUATION_BATCH
) -> np.ndarray:
    """Returns the model's logits [n, C] on a split of a task."""
    encoded = data.encode(split, loaded, where="model")
    pad_id = loaded.tokenizer.pad_token_id
    return logits_of(model, encoded, pad_id=pad_id, batch_size=batch_size, reporter=data.reporter, place=f"{split}, row")


def score_split(data: "TaskData", split: str, model: Any, loaded: "LoadedModel") -> dict[str, float]:
    """Returns the task's metrics of a model on a split; thresholds, where the kind has any, are those that suit it there."""
    logits = predict_logits(data, split, model, loaded)
    return score(data.task, logits, data.rows[split], kind=data.task.kind.fitted(logits, data.rows[split].labels or []))


def settle_thresholds(data: "TaskData", model: Any, loaded: "LoadedModel") -> None:
    """Writes into a trained model's configuration what is chosen on dev for reading its logits; nothing for most kinds."""
    if data.task.kind.independent:
        logits = predict_logits(data, "dev", model, loaded)
        data.task.kind.fitted(logits, data.rows["dev"].labels or []).configure(model.config)


def majority_of_split(data: "TaskData", split: str) -> float:
    """Returns the primary metric of always predicting the commonest class of a split."""
    return majority_score(data.task, list(data.rows[split].labels or []))
