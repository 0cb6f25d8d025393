"""Makes a mixture of experts of a BERT: in which layers, how wide, and with which weights.

copy         every expert is the layer's feed-forward network with N(0, 1e-3)
importance   the most important neurons are in all experts, the rest are dealt in turn (`layers.deal_neurons`, MoEBERT)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import show_scores
from microbert_cli.models.config import read_config
from microbert_cli.models.find import find_model
from microbert_cli.models.load import LoadedModel, count_all_parameters
from microbert_cli.models.moe.bert import RoutedBertForSequenceClassification
from microbert_cli.models.moe.layers import deal_neurons
from microbert_cli.models.size import check_memory
from microbert_cli.recipe.moe import too_many_student_experts

Importance = Callable[[Sequence[int]], Mapping[int, Tensor]]
SHARED = 2 / 3  # of an expert's width, as MoEBERT's 512 of 768


@dataclass(frozen=True)
class MoeSettings:
    """The experts of a model. layers: "every-second", "all" or numbers from 1; width, shared: see `expert_widths` for None."""

    layers: str | Sequence[int] = "every-second"
    experts: int = 4
    width: int | None = None
    routing: str = "task"
    top_k: int = 1
    init: str = "copy"
    shared: int | None = None
    norm: str = "layer"
    gate: str = "share"


def add_experts(loaded: LoadedModel, settings: MoeSettings, *, seed: int, importance: Importance | None = None) -> LoadedModel:
    """Adds experts to a BERT with task heads, new weights drawn from `seed`. One that has these experts is returned as it is.

    importance  function from layers to the importance of their neurons, for init = "importance"
    Raises M071 (layers), M072 (widths), M076 (copies of another width), M078 (no trained head), M079 (other experts),
    M223 (more experts than memory holds).
    """
    config, shape = loaded.model.config, model_shape(loaded.model.config)
    layers = expert_layers(settings.layers, shape.layers)
    if getattr(config, "moe_layers", None):
        _check_same(config, layers, settings)
        return loaded
    width, shared = expert_widths(settings, shape.inner or 0)
    _check_room(loaded.model, layers=len(layers), experts=settings.experts, width=width)
    neurons = None
    if settings.init == "importance":
        if importance is None or loaded.head_is_new or len(config.tasks) > 1:
            raise _no_head()
        neurons = {
            layer: deal_neurons(importance_F, experts=settings.experts, width=width, shared=shared)
            for layer, importance_F in importance(layers).items()
        }
    model = RoutedBertForSequenceClassification.from_dense(
        loaded.model,
        tasks=config.tasks,
        moe_layers=layers,
        experts=settings.experts,
        expert_width=width,
        routing=settings.routing,
        top_k=settings.top_k,
        norm=settings.norm,
        gate=settings.gate,
        seed=seed,
        neurons=neurons,
        heads=dict(loaded.model.heads.items()),
    )
    show_scores(model)
    return replace(loaded, model=model)


def expert_layers(requested: str | Sequence[int], depth: int) -> list[int]:
    """Returns the layers with experts, from 1: 2, 4, ... for every second one. Raises M071 for a layer that does not exist."""
    every = {"every-second": range(2, depth + 1, 2), "all": range(1, depth + 1)}
    layers = list(every[requested]) if isinstance(requested, str) else list(requested)
    wrong = [layer for layer in layers if not 1 <= layer <= depth or layers.count(layer) > 1]
    if wrong or not layers:
        what = f"layer {wrong[0]}" if wrong else "no layer at all"
        raise MbertError(
            "M071",
            f"{what} cannot have experts: the model has {depth} layers, each of which may be named once",
            where="moe.layers",
            allowed=f"Different numbers from 1 to {depth}, all, or (of two layers or more) every-second.",
            fix="--set moe.layers=all",
        )
    return sorted(layers)


def expert_widths(settings: MoeSettings, inner: int) -> tuple[int, int]:
    """Returns the experts' width and how many neurons they share, for a network of `inner` neurons.

    copy: the network's width. importance: by default inner / E, two thirds of that shared. Raises M072.
    """
    if settings.init == "copy":
        if settings.width not in (None, inner) or settings.shared:
            raise _not_copied(settings, inner)
        return inner, 0
    width = settings.width or inner // settings.experts
    shared = int(width * SHARED) if settings.shared is None else settings.shared
    needed = shared + settings.experts * (width - shared)
    if not (0 <= shared <= width and 1 <= width and needed <= inner):
        raise MbertError(
            "M072",
            f"{settings.experts} experts of {width} neurons, {shared} of them shared, need {needed}; the network has {inner}",
            where="moe.experts, moe.expert_width, moe.shared",
            allowed=f"shared <= width, and shared + experts * (width - shared) <= {inner}.",
            fix=f"Leave width and shared out: {settings.experts} experts of {inner // settings.experts} neurons",
        )
    return width, shared


def _check_room(model: Any, *, layers: int, experts: int, width: int) -> None:
    d = model_shape(model.config).width
    check_memory(
        count_all_parameters(model) + layers * experts * (2 * d * width + width + d),
        where=f"moe: {experts} experts of {width} neurons in {layers} layer{'s' * (layers > 1)}",
        fix="--set moe.experts=4",
    )


def check_expert_teacher(source: str, *, side: str, experts: int) -> None:
    """Raises M077 for a teacher without experts where the teacher's side has them, M074 for one with too few for "both"."""
    config = read_config(find_model(source, where="teacher.model"), where="teacher.model")
    if not getattr(config, "moe_layers", None):
        raise MbertError(
            "M077",
            f'moe.side is "{side}", and this teacher has no experts',
            where=f"teacher.model {source}",
            allowed="A teacher that was made an expert teacher: by the stage expert-teacher of a run, or by its command.",
            fix=f"mbert expert-teacher --teacher {source} -o EXPERTS; then --teacher EXPERTS",
        )
    if side == "both" and experts >= config.experts:
        raise too_many_student_experts(experts, config.experts, f"teacher.model {source}")


def _not_copied(settings: MoeSettings, inner: int) -> MbertError:
    return MbertError(
        "M076",
        f"experts of {settings.width or inner} neurons with {settings.shared or 0} shared cannot be copies of a network "
        f"of {inner}",
        where="moe.expert_width, moe.shared",
        allowed=f"Copies are {inner} wide and share nothing; narrower experts are dealt neurons by importance.",
        fix="Leave both out, or --set moe.init=importance",
    )


def _check_same(config: Any, layers: Sequence[int], settings: MoeSettings) -> None:
    requested = (list(layers), settings.experts, settings.routing, settings.top_k, settings.norm, settings.gate)
    has = (sorted(config.moe_layers), config.experts, config.routing, config.top_k, config.expert_norm, config.expert_gate)
    if requested != has:
        descriptions = [
            "layers {}, {} experts, routed by {}, top {}, norm {}, gate {}".format(*values) for values in (has, requested)
        ]
        raise MbertError(
            "M079",
            f"this model has experts already ({descriptions[0]}), and others are asked for ({descriptions[1]})",
            where="moe",
            allowed="The same keys, to go on with it; or a model without experts.",
            fix="Take its plain model out: mbert extract DIR -o OUT",
        )


def _no_head() -> MbertError:
    return MbertError(
        "M078",
        "importance is measured by a task's loss, and this student has no head that was trained on it",
        where="moe.init",
        allowed="importance with a checkpoint fine-tuned on the one task of the run; copy with any.",
        fix="--set moe.init=copy, or fine-tune first: mbert finetune --model STUDENT --task TASK",
    )
