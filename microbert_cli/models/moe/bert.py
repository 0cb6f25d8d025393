"""A BERT for several tasks: a shared encoder, a head per task, and in chosen layers experts in the place of the FFN.

    h_l = LayerNorm(a_l + dropout(y(a_l))),   y of layers.py in `moe_layers`, BERT's own FFN elsewhere
    logits of task k = head_k(dropout(pooled))

All rows of a batch are of one task, `task` [B] its place among the sorted names. Residual and LayerNorm belong to the layer,
not to the expert, so that for one task the model is a plain BERT: `mbert extract` writes it. With no `moe_layers` it is the
shared encoder of MT-DNN. With expert_norm = "expert" they belong to the expert, h_l = y(a_l), as in MoEBERT.

Loaded by transformers' Auto classes once this module is imported. Source: routing by task in the student is what section 3.4 of
MicroBERT (Applied Sciences 2024, 14, 6171) describes; layers, widths and initialisation are this toolkit's.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput

from microbert_cli.models.moe.layers import (
    TASK_WIDTH,
    Expert,
    Experts,
    HashRouter,
    NormedExpert,
    RoutingContext,
    SentenceRouter,
    TaskRouter,
    TokenRouter,
)

MODEL_TYPE = "mbert-routed-bert"
COPY_NOISE = 1e-3


class RoutedBertConfig(BertConfig):
    """BERT's configuration and: tasks, where experts are, how many, how wide, and what routes to them.

    tasks         name -> {"labels": [...] or None, "num_labels": n}; numbered in the order of their names
    moe_layers    counted from 1; [] = no experts
    expert_width  of an expert's inner layer; None = intermediate_size
    routing       "task", "token", "sentence" or "hash";  top_k  experts for each;  routing_seed  of the noise, or the table
    expert_norm   "layer" or "expert";  expert_gate  "share" or "probability"
    """

    model_type = MODEL_TYPE

    tasks: dict | None = None
    moe_layers: list | tuple = ()
    experts: int = 1
    expert_width: int | None = None
    routing: str = "task"
    top_k: int = 1
    routing_seed: int = 0
    expert_norm: str = "layer"
    expert_gate: str = "share"

    def plain(self) -> BertConfig:
        """Returns the configuration of the plain BERT that one task's experts make: as wide as the widest layer."""
        fields = {key: value for key, value in self.to_dict().items() if key not in OWN_FIELDS}
        widths = [self.top_k * (self.expert_width or self.intermediate_size)] if self.moe_layers else []
        if len(self.moe_layers) < self.num_hidden_layers:
            widths.append(self.intermediate_size)
        return BertConfig(**{**fields, "intermediate_size": max(widths)})


# Fields of the configuration that a plain BERT's lacks; RoutedBertConfig's annotations are its own fields alone.
OWN_FIELDS = {"model_type", "architectures", *RoutedBertConfig.__annotations__}


class TaskVectors(nn.Embedding):
    """A vector [64] per task, drawn from N(0, 1)."""


class _AddAndNorm(nn.Module):
    """Dropout, residual and LayerNorm after the experts of a layer, under BERT's names."""

    def __init__(self, config: RoutedBertConfig):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, out_BTd: Tensor, input_BTd: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(out_BTd) + input_BTd)
        return normed


class _PassThrough(nn.Module):
    """Stands after experts with a residual and LayerNorm of their own, and changes nothing."""

    def forward(self, out_BTd: Tensor, input_BTd: Tensor) -> Tensor:
        return out_BTd


class _RoutedBert(BertPreTrainedModel):
    """What the encoder and the classifier share: how weights are initialised and loaded."""

    config_class = RoutedBertConfig
    supports_gradient_checkpointing = False  # a recomputed pass would count and draw noise a second time

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TaskVectors):
            init.normal_(module.weight)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads as transformers does, and copies each tensor to memory of its own.

        Tensors come as views into the file, not aligned to cache lines. Some matrix products then add in another order, and the
        last bit of the logits would differ from the saved model's.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        for tensor in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
            tensor.data = tensor.data.clone()
        return loaded


class RoutedBertModel(_RoutedBert, BertModel):
    """The encoder: BERT whose forward takes `task`, and whose layers `moe_layers` route."""

    def __init__(self, config: RoutedBertConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer)
        self.expert_layers: dict[int, Experts] = {}  # by layer, from 1; stays complete while capture.py replaces layers
        for number in config.moe_layers:
            layer: Any = self.encoder.layer[number - 1]
            layer.intermediate = _experts(config, number)
            layer.output = _AddAndNorm(config) if config.expert_norm == "layer" else _PassThrough()
            self.expert_layers[number] = layer.intermediate
        if config.moe_layers and config.routing == "task":
            self.task_embedding = TaskVectors(len(config.tasks or {}), TASK_WIDTH)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *args: Any,
                task: Tensor | int | None = None, **kwargs: Any) -> Any:  # fmt: skip
        """BERT's forward for one task's rows; the output's `routing` is that of `layers.RoutingContext`."""
        context = RoutingContext(task=batch_task(task, self.config), mask_BT=attention_mask, ids_BT=input_ids)
        if hasattr(self, "task_embedding"):
            context.vector = self.task_embedding.weight[context.task]
        for experts in self.expert_layers.values():
            experts.context = context
        try:
            output = super().forward(input_ids, attention_mask, *args, **kwargs)
        finally:
            # The old context holds tensors of the whole graph.
            for experts in self.expert_layers.values():
                experts.context = RoutingContext()
        output.routing = context.routing
        return output

    def progress(self, share: float) -> None:
        """Passes the share of training that is done to the routers; see `layers.TaskRouter.progress`."""
        if hasattr(self, "task_embedding"):
            for experts in self.expert_layers.values():
                experts.router.progress(share, self.task_embedding.weight.detach())


class RoutedBertForSequenceClassification(_RoutedBert):
    """The encoder with a head per task."""

    def __init__(self, config: RoutedBertConfig):
        super().__init__(config)
        self.bert = RoutedBertModel(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        heads = {name: nn.Linear(config.hidden_size, task["num_labels"]) for name, task in (config.tasks or {}).items()}
        self.heads = nn.ModuleDict(heads)
        self.standing_task: int | None = None
        self.post_init()

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks; a saved configuration has them sorted, and so is their numbering."""
        return sorted(self.config.tasks or {})

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        task: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Returns the logits [B, C] of the batch's task. Raises ValueError for rows of several tasks, or of an unknown one."""
        number = batch_task(self.standing_task if task is None else task, self.config)
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, task=number, return_dict=True, **kwargs
        )
        logits = self.heads[self.tasks[number]](self.dropout(outputs.pooler_output))
        output = SequenceClassifierOutput(logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        output.routing = outputs.routing
        return output

    @contextmanager
    def answering(self, task: str) -> Iterator["RoutedBertForSequenceClassification"]:
        """Makes this the task of batches that name none, within the block."""
        before, self.standing_task = self.standing_task, self.tasks.index(task)
        try:
            yield self
        finally:
            self.standing_task = before

    def progress(self, share: float) -> None:
        """Sets noise and tables of the routers for the share of training that is done, 0 to 1."""
        self.bert.progress(share)

    @torch.no_grad()
    def chosen_experts(self) -> dict[str, dict[int, list[int]]]:
        """Returns the experts of every task by layer, from 1: those of the frozen table, else the ones without noise.

        No layers for a model that is not routed by task.
        """
        by_task: dict[str, dict[int, list[int]]] = {name: {} for name in self.tasks}
        was_training = self.training
        self.eval()
        by_layer = self.bert.expert_layers if self.config.routing == "task" else {}
        for layer, experts in by_layer.items():
            for number, name in enumerate(self.tasks):
                logits_E = experts.router.logits(self.bert.task_embedding.weight[number])
                by_task[name][layer] = experts.router.choose(logits_E, number)
        self.train(was_training)
        return by_task

    @classmethod
    def from_dense(
        cls,
        model: Any,
        *,
        tasks: Mapping[str, Mapping[str, Any]],
        moe_layers: Sequence[int] = (),
        experts: int = 1,
        expert_width: int | None = None,
        routing: str = "task",
        top_k: int = 1,
        norm: str = "layer",
        gate: str = "share",
        seed: int = 0,
        neurons: Mapping[int, Sequence[Sequence[int]]] | None = None,
        heads: Mapping[str, nn.Linear] | None = None,
    ) -> "RoutedBertForSequenceClassification":
        """Builds a routed model from a BERT: every expert is the layer's FFN plus N(0, 1e-3); new weights come from `seed`.

        model    a BertModel, or any BERT with a head; its head is left behind
        neurons  by layer and expert: those of the FFN that the expert gets, without noise (`layers.deal_neurons`)
        heads    trained ones to keep, by task
        """
        dense = model.base_model
        fields = {key: value for key, value in dense.config.to_dict().items() if key not in OWN_FIELDS}
        routing_fields = {
            "tasks": {name: dict(tasks[name]) for name in sorted(tasks)}, "moe_layers": list(moe_layers), "experts": experts,
            "expert_width": expert_width, "routing": routing, "top_k": top_k, "routing_seed": seed,
            "expert_norm": norm, "expert_gate": gate,
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            routed = cls(RoutedBertConfig(**copy.deepcopy(fields) | routing_fields))
            _copy_weights(dense, routed.bert)
            for number, layer in routed.bert.expert_layers.items():
                _copy_ffn(dense.encoder.layer[number - 1], layer, (neurons or {}).get(number))
        for name, head in (heads or {}).items():
            routed.heads[name].load_state_dict(head.state_dict())
        return routed


def batch_task(task: Tensor | int | None, config: Any) -> int:
    """Returns the number of a batch's task; may be None where the model has one task."""
    count = len(config.tasks or {})
    if isinstance(task, Tensor):
        numbers = task.unique().tolist()
        if len(numbers) != 1:
            raise ValueError(f"a batch is of one task; this one is of {numbers}")
        task = int(numbers[0])
    if task is None and count > 1:
        raise ValueError(f"which of the {count} tasks is the batch of? task = a number of {sorted(config.tasks)}")
    if not 0 <= (task or 0) < max(1, count):
        raise ValueError(f"there is no task {task}: the model knows {count}")
    return task or 0


def _experts(config: RoutedBertConfig, layer: int) -> Experts:
    width = config.expert_width or config.intermediate_size
    return Experts([_expert(config, width) for _ in range(config.experts)], _router(config, layer))


def _expert(config: RoutedBertConfig, width: int) -> Expert:
    activation = ACT2FN[config.hidden_act]
    if config.expert_norm == "layer":
        return Expert(config.hidden_size, width, activation)
    norm = {"epsilon": config.layer_norm_eps, "dropout": config.hidden_dropout_prob}
    return NormedExpert(config.hidden_size, width, activation, **norm)


def _router(config: RoutedBertConfig, layer: int) -> Any:
    if config.routing == "hash":
        return HashRouter(config.vocab_size, config.experts, seed=config.routing_seed, layer=layer)
    if config.routing in ("token", "sentence"):
        router = TokenRouter if config.routing == "token" else SentenceRouter
        return router(config.hidden_size, config.experts, config.top_k, config.expert_gate)
    return TaskRouter(len(config.tasks or {}), config.experts, config.top_k, seed=config.routing_seed, layer=layer)


def _copy_weights(dense: Any, routed: Any) -> None:
    """Copies everything but the FFNs that become experts; without a pooler to copy, the new one's weights stay."""
    state = routed.state_dict()
    common = {name: value for name, value in dense.state_dict().items() if name in state}
    routed.load_state_dict({**state, **common})


@torch.no_grad()
def _copy_ffn(dense: Any, experts: Experts, neurons: Sequence[Sequence[int]] | None) -> None:
    """Gives every expert the whole network plus noise, or the rows and columns of its neurons."""
    up, down = dense.intermediate.dense, dense.output.dense
    expert: Any
    for number, expert in enumerate(experts.experts):
        if neurons is None:
            # Without noise equal experts would get equal gradients, and never differ.
            expert.up.weight.copy_(up.weight + COPY_NOISE * torch.randn(up.weight.shape))
            expert.down.weight.copy_(down.weight + COPY_NOISE * torch.randn(down.weight.shape))
            expert.up.bias.copy_(up.bias)
        else:
            expert.up.weight.copy_(up.weight[neurons[number]])
            expert.down.weight.copy_(down.weight[:, neurons[number]])
            expert.up.bias.copy_(up.bias[neurons[number]])
        expert.down.bias.copy_(down.bias)
        if isinstance(expert, NormedExpert):
            expert.norm.load_state_dict(dense.output.LayerNorm.state_dict())


AutoConfig.register(MODEL_TYPE, RoutedBertConfig)


AutoModel.register(RoutedBertConfig, RoutedBertModel)


AutoModelForSequenceClassification.register(RoutedBertConfig, RoutedBertForSequenceClassification)
