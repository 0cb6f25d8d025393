"""The end of a run, and its page: report.html of a run whose texts and labels are markup, of several runs, of old ones."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import find_chromium, open_page
from mbert_command import mbert, refused, works
from tiny_models import tiny_bert

RECIPE = """
base = "base"
init = "small"
student = "small"
method = "soft-targets"
stages = ["finetune", "task-distill", "evaluate", "report"]
seeds = [1, 2]
data = { train_file = "rows.csv", dev_file = "rows.csv", text = "text", label = "label", max_length = 24 }
teacher = { allow_weak = true }
finetune = { learning_rate = 1e-2, epochs = 12, batch_size = 8, evaluations = 2 }
phases.prediction = { steps = 2, batch_size = 8, learning_rate = 1e-6, evaluations = 2 }

[variant.finetune]
seeds = []
"""
GOOD, BAD = "good <b onclick=x>", '"><img src=http://127.0.0.1/x>'
VOID = {"meta", "link", "br", "hr", "img", "input"}
FORMATS = {"score": ".4f", "retention": ".1%", "megabytes": ",.1f", "latency_ms": ".2f", "rows_per_second": ",.0f",
           "spread": ".4f", "above_floor": ".1%", "parameters": ","}  # fmt: skip


class Page(HTMLParser):
    """A page as a tree of tags that must close each other, its addresses, and its text by table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.stack, self.tags, self.addresses = text, [], [], []
        self.rows: list[list[str]] = []
        self.values: list[tuple[str, str]] = []
        self.value: str | None = None
        self.feed(text)
        self.close()
        assert self.stack == [], f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        assert not [name for name, _ in attributes if name.startswith("on")], attributes
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag == "data":
            self.value = dict(attributes)["value"]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]} at {self.getpos()}"
        self.stack.pop()

    def handle_data(self, text: str) -> None:
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += text
        if self.value is not None:
            self.values.append((self.value, text))
            self.value = None

    def row(self, name: str) -> list[str]:
        """The cells of the first row with a cell of this text."""
        return next(row for row in self.rows if name in row)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in runs/small, whose texts and class names are markup."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MBERT_CACHE", str(place / ".cache"))
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        tiny_bert("small", kind="encoder", layers=1, hidden=16, seed=3)
        with open("rows.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for i in range(24):
                word, label = (("lovely", GOOD), ("gloomy", BAD))[i % 2]
                writer.writerow([f"<script>alert({i})</script> a {word} boat \x1b[2J {i}", label])
        Path("small.toml").write_text(RECIPE, encoding="utf-8")
        done = works("run", "small.toml")
        assert metrics("evaluate")["splits"]["dev"]["teacher"]["agreement"] < 1, "rows that differ are needed below"
        assert metrics("finetune")["dev"]["accuracy"] > 0.8, "a teacher that has learnt something"
        (place / "ending.txt").write_text(done.err, encoding="utf-8")
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(home / ".cache"))


@pytest.fixture
def page() -> Page:
    return Page(Path("runs/small/report/report.html").read_text(encoding="utf-8"))


def metrics(stage: str, run: str = "runs/small") -> dict:
    return json.loads(Path(run, stage, "metrics.json").read_text(encoding="utf-8"))


# --- the end of a run -------------------------------------------------------------------------------------------------------


def check_ending(text: str) -> None:
    table, verdict = metrics("report")["table"], metrics("report")["verdict"]
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == ["model", "score", "±", "kept", "MB", "ms/row", "rows/s"])
    for row, line in zip(table, lines[head + 1 :], strict=False):
        assert line.startswith(row["model"]) and f"{row['score']:.4f}" in line, line
    assert f"task-distill: {verdict['sentence']}" in lines
    assert "page: runs/small/report/report.html" in lines
    assert max(map(len, lines[head : head + 1 + len(table)])) <= 80


def test_a_run_ends_with_its_table(home: Path) -> None:
    text = (home / "ending.txt").read_text(encoding="utf-8")
    check_ending(text)
    distilled = metrics("task-distill")
    score, spread, teacher = (distilled[key]["accuracy"] for key in ("mean", "spread", "teacher"))
    spread_text = f" ± {spread:.4f}" if spread else ""
    share = f"{100 * score / teacher:.1f} % of the teacher's {teacher:.4f}"
    assert f"task-distill: done, accuracy {score:.4f}{spread_text} on dev, 2 seeds; {share}" in text


def test_an_unchanged_run_ends_with_it_too() -> None:
    done = works("run", "small.toml")
    assert "everything up to date (4 stages)" in done.err and done.out == "runs/small\n"
    check_ending(done.err)
    assert works("run", "small.toml", "-q").err == ""


def test_the_summary_is_in_json() -> None:
    report = metrics("report")
    (section,) = works("run", "small.toml", "--json").json["summary"]["tasks"]
    assert section["verdict"] == report["verdict"] and section["task"] == report["task"]
    assert [row["model"] for row in section["table"]] == [row["model"] for row in report["table"]]


def test_a_run_without_a_report_ends_with_what_it_knows() -> None:
    stages = 'stages=["finetune", "task-distill"]'
    done = works("run", "small.toml", "--set", stages, "-o", "runs/plain", "--set", "reuse=['runs/small']")
    rows = {line[:12].strip(): line for line in done.err.splitlines()}
    assert f"{metrics('task-distill')['mean']['accuracy']:.4f}" in rows["task-distill"]
    assert "No linear baseline and no verdict" in done.err
    (section,) = works("run", "small.toml", "--set", stages, "-o", "runs/plain", "--json").json["summary"]["tasks"]
    assert [row["kind"] for row in section["table"]] == ["majority", "teacher", "student"] and section["verdict"] is None
    assert works("report", "runs/plain").out == "runs/plain/report.html\n"
    text = Page(Path("runs/plain/report.html").read_text(encoding="utf-8")).text
    assert "No stage evaluated the student" in text and "No linear baseline" in text


def test_a_stage_alone_ends_with_a_line() -> None:
    words = ("task-distill", "small.toml", "-o", "runs/small/task-distill", "--teacher", "runs/small/finetune")
    done = works(*words)
    assert "task-distill: up to date, accuracy" in done.err and done.out == "runs/small/task-distill\n"


# --- the page ---------------------------------------------------------------------------------------------------------------


def test_nothing_of_the_rows_is_markup(page: Page) -> None:
    assert not {"script", "img", "iframe", "object", "b"} & set(page.tags)
    assert "&lt;script&gt;alert(" in page.text and "\x1b" not in page.text
    assert page.addresses == ["data:,"], "nothing is loaded from elsewhere"
    assert "default-src &#39;none&#39;" in page.text or "default-src 'none'" in page.text
    assert set(re.findall(r"https?://[\w.]+", page.text)) <= {"http://127.0.0.1"}, "but for the class that is called so"


def test_every_number_of_the_table_is_that_of_the_metrics(page: Page) -> None:
    for row in metrics("report")["table"]:
        cells = page.row(row["model"])
        for key, form in FORMATS.items():
            if row[key] is not None:
                text = format(row[key], form)
                assert any(cell == text or cell.startswith(f"{text} (") for cell in cells), (row["model"], key)
                assert (str(row[key]), text) in page.values, (row["model"], key)


def test_matrices_and_agreement_are_those_of_the_metrics(page: Page) -> None:
    scores = metrics("evaluate")["splits"]["dev"]
    matrices = [row[1:] for row in page.rows if row[0] in (GOOD, BAD)]
    assert len(matrices) == 4, "the teacher's matrix and the student's"
    assert [list(map(int, row)) for row in matrices[2:]] == scores["confusion"]
    teacher = [list(map(int, row)) for row in matrices[:2]]
    assert (teacher[0][0] + teacher[1][1]) / 24 == pytest.approx(scores["teacher"]["teacher_accuracy"])
    assert page.row("agreement")[1] == f"{scores['teacher']['agreement']:.4f}"
    differing = round(24 * (1 - scores["teacher"]["agreement"]))
    assert f"{differing} of 24 rows" in page.text
    assert (str(scores["calibration_error"]), f"{scores['calibration_error']:.4f}") in page.values


def test_the_page_has_every_part(page: Page) -> None:
    for heading in ("Results", "Answers on dev", "Calibration", "Where it comes from", "Training", "What it cost", "Commands"):
        assert f">{heading}</h" in page.text, heading
    for stage in ("finetune", "task-distill", "evaluate", "report"):
        assert page.row(stage), stage
    assert "<pre>mbert run small.toml</pre>" in page.text
    assert page.tags.count("svg") == page.tags.count("desc") >= 6
    assert page.tags.count("caption") == page.tags.count("table")


def test_a_page_that_would_be_the_same_is_left_alone() -> None:
    path = Path("runs/small/report/report.html")
    before = path.stat().st_mtime_ns
    done = works("report", "runs/small")
    assert done.out == f"{path}\n" and "up to date" in done.err
    works("run", "small.toml")
    assert works("report", "runs/small", "--json").json == {"page": str(path), "written": False}
    assert path.stat().st_mtime_ns == before
    works("verify", "runs/small")


def test_a_lost_page_comes_back() -> None:
    path = Path("runs/small/report/report.html")
    text = path.read_text(encoding="utf-8")
    path.unlink()
    assert works("run", "small.toml").code == 0
    assert works("report", "runs/small", "--json").json["written"]
    assert path.read_text(encoding="utf-8") == text


def test_what_is_not_there_is_left_out_and_said(tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree("runs/small", run)
    (run / "evaluate" / "predictions.parquet").unlink()
    for log in run.rglob("log.jsonl"):
        log.unlink()
    (run / "finetune" / "manifest.json").write_text("{", encoding="utf-8")
    (run / "report" / "report.html").unlink()
    works("report", run)
    text = Page((run / "report" / "report.html").read_text(encoding="utf-8")).text
    assert "evaluate has no predictions.parquet" in text and "(log.jsonl): no curves" in text
    assert "finetune: this manifest is damaged" in text


def test_other_rows_than_those_scored_are_not_shown(tmp_path: Path) -> None:
    shutil.copytree("runs/small", tmp_path / "run")
    rows = Path("rows.csv").read_text(encoding="utf-8")
    try:
        Path("rows.csv").write_text(rows.replace("boat", "ship"), encoding="utf-8")
        works("report", tmp_path / "run")
    finally:
        Path("rows.csv").write_text(rows, encoding="utf-8")
    text = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert "of 24 rows" in text and "have changed since evaluate" in text and "alert(" not in text


def test_several_runs_are_one_table() -> None:
    shutil.copytree("runs/small", "runs/second", dirs_exist_ok=True)
    done = works("report", "runs/small", "runs/second")
    assert done.out.strip().endswith("runs/report.html")
    page = Page(Path("runs/report.html").read_text(encoding="utf-8"))
    student = next(row for row in metrics("report")["table"] if row["model"] == "task-distill")
    for name in ("small", "second"):
        assert page.row(f"{name}: task-distill")[2] == f"{student['score']:.4f}"
        assert f"{name}/report/report.html" in page.addresses
    assert sum(row[1:2] == ["teacher"] for row in page.rows) == 1, "one teacher for both"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    refused(4, "M227", "report", tmp_path)
    refused(4, "M227", "report", tmp_path / "nowhere")
    (tmp_path / "mine.html").write_text("<p>mine</p>", encoding="utf-8")
    error = refused(2, "M138", "report", "runs/small", "-o", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "<p>mine</p>"
    name = re.search(r"-o (\S+)", error["fix"])
    assert name and mbert("report", "runs/small", "-o", tmp_path / name[1]).code == 0


@pytest.mark.slow
def test_a_browser_opens_it(tmp_path: Path) -> None:
    """Nothing on the console, no request, and no sideways scrolling on a phone."""
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine")
    shutil.copy("runs/small/report/report.html", tmp_path / "page.html")
    seen = open_page(tmp_path / "page.html", tmp_path, width=390)
    assert seen.console == [] and seen.addresses == []
    assert seen.scroll_width <= seen.width == 390
