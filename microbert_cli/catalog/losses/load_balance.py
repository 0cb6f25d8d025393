"""Load balance: the student's experts get equal shares of the tokens.

    L = mean over expert layers of  E sum_e f_e P_e          (1 when f or P is uniform, E when one expert has all of both)

f_e  share of real tokens that expert e got, a constant: by task over the last 100 training passes, by token in this batch
P_e  mean gate of expert e: by task the task's own probabilities, by token the mean over the batch's real tokens
scale = "mean" has 1/E in the place of E, the auxiliary loss of GShard.

Sources: Switch Transformer (arXiv 2101.03961) for E, GShard (arXiv 2006.16668) for 1/E; the window of 100 passes, without which
a batch of one task would only ever push that task away from its expert, is this toolkit's.
"""

from typing import Literal

from torch import Tensor

needs = {"routing"}
over = "batch"


def load_balance(shares_LE: Tensor, gates_LE: Tensor, *, scale: Literal["experts", "mean"] = "experts") -> Tensor:
    """Returns the batch's term; see the module's formula."""
    experts = shares_LE.shape[-1]
    return (shares_LE * gates_LE).sum(-1).mean() * (experts if scale == "experts" else 1 / experts)
