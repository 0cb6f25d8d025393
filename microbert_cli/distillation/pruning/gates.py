"""How much each layer matters: the sensitivity of a gate on what it adds to its input.

    y = x + z (f(x) - x) at z = 1          S = |z dL/dz| = |sum over the batch's tokens of  <dL/dy, y - x>|

f is the layer as it is. To first order S is what the loss of the batch changes by when the layer is dropped. Sums of |w dL/dw|
over its weights would not do: they grow with the gradients of lower layers, and drop the top layer first, which the
classifier was trained on.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli import distributed


class LayerGates:
    """Sums dL/dz of an encoder's layers over the backward passes of a step.

    layers  the encoder's layers; the hooks on them act in training alone
    """

    def __init__(self, layers: Iterable[nn.Module]):
        self.sums: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        for number, layer in enumerate(layers):
            self._watch(number, layer)

    def _watch(self, number: int, layer: Any) -> None:
        attention: Any = getattr(layer, "attention", None)
        if not (hasattr(attention, "output") and hasattr(layer, "output")):
            layer.register_forward_hook(lambda module, args, output: self._observe(number, module, args[0], output))
            return
        # The top layer of a BERT may be run for the first token alone, by its parts (models/capture.py).
        attention.output.register_forward_hook(lambda module, args, output: self._inputs.__setitem__(number, args[1]))
        layer.output.register_forward_hook(
            lambda module, args, output: self._observe(number, module, self._inputs.pop(number), output)
        )

    def _observe(self, number: int, module: nn.Module, before: Tensor, after: Tensor) -> None:
        if not (module.training and after.requires_grad):
            return
        change = (after - before).detach().float()

        def add(gradient: Tensor) -> None:
            self.sums[number] = self.sums.get(number, torch.zeros((), device=gradient.device)) + (gradient * change).sum()

        after.register_hook(add)

    def take(self) -> dict[int, Tensor]:
        """Returns S of the layers that had a gradient since the last call, of all processes together."""
        means = distributed.all_reduce_mean({str(number): float(value) for number, value in sorted(self.sums.items())})
        self.sums = {}
        return {int(number): torch.tensor(abs(value)) for number, value in means.items()}

    def forget(self) -> None:
        """Drops the sums of a step that is taken again."""
        self.sums = {}
