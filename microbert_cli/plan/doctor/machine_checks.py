"""Checks of the machine: packages, device, a checkpoint written and read back, room on the disk."""

import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from microbert_cli.errors import MbertError
from microbert_cli.models.device import pick_device
from microbert_cli.plan.doctor.context import DoctorContext, inputs_of, localised
from microbert_cli.plan.doctor.findings import Finding, Later, attempt, doubtful, passed
from microbert_cli.plan.stage_cost import Costs, StagePlan
from microbert_cli.runs import cache
from microbert_cli.runs.disk import disk_error, disk_refused, free_bytes
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.text import counted
from microbert_cli.training import checkpoint

PACKAGE = "microbert-cli"
TIGHT = 0.8  # of the free disk: a run that takes more deserves a look
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def versions(context: DoctorContext) -> Iterator[Finding]:
    """Checks that every package has a version that is required; those of ONNX where the recipe exports to it."""
    extras = {extra for step in context.steps for extra in step.stage.extras(step.resolved.recipe)}
    yield attempt("", _versions, requirements(*sorted(extras)))


def requirements(*extras: str) -> list[Requirement]:
    """Returns the packages that pyproject.toml requires: the file beside the sources, else the installed package's metadata."""
    file = Path(__file__).parents[3] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
        return [Requirement(line) for line in [*project["dependencies"], *optional]]
    try:
        installed = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []
    wanted = ("", *extras)
    return [
        requirement
        for requirement in installed
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in wanted)
    ]


def _versions(required: list[Requirement]) -> Finding:
    if not required:
        return doubtful("mbert was not installed as a package, so nobody says which versions it needs")
    wrong = [
        (requirement, version)
        for requirement in required
        if not requirement.specifier.contains(version := _version(requirement.name), prereleases=True)
    ]
    if not wrong:
        return passed(f"{len(required)} packages as asked for, torch {torch.__version__}")
    text = "; ".join(
        f"{requirement} is asked for, {version if version != '0' else 'nothing'} is installed" for requirement, version in wrong
    )
    raise MbertError(
        "M631",
        text,
        where="installed packages",
        allowed="The versions that pyproject.toml asks for.",
        fix="pip install " + " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement, _ in wrong),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "0"


def device(context: DoctorContext) -> Iterator[Finding]:
    """Checks that the device of the recipe exists."""
    for name in dict.fromkeys(step.resolved.recipe.device for step in context.steps):
        yield attempt(name, _device, name)


def _device(name: str) -> Finding:
    device = pick_device(name)
    if not device.startswith("cuda"):
        return passed(f"{device}, {counted(torch.get_num_threads(), 'thread')}")
    properties = torch.cuda.get_device_properties(device)
    return passed(f"{device}, {properties.name}, {properties.total_memory / 1e9:.0f} GB")


def saving(context: DoctorContext) -> Iterator[Finding]:
    """Checks that a training state written where the output will lie is read back bit by bit."""
    yield attempt(str(context.root), _saving, context.root)


def _saving(root: Path) -> Finding:
    parent = next(folder for folder in (root, *root.parents) if folder.is_dir())
    torch.manual_seed(0)
    tensors = {str(kind): (100 * torch.randn(1000)).to(kind) for kind in DTYPES}
    state = {"step": 7, "loss": 0.1, "weights": tensors, "random": torch.get_rng_state(), "best": None}
    try:
        with tempfile.TemporaryDirectory(prefix=".mbert-doctor-", dir=parent) as folder:
            checkpoint.save_state(state, Path(folder))
            loaded = checkpoint.load_state(Path(folder))
    except (OSError, RuntimeError) as error:  # torch has its own way to say that a file could not be written
        if number := disk_error(error, root):
            raise disk_refused(number, str(root)) from error
        raise
    if is_same(loaded, state):
        return passed(f"a checkpoint written in {parent} comes back bit by bit")
    raise MbertError(
        "M632",
        "a checkpoint that was written here came back with other content",
        where=str(parent),
        allowed="A disk that gives back what it was given.",
        fix="Choose another place: -o DIR",
    )


def is_same(first: Any, second: Any) -> bool:
    """Whether two states are equal, tensors bit by bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same_type = first.dtype == second.dtype and first.shape == second.shape
        return same_type and torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(is_same(first[key], second[key]) for key in first)
    return type(first) is type(second) and bool(first == second)


def disk(context: DoctorContext) -> Iterator[Finding]:
    """Checks that the disk has room for the run: outputs, caches, and the resume states of one stage at a time."""
    kept_bytes, scratch_bytes, counted = 0, 0, 0
    for step in context.steps:
        if str(step.out) not in context.to_come:
            continue
        plan = StagePlan(step.name, step.kind, "new")
        finding = attempt(step.name, _count, context, step, plan, Costs(plan, context.seen.prices, None))
        if finding.state != "pass":
            yield finding
            continue
        counted += 1
        kept_bytes += plan.disk
        scratch_bytes = max(scratch_bytes, plan.scratch)
    if counted:
        yield attempt(str(context.root), check_room, context.root, kept_bytes + scratch_bytes, counted)
    elif not context.to_come:
        yield passed("everything is made already")


def _count(context: DoctorContext, step: Step, plan: StagePlan, costs: Costs) -> Finding:
    """Counts the bytes that a stage will write; raises Later where one of its inputs cannot be known yet."""
    for value in inputs_of(step).values():
        if (maker := context.to_come.get(value)) is None:
            continue
        if maker.stage.makes_model:
            context.seen.planned_models[value] = context.output(maker)
        elif value not in context.seen.augmented:
            raise Later(f"{maker.name} could not be counted")
    if "source" in step.inputs:
        context.find_corpus(step)
    if step.stage.learns_task:
        context.data(step)
    step.stage.plan(localised(step, context), context.seen, costs)
    return passed(f"{gigabytes(plan.disk)} will stay")


def check_room(root: Path, needed: int, stages: int) -> Finding:
    """Compares the bytes that stages will need with those that are free; raises M633 where they do not fit."""
    free = free_bytes(root.absolute())
    if not _same_disk(root.absolute(), cache.root()):
        free += cache.free_bytes()  # caches are written there, and their share is not known: they take what room there is
    text = f"{stages} stage{'s' * (stages != 1)} will take at most {gigabytes(needed)}, and {gigabytes(free)} are free"
    if needed <= TIGHT * free:
        return passed(text)
    if needed <= free:
        return doubtful(text)
    raise MbertError(
        "M633",
        f"the disk has no room: {text}",
        where=f"-o {root}",
        allowed=f"At least {gigabytes(needed)} free where outputs and caches lie.",
        fix="Make room, choose another place with -o DIR, or keep less of the teacher's answers: --set cache.teacher=off",
    )


def _same_disk(first: Path, second: Path) -> bool:
    devices = []
    for path in (first, second):
        while not path.exists():
            path = path.parent
        devices.append(path.stat().st_dev)
    return devices[0] == devices[1]


def gigabytes(size: float) -> str:
    """Formats bytes as GB, or as MB below 10 MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
