"""Scores of a model that writes: BLEU with its signature, chrF, ROUGE, perplexity, and its texts; or of one that fills in."""

from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.data.generation.rows import Lengths
from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.generation.teacher import score_teacher
from microbert_cli.distillation.generation.text_task import TextTask, fills_in, is_filler, load_filler
from microbert_cli.distillation.generation.trainers import COPIES
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.generation.text_metrics import check_installed, signatures
from microbert_cli.evaluation.generation.writing import PERPLEXITY, perplexity, scores_of_texts, written_texts
from microbert_cli.models.architectures import model_type_of, positions_of, writes_texts
from microbert_cli.models.config import read_config
from microbert_cli.models.device import pick_device
from microbert_cli.models.exits.answers import chosen_speed
from microbert_cli.models.find import find_model
from microbert_cli.models.generation.writer import SEQ2SEQ, is_lower_case, writes_nothing
from microbert_cli.models.load import frozen, load_model
from microbert_cli.recipe.schema import Recipe

WHERE = "evaluate.model"


class TextEvaluation:
    """A model that writes, its task, and what it wrote, split by split."""

    def __init__(self, recipe: Recipe, data: TaskData, model: str, teacher: str | None):
        check_installed()
        path = find_model(model, where=WHERE)
        config = read_config(path, where=WHERE)
        if not writes_texts(config):
            advice = "Take a student that writes: what task-distill makes on this task."
            raise (
                fills_in(f"{WHERE} {model}", model, data.task.options)
                if is_filler(path)
                else writes_nothing(f"{WHERE} {model}", model_type_of(config), advice)
            )
        self.recipe, self.data, self.teacher = recipe, data, teacher
        if recipe.evaluate.precision not in ("auto", "torch"):
            raise _no_file(model, recipe.evaluate.precision)
        chosen_speed(config, recipe.evaluate.speed, where=f"{WHERE} {model}")
        loaded = load_model(model, SEQ2SEQ, where=WHERE)
        self.model = frozen(loaded.model).to(pick_device(recipe.device))
        self.task = TextTask(data, loaded.tokenizer, Lengths.of(data, loaded.model.config, both=False, where=WHERE))
        self.texts: dict[str, list[str]] = {}

    def scores(self, split: str) -> dict[str, Any]:
        """Returns a split's scores, and what must be known to compare them with others'."""
        evaluate, rows, tokenizer = self.recipe.evaluate, self.data.rows[split], self.task.tokenizer
        self.texts[split] = written_texts(
            self.model, tokenizer, self.task.pairs(split), beams=evaluate.beams, length_penalty=evaluate.length_penalty,
            most=min(self.task.lengths.target, positions_of(self.model.config) or self.task.lengths.target),
            batch_size=evaluate.batch_size, reporter=self.data.reporter,
        )  # fmt: skip
        lower = is_lower_case(tokenizer)
        scores: dict[str, Any] = {
            "rows": len(rows),
            "metrics": scores_of_texts(self.data.task, tokenizer, self.texts[split], rows),
            "signatures": signatures(self.data.task.metrics, lower=lower),
            PERPLEXITY: perplexity(self.model, tokenizer, self.task.pairs(split), batch_size=evaluate.batch_size),
        }
        if self.teacher is not None and is_filler(self.teacher):
            scores["teacher_sees_the_future"] = self._of_teacher(split)
        return scores

    def _of_teacher(self, split: str) -> dict[str, float]:
        """Returns how a teacher fills in the targets of a split: what comes after a hidden token lies before it."""
        assert self.teacher is not None
        filler, task = load_filler(self.teacher, self.data, where="teacher.model")
        filler.model.to(pick_device(self.recipe.device))
        return score_teacher(filler, task.filled(split, filler), lambda rows: task.labels(split, rows), COPIES)

    def write_predictions(self, path: Path) -> None:
        """Writes a row an example: split, id, what was written, and the target."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not distributed.is_main():
            return
        columns: dict[str, list[Any]] = {name: [] for name in ("split", "id", "prediction", "label")}
        for split, texts in self.texts.items():
            rows = self.data.rows[split]
            columns["split"] += [split] * len(rows)
            columns["id"] += [str(row) for row in rows.ids or ()]
            columns["prediction"] += texts
            columns["label"] += [str(label) for label in rows.labels or []]
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), path)


def _no_file(model: str, precision: str) -> MbertError:
    return MbertError(
        "M161",
        f'there is no "{precision}" file of a model that writes: it is not exported',
        where=f"evaluate.precision, {WHERE} {model}",
        allowed="auto and torch: the weights as they were trained.",
        fix="--set evaluate.precision=auto",
    )
