"""Extracts the plain BERT of one task from a routed one: its experts, its head, and nothing that only routing needed.

Routed by task, a task meets the same experts with the same gates at every token, so that they are one feed-forward network:

    sum_e g_e (W2_e act(W1_e x + b1_e) + b2_e)  =  [g_1 W2_1 .. g_k W2_k] act([W1_1; ..; W1_k] x + [b1_1; ..]) + sum_e g_e b2_e

A BERT has one FFN width in all its layers; narrower ones get neurons whose weights are 0, which add nothing.
Routed by token there is no such network: `dense_for_task` returns the model itself, set to the task.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from microbert_cli.errors import MbertError, nearest
from microbert_cli.models.architectures import architecture_of, model_shape
from microbert_cli.models.capture import show_scores
from microbert_cli.models.moe.layers import gates_of
from microbert_cli.recipe.multitask import ambiguous_task
from microbert_cli.recipe.task_kinds import kind_of_head

FFN = ("intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight", "output.dense.bias")


def is_routed(config: Any) -> bool:
    """Whether this is the configuration of a BERT with a head per task."""
    return architecture_of(config).experts == "task"


def dense_for_task(model: Any, task: str | None, *, where: str) -> Any:
    """Returns the classifier of one task: a plain BERT where one exists, else the routed model set to the task.

    task  may be None where the model has one task
    Raises M265 for None where it has several, M266 for a task that it does not have.
    """
    name = default_task(model, task, where=where)
    if model.config.moe_layers and model.config.routing != "task":
        model.standing_task = model.tasks.index(name)
        _set_labels(model.config, model.config.tasks[name])
        return model
    plain = dense_model(model, name)
    show_scores(plain)
    return plain


def check_routing(config: Any, *, where: str) -> None:
    """Checks that a configuration routes only to tasks, layers and experts that it has; raises M390."""
    routing_fields = {name: getattr(config, name) for name in ("tasks", "moe_layers", "experts", "top_k", "routing")}
    routing_fields |= {name: getattr(config, f"expert_{name}") for name in ("norm", "gate")}
    depth = model_shape(config).layers
    try:
        consistent = _is_consistent(depth, **routing_fields)
    except (TypeError, AttributeError, KeyError):  # a foreign config.json may hold values of any type
        consistent = False
    if not consistent:
        raise MbertError(
            "M390",
            f"this configuration routes to what it does not have: {str(routing_fields)[:300]}",
            where=f"{where}, config.json",
            allowed=f"Tasks with labels, layers from 1 to {depth}, 1 <= top_k <= experts, a known routing.",
            fix="Take config.json as the training wrote it, beside its own weights.",
        )


def _is_consistent(
    depth: int, *, tasks: Any, moe_layers: Any, experts: int, top_k: int, routing: str, norm: str, gate: str
) -> bool:
    layers = {layer for layer in moe_layers if type(layer) is int and 1 <= layer <= depth}
    heads = [task["num_labels"] >= 1 and len(task["labels"] or range(task["num_labels"])) for task in tasks.values()]
    labels_fit = heads == [task["num_labels"] for task in tasks.values()]
    routed_by_task = routing == "task" and (norm, gate) == ("layer", "share")
    routed_otherwise = (
        routing in ("token", "sentence", "hash") and norm in ("layer", "expert") and gate in ("share", "probability")
    )
    top_k_allowed = top_k == 1 or (routing != "hash" and norm == "layer")
    routes = (routed_by_task or routed_otherwise) and top_k_allowed and 1 <= top_k <= experts
    return bool(heads) and labels_fit and len(layers) == len(moe_layers) and routes


def default_task(model: Any, task: str | None, *, where: str) -> str:
    """Returns the task's name, or the model's only one. Raises M265 and M266."""
    if task is None and len(model.tasks) > 1:
        raise ambiguous_task(model.tasks, where)
    if task is not None and task not in model.tasks:
        raise MbertError(
            "M266",
            f'this model was not trained on "{task}": it has no head and no route for it',
            where=where,
            allowed=f"Its tasks: {nearest(task, model.tasks)}",
            fix=f"For instance: --task {model.tasks[0]}",
        )
    return task or str(model.tasks[0])


@torch.no_grad()
def dense_model(model: Any, task: str) -> BertForSequenceClassification:
    """Returns the plain classifier of a task; its logits are the routed model's, but for the order of sums.

    Raises M127 for a model that is not routed by task.
    """
    if model.config.moe_layers and model.config.routing != "task":
        raise no_plain_model(task)
    chosen = model.chosen_experts()[task]
    layers = {layer: merge_experts(model, task, layer, experts) for layer, experts in chosen.items()}
    config = model.config.plain()
    _set_labels(config, model.config.tasks[task])
    state = {name: value for name, value in model.bert.state_dict().items() if ".intermediate." not in name}
    state = {f"bert.{name}": value for name, value in state.items() if name != "task_embedding.weight"}
    for number, layer in enumerate(model.bert.encoder.layer, 1):
        ffn = layers.get(number) or {name: layer.get_parameter(name) for name in FFN}
        state |= {f"bert.encoder.layer.{number - 1}.{name}": _zero_padded(name, value, config) for name, value in ffn.items()}
    state |= {f"classifier.{name}": value for name, value in model.heads[task].state_dict().items()}
    with torch.random.fork_rng():  # its random weights, all of them replaced below, should not move the caller's generator
        plain = BertForSequenceClassification(config)
    plain.load_state_dict({name: value.float().cpu() for name, value in state.items()})
    return plain.eval()


def merge_experts(model: Any, task: str, layer: int, chosen: list[int]) -> dict[str, Tensor]:
    """Returns the chosen experts of a layer as one feed-forward network, under BERT's names."""
    experts = model.bert.expert_layers[layer]
    logits_E = experts.router.logits(model.bert.task_embedding.weight[model.tasks.index(task)])
    gates = gates_of(logits_E.softmax(-1)[chosen]).tolist()
    ups, downs = ([getattr(experts.experts[e], name) for e in chosen] for name in ("up", "down"))
    return {
        FFN[0]: torch.cat([up.weight for up in ups]),
        FFN[1]: torch.cat([up.bias for up in ups]),
        FFN[2]: torch.cat([gate * down.weight for gate, down in zip(gates, downs, strict=True)], 1),
        FFN[3]: torch.stack([gate * down.bias for gate, down in zip(gates, downs, strict=True)]).sum(0),
    }


def no_plain_model(task: str) -> MbertError:
    """Returns the error for a model that is not routed by task."""
    return MbertError(
        "M127",
        f'no plain BERT says what this model says of "{task}": which expert answers depends on the text, not on the task',
        where="routing in its config.json",
        allowed="A model routed by task; only there a task is served by the same experts throughout.",
        fix="Train one: --set moe.side=student --set moe.routing=task. Or distil this one into a plain student.",
    )


def _set_labels(config: Any, task: Mapping[str, Any]) -> None:
    names = task["labels"] or [f"LABEL_{i}" for i in range(task["num_labels"])]
    kind_of_head(task["num_labels"], names=names).configure(config)


def _zero_padded(name: str, value: Tensor, config: BertConfig) -> Tensor:
    """Returns the tensor with zeros for the neurons that it lacks."""
    side = 1 if name == FFN[2] else 0
    missing = 0 if name == FFN[3] else (model_shape(config).inner or 0) - value.shape[side]
    shape = [missing if place == side else size for place, size in enumerate(value.shape)]
    return torch.cat([value, value.new_zeros(shape)], side) if missing else value
