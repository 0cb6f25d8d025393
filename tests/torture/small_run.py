"""A small recipe through every stage, run in folders of its own, and what must be true of such a folder afterwards.

bench = Bench(folder, server)      inputs, and an undisturbed run in folder/reference with every call it made on files
place = bench.place("kill-7", stage="augment")      a folder in which everything before that stage is done
ended = bench.run(place, fault=...)                 the same command, always
bench.problems(place)                               what differs from the undisturbed run; [] at the end of every trial
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fork_server import Call, Ended, Fault, Server
from tiny_models import tiny_bert, tiny_glue

STAGES = ("pretrain", "finetune", "general-distill", "augment", "task-distill", "evaluate", "export", "report")
TRAINED = ("pretrain", "finetune", "general-distill", "task-distill")
RECIPE = """
task    = "sst2"
student = "bert-1x8"
method  = "tinybert"
seeds   = []
stages  = ["pretrain", "finetune", "general-distill", "augment", "task-distill", "evaluate", "export", "report"]

[data]
folder     = "../inputs/glue"
max_length = 24

[corpus]
source     = "../inputs/text.txt"
max_length = 32
heldout    = 0.2

[pretrain]
model = "../inputs/base"
steps = 20
batch_size = 4
evaluations = 2
checkpoint_seconds = 1e-6

[finetune]
steps = 20
batch_size = 8
evaluations = 3
learning_rate = 2e-3
checkpoint_seconds = 1e-6

[teacher]
allow_weak = true

[general]
steps = 20
batch_size = 4
evaluations = 2
checkpoint_seconds = 1e-6

[augment]
copies = 2

[export]
onnx = false

[phases.intermediate]
steps = 12
batch_size = 8
checkpoint_seconds = 1e-6

[phases.prediction]
steps = 12
batch_size = 8
learning_rates = [1e-3, 1e-4]
evaluations = 2
checkpoint_seconds = 1e-6

[variant.task-distill]
seeds = [1, 2]
"""
COMMAND = ["run", "../inputs/small.toml", "-o", "run", "--set", "device=cpu"]
# What is measured of a machine, wherever it stands in a metrics.json.
MEASURED = {
    "speed", "seconds", "conditions", "latency_ms", "latency_p90_ms", "latency_mean_ms", "rows_per_second",
    "verdict", "speedup", "int8_speedup", "sentence",
}  # fmt: skip
TELLS = (".jsonl", ".md", ".html")  # logs, cards and pages hold times
RANDOM = re.compile(r"\.\d+\.tmp$|\.tmp\w{6}$")  # names of files on their way: ours, and those of safetensors
STATE = re.compile(r"/phases/[^/]+/(state|step)[^/]*\.pt$")
FOUR_PARTS = re.compile(r"^\[M\d\d\d\] .+: .+\n {7}\S.*\n {7}\S.*", re.MULTILINE)


def make_inputs(folder: Path) -> None:
    """A base model with dropout, a GLUE folder, a corpus, the recipe."""
    tiny_bert(folder / "base", kind="masked-lm", layers=2, hidden=16, dropout=0.1)
    tiny_glue(folder / "glue", ["sst2"])
    lines = (folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    sentences = [line.split("\t")[0] for line in lines]
    (folder / "text.txt").write_text("\n\n".join("\n".join(sentences[i : i + 4]) for i in range(0, 40, 4)))
    (folder / "small.toml").write_text(RECIPE)


@dataclass(frozen=True)
class Event:
    """A call of the undisturbed run, and the stage that made it."""

    stage: str
    call: Call

    @property
    def pattern(self) -> str:
        """Its path, with what is another in every process left open."""
        return RANDOM.sub(".*tmp*", self.call.path)

    @property
    def shape(self) -> tuple[str, str]:
        """What makes one call like another: the kind and the name, numbers left open."""
        return self.call.kind, re.sub(r"[0-9a-f]{32}|\d+", "N", self.pattern)


class Bench:
    """The inputs, the undisturbed run, and the trials beside it."""

    def __init__(self, folder: Path, server: Server):
        self.folder, self.server = folder.resolve(), server
        folder = self.folder
        make_inputs(folder / "inputs")
        self.reference = folder / "reference"
        warm = folder / "warm"
        warm.mkdir()
        first = self.run(warm, learn=True)
        assert first.code == 0, first.err
        self.reference.mkdir()
        self.undisturbed = self.run(self.reference, fault=Fault())
        assert self.undisturbed.code == 0, self.undisturbed.err
        self.calls = self._by_stage(self.undisturbed.calls)
        self.first = {name: next(i for i, event in enumerate(self.calls) if event.stage == name) for name in STAGES}
        assert not self.problems(warm), f"two undisturbed runs differ: {self.problems(warm)}"
        shutil.rmtree(warm)

    def run(self, place: Path, *, fault: Fault | None = None, server: Server | None = None, **options: Any) -> Ended:
        """The recipe's command in `place`, with a cache of its own."""
        variables = {"MBERT_CACHE": str(place / "cache")}
        return (server or self.server).run(COMMAND, cwd=place, variables=variables, fault=fault, **options)

    def place(self, name: str, stage: str = STAGES[0]) -> Path:
        """A new folder in which all stages before `stage` are done, with the cache as it was then."""
        place = self.folder / name
        place.mkdir()
        done = STAGES[: STAGES.index(stage)]
        for before in done:
            shutil.copytree(self.reference / "run" / before, place / "run" / before)
        if done:
            (place / "run" / "run.json").write_text(json.dumps({"recipe": "small"}) + "\n")
        for entry in self._entries_before(stage):
            shutil.copytree(self.reference / "cache" / entry, place / "cache" / entry)
        return place

    def copy(self, place: Path, name: str) -> Path:
        """The same folder again, links and all."""
        return Path(shutil.copytree(place, self.folder / name, symlinks=True))

    def calls_of(self, stage: str) -> list[Event]:
        """What the undisturbed run did to files in this stage."""
        return [event for event in self.calls if event.stage == stage]

    def number(self, index: int) -> int:
        """Which of the calls of its kind and pattern the reference's call `index` is, counted from its stage on."""
        event = self.calls[index]
        same = (other for other in self.calls[self.first[event.stage] : index + 1])
        return sum(other.call.kind == event.call.kind and other.pattern == event.pattern for other in same)

    def fault_at(self, index: int, mode: str, value: int = 0) -> Fault:
        """The fault that disturbs the reference's call `index` in a folder where the stages before are done."""
        event = self.calls[index]
        return Fault(event.pattern, event.call.kind, self.number(index), mode, value)

    def start(self, stage: str) -> tuple[Fault, float]:
        """The call from which moments of a stage are counted, its first step or else its first file; the seconds from there."""
        calls = self.calls_of(stage)
        log = f"run/{stage}.partial/*log.jsonl"
        lines = [event for event in calls if event.call.kind == "w" and event.call.path.endswith("log.jsonl")]
        fault = Fault(log, "w", 1) if lines else Fault(f"run/{stage}.partial/*", "", 1)
        return fault, (calls[-1].call.nanoseconds - (lines or calls)[0].call.nanoseconds) / 1e9

    def problems(self, place: Path) -> list[str]:
        """What a finished run in `place` has otherwise than the undisturbed one; nothing is left out but measured times."""
        problems = [f"{name}: missing" for name in STAGES if not (place / "run" / name).is_dir()]
        expected = {*STAGES, "run.json"}
        for path in sorted((place / "run").iterdir()) if (place / "run").is_dir() else ():
            if path.name not in expected and ".old-" not in path.name:
                problems.append(f"{path.name}: left behind")
        for name in STAGES:
            if (place / "run" / name).is_dir():
                problems += self._unlike(place / "run" / name, self.reference / "run" / name)
        return problems + self.lies(place)

    def lies(self, place: Path) -> list[str]:
        """Directories that say they are whole and differ from the undisturbed run's, and damaged entries of the cache."""
        problems = []
        for path in sorted((place / "run").rglob("manifest.json")) if (place / "run").is_dir() else ():
            folder = path.parent
            name = folder.name.removesuffix(".partial")
            if ".old-" not in folder.name and name in STAGES:
                problems += [f"looks complete: {text}" for text in self._unlike(folder, self.reference / "run" / name)]
        for mark in sorted((place / "cache").glob("*/*/complete")):
            reference = self.reference / mark.parent.relative_to(place)
            if not reference.is_dir():
                problems.append(f"looks complete: {mark.parent.relative_to(place)}: not made by an undisturbed run")
                continue
            for name in sorted(name for name in _names(reference) if name != "complete" and not name.endswith(".json")):
                file = mark.parent / name
                if not file.is_file() or file.read_bytes() != (reference / name).read_bytes():
                    problems.append(f"looks complete: {file.relative_to(place)} differs")
        return problems

    def earlier_spoiled(self, place: Path) -> list[str]:
        """Finished outputs that are not what they were."""
        folders = [place / "run" / name for name in STAGES]
        return [
            text for folder in folders if folder.is_dir() for text in self._unlike(folder, self.reference / "run" / folder.name)
        ]

    def _unlike(self, out: Path, reference: Path) -> list[str]:
        names, expected = _names(out), _names(reference)
        if out.name.endswith(".partial"):
            names -= {name for name in names - expected if name.startswith((".", "begun.json"))}
        problems = [f"{out.name}/{name}: missing" for name in sorted(expected - names)]
        problems += [f"{out.name}/{name}: left behind" for name in sorted(names - expected)]
        return problems + [
            f"{out.name}/{name}: differs" for name in sorted(names & expected) if not same_file(out / name, reference / name)
        ]

    def _by_stage(self, calls: list[Call]) -> list[Event]:
        stage, events = STAGES[0], []
        for call in calls:
            begun = next((name for name in STAGES if call.path.startswith((f"run/{name}.partial", f"run/.{name}.lock"))), stage)
            stage = begun if STAGES.index(begun) > STAGES.index(stage) else stage
            events.append(Event(stage, call))
        return events

    def _entries_before(self, stage: str) -> list[str]:
        stages: dict[str, str] = {}
        for event in self.calls:
            parts = event.call.path.split("/")
            if parts[0] == "cache" and len(parts) > 3:
                stages.setdefault("/".join(parts[1:3]), event.stage)
        return [entry for entry, when in stages.items() if STAGES.index(when) < STAGES.index(stage)]


def same_file(file: Path, reference: Path) -> bool:
    """Equal bytes; of manifests and scores, equal but for times and measured speeds; logs and cards are not compared."""
    if file.name.endswith(TELLS):
        return True
    try:
        if file.name == "metrics.json":
            return _unmeasured(json.loads(file.read_text())) == _unmeasured(json.loads(reference.read_text()))
        if file.name == "manifest.json":
            return _comparable(file) == _comparable(reference)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return file.read_bytes() == reference.read_bytes()


def torn_lines(place: Path) -> list[str]:
    """Lines of logs that are no JSON."""
    torn = []
    for log in sorted(place.rglob("log.jsonl")):
        for number, line in enumerate(log.read_bytes().split(b"\n")[:-1], 1):
            try:
                json.loads(line)
            except ValueError:
                torn.append(f"{log.relative_to(place)}, line {number}")
    return torn


def verdict(ended: Ended) -> str:
    """How a disturbed run ended, in a word: done, an error's code, "traceback", or a signal's number."""
    if "Traceback" in ended.err or ended.code == 70:
        return "traceback"
    if ended.code < 0:
        return f"signal {-ended.code}"
    if ended.code == 0:
        return "done"
    match = re.search(r"^\[(M\d\d\d)\]", ended.err, re.MULTILINE)
    if not match or not FOUR_PARTS.search(ended.err):
        return f"exit {ended.code} without four parts"
    return f"{match[1]} (exit {ended.code})"


def last_words(ended: Ended) -> str:
    """The end of what a run said, for a list of findings."""
    lines = [line for line in ended.err.strip().splitlines() if line.strip() and not line.startswith("[B070]")]
    return " / ".join(line.strip() for line in lines[-2:])[:300]


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` of them, evenly."""
    if count >= len(items):
        return list(items)
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def tally(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else set()


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmeasured(inner) for key, inner in value.items() if key not in MEASURED and "throughput" not in key}
    return [_unmeasured(inner) for inner in value] if isinstance(value, list) else value


def _comparable(path: Path) -> dict[str, Any]:
    """What a manifest says of keys, inputs and outputs. Whatever comes after measured speeds has another hash every time."""
    record = json.loads(path.read_text())
    outputs = {name: value for name, value in record["outputs"].items() if not name.endswith((*TELLS, "metrics.json"))}
    content = {"outputs": outputs, "stage": record["stage"]}
    if record["stage"] != "report":
        content |= {"identity": record["identity"], "identity_hash": record["identity_hash"]}
    return content if record["stage"] in ("export", "report") else content | {"result": record["result"]}
