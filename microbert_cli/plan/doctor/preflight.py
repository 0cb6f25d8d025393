"""The cheap checks of all stages before the first one starts: packages, inputs, rows and columns, heads, layer maps, free disk.

`mbert doctor` checks more and reports; this raises, and reads nothing that the stages would not read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from microbert_cli.augmentation.tools import check_augmenters
from microbert_cli.data.load import check_rows_present
from microbert_cli.data.task_data import find_task
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.errors import MbertError, combine_errors
from microbert_cli.hub import is_offline
from microbert_cli.models import factory
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.exported.files import require_onnx, require_openvino
from microbert_cli.models.size import weights_bytes
from microbert_cli.plan.doctor.context import DoctorContext, inputs_of
from microbert_cli.plan.doctor.findings import Later
from microbert_cli.plan.doctor.machine_checks import check_room
from microbert_cli.plan.phases import losses_of
from microbert_cli.plan.static_checks import MODELS, check_static, own_files
from microbert_cli.recipe.registry import Catalog
from microbert_cli.runs.pipeline import check_trackers
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loss_terms import LAYERWISE, make_terms

MOST_BYTES = 64 * 2**20  # of data files that are read whole before the first stage; of larger ones the stage itself tells
OPTIMISER_SHARE = 4  # weights, gradients' moments and a best copy, in a resume state, for each byte of weights
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_before_start(steps: Sequence[Step], root: Path, catalog: Catalog) -> None:
    """Raises at once all that will fail in the stages that are still to run, as each stage itself would raise it."""
    check_static(steps, catalog)
    context = DoctorContext(steps, root, catalog, offline=is_offline())
    errors: dict[str, MbertError] = {}
    for step in context.steps:
        if str(step.out) not in context.to_come:
            continue
        for check in (_packages, _models, _augmenters, _corpus, _rows, _layers):
            for error in _errors_of(check, context, step):
                errors.setdefault(str(error), error)
    errors |= {str(error): error for error in _errors_of(_disk, context, root)}
    if errors:
        raise combine_errors(list(errors.values()))


def _errors_of(check: Callable[..., None], *arguments: Any) -> Iterator[MbertError]:
    try:
        check(*arguments)
    except Later:
        pass
    except MbertError as error:
        yield error


def _packages(context: DoctorContext, step: Step) -> None:
    if "onnx" in step.stage.extras(step.resolved.recipe):
        require_onnx(*ONNX_PACKAGES)
    if "openvino" in step.stage.extras(step.resolved.recipe):
        require_openvino()
    if step.stage.trains:
        check_trackers(step, context.catalog)


def _models(context: DoctorContext, step: Step) -> None:
    for role, name in inputs_of(step).items():
        is_model = role in MODELS and name not in context.to_come
        if is_model and not factory.is_description(name, context.catalog):
            context.directory(name, step.stage.input_keys.get(role, (role,))[0])


def _augmenters(context: DoctorContext, step: Step) -> None:
    if step.kind == "augment":
        settings = step.resolved.recipe.augment
        check_augmenters(settings.sources, settings.options, context.catalog)


def _corpus(context: DoctorContext, step: Step) -> None:
    if "source" in step.inputs:
        context.find_corpus(step)


def _rows(context: DoctorContext, step: Step) -> None:
    """Reads the rows of the user's own files, where they are not too large to be read twice; looks for those of a benchmark."""
    recipe, files = step.resolved.recipe, own_files(step, context.catalog)
    splits = context.splits(step) if step.stage.splits else ()
    if sum(file.stat().st_size for file in files if file.is_file()) > MOST_BYTES:
        return
    if files:
        context.rows(step, splits)
    elif splits and recipe.task:
        folder = Path(recipe.data.folder) if recipe.data.folder else None
        task = find_task(recipe, context.catalog)
        for split in splits:
            check_rows_present(task, split, data_dir=folder)


def _layers(context: DoctorContext, step: Step) -> None:
    if not step.distils:
        return
    recipe = step.resolved.recipe
    terms = [make_terms(losses_of(phase.losses), context.catalog) for phase in step.stage.phases(recipe).values()]
    is_layerwise = any(term.over in LAYERWISE for phase_terms in terms for term in phase_terms)
    if is_layerwise or not step.stage.learns_task:
        teacher = context.info(str(step.vocabulary), where=step.stage.input_keys["teacher"][0])
        layers = model_shape(context.output(step).config).layers
        layer_map(recipe.layer_map, teacher_layers=model_shape(teacher.config).layers, student_layers=layers)


def _disk(context: DoctorContext, root: Path) -> None:
    """Checks the room for the models that are trained from ones that are here: at least theirs, and one resume state."""
    sizes = []
    for step in context.steps:
        source = step.inputs.get("student", step.inputs.get("model"))
        if str(step.out) in context.to_come and isinstance(source, str) and Path(source).is_dir():
            with suppress(FileNotFoundError):
                sizes.append(weights_bytes(Path(source)))
    if sizes:
        check_room(root, sum(sizes) + OPTIMISER_SHARE * max(sizes), len(sizes))
