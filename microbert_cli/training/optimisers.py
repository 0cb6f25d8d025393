"""Optimiser presets and learning-rate schedules.

    adamw      decoupled weight decay, bias correction, eps 1e-8, gradients clipped to one global norm
    adamw-distilbert   the same with betas 0.9, 0.98 and eps 1e-6, as DistilBERT was trained
    bertadam   the optimiser of the released BERT and TinyBERT code: no bias correction, eps 1e-6 outside the root, each
               tensor's gradient clipped on its own
    lamb       AdamW's step without bias correction, eps 1e-6, made as long as the tensor it changes (MobileBERT's), one global
               norm; biases and norms keep their own step
    adamax     Adam by the largest gradient seen instead of the mean square (MT-DNN's), bias correction, eps 1e-8, gradients
               clipped to one global norm; its weight decay is added to the gradient
    adadelta   steps as long as the last ones were, rho 0.95, eps 1e-6, a rate of 1 by its authors (the BiLSTM of Tang et al.),
               one global norm; its weight decay is added to the gradient

Weight decay leaves biases and LayerNorm alone in all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from microbert_cli.training.progressive import Progressive, layer_of

NO_DECAY = ("bias", "LayerNorm.weight", "layer_norm.weight", "bias_ih_l0", "bias_hh_l0")


class _AdamWithoutCorrection(torch.optim.Optimizer):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u = m / (sqrt v + eps) + decay p:  Adam's without bias correction."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _direction(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Updates the moments of a tensor and returns u."""
        state = self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["mean"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update: torch.Tensor = state["mean"] / (state["square"].sqrt() + group["eps"])
        return update + group["weight_decay"] * parameter


class BertAdam(_AdamWithoutCorrection):
    """p <- p - lr u,  u = m / (sqrt v + eps) + decay p

    No bias correction; g is clipped to norm `max_grad_norm` tensor by tensor before it enters the moments.
    Source: the optimiser published with BERT's first PyTorch port and used by the released TinyBERT.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ):
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
        super().__init__(params, defaults)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = gradient * (group["max_grad_norm"] / (gradient.norm() + 1e-6)).clamp(max=1.0)
        parameter.add_(self._direction(parameter, gradient, group), alpha=-group["lr"])


class Lamb(_AdamWithoutCorrection):
    """p <- p - lr (|p| / |u|) u,  u = m / (sqrt v + eps) + decay p

    |p| / |u| is 1 where either is 0, and in groups with adapt = False (biases, norms). No bias correction.
    Source: You et al. 2020 (arXiv 1904.00962) as the code released with MobileBERT has it; the paper's Algorithm 2 corrects the
    bias. Neither torch, transformers nor accelerate has one.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.01,
        adapt: bool = True,
    ):  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adapt=adapt))

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        update = self._direction(parameter, gradient, group)
        if group["adapt"]:
            weight_norm, update_norm = parameter.norm(), update.norm()
            update *= torch.where(
                (weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, torch.ones_like(update_norm)
            )
        parameter.add_(update, alpha=-group["lr"])


def optimiser_of(objective: Any, plan: Any) -> torch.optim.Optimizer:
    """Makes the optimiser of a phase, whose `plan` is a TrainingPlan, for a student and its objective without adversaries."""
    return make_optimiser(
        plan.optimizer,
        [objective.student, objective],
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        leave_out=[weight for adversary in objective.adversaries.values() for weight in adversary.parameters()],
        progressive=objective.progressive,
        rates=objective.dual.rates if objective.dual else {},
    )


def make_optimiser(
    name: str,
    modules: Iterable[nn.Module],
    *,
    learning_rate: float,
    weight_decay: float,
    max_grad_norm: float,
    leave_out: Iterable[nn.Parameter] = (),
    progressive: Progressive | None = None,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Makes the optimiser `name` of all trainable parameters of `modules`, the student first, but for `leave_out`.

    rates        learning rates of parameters of the other modules, by the beginning of a name: groups with the key "factor",
                 by which `set_rates` multiplies
    progressive  gives each layer of the student parameter groups of its own, with the key "layer"
    """
    left_out_ids = {id(parameter) for parameter in leave_out}
    student, *others = (
        [pair for pair in module.named_parameters() if pair[1].requires_grad and id(pair[1]) not in left_out_ids]
        for module in modules
    )
    other_pairs = [pair for named in others for pair in named]
    if progressive is None:
        factors = {prefix: rate / learning_rate for prefix, rate in (rates or {}).items()}
        groups = _by_rate([*student, *other_pairs], weight_decay, factors)
    else:
        groups = [*_by_layer(student, weight_decay), *_by_decay(other_pairs, weight_decay, layer=None)]
    if name == "bertadam":
        return BertAdam(groups, lr=learning_rate, max_grad_norm=max_grad_norm)
    if name == "adamax":
        return torch.optim.Adamax(groups, lr=learning_rate)
    if name == "adadelta":
        return torch.optim.Adadelta(groups, lr=learning_rate, rho=0.95)
    if name == "adamw-distilbert":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
    if name == "lamb":
        # `_by_decay` gives pairs of groups; every second one holds biases and norms, which LAMB does not scale
        return Lamb([{**group, "adapt": number % 2 == 0} for number, group in enumerate(groups)], lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _by_layer(named_parameters: Sequence[tuple[str, nn.Parameter]], decay: float) -> list[dict[str, Any]]:
    layers = sorted({layer_of(name) for name, _ in named_parameters})
    parts = [(layer, [pair for pair in named_parameters if layer_of(pair[0]) == layer]) for layer in layers]
    return [group for layer, pairs in parts for group in _by_decay(pairs, decay, layer=layer)]


def _by_rate(
    named_parameters: Sequence[tuple[str, nn.Parameter]], decay: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Returns the groups of the parameters with the phase's rate, then those of each factor on it."""
    rest = [pair for pair in named_parameters if not pair[0].startswith(tuple(factors))]
    groups = _by_decay(rest, decay)
    for prefix, factor in factors.items():
        groups += _by_decay([pair for pair in named_parameters if pair[0].startswith(prefix)], decay, factor=factor)
    return groups


def _by_decay(named_parameters: Sequence[tuple[str, nn.Parameter]], decay: float, **options: Any) -> list[dict[str, Any]]:
    """Returns two parameter groups: one with weight decay, and biases and norms without."""
    return [
        {"params": [p for n, p in named_parameters if not n.endswith(NO_DECAY)], "weight_decay": decay, **options},
        {"params": [p for n, p in named_parameters if n.endswith(NO_DECAY)], "weight_decay": 0.0, **options},
    ]


def clips_globally(optimiser: torch.optim.Optimizer) -> bool:
    """Whether the loop clips gradients to one global norm; BertAdam clips each tensor itself."""
    return not isinstance(optimiser, BertAdam)


def set_rates(optimiser: torch.optim.Optimizer, plan: Any, step: int, progressive: Progressive | None) -> None:
    """Sets the learning rate of a step in every parameter group.

    plan  a TrainingPlan: learning_rate, schedule, steps and warmup
    """
    schedule_step, steps = progressive.step_in_layer(step, plan.steps) if progressive else (step, plan.steps)
    rate = plan.learning_rate * schedule_factor(plan.schedule, schedule_step, steps, plan.warmup)
    for group in optimiser.param_groups:
        factor = progressive.rate_factor(group["layer"], step, plan.steps) if progressive else group.get("factor", 1.0)
        group["lr"] = rate * factor


def schedule_factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """Returns the factor on the learning rate at 0-based `step` of `total`.

    constant  1
    linear    x / w while x < w, then (1 - x) / (1 - w), with x = step / total and w the warm-up share
    sqrt      min(x / w, 0.9 + 0.1 sqrt(1 - x)): all but constant (MobileBERT's, of each layer's part)
    noam      min(x / w, sqrt(w / x)): the Transformer's (Vaswani et al. 2017), as a share of its highest rate, at x = w
    """
    if schedule == "constant":
        return 1.0
    x = step / total
    if schedule == "noam":
        return min(x / warmup, (warmup / x) ** 0.5) if x and warmup else float(not warmup)
    if schedule == "sqrt":
        return min(x / warmup if warmup else 1.0, 0.9 + 0.1 * (1.0 - x) ** 0.5)
    return x / warmup if x < warmup else max((x - 1.0) / (warmup - 1.0), 0.0) if warmup < 1.0 else 1.0
