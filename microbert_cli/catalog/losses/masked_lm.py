"""Masked language modelling: predict the words that were masked.

    L = mean over masked positions of -log softmax(z)_word        (nats)

z vocabulary logits at the masked positions only [P, V], word the masked token's id [P]. A batch without masked positions
gives 0.

Source: BERT (Devlin et al. 2019); positions are drawn anew for every batch (dynamic masking).
"""

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import denominator

needs = {"token_logits", "token_labels"}
over = "batch"


def masked_lm(token_logits_PV: Tensor, token_labels_P: Tensor) -> Tensor:
    """Returns the batch's term; see the module's formula."""
    total = F.cross_entropy(token_logits_PV.float(), token_labels_P, reduction="sum")
    return total / denominator(total.new_tensor(len(token_labels_P)), at_least=1.0)
