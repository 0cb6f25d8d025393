"""Counts what a row costs by the layer that it leaves behind, in the operations of `models/size.py`.

    F(l) = E + l B + sum over exits i <= l of R_i        F(N) = the classifier's own count + all branches

E embeddings, B a layer, R_i a branch: linear 2 d C; attention of width w over T tokens
2 T d w + 4 T w^2 + 4 T w + 6 w^2 + 2 w C: narrowing, keys and values of all tokens, scores and context, then the first token's
query, mixture and dense layer, and the classes. With speed 0 no branch is run, and F(N) is the classifier's own count.
"""

import copy
from collections.abc import Mapping
from typing import Any

from microbert_cli.models.architectures import inner_config, model_shape
from microbert_cli.models.size import batch_flops, forward_flops


def branch_flops(config: Any, *, rows: float, tokens: float) -> int:
    """Counts the operations of one branch for whole batches: R rows of S tokens in all, padding included."""
    d, C = model_shape(config).width, config.num_labels
    if config.branch == "linear":
        return int(2 * rows * d * C)
    w = config.branch_width
    return int(2 * tokens * d * w + 4 * tokens * w * w + 4 * tokens * w + rows * (6 * w * w + 2 * w * C))


def exit_flops(config: Any, length: int) -> dict[int, int] | None:
    """Returns the operations of a row of `length` tokens by the layer behind which it leaves; None where not counted."""
    inner, depth = inner_config(config), model_shape(config).layers
    one_less = copy.deepcopy(inner)
    one_less.num_hidden_layers = depth - 1
    whole = forward_flops(inner, length)
    bodies = [batch_flops(each, rows=1, tokens=length, squares=length * length, head="encoder") for each in (inner, one_less)]
    if whole is None or bodies[0] is None or bodies[1] is None:
        return None
    layer = bodies[0] - bodies[1]
    start, branch = bodies[0] - depth * layer, branch_flops(config, rows=1, tokens=length)
    exits = [int(number) for number in config.exit_layers]
    by_layer = {number: start + number * layer + branch * sum(other <= number for other in exits) for number in exits}
    return by_layer | {depth: whole + branch * len(exits)}


def exit_summary(config: Any, left: Mapping[int, int], *, length: int, speed: float) -> dict[str, Any]:
    """Returns what leaving early saved: the share of the rows by layer, layers and operations of a row on average.

    left  rows by the layer behind which they left; length  tokens of the row whose operations are counted
    """
    rows = sum(left.values())
    depth = model_shape(config).layers
    whole = forward_flops(config, length)
    by_layer = exit_flops(config, length) if speed > 0 else None if whole is None else {depth: whole}
    counted = None if by_layer is None else sum(by_layer[layer] * count for layer, count in left.items())
    return {
        "speed": speed,
        "left": {str(layer): left[layer] / rows for layer in sorted(left)},
        "layers": sum(layer * count for layer, count in left.items()) / rows,
        "flops": None if counted is None else round(counted / rows),
    }
