"""Chooses the columns, neurons and heads that a narrower student keeps of a trained encoder, and slices its tensors.

    column c    I_c = sum over the taken layers  (g_c^2 + b_c^2) (|Wq_c|^2 + |Wk_c|^2 + |Wv_c|^2) + (g'_c^2 + b'_c^2) |W1_c|^2
    neuron j    I_j = |w1_j| |w2_j|                          its incoming and outgoing weights
    dimension i of a head, of its scores |wq_i| |wk_i|, of its values |wv_i| |wo_i|;  a head: both sums, each as a share of all

W_c is the column of a matrix that reads hidden column c, g and b are gain and shift of the LayerNorm before it (' of the one
after attention): I_c is the expected square of what is read of c, where normalised states are N(0, 1). Columns are the same in
all layers, since residuals add them; the rest is chosen layer by layer, and what is kept keeps its order, so that a slice of
the whole width is the model itself.

Tensors have BERT's names. The choice and its importance are this toolkit's; no data is needed for it. Neurons may be chosen by
their sensitivity on training rows instead (`models/moe/importance.py`).
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


def kept_indices(
    state: State, layers: Sequence[int], source: ModelShape, student: ModelShape, neurons: Mapping[int, Tensor] | None = None
) -> dict[tuple[str, int], Tensor]:
    """Returns the kept indices by axis and layer of `state` (from 0; the hidden columns' under ("hidden", -1)).

    neurons  the importance [F] of the neurons of each of the layers, where it was measured; else I_j of the weights
    """
    indices = {("hidden", -1): top_indices(column_importance(state, layers), student.width)}
    for layer in layers:
        importance_F = neuron_importance(state, layer) if neurons is None else neurons[layer]
        indices["inner", layer] = top_indices(importance_F, student.inner or 0)
        indices["scores", layer], indices["values", layer] = head_rows(state, layer, source, student)
    return indices


def top_indices(scores_N: Tensor, count: int) -> Tensor:
    """Returns the indices of the `count` largest, ascending; of equal ones the first."""
    return scores_N.argsort(descending=True, stable=True)[:count].sort().values


def column_importance(state: State, layers: Sequence[int]) -> Tensor:
    """Returns I_c [D]; see the module's formula."""
    total_D = torch.zeros(len(state["embeddings.LayerNorm.weight"]), dtype=torch.float64)
    for layer in layers:
        before = "embeddings" if layer == 0 else f"encoder.layer.{layer - 1}.output"
        prefix = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            total_D += _norm_energy(state, before) * _squared_norms(state, f"{prefix}.attention.self.{name}", 0)
        total_D += _norm_energy(state, f"{prefix}.attention.output") * _squared_norms(state, f"{prefix}.intermediate.dense", 0)
    return total_D


def neuron_importance(state: State, layer: int) -> Tensor:
    """Returns I_j [F] of a layer's feed-forward network."""
    prefix = f"encoder.layer.{layer}"
    return (
        _squared_norms(state, f"{prefix}.intermediate.dense", 1) * _squared_norms(state, f"{prefix}.output.dense", 0)
    ).sqrt()


def head_rows(state: State, layer: int, source: ModelShape, student: ModelShape) -> tuple[Tensor, Tensor]:
    """Returns the kept rows of query and key, and those of value: the strongest dimensions of the strongest heads."""
    prefix = f"encoder.layer.{layer}.attention"
    query, key, value = (_squared_norms(state, f"{prefix}.self.{name}", 1) for name in ("query", "key", "value"))
    of_scores = (query * key).sqrt().view(source.heads or 1, source.head_width)
    of_values = (value * _squared_norms(state, f"{prefix}.output.dense", 0)).sqrt().view_as(of_scores)
    strength_A = sum(part.sum(1) / part.sum().clamp(min=1e-30) for part in (of_scores, of_values))
    strongest = top_indices(torch.as_tensor(strength_A), student.heads or 1).tolist()
    pairs = (
        [head * source.head_width + top_indices(part[head], student.head_width) for head in strongest]
        for part in (of_scores, of_values)
    )
    scores, values = (torch.cat(rows) for rows in pairs)
    return scores, values


def sliced(name: str, value: Tensor, layer: int, indices: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """Returns a tensor of layer `layer` with the kept indices of each of its axes; all rows are kept."""
    for dimension, axis in enumerate(axes_of(name)[: value.dim()]):
        if axis != "rows":
            value = value.index_select(dimension, indices[axis, -1 if axis == "hidden" else layer])
    return value


def axes_of(name: str) -> tuple[str, ...]:
    """Returns the axes of a weight or bias by its name; () for an unknown tensor."""
    module = name.rpartition(".")[0]
    parts = module.split(".")
    return AXES.get(".".join(parts[3:]) if parts[:2] == ["encoder", "layer"] else module, ())


def _norm_energy(state: State, module: str) -> Tensor:
    gain_D, shift_D = (state[f"{module}.LayerNorm.{name}"].double() for name in ("weight", "bias"))
    return gain_D.square() + shift_D.square()


def _squared_norms(state: State, module: str, axis: int) -> Tensor:
    return state[f"{module}.weight"].double().square().sum(axis)
