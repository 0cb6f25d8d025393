"""Cuts a student in training from its teacher's sizes to its own, by running means of sensitivities, along a cubic schedule.

    n(t) = N - (N - n) s(t), rounded,   s(t) = 1 - (1 - t)^3,   t = (k / K - start) / (end - start), within 0 and 1

N, n    how many of a structure there are at first and at last: layers, hidden columns, heads, dimensions of a head, neurons
k, K    the steps that were taken, and those of the phase; cuts are made after every `every`-th step, and where t becomes 1

Columns are the same in all layers; of heads, their dimensions and neurons each layer keeps its own, and all keep as many. The
least important goes first (`importance.py`), and what is gone does not come back. A dropped layer hands on what it gets.

Source: the schedule is Zhu and Gupta's (2017), used for structures of Transformers as in HomoDistil (Liang et al. 2023).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from microbert_cli.distillation.pruning import cut as cutting
from microbert_cli.distillation.pruning.gates import LayerGates
from microbert_cli.distillation.pruning.importance import Key, Tensors, sensitivities, update
from microbert_cli.distillation.pruning.shape import Sizes, set_sizes
from microbert_cli.distillation.start.slice import top_indices
from microbert_cli.recipe.values import Prune
from microbert_cli.training.objective import Objective


class Pruner:
    """Prunes the student of an objective; the training loop calls it at every step.

    target  the shape that the student ends with
    kept    what is left of every structure that is cut, by indices of the model that it was at first
    """

    def __init__(self, objective: Objective, target: Sizes, settings: Prune):
        self.objective, self.target, self.settings = objective, target, settings
        self.model: Any = objective.student
        self.tensors = Tensors(self.model, objective.projection)
        self.first = self.now = Sizes.of(self.model.config)
        self.means: dict[Key, Tensor] = {}
        self.kept = {key: torch.arange(count) for key, count in self._counts(self.first).items()}
        self.layers = list(range(self.first.layers))
        self.gates = LayerGates(cutting.layers_of_model(self.model)) if target.layers < self.first.layers else None

    @property
    def finished(self) -> bool:
        """Whether the student has the shape that it is to end with."""
        return self.now == self.target

    @property
    def record(self) -> dict[str, Any]:
        """What metrics.json says of it; layers are counted from 1."""
        return {"of": self.first.named, "to": self.now.named, "layers": [layer + 1 for layer in self.layers]}

    def observe(self) -> None:
        """Counts the gradients of a step, which must still be there."""
        gates = self.gates.take() if self.gates else {}
        if self.finished:
            return
        sums = sensitivities(self.tensors, self._cut_keys)
        if self.now.layers > self.target.layers:
            sums |= {f"layer.{layer}": value for layer, value in gates.items()}
        update(self.means, sums, self.settings.decay)

    def forget(self) -> None:
        """Drops what was seen of a step that is taken again."""
        if self.gates:
            self.gates.forget()

    def cut(self, step: int, steps: int, optimisers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Cuts what the schedule says after `step` of `steps` steps."""
        share = progress(step / steps, self.settings.start, self.settings.end)
        if self.finished or not (step % self.settings.every == 0 or share == 1.0):
            return
        shape = self.first.towards(self.target, share)
        self._drop_layers(shape.layers)
        self._keep(self._choice(shape), shape, optimisers)

    def finish(self) -> None:
        """Makes the student a plain model: removes dropped layers, and writes its sizes into its configuration."""
        cutting.remove_skipped_layers(self.model)
        set_sizes(self.model.config, self.now)

    def state_dict(self) -> dict[str, Any]:
        """Returns running means, what is kept and the sizes of a head, for a resume state."""
        return {"means": dict(self.means), "kept": dict(self.kept), "layers": list(self.layers), "now": dict(vars(self.now))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cuts a student of the first sizes to those of a resume state, whose weights are loaded afterwards."""
        self._skip([layer for layer in self.layers if layer not in state["layers"]])
        cutting.cut(self.tensors, state["kept"])
        self.now, self.kept = Sizes(**state["now"]), dict(state["kept"])
        device = next(self.model.parameters()).device
        self.means = {key: value.to(device) for key, value in state["means"].items()}
        cutting.refresh_modules(self.model, self.now.head_width)

    @property
    def _cut_keys(self) -> set[Key]:
        """Returns the keys of what is still to be cut, whose importance is wanted."""
        counts, last = self._counts(self.now), self._counts(self.target)
        return {key for key, count in counts.items() if count != last[key]}

    def _counts(self, shape: Sizes) -> dict[Key, int]:
        """Returns how many of every axis a shape has, in the layers that the student was given at first."""
        counts = {"hidden": shape.width, "pooled": shape.width}
        for layer in range(self.first.layers):
            counts |= {f"inner.{layer}": shape.inner}
            counts |= dict.fromkeys((f"scores.{layer}", f"values.{layer}"), shape.heads * shape.head_width)
        return counts

    def _choice(self, shape: Sizes) -> dict[Key, Tensor]:
        """Returns the indices, within what is left, that stay of everything that the shape has less of."""
        before, after = self._counts(self.now), self._counts(shape)
        choice = {
            key: top_indices(self.means[key].cpu(), after[key])
            for key in before
            if after[key] < before[key] and not key.startswith(("scores", "values"))
        }
        if after["scores.0"] < before["scores.0"]:
            for layer in self.layers:
                choice |= self._heads(layer, shape)
        return choice

    def _heads(self, layer: int, shape: Sizes) -> dict[Key, Tensor]:
        """Returns the rows of a layer's attention that stay: the strongest dimensions of the strongest heads."""
        keys = (f"scores.{layer}", f"values.{layer}")
        by_head = {key: self.means[key].cpu().view(-1, self.now.head_width) for key in keys}
        heads = top_indices(torch.stack([part.sum(1) for part in by_head.values()]).sum(0), shape.heads).tolist()
        return {
            key: torch.cat([head * self.now.head_width + top_indices(part[head], shape.head_width) for head in heads])
            for key, part in by_head.items()
        }

    def _keep(self, choice: Mapping[Key, Tensor], shape: Sizes, optimisers: Iterable[torch.optim.Optimizer]) -> None:
        cutting.cut(self.tensors, choice, optimisers)
        if shape.head_width < self.now.head_width:
            cutting.rescale_queries(self.tensors, (shape.head_width / self.now.head_width) ** 0.5)
        for key, indices in choice.items():
            self.kept[key] = self.kept[key][indices]
            self.means[key] = self.means[key][indices.to(self.means[key].device)]
        self.now = shape
        cutting.refresh_modules(self.model, shape.head_width)

    def _drop_layers(self, count: int) -> None:
        importance = torch.stack([self.means[f"layer.{layer}"] for layer in self.layers]) if count < len(self.layers) else None
        if importance is not None:
            stay = [self.layers[index] for index in top_indices(importance.cpu(), count).tolist()]
            self._skip([layer for layer in self.layers if layer not in stay])

    def _skip(self, layers: Iterable[int]) -> None:
        cutting.skip_layers(self.model, layers)
        self.layers = [layer for layer in self.layers if layer not in set(layers)]
        self.objective.keep_layers([layer + 1 for layer in self.layers])


def progress(share: float, start: float, end: float) -> float:
    """Returns t: where a share of a phase's steps lies between start and end, within 0 and 1."""
    return min(1.0, max(0.0, (share - start) / (end - start)))
