"""A BERT becomes a mixture of experts: in which layers, how wide, and what the experts begin as.

copy         every expert is the layer's feed-forward network with N(0, 1e-3)
importance   the most important neurons are in all experts, the rest are dealt in turn (`experts.deal`, MoEBERT)
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
from microbert_cli.models.moe.layers import deal
from microbert_cli.models.size import check_memory
from microbert_cli.recipe.moe import too_many_student_experts

Importance = Callable[[Sequence[int]], Mapping[int, Tensor]]
SHARED = 2 / 3  # of an expert's width, as MoEBERT's 512 of 768


@dataclass(frozen=True)
class MoeSettings:
    """What is asked for. layers: "every-second", "all" or numbers from 1; width, shared: None = the usual (see `fitting`)."""

    layers: str | Sequence[int] = "every-second"
    experts: int = 4
    width: int | None = None
    routing: str = "task"
    top_k: int = 1
    init: str = "copy"
    shared: int | None = None
    norm: str = "layer"
    gate: str = "share"


def add_experts(loaded: LoadedModel, wanted: MoeSettings, *, seed: int, importance: Importance | None = None) -> LoadedModel:
    """A BERT with task heads, with experts; what is new comes from `seed`. One that has the wanted experts stays as it is.

    importance  of the neurons of these layers of the model; asked where init = "importance"
    Raises M071 (layers), M072 (widths), M076 (copies of another width), M078 (no trained head), M079 (other experts),
    M223 (more experts than memory holds).
    """
    config, shape = loaded.model.config, model_shape(loaded.model.config)
    layers = expert_layers(wanted.layers, shape.layers)
    if getattr(config, "moe_layers", None):
        _check_same(config, layers, wanted)
        return loaded
    width, shared = fitting(wanted, shape.inner or 0)
    _check_room(loaded.model, layers=len(layers), experts=wanted.experts, width=width)
    neurons = None
    if wanted.init == "importance":
        if importance is None or loaded.head_is_new or len(config.tasks) > 1:
            raise _no_head()
        found = importance(layers)
        neurons = {layer: deal(value, experts=wanted.experts, width=width, shared=shared) for layer, value in found.items()}
    model = RoutedBertForSequenceClassification.from_dense(
        loaded.model,
        tasks=config.tasks,
        moe_layers=layers,
        experts=wanted.experts,
        expert_width=width,
        routing=wanted.routing,
        top_k=wanted.top_k,
        norm=wanted.norm,
        gate=wanted.gate,
        seed=seed,
        neurons=neurons,
        heads=dict(loaded.model.heads.items()),
    )
    show_scores(model)
    return replace(loaded, model=model)


def expert_layers(asked: str | Sequence[int], depth: int) -> list[int]:
    """The layers with experts, from 1: 2, 4, ... for every second one. Raises M071 for one that is not there."""
    every = {"every-second": range(2, depth + 1, 2), "all": range(1, depth + 1)}
    layers = list(every[asked]) if isinstance(asked, str) else list(asked)
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


def fitting(wanted: MoeSettings, own: int) -> tuple[int, int]:
    """The experts' width and how many neurons they share, for a network of `own` neurons.

    copy: its own width. importance: a share 1 / E of it, two thirds of that shared, where nothing is said. Raises M072.
    """
    if wanted.init == "copy":
        if wanted.width not in (None, own) or wanted.shared:
            raise _not_copied(wanted, own)
        return own, 0
    width = wanted.width or own // wanted.experts
    shared = int(width * SHARED) if wanted.shared is None else wanted.shared
    needed = shared + wanted.experts * (width - shared)
    if not (0 <= shared <= width and 1 <= width and needed <= own):
        raise MbertError(
            "M072",
            f"{wanted.experts} experts of {width} neurons, {shared} of them shared, need {needed}; the network has {own}",
            where="moe.experts, moe.expert_width, moe.shared",
            allowed=f"shared <= width, and shared + experts * (width - shared) <= {own}.",
            fix=f"Leave width and shared out: {wanted.experts} experts of {own // wanted.experts} neurons",
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


def _not_copied(wanted: MoeSettings, own: int) -> MbertError:
    return MbertError(
        "M076",
        f"experts of {wanted.width or own} neurons with {wanted.shared or 0} shared cannot be copies of a network of {own}",
        where="moe.expert_width, moe.shared",
        allowed=f"Copies are {own} wide and share nothing; narrower experts are dealt neurons by importance.",
        fix="Leave both out, or --set moe.init=importance",
    )


def _check_same(config: Any, layers: Sequence[int], wanted: MoeSettings) -> None:
    asked = (list(layers), wanted.experts, wanted.routing, wanted.top_k, wanted.norm, wanted.gate)
    has = (sorted(config.moe_layers), config.experts, config.routing, config.top_k, config.expert_norm, config.expert_gate)
    if asked != has:
        told = ["layers {}, {} experts, routed by {}, top {}, norm {}, gate {}".format(*one) for one in (has, asked)]
        raise MbertError(
            "M079",
            f"this model has experts already ({told[0]}), and others are asked for ({told[1]})",
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
        fix="--set moe.init=copy, or fine-tune first: mbert finetune --model STUDENT",
    )
