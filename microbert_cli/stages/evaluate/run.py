"""The GLUE evaluator, for own tasks too: official metrics, predictions per example, agreement with a teacher, submissions."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli import distributed
from microbert_cli.data.load import default_splits
from microbert_cli.data.task_data import TaskData, find_task, load_task_data
from microbert_cli.evaluation import scoring, submission
from microbert_cli.evaluation.calibration import calibration_error_of_labels, expected_calibration_error
from microbert_cli.evaluation.gates import Gates
from microbert_cli.evaluation.label_order import check_order
from microbert_cli.evaluation.scoring import predict_logits, score
from microbert_cli.models.cascade.answers import CascadeAnswers
from microbert_cli.models.exits.flops import exit_summary
from microbert_cli.models.predictor import Predictor, open_predictor, probabilities, sigmoid
from microbert_cli.recipe.labels.submission import check_submitted
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task_kinds import TaskKind
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, place_seen_from, up_to_date, write_results
from microbert_cli.stages.evaluate import STAGE


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    teacher: str | None = None,
    submit: bool = False,
    gates: Gates | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Scores `model` on the labelled splits; MNLI's matched and mismatched parts are two splits, never mixed.

    model    a classifier directory, Hub id, or an export directory (ONNX, by `evaluate.precision`)
    teacher  adds agreement (share of equal answers) and KL(teacher || model), batch mean, in nats
    submit   predicts the unlabelled test splits into OUT/submission, and zips what there is for all of GLUE
    gates    what the caller will check the scores against; one that no score of this run can meet is refused before any work
    Writes metrics.json and predictions.parquet; a split's scores stand there under its own name too.
    Raises M260 if a split with hidden labels was asked to be scored, M142 for a submission of several labels a row.
    """
    if submit:
        check_submitted(recipe, catalog)
    task = find_task(recipe, catalog, reporter=reporter)
    labelled = list(default_splits(task, submit) if recipe.evaluate.splits is None else recipe.evaluate.splits)
    unlabelled = [split for split in (task.submission.files if task.submission else {}) if submit]
    if submit and not unlabelled:
        reporter.warn(f"{task.name} is no task of the GLUE server: there is nothing to submit")
    data = load_task_data(recipe, catalog, splits=[*labelled, *unlabelled], reporter=reporter)
    if recipe.evaluate.splits is None:
        labelled = [split for split in labelled if data.rows[split].labels is not None] or labelled[:1]
    if hidden := [split for split in labelled if data.rows[split].labels is None]:
        raise scoring.hidden_labels(task, hidden[0])
    if gates is not None:
        gates.check_names(task, labelled)
    identity: dict[str, Any] = {
        "recipe": recipe.identity(*STAGE.keys),
        "model": manifest.identify(model),
        "teacher": manifest.identify(teacher),
        "submission": submit,
        "data": data.fingerprints(),
    }
    order = recipe.teacher.label_order if teacher else None
    if order:
        identity["label_order"] = order
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        evaluation: Any
        if task.kind.writes:
            from microbert_cli.stages.evaluate.generation import TextEvaluation  # loads torch, which exports do without

            evaluation = TextEvaluation(recipe, data, model, teacher)
        else:
            evaluation = _open(recipe, data, model, teacher, order)
        scored = {split: evaluation.scores(split) for split in labelled}
        for split in unlabelled:
            evaluation.of(split)  # by all processes; what follows is written by one
        if unlabelled and distributed.is_main():
            _write_submission(evaluation, unlabelled, work.path, out, reporter)
        if distributed.is_main():
            evaluation.write_predictions(work.path / "predictions.parquet")
        result: dict[str, Any] = {"task": task.name, "primary": task.primary}
        result |= {"model": place_seen_from(out, model), "splits": scored}
        result |= {split: scores["metrics"] for split, scores in scored.items()}
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=result,
            inputs={"model": identity["model"], "teacher": identity["teacher"]},
            sources={"model": model, "teacher": teacher},
            data=data.facts(),
        )


def _open(recipe: Recipe, data: TaskData, model: str, teacher: str | None, order: Sequence[str] | None) -> "_Evaluation":
    """Opens a classifier, and the teacher that it is compared with."""
    model_predictor = open_predictor(
        model, data.task, precision=recipe.evaluate.precision, where="evaluate.model", speed=recipe.evaluate.speed
    )
    teacher_predictor = open_predictor(teacher, data.task, where="teacher.model", label_order=order) if teacher else None
    for predictor in (model_predictor, teacher_predictor):
        if hasattr(getattr(predictor, "model", None), "parameters"):
            from microbert_cli.models.device import move_to_device

            move_to_device(predictor, recipe.device)
    return _Evaluation(data, model_predictor, teacher_predictor, recipe.evaluate.batch_size)


class _Evaluation:
    """Logits of model and teacher, computed once a split."""

    def __init__(self, data: TaskData, model: Any, teacher: Any, batch_size: int):
        self.data, self.model, self.teacher, self.batch_size = data, model, teacher, batch_size
        self.logits: dict[str, np.ndarray] = {}
        self.teacher_logits: dict[str, np.ndarray] = {}  # of the labelled splits alone
        self.left: dict[str, Counter[int]] = {}  # rows by the layer behind which they left, of a model with exits
        self.sent_on: dict[str, dict[str, float]] = {}  # of a cascade, by split

    def of(self, split: str) -> np.ndarray:
        if split not in self.logits:
            self.logits[split] = self._ask(self.model, split)
            if (left := getattr(self.model.answers, "left", None)) is not None:
                self.left[split] = sum(distributed.gather([Counter(left)]), Counter[int]())
                left.clear()
            if isinstance(self.model.answers, CascadeAnswers):
                self.sent_on[split] = {"sent": self.model.answers.share_sent()}
        return self.logits[split]

    def scores(self, split: str) -> dict[str, Any]:
        rows, task = self.data.rows[split], self.data.task
        self._check_order(self.model, split, self.of(split), "evaluate.model")
        kind, logits = self._kind_of(self.model), self.of(split)
        scores: dict[str, Any] = {"rows": len(rows), "metrics": score(task, logits, rows, kind=kind)}
        scores |= self._exits(split)
        scores |= kind.report(kind.predictions(logits), rows.labels or [])
        scores |= calibration_error(kind, logits, rows.labels or [])
        scores |= self.sent_on.get(split, {})
        if self.teacher is not None:
            scores["teacher"] = self._compare(split)
        return scores

    def _kind_of(self, predictor: Predictor) -> TaskKind:
        """Returns the task's kind as a model answers it."""
        return self.data.task.kind.answered_by(predictor.model.config, predictor.columns)

    def _exits(self, split: str) -> dict[str, Any]:
        """Returns behind which layers the rows of a split left, and what that cost; nothing of a model without exits."""
        if not (left := self.left.get(split)):
            return {}
        config = self.model.model.config
        encoded = self.data.encode(split, self.model, where="evaluate.model")
        length = round(float(np.mean(encoded.windows.lengths)))
        return {"exits": exit_summary(config, left, length=length, speed=self.model.answers.speed)}

    def write_predictions(self, path: Path) -> None:
        """Writes a row an example: split, id, prediction, gold label, and the probability of every class; the teacher's too.

        The teacher's columns begin with `teacher_`; they are there where a teacher is, and empty for unlabelled splits.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {}
        for split in self.logits:
            for name, values in self._columns(split).items():
                columns.setdefault(name, []).extend(values)
        dtype = pa.type_for_alias(self.data.task.kind.dtype)
        kinds = {"prediction": dtype, "label": dtype, "teacher_prediction": dtype}
        pq.write_table(pa.table({name: pa.array(v, kinds.get(name)) for name, v in columns.items()}), path)

    def _columns(self, split: str) -> dict[str, Any]:
        task, rows, logits = self.data.task, self.data.rows[split], self.of(split)
        columns: dict[str, Any] = {"split": [split] * len(rows), "id": [str(row) for row in rows.ids or ()]}
        predicted = self._kind_of(self.model).prediction_columns(logits)
        columns["prediction"] = predicted.pop("prediction")
        labels = rows.labels
        columns["label"] = [None] * len(rows) if labels is None else [task.kind.label_text(label) for label in labels]
        return columns | predicted | self._teacher_columns(split)

    def _teacher_columns(self, split: str) -> dict[str, list[Any]]:
        """Returns the teacher's columns of a split; of one that it was not asked about they are empty."""
        if not self.teacher_logits:
            return {}
        kind = self._kind_of(self.teacher)
        asked = self.teacher_logits.get(split)
        predicted = kind.prediction_columns(asked if asked is not None else next(iter(self.teacher_logits.values())))
        empty = [None] * len(self.data.rows[split])
        return {f"teacher_{name}": empty if asked is None else values for name, values in predicted.items()}

    def _compare(self, split: str) -> dict[str, float]:
        task, logits, teacher_logits = self.data.task, self.of(split), self._ask(self.teacher, split)
        self._check_order(self.teacher, split, teacher_logits, "teacher.model")
        self.teacher_logits[split] = teacher_logits
        rows, kind = self.data.rows[split], self._kind_of(self.teacher)
        scores = score(task, teacher_logits, rows, kind=kind) | calibration_error(kind, teacher_logits, rows.labels or [])
        comparison = {f"teacher_{name}": value for name, value in scores.items()}
        return comparison | task.kind.compare_with_teacher(logits, teacher_logits)

    def _check_order(self, predictor: Predictor, split: str, logits: np.ndarray, where: str) -> None:
        if not predictor.order_is_settled:
            labels, place = self.data.rows[split].labels or [], f"{where} {predictor.source}"
            check_order(self.data.task, logits, labels, columns=predictor.columns, where=place, reporter=self.data.reporter)

    def _ask(self, model: Any, split: str) -> np.ndarray:
        logits: np.ndarray = predict_logits(self.data, split, model.answers, model, batch_size=self.batch_size)
        return logits


def calibration_error(kind: TaskKind, logits: np.ndarray, labels: Sequence[Any]) -> dict[str, float]:
    """Returns the expected calibration error of classes, or of several labels a row; nothing for other kinds."""
    if kind.independent:
        return {"calibration_error": calibration_error_of_labels(sigmoid(logits), labels)}
    return {"calibration_error": expected_calibration_error(probabilities(logits), labels)} if kind.exclusive else {}


def _write_submission(evaluation: _Evaluation, splits: list[str], work: Path, out: Path, reporter: Reporter) -> None:
    """Writes this task's files, and a zip for all of GLUE: files of neighbouring evaluations, a constant for the rest."""
    task = evaluation.data.task
    assert task.submission is not None
    folder = work / "submission"
    folder.mkdir(exist_ok=True)
    for split in splits:
        path, ids = folder / task.submission.files[split], evaluation.data.rows[split].ids or []
        submission.write_submission(task, split, ids, task.kind.predictions(evaluation.of(split)), path, reporter=reporter)
    neighbours = [*out.parent.glob("*/submission/*.tsv"), *out.parent.parent.glob(f"*/{out.name}/submission/*.tsv")]
    files_of_task = {path.name: path for path in folder.glob("*.tsv")}
    files_of_others = {path.name: path for path in sorted(neighbours) if work not in path.parents and out not in path.parents}
    files = {**files_of_others, **files_of_task}
    for name in sorted(files_of_others.keys() - files_of_task.keys()):
        reporter.note(f"submission: {name} comes from {files_of_others[name]}")
    for name in submission.assemble_zip(files, work / "submission.zip"):
        reporter.warn(f"submission: {name} was never predicted, it is filled with a constant")
