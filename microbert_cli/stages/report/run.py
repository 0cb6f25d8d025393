"""The table at the end of a run: what each way of making a student came to, beside what a user would take instead."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData, fingerprints_of, load_all_task_data
from microbert_cli.evaluation.alternatives.gather import (
    TEACHER_INT8_NAME,
    Alternatives,
    find_alternatives,
    known_result,
    score_of,
)
from microbert_cli.evaluation.alternatives.kinds import EXPORT, STUDENT, STUDENT_INT8, TEACHER, TEACHER_INT8
from microbert_cli.evaluation.alternatives.rows import Row, over_seeds, table_row, verdict_on
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.evaluation.page.write import write_page
from microbert_cli.evaluation.report_table import as_markdown
from microbert_cli.models.exported.files import EXPORTED_FILES, can_answer_here
from microbert_cli.recipe.multitask import named_inputs
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, read_metrics, up_to_date, write_results
from microbert_cli.stages.report import STAGE


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    models: dict[str, str],
    exported: str | Mapping[str, str] | None = None,
    teacher: str | Mapping[str, str] | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Gathers dev scores of `models` (name -> directory), measures all of them and `exported` in one interleaved run.

    exported  what `export` made, or of several tasks each one's
    teacher   the teacher's directory, or of several tasks each one's: one of `models`, or any other classifier
    metrics.json, report.md and report.html hold the table: the commonest class, a linear model, the teacher, its int8 file,
    then each student with mean and spread over its seeds; and the verdict on the student that was exported, else on the
    last step's.
    With several tasks there is a table for each of them, in "tasks".
    """
    tasks = load_all_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    teachers = teacher if isinstance(teacher, Mapping) else {tasks[0].task.name: teacher} if teacher else {}
    others = {_name_of(task, recipe): path for task, path in teachers.items() if path not in models.values()}
    sources = {**models, **dict(named_inputs("exported", exported)), **others}
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "models": {name: manifest.identify(path) for name, path in sources.items()},
        "data": fingerprints_of(tasks),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
    ) as work:
        if work.done:
            result = up_to_date(STAGE.name, out)
        else:
            metrics = _metrics(recipe, tasks, models, exported, teachers, reporter)
            (work.path / "report.md").write_text(_as_markdown(metrics), encoding="utf-8")
            result = write_results(
                work, stage=STAGE.name, recipe=recipe.keys(*STAGE.keys), metrics=metrics, inputs=identity["models"],
                sources=sources,
            )  # fmt: skip
    if not (result.up_to_date and (out / manifest.PAGE).is_file()):
        _add_page(out, catalog, reporter)
    return result


def _add_page(out: Path, catalog: Catalog, reporter: Reporter) -> None:
    """Writes report.html beside the finished report: it tells of all stages of the run, this one among them."""
    try:
        write_page([out], out / manifest.PAGE, catalog=catalog)
    except Exception as error:  # the measurements are worth more than their picture
        reporter.warn(
            f"{manifest.PAGE} was not written: {type(error).__name__}: {error}; mbert report {out.parent} tries again"
        )


def _metrics(
    recipe: Recipe,
    tasks: Sequence[TaskData],
    models: Mapping[str, str],
    exported: str | Mapping[str, str] | None,
    teachers: Mapping[str, str],
    reporter: Reporter,
) -> dict[str, Any]:
    order = recipe.teacher.label_order
    sections = {
        data.task.name: _section(data, models, _of_task(exported, data), teachers.get(data.task.name), order, reporter)
        for data in tasks
    }
    return {"tasks": sections} if recipe.tasks else next(iter(sections.values()))


def _as_markdown(metrics: Mapping[str, Any]) -> str:
    if "tasks" not in metrics:
        return as_markdown(metrics["table"], metrics["verdict"])
    parts = (f"## {task}\n\n{as_markdown(part['table'], part['verdict'])}" for task, part in metrics["tasks"].items())
    return "\n".join(parts)


def _of_task(exported: str | Mapping[str, str] | None, data: TaskData) -> str | None:
    return exported.get(data.task.name) if isinstance(exported, Mapping) else exported


def _name_of(task: str, recipe: Recipe) -> str:
    return f"teacher {task}" if recipe.tasks else "teacher"


def _section(
    data: TaskData,
    models: Mapping[str, str],
    exported: str | None,
    teacher: str | None,
    label_order: list[str] | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Returns the table of one task, of those models that were made for it."""
    results = {name: result for name, path in models.items() if (result := _result(path, data))}
    if data.number is not None and exported and read_metrics(Path(exported)).get("task") != data.task.name:
        exported = None
    table = _Table(data, {name: models[name] for name in results}, results, exported, teacher, label_order, reporter)
    return {"task": data.task.name, "primary": data.task.primary, **table.measure()}


def _result(path: str, data: TaskData) -> dict[str, Any] | None:
    """Returns the scores of an output; in a run of several tasks None for one that was not scored on this task's rows."""
    return read_metrics(Path(path)) if data.number is None else known_result(path, data)


class _Table:
    """The models of one run on one task, and what a user would take instead.

    students   name -> directory, in the run's order
    judged     the student that the verdict is about; None where there is none
    """

    def __init__(
        self,
        data: TaskData,
        models: dict[str, str],
        results: dict[str, dict[str, Any]],
        exported: str | None,
        teacher: str | None,
        label_order: list[str] | None,
        reporter: Reporter,
    ):
        self.data, self.primary, self.exported, self.reporter = data, data.task.primary, exported, reporter
        self.teacher, self.label_order = teacher, label_order
        self.teacher_name = next((name for name, path in models.items() if path == teacher), "teacher")
        self.students = {name: path for name, path in models.items() if path != teacher}
        self.results = results
        self.files: dict[str, Any] = read_metrics(Path(exported))["files"] if exported else {}
        self.forms = [form for form in self.files if form in EXPORTED_FILES and can_answer_here(form)]
        self.judged = self._judged()
        self.has_int8_export = "int8" in self.forms and self._is_exported(self.judged)

    def measure(self) -> dict[str, Any]:
        """Returns the table, and the verdict on a student; None without one."""
        alternatives = find_alternatives(self.data, self.data.rows["train"])
        if self.teacher:
            order = self.label_order
            alternatives.add_int8(TEACHER_INT8_NAME, self.teacher, label_order=order, reporter=self.reporter)
        student_int8 = f"{self.judged}, int8"
        if self.judged and not self.has_int8_export:
            alternatives.add_int8(student_int8, self.students[self.judged], reporter=self.reporter)
        entrants = [*self._entrants(), *alternatives.entrants()]
        linear = alternatives.linear_models()
        measured = benchmark_models(entrants, self.data, linear=linear, reporter=self.reporter) if entrants else {}
        speeds = measured.get("models", {})
        rows = self._rows(alternatives, speeds)
        if student_int8 in alternatives.copies:
            rows.append(alternatives.int8_row(student_int8, STUDENT_INT8, self._teacher_score(), speeds))
        judged = next((row for row in rows if row["model"] == self.judged), None)
        int8 = next((row for row in rows if row["kind"] == STUDENT_INT8), None)
        conditions = measured.get("conditions")
        return {"table": rows, "verdict": verdict_on(judged, rows, int8=int8, conditions=conditions) if judged else None}

    def _rows(self, alternatives: Alternatives, speeds: dict[str, Any]) -> list[Row]:
        teacher, floor = self._teacher_score(), alternatives.floor
        rows = alternatives.first_rows(teacher, speeds)
        if teacher is not None:
            note = None if self.teacher else "several teachers, or none of this run's: not timed"
            result = self.results.get(self.teacher_name, {"dev": {self.primary: teacher}})
            speed = speeds.get(self.teacher_name) if self.teacher else None
            rows.append(self._row("teacher", TEACHER, result, speed, teacher, floor) | ({"note": note} if note else {}))
        if self.teacher:
            rows.append(alternatives.int8_row(TEACHER_INT8_NAME, TEACHER_INT8, teacher, speeds))
        for name in self.students:
            rows.append(self._row(name, STUDENT, self.results[name], speeds[name], teacher, floor))
        for form in self.forms:
            kind = STUDENT_INT8 if form == "int8" and self.has_int8_export else EXPORT
            result = {"dev": self.files[form]["scores"]}
            rows.append(self._row(f"export, {form}", kind, result, speeds[f"export, {form}"], teacher, floor))
        return rows

    def _row(
        self, name: str, kind: str, result: dict[str, Any], speed: dict[str, Any] | None, teacher: float | None, floor: float
    ) -> Row:
        return table_row(name, kind, **over_seeds(result, self.primary), teacher=teacher, floor=floor, speed=speed)

    def _entrants(self) -> list[BenchmarkModel]:
        entrants = []
        if self.teacher:
            entrants.append(BenchmarkModel(self.teacher_name, self.teacher, "torch", self.label_order, where="teacher.model"))
        entrants += [BenchmarkModel(name, path, "torch") for name, path in self.students.items()]
        return entrants + [BenchmarkModel(f"export, {form}", str(self.exported), form) for form in self.forms]

    def _teacher_score(self) -> float | None:
        """Returns the teacher's own score on dev; of one that is not at hand, as distillation measured it. None without any.

        A student may have learnt from the teacher with fewer tokens, which answers otherwise.
        """
        if self._score is None and self.teacher:
            self._score = score_of(self.teacher, self.data, where="teacher.model", label_order=self.label_order)
        if self._score is None:
            self._score = next(
                (result["teacher"][self.primary] for result in self.results.values() if result.get("teacher")), None
            )
        return self._score

    _score: float | None = None

    def _judged(self) -> str | None:
        """Returns the student that was exported, else the distilled one, else the one with the best score."""
        scores = {name: over_seeds(self.results[name], self.primary)["score"] for name in self.students}
        exported = next((name for name in scores if self._is_exported(name)), None)
        return exported or ("task-distill" if "task-distill" in scores else max(scores, key=scores.__getitem__, default=None))

    def _is_exported(self, name: str | None) -> bool:
        if not self.exported or name not in self.students:
            return False
        model = read_metrics(Path(self.exported)).get("model")
        return bool(model) and (Path(self.exported) / str(model)).resolve() == Path(self.students[name]).resolve()
