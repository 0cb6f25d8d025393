"""What the page is made of: charts, curves of a log, answers, the closing table of runs of every kind."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microbert_cli.evaluation.calibration import expected_calibration_error
from microbert_cli.evaluation.page import answers, curves
from microbert_cli.evaluation.page.charts import HEIGHT, LEFT, RIGHT, WIDTH, Scale, curve_chart, front_chart
from microbert_cli.evaluation.page.write import TEMPLATES, write_page
from microbert_cli.evaluation.summary import cells, lead_sentence, result_line, run_summary
from microbert_cli.recipe.registry import stage_names
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import write_results

DISTILLED = {
    "dev": {"accuracy": 0.9}, "mean": {"accuracy": 0.89}, "spread": {"accuracy": 0.01}, "seeds": {"1": {}, "2": {}},
    "primary": "accuracy", "task": "sst2", "teacher": {"accuracy": 0.95}, "majority": 0.5, "parameters": 1000, "phases": {},
}  # fmt: skip
EXPORTED = {
    "task": "sst2", "primary": "accuracy",
    "files": {
        "safetensors": {"file": "model.safetensors", "bytes": 4_000_000, "scores": {"accuracy": 0.9}},
        "int8": {"file": "onnx/model_quantized.onnx", "bytes": 1_000_000, "scores": {"accuracy": 0.88}},
    },
    "speed": {"models": {"int8": {"latency_ms": 0.5, "throughput": 900.0}}},
}  # fmt: skip


def make_output(out: Path, stage: str, metrics: dict, **sources: str) -> None:
    with stage_output(out, stage=stage, identity={"of": out.name}) as work:
        inputs = {name: f"Hub/{name}" for name in sources}
        write_results(work, stage=stage, recipe={}, metrics=metrics, sources=sources, inputs=inputs)


def point(label: str, score: float | None, latency: float | None, size: float | None = 1.0, style: str = "student") -> dict:
    return {"name": f"m{label}", "label": label, "style": style, "score": score, "latency_ms": latency, "megabytes": size}


# --- charts -----------------------------------------------------------------------------------------------------------------


def test_a_scale_puts_values_where_they_belong() -> None:
    even = Scale(0, 10, 100, 200)
    assert even(5) == 150 and even.ticks(5) == [0, 2, 4, 6, 8, 10]
    log = Scale(1, 100, 0, 200, log=True)
    assert log(10) == 100 and log.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert Scale(3, 3, 0, 200)(3) == 100


@pytest.mark.parametrize("low,high", [(0.828, 0.906), (0.0, 1e-6), (5, 123456), (-0.2, 0.3)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 1).ticks(5)
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
    steps = {f"{b - a:.3e}" for a, b in zip(ticks, ticks[1:], strict=False)}
    assert len(steps) == 1 and steps.pop()[0] in "125"


def test_the_front_is_what_nothing_beats() -> None:
    points = [point("1", 0.9, 10, 90), point("2", 0.88, 1, 9), point("3", 0.87, 5), point("4", None, 3), point("5", 0.95, None)]
    chart = front_chart("sst2", "accuracy", points)
    assert chart and [mark.label for mark in chart.marks] == ["1", "2", "3"]
    assert "Not beaten in both: m2 (0.8800, 1.00 ms), m1 (0.9000, 10.00 ms)." in chart.description
    big, small = (next(mark for mark in chart.marks if mark.label == label) for label in "12")
    assert big.x > small.x and big.y < small.y and big.radius > small.radius
    assert all(LEFT <= mark.x <= WIDTH - RIGHT and 0 < mark.y < HEIGHT for mark in chart.marks)
    assert front_chart("sst2", "accuracy", points[2:]) is None


def test_a_point_far_below_is_named_and_not_drawn() -> None:
    points = [point(str(i), 0.8 + i / 100, i) for i in range(1, 6)] + [point("6", 0.1, 3), point("7", 0.5, 1, style="linear")]
    chart = front_chart("mrpc", "f1", points)
    assert chart and "6" not in {mark.label for mark in chart.marks} and chart.note == "Below the chart: 6 m6 (0.1000)."
    assert "7" in {mark.label for mark in chart.marks}, "the linear model is always in it"


def test_a_curve_has_a_line_a_seed() -> None:
    chart = curve_chart("Loss", "loss", {"1": [(1, 2.0), (2, 1.0)], "2": [(1, 3.0), (2, 0.5)], "3": []}, [("a", 0)], chosen="2")
    assert chart and [line.title for line in chart.lines] == ["seed 1", "seed 2"] and "chosen" in chart.lines[1].style
    assert curve_chart("Loss", "loss", {"1": []}, []) is None


# --- logs and answers -------------------------------------------------------------------------------------------------------


def test_curves_count_steps_over_phases_and_repeated_ones_once(tmp_path: Path) -> None:
    lines = [{"phase": "a", "step": step, "loss": 9.0} for step in (1, 2)]
    lines += [{"phase": "a", "step": 2, "loss": 5.0}, {"phase": "a", "step": 3, "loss": 4.0}]
    lines += [{"phase": "b-lr0.1", "step": 1, "loss": 7.0}, {"phase": "b-lr0.2", "step": 1, "loss": 3.0}]
    lines += [{"phase": "b-lr0.2", "step": 1, "dev": {"accuracy": 0.7, "f1": 0.6}}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"phase": "b-lr0.2", "st'
    (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")
    metrics = {"primary": "f1", "phases": {"a": {"learning_rate": 0.3}, "b": {"learning_rate": 0.2}}}
    read = curves.read_curves(tmp_path, metrics)
    assert read and read.loss == {"": [(1, 9.0), (2, 5.0), (3, 4.0), (4, 3.0)]}
    assert read.dev == {"": [(4, 0.6)]} and read.measure == "f1" and read.starts == [("a", 0), ("b-lr0.2", 3)]
    assert curves.read_curves(tmp_path / "none", metrics) is None


def test_a_long_curve_is_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    thin = curves._thinned(points)
    assert len(thin) == curves.POINTS and thin[-1][0] == 1000
    assert sum(value for _, value in thin) / len(thin) == pytest.approx(0.5, abs=0.02)


def answered(path: Path) -> answers.Split:
    random = np.random.default_rng(0)
    labels = ["yes" if x else "no" for x in random.integers(0, 2, 60)]
    columns: dict[str, list] = {"split": ["dev"] * 60 + ["test"], "id": [*map(str, range(60)), "0"], "label": [*labels, None]}
    for who in ("", "teacher_"):
        share = random.uniform(0, 1, 61)
        columns[f"{who}prediction"] = ["yes" if x > 0.5 else "no" for x in share]
        columns |= {f"{who}p_no": (1 - share).tolist(), f"{who}p_yes": share.tolist()}
    pq.write_table(pa.table(columns), path / "predictions.parquet")
    (split,) = answers.read_splits(path, {"splits": {"dev": {"labels": ["no", "yes"]}, "test": {}}})
    return split


def test_answers_are_counted(tmp_path: Path) -> None:
    split = answered(tmp_path)
    assert split.teacher is not None and len(split.ids) == 60
    counts = answers.confusion(split, split.student)
    pairs = list(zip(split.labels, split.student.predicted, strict=True))
    assert counts == [[pairs.count((a, b)) for b in ("no", "yes")] for a in ("no", "yes")]
    differing = answers.differences(split)
    assert len(differing) == sum(answers.who_is_right(split).values()) > 0
    assert answers.who_is_right(split)["neither"] == 0, "with two classes one of them is right"
    gaps = [difference.gap for difference in differing]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] <= 2


def test_the_reliability_curve_has_the_error(tmp_path: Path) -> None:
    split = answered(tmp_path)
    curve = answers.reliability(split, split.student)
    ids = [["no", "yes"].index(label) for label in split.labels]
    assert curve and curve.error == expected_calibration_error(split.student.probabilities, ids)
    assert sum(n for _, _, n in curve.points) == 60
    assert curve.error == pytest.approx(sum(n * abs(right - sure) for sure, right, n in curve.points) / 60)


# --- the closing table ------------------------------------------------------------------------------------------------------


def test_a_run_without_a_report_has_a_table() -> None:
    (section,) = run_summary([("finetune", "finetune", {}), ("s", "task-distill", DISTILLED), ("export", "export", EXPORTED)])
    assert [cells(row)[:3] for row in section["table"]] == [
        ["commonest class", "0.5000", ""], ["teacher", "0.9500", ""], ["s", "0.8900", "0.0100"], ["export, int8", "0.8800", ""],
    ]  # fmt: skip
    assert cells(section["table"][-1]) == ["export, int8", "0.8800", "", "92.6%", "1.0", "0.50", "900"]
    assert run_summary([("augment", "augment", {"rows_in": 1, "rows_out": 2})]) == []


def test_an_older_report_lacks_columns_and_is_read() -> None:
    rows = [{"model": "linear, TF-IDF", "score": 0.8}, {"model": "teacher", "score": 0.9, "latency_ms": 8.0, "megabytes": 80.0}]
    rows += [{"model": "s", "score": 0.81, "retention": 0.9, "latency_ms": 1.0, "megabytes": 8.0}]
    (section,) = run_summary([("report", "report", {"task": "t", "primary": "f1", "table": rows})])
    assert [row["kind"] for row in section["table"]] == ["linear", "teacher", "student"]
    sentence = lead_sentence(section, 0.875)
    assert sentence == (
        "s keeps 90.0 % of the teacher's f1 (0.8100 of 0.9000 on dev); it has 1/10 of the size (8.0 MB of 80.0); a row takes "
        "1.00 ms instead of 8.00: 8.0 times as fast; a linear model on counted words has 0.8000; 87.5 % of the rows are "
        "answered as the teacher does."
    )


def test_a_line_for_every_stage_that_says_something() -> None:
    assert result_line("task-distill", DISTILLED) == "accuracy 0.8900 ± 0.0100 on dev, 2 seeds; 93.7 % of the teacher's 0.9500"
    assert (
        result_line("export", EXPORTED) == "2 files, the smallest onnx/model_quantized.onnx with 1.0 MB, accuracy 0.8800 on dev"
    )
    assert result_line("augment", {"rows_in": 1000, "rows_out": 21000}) == "1,000 rows became 21,000"
    assert result_line("general-distill", {"heldout": {"loss": 1.5}, "steps": 400}) == "loss 1.500 on held-out text; 400 steps"
    assert all(result_line(stage, {}) == "" for stage in stage_names())


# --- files ------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_hostile_names_makes_a_page(tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(1)<"
    make_output(run / "<i>s", "task-distill", DISTILLED | {"task": "<b>task</b>"}, teacher="<u>hub</u>/x")
    page, is_new = write_page([run])
    assert is_new and page == run / "report.html"
    text = page.read_text(encoding="utf-8")
    assert not [tag for tag in ("<script", "<i>s", "<b>task", "<u>") if tag in text] and "&lt;b&gt;task" in text
    assert not write_page([run])[1]
    body = text[text.index("<body>") : text.index("</body>") + 7]
    ET.fromstring(body.replace("&nbsp;", " "))  # well-formed as XML, too


def test_numbers_that_are_none_leave_cells_empty(tmp_path: Path) -> None:
    metrics = {**DISTILLED, "teacher": None, "majority": None, "spread": {"accuracy": math.nan}}
    make_output(tmp_path / "run" / "task-distill", "task-distill", metrics)
    text = write_page([tmp_path / "run"])[0].read_text(encoding="utf-8")
    body = text[text.index("<body>") :]
    assert "0.8900" in body and "None" not in body and "nan" not in body


def test_texts_that_were_written_are_no_scores(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_output(
        run / "task-distill", "task-distill", DISTILLED | {"primary": "bleu", "dev": {"bleu": 3.0}, "mean": {"bleu": 3.0}}
    )
    splits = {"dev": {"rows": 1, "metrics": {"bleu": 3.0}, "signatures": {"bleu": "x"}}}
    make_output(run / "evaluate", "evaluate", {"task": "sst2", "primary": "bleu", "splits": splits})
    columns = {"split": ["dev"], "id": ["0"], "prediction": ["a text"], "label": ["the text"]}
    pq.write_table(pa.table(columns), run / "evaluate" / "predictions.parquet")
    assert "The answers are texts" in write_page([run])[0].read_text(encoding="utf-8")


def test_comparisons_are_shown_beside_each_other(tmp_path: Path) -> None:
    row = {"row": "kd", "score": 0.8, "spread": 0.01, "by_seed": {"1": 0.8, "2": 0.8}, "latency_ms": 2.0, "megabytes": 5.0,
           "steps": 10, "rows_seen": 320, "seconds": 1.0, "teacher_seconds": None}  # fmt: skip
    section = {"primary": "f1", "majority": 0.5, "teacher": {"score": 0.9, "latency_ms": 9.0}, "rows": [row],
               "alternatives": [], "verdict": None, "differences": [], "remarks": ["Rows of <one> shape."]}  # fmt: skip
    for name in ("one", "two"):
        make_output(tmp_path / name / "comparison", "compare", {"tasks": {"mrpc": section}, "average": None})
    single = write_page([tmp_path / "one"])[0]
    assert single == tmp_path / "one" / "comparison" / "report.html"
    text = write_page([tmp_path / "one", tmp_path / "two"])[0].read_text(encoding="utf-8")
    assert "<h2>one: mrpc</h2>" in text and "<h2>two: mrpc</h2>" in text and "Rows of &lt;one&gt; shape." in text


def test_templates_are_package_data(repo: Path) -> None:
    """A wheel has every file below the package; the templates must lie there, and nothing may leave them out."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    names = {file.distribution_path for file in build.WheelBuilder(str(repo)).recurse_included_files()}
    for path in TEMPLATES.iterdir():
        assert f"microbert_cli/evaluation/page/templates/{path.name}" in names
