"""The cost of a stage, part by part: jobs that compute, work of the host, memory at the peak, bytes that stay on the disk.

Jobs are priced by this machine's calibration, or by a machine on paper; work on the host is always measured here.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.alternatives.int8_copy import write_int8
from microbert_cli.exporting.directory import export_model
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.exported.files import export_forms
from microbert_cli.models.factory import config_parameters
from microbert_cli.models.graphs.embeddings import Format
from microbert_cli.models.graphs.products import CALIBRATION_ROWS
from microbert_cli.models.load import load_model
from microbert_cli.plan.expected_inputs import ModelInfo, standing_in
from microbert_cli.plan.work import FLOAT, PROCESS, Job, Workload, activations, shape, shown, state_bytes, training_bytes
from microbert_cli.runs import atomic
from microbert_cli.training.plan import TrainingPlan

if TYPE_CHECKING:
    from microbert_cli.plan.calibration import Calibration
    from microbert_cli.plan.hardware import Hardware


PRECISION = "fp32"  # of a machine on paper
CALIBRATION = [{"input_ids": [1] * 25}] * CALIBRATION_ROWS  # of an int8 copy; 25 tokens as in SST-2
PROBE = 32_000_000  # bytes written to see how fast the disk is
SMALL = 0.1  # seconds to begin and sign a stage: lock, manifest, small files; 0.05 to 0.15 measured


@dataclass(frozen=True)
class Part:
    """Some of a stage's work: seconds (None where nobody can say), FLOPs if it computes."""

    what: str
    seconds: float | None
    flops: int | None = 0


@dataclass
class StagePlan:
    """What a stage will take. `tokens` are those trained on, padding included, of which `useful` are not padding.

    memory   bytes at the peak, an estimate;  disk: bytes that stay, caches included
    states   of each phase: bytes of a resume state, and how many runs of one seed leave one; gone when the stage is done
    unknown  why nothing can be said
    """

    name: str
    kind: str
    state: str
    steps: int = 0
    tokens: int = 0
    useful: int = 0
    memory: int = PROCESS
    disk: int = 0
    states: dict[str, tuple[int, int]] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: str = ""

    @property
    def seconds(self) -> float | None:
        """Seconds of all parts; None if those of one part are not known."""
        parts = [part.seconds for part in self.parts]
        return None if self.unknown or None in parts else sum(seconds or 0.0 for seconds in parts)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, here or beyond a copy of what another run made."""
        return self.state in ("done", "copied")

    @property
    def scratch(self) -> int:
        """Bytes of resume states at most: one of every finished phase; of the running phase two and one being written."""
        return sum(size * runs for size, runs in self.states.values()) + 2 * max(
            (size for size, _ in self.states.values()), default=0
        )

    @property
    def flops(self) -> int | None:
        """FLOPs of all parts that compute; None if those of one part are not counted."""
        parts = [part.flops for part in self.parts]
        return None if self.unknown or None in parts else sum(flops or 0 for flops in parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, the sums, and every part."""
        fields = {name: getattr(self, name) for name in ("name", "kind", "state", "steps", "tokens", "useful")}
        sums = {name: getattr(self, name) for name in ("flops", "memory", "disk", "scratch", "seconds")}
        reason = {"unknown": self.unknown} if self.unknown else {}
        return {**fields, **sums, "parts": [vars(part) for part in self.parts], "notes": self.notes, **reason}


class Costs:
    """Adds up what a stage does in its plan, with seconds of this machine, in `precision`, or of a machine on paper."""

    def __init__(self, plan: StagePlan, here: "Calibration", machine: "Hardware | None", precision: str = "fp32"):
        self.plan, self.here, self.machine, self.precision = plan, here, machine, precision

    def work(self, what: str, job: Job, load: Workload) -> float | None:
        """Adds a job on a workload."""
        if self.machine is not None:
            seconds = self.machine.seconds(job, load, precision=PRECISION)
        else:
            seconds = self.here.seconds(job, load, precision=self.precision)
        self.plan.parts.append(Part(what, seconds, job.flops(load) if load.batches else 0))
        return seconds

    def host(self, what: str, seconds: float) -> None:
        """Adds work that no accelerator does."""
        self.plan.parts.append(Part(what, seconds))

    def open(self, what: str, model: ModelInfo, head: str, *, times: float = 1) -> None:
        """Adds loading a model, or building it."""

        def measure() -> dict[str, Any]:
            with standing_in(model, head) as directory:
                started = time.perf_counter()
                load_model(directory, head, where="plan", new_head=True)
                return {"seconds": time.perf_counter() - started}

        measured = self.here.once("open", [shape(model.config), head], measure)
        self.host(what, measured["seconds"] * times)

    def write(self, what: str, size: float) -> None:
        """Adds writing and hashing so many bytes."""
        self.host(what, size * self.here.once("disk", "write and hash", _disk)["seconds_per_byte"])

    def keep(self, model: ModelInfo, head: str, copies: int = 1) -> None:
        """Adds saving a model; its bytes stay."""
        size = FLOAT * config_parameters(model.config, head) * copies
        self.plan.disk += size
        self.write("saving", size)

    def export(self, model: ModelInfo, rows: list[dict[str, list[int]]], parts: dict[str, Any], embeddings: Format) -> None:
        """Adds writing the files of an export and checking them: done once with random weights, which take as long."""

        def measure() -> dict[str, Any]:
            with standing_in(model, "classifier") as directory, tempfile.TemporaryDirectory() as out:
                loaded = load_model(directory, "classifier", where="plan", new_head=True)
                started = time.perf_counter()
                classifier = loaded.model.eval()
                export_model(
                    classifier,
                    loaded.tokenizer,
                    Path(out),
                    rows,
                    **parts,
                    embeddings=embeddings,
                    tolerance=1.0,
                )
                return {"seconds": time.perf_counter() - started}

        key = [shape(model.config), parts, embeddings, "calibrated"]
        measured = self.here.once("export", key, measure)
        self.host("files and parity", measured["seconds"])
        size = FLOAT * config_parameters(model.config, "classifier")
        sizes = model_shape(model.config)
        words = FLOAT * sizes.vocabulary * sizes.embedding * (embeddings == "fp32")
        small = 0.25 * (size - words) + words
        self.plan.disk += int(size + sum(size if form.startswith("fp32") else small for form in export_forms(**parts)))

    def int8_copy(self, model: ModelInfo) -> None:
        """Adds writing a model's int8 copy to the cache; nothing where it cannot be written, since it is then left out."""

        def measure() -> dict[str, Any]:
            with standing_in(model, "classifier") as directory, tempfile.TemporaryDirectory() as out:
                loaded = load_model(directory, "classifier", where="plan", new_head=True)
                started = time.perf_counter()
                try:
                    write_int8(loaded.model.eval(), loaded.tokenizer, Path(out), CALIBRATION)
                except MbertError:
                    return {"seconds": 0.0}
                return {"seconds": time.perf_counter() - started}

        measured = self.here.once("int8 copy", [shape(model.config), "calibrated"], measure)
        self.host("int8 copy", measured["seconds"])
        self.plan.disk += config_parameters(model.config, "classifier")  # a byte each

    def once(self, what: str, key: Any, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns a measurement of this machine, kept in the cache."""
        return self.here.once(what, key, measure)

    def train(
        self,
        what: str,
        job: Job,
        load: Workload,
        plan: TrainingPlan,
        *,
        scored: bool,
        asked: tuple[Job, Workload] | None,
        runs: int = 1,
    ) -> None:
        """Adds one run of a phase: steps, the teacher as often as it is asked, and the states saved on the way.

        runs  of this seed, each of which leaves a state until the seed is done
        """
        seconds = self.work(f"{what}: steps", job, load) or 0.0
        if asked is not None:
            seconds += self.work(f"{what}: teacher", *asked) or 0.0
        state = state_bytes(job, scored=scored)
        self.plan.states[what] = (state, max(runs, self.plan.states.get(what, (0, 0))[1]))
        saves = (
            1 + int(seconds / plan.checkpoint_seconds) + (plan.steps // plan.checkpoint_steps if plan.checkpoint_steps else 0)
        )
        self.write(f"{what}: states", state * saves)
        rows, length = load.widest
        teacher = FLOAT * config_parameters(asked[0].config, asked[0].head) + shown(asked[0], rows, length) if asked else 0
        memory = PROCESS + training_bytes(job, scored=scored) + activations(job, rows, length) + teacher
        self.plan.memory = max(self.plan.memory, memory)

    def trained(self, steps: int, load: Workload) -> None:
        """Counts steps and tokens of training."""
        self.plan.steps += steps
        self.plan.tokens += round(load.tokens)
        self.plan.useful += round(load.useful)

    def mark(self) -> tuple[int, int, int, int]:
        """Returns how far the plan has come, for `shorten`."""
        return len(self.plan.parts), self.plan.steps, self.plan.tokens, self.plan.useful

    def shorten(self, before: tuple[int, int, int, int], budget: float) -> None:
        """Scales what was added since `before` down to `budget` seconds, as `training/budget.py` shortens phases."""
        parts, counts = self.plan.parts[before[0] :], before[1:]
        seconds = sum(part.seconds or 0.0 for part in parts)
        if seconds <= budget:
            return
        factor = budget / seconds
        self.plan.parts[before[0] :] = [
            Part(part.what, part.seconds and part.seconds * factor, part.flops and round(part.flops * factor)) for part in parts
        ]
        added = (self.plan.steps, self.plan.tokens, self.plan.useful)
        self.plan.steps, self.plan.tokens, self.plan.useful = (
            start + round(factor * (now - start)) for start, now in zip(counts, added, strict=True)
        )
        self.plan.notes.append(f"a budget cuts the schedule to {factor:.0%}: all of it would take {seconds / 60:.0f} min")


def evaluations(plan: TrainingPlan) -> int:
    """Returns how often the loop scores the model: at every `evaluate_every` steps, and at the end."""
    every = plan.evaluate_every
    return plan.steps // every + bool(plan.steps % every) if every else 1


def _disk() -> dict[str, float]:
    import os

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        started = time.perf_counter()
        with path.open("wb") as file:
            file.write(os.urandom(1_000_000) * (PROBE // 1_000_000))
            file.flush()
            os.fsync(file.fileno())
        atomic.file_digest(path)
        return {"seconds_per_byte": (time.perf_counter() - started) / PROBE}
