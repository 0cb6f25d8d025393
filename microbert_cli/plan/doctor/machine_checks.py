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
from microbert_cli.training import checkpoint

PACKAGE = "microbert-cli"
TIGHT = 0.8  # of the free disk: a run that takes more deserves a look
EVERY_KIND = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def versions(case: DoctorContext) -> Iterator[Finding]:
    """Every package is there in a version that is asked for; those of ONNX where the recipe exports to it."""
    extras = {extra for step in case.steps for extra in step.stage.extras(step.resolved.recipe)}
    yield attempt("", _versions, requirements(*sorted(extras)))


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the file beside the sources, else what was installed with the package."""
    file = Path(__file__).parents[3] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
        return [Requirement(line) for line in [*project["dependencies"], *optional]]
    try:
        found = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []
    wanted = ("", *extras)
    return [one for one in found if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in wanted)]


def _versions(asked: list[Requirement]) -> Finding:
    if not asked:
        return doubtful("mbert was not installed as a package, so nobody says which versions it needs")
    wrong = [(one, found) for one in asked if not one.specifier.contains(found := _version(one.name), prereleases=True)]
    if not wrong:
        return passed(f"{len(asked)} packages as asked for, torch {torch.__version__}")
    told = "; ".join(f"{one} is asked for, {found if found != '0' else 'nothing'} is installed" for one, found in wrong)
    raise MbertError(
        "M631",
        told,
        where="installed packages",
        allowed="The versions that pyproject.toml asks for.",
        fix="pip install " + " ".join(f"'{one.name}{one.specifier}'" for one, _ in wrong),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "0"


def device(case: DoctorContext) -> Iterator[Finding]:
    """The device that is asked for is there."""
    for name in dict.fromkeys(step.resolved.recipe.device for step in case.steps):
        yield attempt(name, _device, name)


def _device(name: str) -> Finding:
    found = pick_device(name)
    if not found.startswith("cuda"):
        return passed(f"{found}, {torch.get_num_threads()} threads")
    facts = torch.cuda.get_device_properties(found)
    return passed(f"{found}, {facts.name}, {facts.total_memory / 1e9:.0f} GB")


def saving(case: DoctorContext) -> Iterator[Finding]:
    """A training state written where the output will lie comes back bit by bit."""
    yield attempt(str(case.root), _saving, case.root)


def _saving(root: Path) -> Finding:
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    torch.manual_seed(0)
    tensors = {str(kind): (100 * torch.randn(1000)).to(kind) for kind in EVERY_KIND}
    state = {"step": 7, "loss": 0.1, "weights": tensors, "random": torch.get_rng_state(), "best": None}
    try:
        with tempfile.TemporaryDirectory(prefix=".mbert-doctor-", dir=place) as folder:
            checkpoint.save_state(state, Path(folder))
            found = checkpoint.load_state(Path(folder))
    except (OSError, RuntimeError) as error:  # torch has its own way to say that a file could not be written
        if number := disk_error(error, root):
            raise disk_refused(number, str(root)) from error
        raise
    if is_same(found, state):
        return passed(f"a checkpoint written in {place} comes back bit by bit")
    raise MbertError(
        "M632",
        "a checkpoint that was written here came back with other content",
        where=str(place),
        allowed="A disk that gives back what it was given.",
        fix="Choose another place: -o DIR",
    )


def is_same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def disk(case: DoctorContext) -> Iterator[Finding]:
    """The disk has room for what the run will write: outputs, caches, and the resume states of one stage at a time."""
    stays, passing, counted = 0, 0, 0
    for step in case.steps:
        if str(step.out) not in case.to_come:
            continue
        plan = StagePlan(step.name, step.kind, "new")
        found = attempt(step.name, _count, case, step, plan, Costs(plan, case.seen.prices, None))
        if found.state != "pass":
            yield found
            continue
        counted += 1
        stays += plan.disk
        passing = max(passing, plan.scratch)
    if counted:
        yield attempt(str(case.root), _room, case.root, stays + passing, counted)
    elif not case.to_come:
        yield passed("everything is made already")


def _count(case: DoctorContext, step: Step, plan: StagePlan, costs: Costs) -> Finding:
    """Counts what a stage will write, by what is known of its inputs."""
    for value in inputs_of(step).values():
        if (maker := case.to_come.get(value)) is None:
            continue
        if maker.stage.makes_model:
            case.seen.made[value] = case.output(maker)
        elif value not in case.seen.augmented:
            raise Later(f"{maker.name} could not be counted")
    if "source" in step.inputs:
        case.find_corpus(step)
    if step.stage.learns_task:
        case.data(step)
    step.stage.plan(localised(step, case), case.seen, costs)
    return passed(f"{gigabytes(plan.disk)} will stay")


def _room(root: Path, needed: int, stages: int) -> Finding:
    free = free_bytes(root.absolute())
    if not _same_disk(root.absolute(), cache.root()):
        free += cache.free_bytes()  # caches go there, and how much of all that is theirs depends on what fits
    told = f"{stages} stages will take at most {gigabytes(needed)}, and {gigabytes(free)} are free"
    if needed <= TIGHT * free:
        return passed(told)
    if needed <= free:
        return doubtful(told)
    raise MbertError(
        "M633",
        f"the disk has no room: {told}",
        where=f"-o {root}",
        allowed=f"At least {gigabytes(needed)} free where outputs and caches lie.",
        fix="Make room, choose another place with -o DIR, or keep less of the teacher's answers: --set cache.teacher=off",
    )


def _same_disk(one: Path, other: Path) -> bool:
    devices = []
    for path in (one, other):
        while not path.exists():
            path = path.parent
        devices.append(path.stat().st_dev)
    return devices[0] == devices[1]


def gigabytes(size: float) -> str:
    """Bytes as a person says them."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
