"""Layer-by-layer training: of M about equal parts of the steps, part l trains the student's layer l with that layer's losses.

    rate of a tensor = rate of the step x  { current  of layer l
                                           { lower    of the layers 1 .. l-1, which were trained before
                                           { 0        of the layers above, of the embeddings below all, of heads above all

Layer l has the steps from ceil((l - 1) S / M) to ceil(l S / M) of S; warm-up and decay of the rate are those of its part.
What a loss trains beside the student (a map between widths) has the rate of the current layer.

Source: MobileBERT (Sun et al., ACL 2020), progressive knowledge transfer; current 3.0 and lower 0.3 are the released code's,
whose layers have S / M steps each, rounded down. The paper freezes lower layers, softened by a small rate (not verified).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import layer_index


@dataclass(frozen=True)
class Progressive:
    """The number of layers, and the factors on the learning rate of the current layer and of the lower ones."""

    layers: int
    current: float = 3.0
    lower: float = 0.3

    def layer(self, step: int, steps: int) -> int:
        """Returns the layer that is trained at 0-based `step`, counted from 1."""
        return 1 + min(step, steps - 1) * self.layers // steps

    def step_in_layer(self, step: int, steps: int) -> tuple[int, int]:
        """Returns (step, steps) within the current layer's part."""
        before = self.layer(step, steps) - 1
        first, end = (-(-layer * steps // self.layers) for layer in (before, before + 1))
        return step - first, end - first

    def rate_factor(self, layer: int | None, step: int, steps: int) -> float:
        """Returns the factor on the learning rate of a tensor of this layer; None = a tensor of a loss."""
        current = self.layer(step, steps)
        if layer is None or layer == current:
            return self.current
        return self.lower if 1 <= layer < current else 0.0


def layer_of(name: str) -> int:
    """The layer of a student's tensor, from 1; 0 is what belongs to none: embeddings, pooler, heads."""
    index = layer_index(name)
    return 0 if index is None else index + 1


def check_layers(student: nn.Module, losses: Iterable[tuple[str, str]], *, layers: int) -> None:
    """Checks that losses and student can be trained layer by layer.

    losses  (key in the recipe, what it is over)
    Raises M057 for a loss that is not over layers, M058 where layers share weights.
    """
    for key, over in losses:
        if over != "layers":
            raise _not_per_layer(key)
    if {layer_of(name) for name, _ in student.named_parameters()} - {0} != set(range(1, layers + 1)):
        raise _shared_layers(type(student).__name__, layers)


def check_step_count(steps: int, layers: int) -> None:
    """Checks that every layer has a step: raises M059."""
    if steps < layers:
        raise _too_few(steps, layers)


def _not_per_layer(key: str) -> MbertError:
    return MbertError(
        "M057",
        "layer by layer, one layer of the student learns at a time, and this loss is of no single layer",
        where=key,
        allowed="Losses of every layer, such as feature_maps, attention_transfer, hidden_states.",
        fix=f"--set {key}=0, or all layers together: --set general.layer_by_layer=false",
    )


def _shared_layers(model: str, layers: int) -> MbertError:
    return MbertError(
        "M058",
        f"layer by layer, each layer has a learning rate of its own, and the {layers} of {model} share their weights",
        where="general.layer_by_layer, student",
        allowed="An encoder of separate layers, such as MobileBERT, BERT, RoBERTa, DistilBERT.",
        fix="All layers together: --set general.layer_by_layer=false",
    )


def _too_few(steps: int, layers: int) -> MbertError:
    return MbertError(
        "M059",
        f"{steps} steps are too few to train {layers} layers one after the other",
        where="general.steps",
        allowed=f"At least {layers} steps, a step for each layer.",
        fix=f"--set general.steps={100 * layers}, or all layers together: --set general.layer_by_layer=false",
    )
