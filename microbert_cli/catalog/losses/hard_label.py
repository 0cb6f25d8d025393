"""Hard labels: cross-entropy with the gold class, or squared error with the gold score.

    classes   mean over original rows of -log softmax(z)_y
    score     mean over original rows of (z - y)^2
    words     mean over words of original rows of -log softmax(z)_y; words are the rows here
    texts     mean over all tokens of the texts to be written of -log softmax(z)_y, each a choice among the vocabulary

z student logits [B, C], y gold class or score [B]; of texts [B, T, V] and [B, T], -100 behind a text's end. Augmented rows are
left out: a word was replaced, so that the label may be wrong, or the row was made anew and has none. A batch of augmented rows
only gives 0.
"""

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import mean_over_rows

needs = {"logits", "labels", "augmented"}
over = "batch"
bounds = {"label_smoothing": (0, 1)}
NO_TOKEN = -100


def hard_label(
    student_BC: Tensor, labels_B: Tensor, augmented_B: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Returns the batch's term; see the module's formulas."""
    if labels_B.dim() == 2:
        student_BC, labels_B = student_BC.flatten(0, 1), labels_B.flatten()
        loss_N = F.cross_entropy(student_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)
        return mean_over_rows(loss_N, labels_B != NO_TOKEN)
    if student_BC.shape[-1] == 1:
        # The label of a row that is left out may be NaN, and NaN times 0 is NaN.
        labels_B = labels_B.float() if augmented_B is None else labels_B.float().masked_fill(augmented_B, 0.0)
        loss_B = (student_BC[:, 0].float() - labels_B).square()
    else:
        loss_B = F.cross_entropy(student_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)
    return mean_over_rows(loss_B, None if augmented_B is None else ~augmented_B)
