"""Progress in a log file and on a terminal, with a clock of the test's own."""

import io
import re
import time

import pytest
from rich.console import Console

from microbert_cli.cli import progress
from microbert_cli.cli.console import ConsoleReporter, broken_below
from microbert_cli.cli.progress import Bars, Lines, Pace, format_line


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(Lines, "_keep_talking", lambda self: None)
    return clock


def test_a_phase_has_a_line_at_its_beginning_every_ten_seconds_and_at_its_end(clock: Clock) -> None:
    written: list[str] = []
    lines = Lines(written.append)
    lines.begin("finetune", 0, 100)
    for step in range(1, 101):
        clock.now += 0.25
        lines.update("finetune", step, 100, {"loss": 0.5, "dev": 0.8})
    assert written == [
        "finetune step=0/100",
        "finetune step=40/100 loss=0.5 dev=0.8 rate=4/s eta=0:00:15",
        "finetune step=80/100 loss=0.5 dev=0.8 rate=4/s eta=0:00:05",
        "finetune step=100/100 loss=0.5 dev=0.8 rate=4/s eta=0:00:00",
    ]


def test_a_resumed_phase_has_the_pace_of_the_steps_that_it_takes(clock: Clock) -> None:
    pace = Pace(900)
    clock.now += 10
    pace.step, pace.total = 920, 1000
    assert format_line("finetune", pace) == "finetune step=920/1000 rate=2/s eta=0:00:40"
    clock.now += 1190
    assert format_line("finetune", pace) == "finetune step=920/1000 rate=1/min eta=1:20:00"


def test_what_is_over_at_once_writes_nothing(clock: Clock) -> None:
    written: list[str] = []
    lines = Lines(written.append)
    for step in range(1, 4):
        lines.update("teacher", step, 3, {})
    assert written == []


def test_a_step_that_takes_long_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    written: list[str] = []
    lines = Lines(written.append)
    lines.enter("export")
    deadline = time.monotonic() + 20
    while not written and time.monotonic() < deadline:
        time.sleep(0.05)
    lines.begin("finetune", 3, 9)
    count = len(written)
    while len(written) == count and time.monotonic() < deadline:
        time.sleep(0.05)
    lines.close()
    assert re.fullmatch(r"export: \d:\d\d:\d\d so far", written[0])
    assert written[count - 1] == written[-1] == "finetune step=3/9"


def test_bars_come_back_after_a_note_and_go_when_they_are_full() -> None:
    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=100))
    bars.enter("finetune")
    bars.begin("finetune", 0, 4)
    bars.update("finetune", 1, 4, {"loss": 0.25})
    bars.pause()
    screen.truncate(0)
    bars.resume()
    bars.pause()
    assert "finetune" in screen.getvalue() and "1/4" in screen.getvalue()
    bars.resume()
    for step in (2, 3, 4):
        bars.update("finetune", step, 4, {})
    bars.leave()
    assert bars._tasks == {}
    bars.close()


def test_nothing_is_shown_under_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter(quiet=True)
    with reporter.working("export"):
        reporter.begin("a", 0, 2)
        reporter.progress("a", 2, 2)
        reporter.note("note")
        reporter.warn("a warning")
    reporter.close()
    assert capsys.readouterr().err == "warning: a warning\n"


def test_a_phase_that_ended_early_is_over_when_the_next_begins(clock: Clock) -> None:
    written: list[str] = []
    lines, bars = Lines(written.append), Bars(Console(file=io.StringIO(), force_terminal=True, width=100))
    for display in (lines, bars):
        display.enter("task-distill")
        display.begin("first", 0, 100)
        display.update("first", 7, 100, {})
        display.begin("second", 0, 100)
    assert list(lines._stages) == ["second"] and list(bars._tasks) == ["task-distill", "second"]
    bars.close()


@pytest.mark.parametrize("name", ["pretrain", "general-distill"])
def test_a_bar_is_one_line_of_80_columns_with_the_score(clock: Clock, name: str) -> None:
    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=80))
    bars.update(name, 1480, 6000, {"loss": 0.1234, "dev": 0.7654, "best": 0.7777})
    clock.now += 0.3
    bars.update(name, 1500, 6000, {"loss": 0.1234, "dev": 0.7654, "best": 0.7777})
    assert bars._progress is not None
    bars._progress.refresh()
    bars.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = {line.strip() for line in re.split(r"[\r\n]", text) if "1500/6000" in line}
    assert lines and all(line.endswith("left loss=0.1234 dev=0.7654") and len(line) <= 80 for line in lines), text


def test_notes_and_findings_are_broken_at_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(["word"] * 40)
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda answer=is_terminal: answer)
        monkeypatch.setenv("COLUMNS", "80")
        lines = broken_below(words, 17).split("\n")
        assert (len(lines) > 1) is is_terminal and " ".join(line.strip() for line in lines) == words
        assert all(line.startswith(" " * 17) for line in lines[1:]) and (not is_terminal or max(map(len, lines)) <= 80)
        reporter = ConsoleReporter()
        reporter.console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, soft_wrap=True)
        reporter.note(words)
        written = reporter.console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
        assert ("\n" in written) is is_terminal and written.split() == words.split()
