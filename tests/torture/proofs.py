"""The proofs themselves, at any length: the long ones and the quick ones call these.

Each takes a Bench and a Crew and returns a Report: what was tried, how it ended, and every trial that did not end as it must.
"""

import errno
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fork_server import KILLS, Ended, Fault, Server
from small_run import STAGES, STATE, TRAINED, Bench, Event, last_words, spread, tally, torn_lines, verdict

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES)
CATEGORIES = (
    "weights",
    "resume state",
    "teacher cache",
    "blocks cache",
    "Parquet",
    "manifest.json",
    "recipe.resolved.toml",
    "other files",
)


@dataclass
class Report:
    """Counts of what happened, and the failures, each with what it takes to see it again."""

    title: str
    ended: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, ended: str, where: str = "") -> None:
        with self._lock:
            self.ended[ended] += 1
            self.where[where] += 1

    def fail(self, message: str) -> None:
        with self._lock:
            self.failures.append(message)

    def largest(self, name: str, value: float) -> None:
        with self._lock:
            self.numbers[name] = max(value, self.numbers.get(name, value))

    @property
    def total(self) -> int:
        return sum(self.ended.values())

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.total} in all: {tally(self.ended)}", f"    {tally(self.where)}"]
        lines += [f"    {name}: {value:.4g}" for name, value in self.numbers.items()]
        return "\n".join([*lines, f"    failures: {len(self.failures)}", *(f"      {text}" for text in self.failures)])


class Crew:
    """Servers that take trials from one list, each one trial at a time."""

    def __init__(self, servers: Sequence[Server]):
        self.free: SimpleQueue[Server] = SimpleQueue()
        self.size = len(servers)
        for server in servers:
            self.free.put(server)

    def do(self, work: Callable[[Any, Server], None], items: Iterable[Any]) -> None:
        def run_one(item: Any) -> None:
            server = self.free.get()
            try:
                work(item, server)
            finally:
                self.free.put(server)

        with ThreadPoolExecutor(self.size) as pool:
            for done in [pool.submit(run_one, item) for item in items]:
                done.result()


NUMBERS = count(1)


def _begin(bench: Bench, stage: str) -> Path:
    return bench.place(f"trial-{next(NUMBERS)}", stage)


def _finish(bench: Bench, server: Server, place: Path, report: Report) -> list[str]:
    """The same command, undisturbed, to the end; what is wrong then."""
    ended = bench.run(place, server=server)
    problems = bench.problems(place) if ended.code == 0 else [f"the next run ended with {verdict(ended)}: {last_words(ended)}"]
    report.numbers["lines of logs that are torn"] = report.numbers.get("lines of logs that are torn", 0) + len(
        torn_lines(place)
    )
    shutil.rmtree(place)
    return problems


def _index(bench: Bench, chosen: Callable[[Event], bool]) -> list[int]:
    return [i for i, event in enumerate(bench.calls) if chosen(event)]


# Killed, and gone on


@dataclass(frozen=True)
class Kill:
    """A fault and the stage that it is meant for."""

    stage: str
    fault: Fault


def kills_in_time(bench: Bench, number: int, signal_number: int, seed: int | None = None) -> list[Kill]:
    """Moments after the first step of every stage, as many in each, evenly apart or, with a seed, at random."""
    draw, kills = random.Random(seed), []
    for place, stage in enumerate(STAGES):
        share = number // len(STAGES) + (place < number % len(STAGES))
        start, seconds = bench.start(stage)
        for i in range(share):
            part = (i + 0.5) / share if seed is None else draw.random()
            kills.append(Kill(stage, replace(start, mode="timer", value=signal_number, microseconds=int(part * seconds * 1e6))))
    return kills


def kills_in_calls(bench: Bench, number: int) -> list[Kill]:
    """Inside writes, fsyncs and renames, a third each, spread over files; before, in the middle and after in turn."""
    kills = []
    for place, kind in enumerate("wfr"):
        share = number // 3 + (place < number % 3)
        chosen = spread(calls_to_fail(bench, 0, kind), share)
        modes = KILLS if kind == "w" else ("before", "after")
        kills += [Kill(bench.calls[i].stage, bench.fault_at(i, modes[n % len(modes)])) for n, i in enumerate(chosen)]
    return kills


def killed(bench: Bench, crew: Crew, kills: Sequence[Kill], *, inside: Sequence[Kill] = ()) -> Report:
    """Two kills in time to a folder, one inside a call to a folder; then the same command to the end."""
    report = Report("SIGKILL")
    half = (len(kills) + 1) // 2
    chains = [(kill, *kills[i + half : i + half + 1]) for i, kill in enumerate(kills[:half])] + [(kill,) for kill in inside]

    def trial(chain: Sequence[Kill], server: Server) -> None:
        place = _begin(bench, chain[0].stage)
        faults: list[str] = []
        wrong: list[str] = []
        for kill in chain:
            ended = bench.run(place, fault=kill.fault, server=server)
            faults.append(f"{kill.stage}: {kill.fault}")
            timed = kill.fault.mode == "timer"
            if ended.code == -signal.SIGKILL:
                call = ended.disturbed
                report.add("in time" if timed else f"inside {NAMES[call.kind] if call else '?'}", kill.stage)
            elif timed and ended.code == 0:
                report.add("too late, the run was done", kill.stage)
            else:
                report.add("not killed", kill.stage)
                wrong.append(f"ended with {verdict(ended)} before the kill: {last_words(ended)}")
            wrong += bench.lies(place)
        wrong += _finish(bench, server, place, report)
        if wrong:
            report.fail(f"{'; then '.join(faults)} -> {'; '.join(wrong[:4])}")

    crew.do(trial, chains)
    return report


NAMES = {"w": "a write", "f": "an fsync", "r": "a rename", "c": "a new file", "t": "a change of size"}


# Asked to stop


def terminated(bench: Bench, crew: Crew, kills: Sequence[Kill]) -> Report:
    """SIGTERM: the exit code, how long it took to leave, and the rest by the same command."""
    report = Report("SIGTERM")

    def trial(kill: Kill, server: Server) -> None:
        place = _begin(bench, kill.stage)
        ended = bench.run(place, fault=kill.fault, server=server)
        wrong = bench.lies(place)
        if ended.code == 0:
            report.add("too late, the run was done", kill.stage)
        elif ended.code in (143, -signal.SIGTERM):
            report.add("143, said and saved" if ended.code == 143 else "143, by the signal itself", kill.stage)
            report.largest("slowest to leave, s", _seconds_to_leave(ended, kill.fault))
        else:
            report.add(verdict(ended), kill.stage)
            wrong.append(f"left with {verdict(ended)}: {last_words(ended)}")
        wrong += _finish(bench, server, place, report)
        if wrong:
            report.fail(f"{kill.stage}: {kill.fault} -> {'; '.join(wrong[:4])}")

    crew.do(trial, kills)
    report.numbers["longest step with its save, s"] = longest_step(bench)
    return report


def _seconds_to_leave(ended: Ended, fault: Fault) -> float:
    start = ended.disturbed
    return (ended.ended - start.nanoseconds) / 1e9 - fault.microseconds / 1e6 if start else 0.0


def _is_state(event: Event) -> bool:
    """Whether a state of training took its name here."""
    return event.call.kind == "r" and bool(STATE.search(event.call.path))


def longest_step(bench: Bench) -> float:
    """Seconds between two saved states of the undisturbed run, at most: a step, perhaps an evaluation, and the save."""
    longest = 0.0
    for stage in TRAINED:
        saved = [event.call.nanoseconds for event in bench.calls_of(stage) if _is_state(event)]
        longest = max([longest, *((later - sooner) / 1e9 for sooner, later in zip(saved, saved[1:], strict=False))])
    return longest


# Calls that fail


def calls_to_fail(bench: Bench, sample: int, kinds: str = "wfr") -> list[int]:
    """The first and the last call of every kind and file name in every stage, and a sample of the others, evenly spread."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for i in _index(bench, lambda event: event.call.kind in kinds):
        alike.setdefault((bench.calls[i].stage, *bench.calls[i].shape), []).append(i)
    ends = {i for same in alike.values() for i in (same[0], same[-1])}
    others = [i for same in alike.values() for i in same if i not in ends]
    return sorted(ends | set(spread(sorted(others), sample)))


def failing(bench: Bench, crew: Crew, indices: Sequence[int], modes: Sequence[str] = ("fail",)) -> Report:
    """Each of these calls of the undisturbed run fails once, with ENOSPC, EIO and EACCES in turn."""
    report = Report("Calls that fail")

    def trial(item: tuple[int, int], server: Server) -> None:
        turn, index = item
        mode = modes[turn % len(modes)]
        value = errno.ENOSPC if mode != "fail" else ERRNOS[turn % len(ERRNOS)]
        event = bench.calls[index]
        fault = bench.fault_at(index, mode, value)
        place = _begin(bench, event.stage)
        ended = bench.run(place, fault=fault, server=server)
        how, wrong = verdict(ended), []
        if not ended.disturbed:
            how = f"not met, {how}"
            wrong.append("the run never came to this call")
        if how.startswith(("traceback", "signal", "exit")):
            wrong.append(f"ended with {how} {last_words(ended)}")
        wrong += bench.earlier_spoiled(place) + bench.lies(place)
        wrong += _finish(bench, server, place, report)
        report.add(how, f"{errno.errorcode[value]} in {NAMES[event.call.kind]}")
        if wrong:
            report.fail(f"{event.stage}: {fault} -> {'; '.join(wrong[:4])}")

    crew.do(trial, list(enumerate(indices)))
    return report


# Renamed before it was on the disk


def unsynced(bench: Bench) -> list[str]:
    """Files that got their final name before what was written into them was synced: a loss of power may leave them empty.

    Logs and cards are not asked about, nor is the cache, which is checked when it is opened.
    """
    last: dict[str, str] = {}
    files, old = [], ""
    for call in (event.call for event in bench.calls):
        if call.kind == "o":
            old = call.path
        elif call.kind == "r":
            inside = {name: kind for name, kind in last.items() if name == old or name.startswith(f"{old}/")}
            files += [f"{name} -> {call.path}" for name, kind in inside.items() if kind == "w"]
            for name in inside:
                last[call.path + name.removeprefix(old)] = "f"  # told once
                del last[name]
        elif call.kind in "wf":
            last[call.path] = call.kind
    loose = (".jsonl", ".md", "begun.json")
    files = [text for text in files if text.startswith("run/") and not text.split(" ")[0].endswith(loose)]
    # safetensors renames by system calls of its own, which no library comes between.
    return sorted({text for text in files if "/.tmp" not in text})


# Files that rot


@dataclass(frozen=True)
class Scene:
    """A folder in the middle of a run, from which damaged copies are made, and the files that the rest of the run may read."""

    place: Path
    files: dict[str, list[str]]


def scenes(
    bench: Bench,
    server: Server,
    *,
    after: Sequence[str] = STAGES[:5],
    within: Sequence[str] = STAGES[:5],
    shares: Sequence[float] = (0.3, 0.8),
) -> list[Scene]:
    """The run stopped after stages that a later one reads, and in the middle of stages that save what they have."""
    places = [bench.place(f"scene-after-{stage}", STAGES[STAGES.index(stage) + 1]) for stage in after]
    for stage in within:
        saved = [i for i in _index(bench, _is_saved) if bench.calls[i].stage == stage]
        for share in shares:
            places.append(_stopped_at(bench, server, f"scene-in-{stage}-{share}", saved[int(share * len(saved))]))
    filled = _index(bench, lambda event: event.call.kind == "f" and event.call.path.endswith("done.bin"))
    places.append(_stopped_at(bench, server, "scene-in-teacher-cache", filled[0]))
    return [Scene(place, _readable(place)) for place in places]


def _is_saved(event: Event) -> bool:
    """Whether a state of training, or a shard, took its name here."""
    return _is_state(event) or (event.call.kind == "r" and "augment.partial/shards/" in event.call.path)


def _stopped_at(bench: Bench, server: Server, name: str, index: int) -> Path:
    place = bench.place(name, bench.calls[index].stage)
    ended = bench.run(place, fault=bench.fault_at(index, "after"), server=server)
    assert ended.code == -signal.SIGKILL, ended.err
    return place


def _readable(place: Path) -> dict[str, list[str]]:
    """Files by category; outputs of the stage before last and older ones only where somebody still reads them."""
    files: dict[str, list[str]] = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size):
        name = path.relative_to(place).as_posix()
        category = _category(name)
        if category and _still_read(name, place):
            files.setdefault(category, []).append(name)
    return files


READERS = {
    "pretrain": ("finetune", "general-distill", "augment"),
    "finetune": ("task-distill", "evaluate", "export", "report"),
    "general-distill": ("task-distill",),
    "augment": ("task-distill",),
    "task-distill": ("evaluate", "export", "report"),
}


def _still_read(name: str, place: Path) -> bool:
    """Whether a stage that is not done yet reads this file."""
    first, second, *_ = name.split("/")
    if name == "run/run.json":
        return True
    readers = {"blocks": ("pretrain", "general-distill"), "teacher": ("task-distill",)} if first == "cache" else READERS
    if first == "run" and second.endswith(".partial"):
        return True
    return any(not (place / "run" / reader).is_dir() for reader in readers.get(second, ()))


def _category(name: str) -> str | None:
    parts = name.split("/")
    if name.endswith((".jsonl", ".md", ".lock")):
        return None
    if parts[0] == "cache":
        return {"teacher": "teacher cache", "blocks": "blocks cache"}.get(parts[1]) if len(parts) > 3 else None
    if parts[-1] in ("manifest.json", "recipe.resolved.toml", "other files"):
        return parts[-1]
    if STATE.search(name):
        return "resume state"
    if name.endswith(".safetensors"):
        return None if "/seed-" in name and ".partial/" not in name else "weights"  # the best seed's were copied up
    return "Parquet" if name.endswith(".parquet") else "other files"


@dataclass(frozen=True)
class Damage:
    """One byte of one file turned into another, or a file cut short."""

    scene: Scene
    category: str
    file: str
    at: float
    bits: int

    def do(self, place: Path) -> str:
        """Damages the copy; returns what was done."""
        path = place / self.file
        size = path.stat().st_size
        position = min(size - 1, int(self.at * size))
        if self.bits == 0:
            with path.open("r+b") as file:
                file.truncate(position)
            return f"{self.file} of {size} bytes cut after {position}"
        with path.open("r+b") as file:
            file.seek(position)
            before = file.read(1)[0]
            file.seek(position)
            file.write(bytes([before ^ self.bits]))
        return f"{self.file}, byte {position} of {size}: {before:#04x} -> {before ^ self.bits:#04x}"


def damages(stopped: Sequence[Scene], flips: int, cuts: int, seed: int = 1) -> list[Damage]:
    """Places drawn at random, as many in each category that there is."""
    draw, chosen = random.Random(seed), []
    for turn in range(flips + cuts):
        category = CATEGORIES[turn % len(CATEGORIES)]
        scene = draw.choice([scene for scene in stopped if scene.files.get(category)])
        file = draw.choice(scene.files[category])
        chosen.append(Damage(scene, category, file, draw.random(), 0 if turn >= flips else draw.randint(1, 255)))
    return chosen


def damaged(bench: Bench, crew: Crew, chosen: Sequence[Damage]) -> Report:
    """Each damage is found out (exit 5) or harms nothing: the run ends bit-equal."""
    report = Report("Damaged files")

    def trial(damage: Damage, server: Server) -> None:
        place = bench.copy(damage.scene.place, f"trial-{next(NUMBERS)}")
        done = damage.do(place)
        ended = bench.run(place, server=server)
        how = verdict(ended)
        if how == "done":
            problems = [text for text in bench.problems(place) if not text.startswith("looks complete: cache")]
            # A file that is no result, such as recipe.resolved.toml, spoils nothing but itself.
            itself = damage.file.removeprefix("run/")
            problems = [text for text in problems if damage.category != "recipe.resolved.toml" or itself not in text]
            how = "silent and wrong" if problems else "harmless, bit-equal"
        else:
            problems = [] if how.endswith("(exit 5)") else [f"{how}: {last_words(ended)}"]
            how = "found out" if not problems else how
        shutil.rmtree(place)
        kind = "cut" if damage.bits == 0 else "flip"
        report.add(how, f"{damage.category} {kind}: {how}")
        if problems:
            report.fail(f"{damage.scene.place.name}: {done} -> {how}: {'; '.join(problems[:3])}")

    crew.do(trial, chosen)
    return report
