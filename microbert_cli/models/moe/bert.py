"""A BERT for several tasks: a shared encoder, a head per task, and in chosen layers experts in the place of the FFN.

    h_l = LayerNorm(a_l + dropout(y(a_l))),   y of experts.py in `moe_layers`, BERT's own FFN elsewhere
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
    Pass,
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
    """What follows the experts of a layer; named as in BERT."""

    def __init__(self, config: RoutedBertConfig):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, out_BTd: Tensor, input_BTd: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(out_BTd) + input_BTd)
        return normed


class _AsItIs(nn.Module):
    """After experts that have added and normalised themselves."""

    def forward(self, out_BTd: Tensor, input_BTd: Tensor) -> Tensor:
        return out_BTd


class _RoutedBert(BertPreTrainedModel):
    """How both models begin, and how they are read."""

    config_class = RoutedBertConfig
    supports_gradient_checkpointing = False  # a pass that is run again would count and draw again

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TaskVectors):
            init.normal_(module.weight)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; tensors are moved to where they would lie in a new model.

        They come as views into the file, at places that are no multiple of a cache line, and some products of matrices then
        add in another order: the last bit of the logits would not be that of the saved model.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        for tensor in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
            tensor.data = tensor.data.clone()
        return loaded


class RoutedBertModel(_RoutedBert, BertModel):
    """The encoder: BERT whose forward takes `task`, and whose layers `moe_layers` route."""

    def __init__(self, config: RoutedBertConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer)
        self.expert_layers: dict[int, Experts] = {}  # by layer, counted from 1; also while another stands in for a layer
        for place in config.moe_layers:
            layer: Any = self.encoder.layer[place - 1]
            layer.intermediate = _experts(config, place)
            layer.output = _AddAndNorm(config) if config.expert_norm == "layer" else _AsItIs()
            self.expert_layers[place] = layer.intermediate
        if config.moe_layers and config.routing == "task":
            self.task_embedding = TaskVectors(len(config.tasks or {}), TASK_WIDTH)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *args: Any,
                task: Tensor | int | None = None, **kwargs: Any) -> Any:  # fmt: skip
        """BERT's forward for one task's rows; `routing` of the output is what the routers told (`experts.Pass.routing`)."""
        now = Pass(task=one_task(task, self.config), mask_BT=attention_mask, ids_BT=input_ids)
        if hasattr(self, "task_embedding"):
            now.vector = self.task_embedding.weight[now.task]
        for experts in self.expert_layers.values():
            experts.now = now
        try:
            output = super().forward(input_ids, attention_mask, *args, **kwargs)
        finally:
            for experts in self.expert_layers.values():
                experts.now = Pass()
        output.routing = now.routing
        return output

    def progress(self, share: float) -> None:
        """Which share of training is done; see `experts.TaskRouter.progress`."""
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
        """The logits [B, C] of the batch's task. Raises ValueError where the rows are of several, or of none that is known."""
        number = one_task(self.standing_task if task is None else task, self.config)
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, task=number, return_dict=True, **kwargs
        )
        logits = self.heads[self.tasks[number]](self.dropout(outputs.pooler_output))
        answer = SequenceClassifierOutput(logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        answer.routing = outputs.routing
        return answer

    @contextmanager
    def answering(self, task: str) -> Iterator["RoutedBertForSequenceClassification"]:
        """For a while, batches that name no task are of this one."""
        before, self.standing_task = self.standing_task, self.tasks.index(task)
        try:
            yield self
        finally:
            self.standing_task = before

    def progress(self, share: float) -> None:
        """Which share of training is done, 0 to 1: noise and table of the routers follow it."""
        self.bert.progress(share)

    @torch.no_grad()
    def chosen(self) -> dict[str, dict[int, list[int]]]:
        """The experts of every task by layer, counted from 1: the table's, or where it is not frozen the ones without noise.

        Nothing where something else than the task decides.
        """
        told: dict[str, dict[int, list[int]]] = {name: {} for name in self.tasks}
        was_training = self.training
        self.eval()
        by_layer = self.bert.expert_layers if self.config.routing == "task" else {}
        for layer, experts in by_layer.items():
            for number, name in enumerate(self.tasks):
                logits_E = experts.router.logits(self.bert.task_embedding.weight[number])
                told[name][layer] = experts.router.choose(logits_E, number)
        self.train(was_training)
        return told

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
        """A routed model of a BERT's weights: every expert is the layer's FFN and N(0, 1e-3); what is new comes from `seed`.

        model    a BertModel, or any BERT with a head; its head is left behind
        neurons  by layer and expert: those of the FFN that the expert is made of, without noise (`experts.deal`)
        heads    of tasks that keep one that is trained
        """
        dense = model.base_model
        fields = {key: value for key, value in dense.config.to_dict().items() if key not in OWN_FIELDS}
        own = {
            "tasks": {name: dict(tasks[name]) for name in sorted(tasks)}, "moe_layers": list(moe_layers), "experts": experts,
            "expert_width": expert_width, "routing": routing, "top_k": top_k, "routing_seed": seed,
            "expert_norm": norm, "expert_gate": gate,
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            routed = cls(RoutedBertConfig(**copy.deepcopy(fields) | own))
            _copy_weights(dense, routed.bert)
            for place, layer in routed.bert.expert_layers.items():
                _copy_ffn(dense.encoder.layer[place - 1], layer, (neurons or {}).get(place))
        for name, head in (heads or {}).items():
            routed.heads[name].load_state_dict(head.state_dict())
        return routed


def one_task(task: Tensor | int | None, config: Any) -> int:
    """The number of the one task that a batch is of; where there is only one, it need not be said."""
    known = len(config.tasks or {})
    if isinstance(task, Tensor):
        numbers = task.unique().tolist()
        if len(numbers) != 1:
            raise ValueError(f"a batch is of one task; this one is of {numbers}")
        task = int(numbers[0])
    if task is None and known > 1:
        raise ValueError(f"which of the {known} tasks is the batch of? task = a number of {sorted(config.tasks)}")
    if not 0 <= (task or 0) < max(1, known):
        raise ValueError(f"there is no task {task}: the model knows {known}")
    return task or 0


def _experts(config: RoutedBertConfig, layer: int) -> Experts:
    width = config.expert_width or config.intermediate_size
    return Experts([_expert(config, width) for _ in range(config.experts)], _router(config, layer))


def _expert(config: RoutedBertConfig, width: int) -> Expert:
    activation = ACT2FN[config.hidden_act]
    if config.expert_norm == "layer":
        return Expert(config.hidden_size, width, activation)
    own = {"epsilon": config.layer_norm_eps, "dropout": config.hidden_dropout_prob}
    return NormedExpert(config.hidden_size, width, activation, **own)


def _router(config: RoutedBertConfig, layer: int) -> Any:
    if config.routing == "hash":
        return HashRouter(config.vocab_size, config.experts, seed=config.routing_seed, layer=layer)
    if config.routing in ("token", "sentence"):
        by = TokenRouter if config.routing == "token" else SentenceRouter
        return by(config.hidden_size, config.experts, config.top_k, config.expert_gate)
    return TaskRouter(len(config.tasks or {}), config.experts, config.top_k, seed=config.routing_seed, layer=layer)


def _copy_weights(dense: Any, routed: Any) -> None:
    """Everything but the FFNs that became experts. A BERT without a pooler leaves the new one's weights."""
    own = routed.state_dict()
    common = {name: value for name, value in dense.state_dict().items() if name in own}
    routed.load_state_dict({**own, **common})


@torch.no_grad()
def _copy_ffn(dense: Any, experts: Experts, neurons: Sequence[Sequence[int]] | None) -> None:
    """Every expert the whole network with noise, or its neurons' rows and columns of it."""
    up, down = dense.intermediate.dense, dense.output.dense
    expert: Any
    for number, expert in enumerate(experts.experts):
        if neurons is None:
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
