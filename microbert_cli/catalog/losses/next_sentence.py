"""Next-sentence prediction: does the second segment follow the first, or is it from another document?

    L = mean over rows of  - log softmax(W h + b)_u,   u = 0 follows, 1 unrelated        (nats)

h     the student's top vector of the first token [B, d]
W, b  a map d -> 2, trained with the student and dropped afterwards; initialised as BERT's layers are
u     `unrelated` [B], of corpora that are cut into pairs (corpus.format = "pairs"); a row of one segment, -100, is not counted

Between h and W BERT has a dense layer with tanh, the pooler; MobileBERT has none, and this is its head.

Source: BERT (Devlin et al. 2019), whose published checkpoints have 0 for "follows"; MobileBERT's released code adds it, with
weight 1, to the mixed targets of masked words.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from microbert_cli.reduce import mean_over_rows

needs = {"hidden", "unrelated"}
over = "top"
requires: set[str] = set()  # it does not compare with a teacher


def trains(*, student_width: int, **_: Any) -> nn.Linear:
    """Returns the linear layer that gives the two logits."""
    head = nn.Linear(student_width, 2)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def next_sentence(student_hidden_BTd: Tensor, unrelated_B: Tensor, *, own: nn.Module) -> Tensor:
    """Returns the batch's term; see the module's formula."""
    logits_B2 = own(student_hidden_BTd[:, 0].float())
    return mean_over_rows(F.cross_entropy(logits_B2.float(), unrelated_B, reduction="none"), unrelated_B >= 0)
