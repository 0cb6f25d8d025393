"""Seconds that jobs take on this machine: a few seconds of rehearsal a job, kept in the cache by job and machine.

    seconds(step) = a + b n + c n T        n padded tokens of the batch, T its padded length; a, b, c >= 0

Three of the lengths that will occur are timed, and a, b, c are fitted to them by least relative squares. Batches too large to
be rehearsed in seconds are rehearsed with fewer rows. A measurement made while other processes used the machine is marked as
"busy" in the cache, and made again when the machine is quiet.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.evaluation.benchmark import BUSY, cores, load_average
from microbert_cli.models.architectures import model_shape, positions_of
from microbert_cli.models.device import Precision
from microbert_cli.plan.rehearsal import rehearse
from microbert_cli.plan.work import Job, Shape, Workload
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache
from microbert_cli.text import dump_json

GRID = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
QUANTILES = (0.05, 0.5, 0.95)
HEAVY = 6e10  # FLOPs of a rehearsed step at most
ALIKE = 1.5  # the longest length rehearsed over the shortest
COUNTED = ("rows", "blocks")  # what is measured for its counts; all else for its seconds alone
Facts = dict[str, Any]
NOTHING: Facts = {"seconds": 0.0, "seconds_per_byte": 0.0}


def this_machine(device: str) -> Facts:
    """The facts that decide speed here: processor, threads, device, versions."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    counts = {"threads": torch.get_num_threads(), "cores": cores()}
    return {"device": device, "name": name, "torch": torch.__version__, **counts}


class Calibration:
    """Seconds of jobs on this machine, measured once.

    renew        measures anew what is in the cache
    counts_only  times nothing and keeps nothing in the cache: rows and blocks are counted, and every job takes 0 seconds
    `measured` says how many jobs had to be rehearsed.
    """

    def __init__(
        self,
        *,
        device: str,
        catalog: Catalog,
        renew: bool = False,
        counts_only: bool = False,
        reporter: Reporter = SILENT,
    ):
        self.device, self.catalog, self.renew, self.reporter = device, catalog, renew, reporter
        self.counts_only = counts_only
        self.machine = this_machine(device)
        self.load = load_average()  # before our own work adds to it
        self.folder = cache.root() / "calibration" / atomic.digest(self.machine)[:16]
        self.measured = 0
        self._measurements: dict[str, Facts] = {}
        self._warn_if_busy()

    @property
    def busy(self) -> bool:
        """Whether others used the machine when we began."""
        return self.load is not None and self.load > BUSY * self.machine["cores"]

    def seconds(self, job: Job, load: Workload, *, precision: str = "fp32") -> float:
        """Returns the seconds of a job on a workload; a training job is timed by the step of `accumulate` batches.

        precision  of training and of the teacher's passes; scores are computed in float32 in any case
        """
        if not load.batches or self.counts_only:
            return 0.0
        per_step, per_token, per_square = self._fit(job, load, "fp32" if job.kind == "answer" else precision)
        steps = load.batches / (job.accumulate if job.kind == "train" else 1)
        return per_step * steps + per_token * load.tokens + per_square * load.squares

    def once(self, name: str, key: Any, measure: Callable[[], Facts]) -> Facts:
        """Returns what `measure` returns; it is called once for this name and key, and its result kept in the cache."""
        if self.counts_only and name not in COUNTED:
            return NOTHING
        digest = atomic.digest({"name": name, "key": key})
        if digest not in self._measurements:
            stored = measure() if self.counts_only else self._read(name, digest)
            if stored is None:
                stored = {**measure(), "busy": self.busy}
                self.measured += 1
                self._write(name, digest, stored)
            self._measurements[digest] = stored
        return self._measurements[digest]

    def _fit(self, job: Job, load: Workload, precision: str) -> tuple[float, float, float]:
        shapes = representative(job, load)
        points: dict[Shape, float] = {}
        missing = [shape for shape in shapes if not self._read_point(_step_key(job, shape, precision), shape, points)]
        if missing:
            self.reporter.note(f"calibrating: {job.kind} {_job_text(job)}, {_shapes_text(missing)}")
            numerics = Precision(precision, False, self.device)
            times = rehearse(job, missing, catalog=self.catalog, device=self.device, numerics=numerics)
            self.measured += 1
            for shape, seconds in times.items():
                self.once("step", _step_key(job, shape, precision), lambda seconds=seconds: {"seconds": seconds})  # type: ignore[misc]
                points[shape] = seconds
        return fit(points, per_step=job.accumulate)

    def _read_point(self, key: list[Any], shape: Shape, points: dict[Shape, float]) -> bool:
        digest = atomic.digest({"name": "step", "key": key})
        stored = self._measurements.get(digest) or self._read("step", digest)
        if stored is not None:
            self._measurements[digest] = stored
            points[shape] = stored["seconds"]
        return stored is not None

    def _path(self, name: str, digest: str) -> Path:
        return self.folder / f"{name}-{digest[:24]}.json"

    def _read(self, name: str, digest: str) -> Facts | None:
        path = self._path(name, digest)
        if self.renew or not path.is_file():
            return None
        try:
            stored: Facts = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):  # damaged, or deleted since
            return None
        return None if stored["busy"] and not self.busy else stored

    def _write(self, name: str, digest: str, facts: Facts) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.folder / "machine.json", dump_json(self.machine))
        atomic.write_text(self._path(name, digest), dump_json(facts))

    def _warn_if_busy(self) -> None:
        if self.busy:
            self.reporter.warn(
                f"the machine is busy (load {self.load} on {self.machine['cores']} cores): the times hold for a machine as "
                "busy as this; plan again when it is idle"
            )


def _step_key(job: Job, shape: Shape, precision: str) -> list[Any]:
    """Returns what a step's time is kept under; in float32 nothing is said of it, as before there was another."""
    return [job.key(), shape, *([precision] if precision != "fp32" else [])]


def representative(job: Job, load: Workload) -> list[Shape]:
    """Returns the shapes to rehearse: the load's number of rows, and lengths at three quantiles of its tokens, on a grid.

    Rows are halved until a step has at most HEAVY FLOPs. A step's fixed cost is seen only where sizes differ: so
    lengths that are much alike get one of half of theirs beside them, and halved rows a batch of half as many.
    """
    lengths = sorted({length for _, length in load.shapes})
    tokens = np.cumsum([sum(r * t * n for (r, t), n in load.shapes.items() if t == length) for length in lengths])
    quantile_lengths = {lengths[int(np.searchsorted(tokens, share * tokens[-1]))] for share in QUANTILES}
    top = positions_of(job.config) or lengths[-1]
    widths = sorted({min(_on_grid(length), top) for length in quantile_lengths})
    if widths[-1] < ALIKE * widths[0]:
        widths = [max(2, widths[0] // 2), *widths]
    rows = full = min(job.rows, max(rows for rows, _ in load.shapes))
    while rows > 1 and (job.flops(Workload({(rows, widths[-1]): job.accumulate})) or 0) > HEAVY:
        rows //= 2
    half_batch = [(rows // 2, widths[-1])] if 1 < rows < full else []
    return [(rows, width) for width in widths] + half_batch


def fit(points: Mapping[Shape, float], *, per_step: int = 1) -> tuple[float, float, float]:
    """(a, b, c) >= 0 of seconds = a + b n + c n T, with the least relative squared error; n tokens of a step."""
    from scipy.optimize import nnls

    seconds = np.array(list(points.values()))
    n = np.array([rows * length * per_step for rows, length in points], dtype=float)
    T = np.array([length for _, length in points], dtype=float)
    # Divided by the seconds, so that relative errors are minimised: short steps count as much as long ones.
    columns = np.stack([np.ones_like(n), n, n * T], axis=1) / seconds[:, None]
    scale = columns.max(axis=0)  # the columns differ by orders of magnitude; scaled, nnls is well conditioned
    coefficients, _ = nnls(columns / scale, np.ones_like(n))
    a, b, c = (coefficients / scale).tolist()
    return a, b, c


def _on_grid(length: int) -> int:
    return min(GRID, key=lambda point: (abs(np.log(point / length)), point))


def _job_text(job: Job) -> str:
    teacher = f" from {_depth_and_width(job.teacher)}" if job.teacher is not None else ""
    return f"{_depth_and_width(job.config)}{teacher} {'+'.join(job.losses)}".rstrip()


def _depth_and_width(config: Any) -> str:
    shape = model_shape(config)
    return f"{shape.layers} x {shape.width}"


def _shapes_text(shapes: list[Shape]) -> str:
    return "rows x tokens " + ", ".join(f"{rows} x {length}" for rows, length in shapes)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine() or os.uname().machine
