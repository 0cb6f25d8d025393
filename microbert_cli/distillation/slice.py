"""Which columns, neurons and heads a narrower student takes of a trained encoder, and what its tensors are then.

    column c    I_c = sum over the taken layers  (g_c^2 + b_c^2) (|Wq_c|^2 + |Wk_c|^2 + |Wv_c|^2) + (g'_c^2 + b'_c^2) |W1_c|^2
    neuron j    I_j = |w1_j| |w2_j|                          its incoming and outgoing weights
    dimension i of a head, of its scores |wq_i| |wk_i|, of its values |wv_i| |wo_i|;  a head: both sums, each as a share of all

W_c is the column of a matrix that reads hidden column c, g and b are gain and shift of the LayerNorm before it (' of the one
after attention): I_c is the expected square of what is read of c, where normalised states are N(0, 1). Columns are the same in
all layers, since residuals add them; the rest is chosen layer by layer, and what is kept keeps its order, so that a slice of
the whole width is the model itself.

Tensors have BERT's names. The choice and its importance are this toolkit's; no data is needed for it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from microbert_cli.models.architectures import ModelShape

State = Mapping[str, Tensor]
AXES = {  # of weights; a bias has the first one. rows: of a vocabulary, of positions, of labels
    "embeddings.word_embeddings": ("rows", "hidden"),
    "embeddings.position_embeddings": ("rows", "hidden"),
    "embeddings.token_type_embeddings": ("rows", "hidden"),
    "embeddings.LayerNorm": ("hidden",),
    "attention.self.query": ("scores", "hidden"),
    "attention.self.key": ("scores", "hidden"),
    "attention.self.value": ("values", "hidden"),
    "attention.output.dense": ("hidden", "values"),
    "attention.output.LayerNorm": ("hidden",),
    "intermediate.dense": ("inner", "hidden"),
    "output.dense": ("hidden", "inner"),
    "output.LayerNorm": ("hidden",),
    "pooler.dense": ("hidden", "hidden"),
    "classifier": ("rows", "hidden"),
    "classifier.dense": ("hidden", "hidden"),
    "classifier.out_proj": ("rows", "hidden"),
    "cls.predictions.transform.dense": ("hidden", "hidden"),
    "cls.predictions.transform.LayerNorm": ("hidden",),
    "cls.predictions": ("rows",),
}


def kept(state: State, layers: Sequence[int], theirs: ModelShape, ours: ModelShape) -> dict[tuple[str, int], Tensor]:
    """What is kept, by axis and layer of `state` (from 0; of the hidden columns by ("hidden", -1))."""
    found = {("hidden", -1): top(columns(state, layers), ours.width)}
    for layer in layers:
        found["inner", layer] = top(neurons(state, layer), ours.inner or 0)
        found["scores", layer], found["values", layer] = heads(state, layer, theirs, ours)
    return found


def top(values_N: Tensor, count: int) -> Tensor:
    """The places of the `count` largest, in their order; of equal ones the first."""
    return values_N.argsort(descending=True, stable=True)[:count].sort().values


def columns(state: State, layers: Sequence[int]) -> Tensor:
    """I_c [D]; see the module's formula."""
    total_D = torch.zeros(len(state["embeddings.LayerNorm.weight"]), dtype=torch.float64)
    for layer in layers:
        before = "embeddings" if layer == 0 else f"encoder.layer.{layer - 1}.output"
        own = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            total_D += _energy(state, before) * _squares(state, f"{own}.attention.self.{name}", 0)
        total_D += _energy(state, f"{own}.attention.output") * _squares(state, f"{own}.intermediate.dense", 0)
    return total_D


def neurons(state: State, layer: int) -> Tensor:
    """I_j [F] of a layer's feed-forward network."""
    own = f"encoder.layer.{layer}"
    return (_squares(state, f"{own}.intermediate.dense", 1) * _squares(state, f"{own}.output.dense", 0)).sqrt()


def heads(state: State, layer: int, theirs: ModelShape, ours: ModelShape) -> tuple[Tensor, Tensor]:
    """The rows that are kept of query and key, and those of value: of the strongest heads the strongest dimensions."""
    own = f"encoder.layer.{layer}.attention"
    query, key, value = (_squares(state, f"{own}.self.{name}", 1) for name in ("query", "key", "value"))
    of_scores = (query * key).sqrt().view(theirs.heads or 1, theirs.head_width)
    of_values = (value * _squares(state, f"{own}.output.dense", 0)).sqrt().view_as(of_scores)
    strength_A = sum(part.sum(1) / part.sum().clamp(min=1e-30) for part in (of_scores, of_values))
    chosen = top(torch.as_tensor(strength_A), ours.heads or 1).tolist()
    pairs = (
        [head * theirs.head_width + top(part[head], ours.head_width) for head in chosen] for part in (of_scores, of_values)
    )
    scores, values = (torch.cat(rows) for rows in pairs)
    return scores, values


def sliced(name: str, value: Tensor, layer: int, keep: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """The tensor of that name of layer `layer` with what is kept of each of its axes; of rows all are."""
    for place, axis in enumerate(axes_of(name)[: value.dim()]):
        if axis != "rows":
            value = value.index_select(place, keep[axis, -1 if axis == "hidden" else layer])
    return value


def axes_of(name: str) -> tuple[str, ...]:
    """The axes of a weight or bias by its name; () for a tensor that is not known here."""
    module = name.rpartition(".")[0]
    parts = module.split(".")
    return AXES.get(".".join(parts[3:]) if parts[:2] == ["encoder", "layer"] else module, ())


def _energy(state: State, module: str) -> Tensor:
    gain_D, shift_D = (state[f"{module}.LayerNorm.{name}"].double() for name in ("weight", "bias"))
    return gain_D.square() + shift_D.square()


def _squares(state: State, module: str, axis: int) -> Tensor:
    return state[f"{module}.weight"].double().square().sum(axis)
