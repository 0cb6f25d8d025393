"""How far the work is: bars on a terminal; in a log file a line when a phase begins, every ten seconds, and when it ends."""

import threading
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

INTERVAL = 10.0  # seconds between two lines
WIDE = 100  # columns from which on a line has room for a long bar and every number
Numbers = Mapping[str, float]


class Pace:
    """Steps a second and seconds left of one stage, from where this process began."""

    def __init__(self, step: int):
        self.first, self.begun = step, time.monotonic()
        self.step, self.total, self.numbers = step, 0, dict[str, float]()

    @property
    def rate(self) -> float | None:
        """Steps a second; None before the first."""
        elapsed = time.monotonic() - self.begun
        return (self.step - self.first) / elapsed if self.step > self.first and elapsed > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds that the other steps take at this pace."""
        return (self.total - self.step) / self.rate if self.total and self.rate else None


class Lines:
    """`name step=3/10 loss=0.5 rate=2.1/s eta=0:00:03`; nothing for stages that are over before a line is due."""

    def __init__(self, write: Callable[[str], None]):
        self._write = write
        self._stages: dict[str, Pace] = {}
        self._shown: set[str] = set()
        self._activities: list[tuple[str, float]] = []
        self._last = time.monotonic()
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, name: str) -> None:
        """Notes that a stage has begun whose steps nobody counts: lines say for how long it has been at work."""
        with self._lock:
            self._activities.append((name, time.monotonic()))
        self._keep_talking()

    def leave(self) -> None:
        with self._lock:
            self._activities.pop()
            self._stages.clear()

    def begin(self, name: str, step: int, total: int) -> None:
        """Writes the first line of a stage, before its first step."""
        with self._lock:
            pace = Pace(step)
            pace.total = total
            self._stages = {name: pace}  # phases follow each other: one that ended before its last step is over, too
            self._show(name)
        self._keep_talking()

    def update(self, name: str, step: int, total: int, numbers: Numbers) -> None:
        with self._lock:
            pace = self._stages.setdefault(name, Pace(max(0, step - 1)))
            pace.step, pace.total, pace.numbers = step, total, dict(numbers)
            is_over = step >= total > 0
            if (is_over and name in self._shown) or (not is_over and time.monotonic() - self._last >= INTERVAL):
                self._show(name)
            if is_over:
                self._stages.pop(name)
                self._shown.discard(name)
        self._keep_talking()

    def wrote(self) -> None:
        """Notes that something else was written just now; a stage of unknown length is over by then."""
        with self._lock:
            self._stages = {name: pace for name, pace in self._stages.items() if pace.total}
            self._last = time.monotonic()

    def close(self) -> None:
        self._stopped.set()
        self._thread = None

    def _show(self, name: str) -> None:
        self._write(format_line(name, self._stages[name]))
        self._shown.add(name)
        self._last = time.monotonic()

    def _keep_talking(self) -> None:
        """Starts the thread that writes where a step takes longer than the interval, once."""
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._talk, daemon=True, name="mbert-progress")
            self._thread.start()

    def _talk(self) -> None:
        while not self._stopped.wait(0.5):
            with self._lock:
                if time.monotonic() - self._last < INTERVAL:
                    continue
                if self._stages:
                    self._show(next(reversed(self._stages)))
                elif self._activities:
                    name, begun = self._activities[-1]
                    self._write(f"{name}: {format_seconds(time.monotonic() - begun)} so far")
                    self._last = time.monotonic()


class Bars:
    """A bar for every stage at work, with its steps, rate, time and numbers; without steps, the time alone."""

    def __init__(self, console: Console):
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, tuple[TaskID, Pace]] = {}
        self._activities: list[str] = []

    def enter(self, name: str) -> None:
        self._activities.append(name)
        self._add(name, 0, 0)

    def leave(self) -> None:
        self._remove(self._activities.pop())

    def begin(self, name: str, step: int, total: int) -> None:
        for earlier in self._tasks.keys() - set(self._activities):  # phases follow each other, as in `Lines`
            self._remove(earlier)
        self._add(name, step, total)

    def update(self, name: str, step: int, total: int, numbers: Numbers) -> None:
        if name not in self._tasks or self._tasks[name][1].total != total:
            self._add(name, max(0, step - 1), total)
        number, pace = self._tasks[name]
        pace.step = step
        assert self._progress is not None
        if self._is_narrow():  # the score of the best step stands in the line that the stage ends with
            numbers = {key: value for key, value in numbers.items() if key != "best"}
        self._progress.update(number, completed=step, numbers=format_numbers(numbers))
        if step >= total > 0:
            self._remove(name)
            if name in self._activities:  # its steps are taken, and it goes on
                self._add(name, 0, 0)

    def _is_narrow(self) -> bool:
        return self._console.width < WIDE

    def pause(self) -> None:
        """Takes the bars off the screen, for a line to be written; the next step brings those of stages at work back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def resume(self) -> None:
        """Shows the bars again after `pause`."""
        if self._tasks:
            tasks, self._tasks = self._tasks, {}
            for name, (_, pace) in tasks.items():
                self._add(name, pace.step, pace.total, pace)

    def close(self) -> None:
        self.pause()
        self._tasks = {}

    def _add(self, name: str, step: int, total: int, pace: Pace | None = None) -> None:
        self._remove(name)
        if self._progress is None:
            bar = BarColumn(bar_width=8 if self._is_narrow() else 20)
            columns = (TextColumn("{task.description}"), bar, _Count(), _Timing(), _Numbers())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        pace = pace or Pace(step)
        pace.total = total
        number = self._progress.add_task(escape(name), total=total or None, completed=step, numbers="", pace=pace)
        self._tasks[name] = (number, pace)

    def _remove(self, name: str) -> None:
        if name in self._tasks and self._progress is not None:
            self._progress.remove_task(self._tasks.pop(name)[0])


class _Count(MofNCompleteColumn):
    """3/10; nothing where no steps are counted."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text("")


class _Timing(ProgressColumn):
    """Rate and time left; the time so far where these are not known."""

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        if pace.rate is None or pace.left is None:
            return TimeElapsedColumn().render(task)
        return Text(f"{format_rate(pace.rate)} {format_seconds(pace.left)} left")


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["numbers"])


def format_line(name: str, pace: Pace) -> str:
    """Returns a stage's line: steps, numbers, rate, time left."""
    parts = [f"{name} step={pace.step}/{pace.total or '?'}", format_numbers(pace.numbers)]
    if pace.rate is not None:
        parts.append(f"rate={format_rate(pace.rate)}")
    if pace.left is not None:
        parts.append(f"eta={format_seconds(pace.left)}")
    return " ".join(filter(None, parts))


def format_numbers(numbers: Numbers) -> str:
    """Returns `loss=0.51 dev=0.86`."""
    return " ".join(f"{name}={value:.4g}" for name, value in numbers.items())


def format_rate(rate: float) -> str:
    """Returns steps a second, or where these are few a minute."""
    return f"{rate:.3g}/s" if rate >= 1 else f"{60 * rate:.3g}/min"


def format_seconds(seconds: float) -> str:
    """Returns h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
