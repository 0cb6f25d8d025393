"""Hard labels: cross-entropy with the gold class, or squared error with the gold score.

    classes   sum over original rows of w_y (1 - p_y)^g (-log p_y) / sum over them of w_y,   p = softmax(z)
    labels    mean over original rows and labels c of  w_c y_c (1 - p_c)^g (-log p_c) + (1 - y_c) p_c^g (-log(1 - p_c)),
              p = sigmoid(z): several labels a row
    score     mean over original rows of (z - y)^2
    words     mean over words of original rows of -log softmax(z)_y; words are the rows here
    texts     mean over all tokens of the texts to be written of -log softmax(z)_y, each a choice among the vocabulary

z student logits [B, C], y gold class or score [B], of several labels a row [B, C] of 0 and 1; of texts [B, T, V] and [B, T],
-100 behind a text's end. Augmented rows are left out: a word was replaced, so that the label may be wrong, or the row was made
anew and has none. A batch of augmented rows only gives 0.

w      weights of `data.class_weights`, 1 without: of classes, or of the yes of each label (torch's pos_weight)
g      `gamma`: above 0 rows that are answered well already count less; 0 = cross-entropy
label_smoothing  s: of classes the target is 1 - s + s / C for y and s / C for the others, of labels y (1 - s) + s / 2

Source of `gamma`: Lin et al. 2017 (arXiv 1708.02002), focal loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import denominator, mean_over_rows

needs = {"logits", "labels", "augmented"}
over = "batch"
bounds = {"label_smoothing": (0, 1), "gamma": (0, 20)}
NO_TOKEN = -100


def hard_label(
    student_BC: Tensor,
    labels_B: Tensor,
    augmented_B: Tensor | None = None,
    class_weights_C: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """Returns the batch's term; see the module's formulas."""
    counted_B = None if augmented_B is None else ~augmented_B
    if labels_B.dim() == 2 and labels_B.is_floating_point():
        # The labels of a row that is left out may be NaN, and NaN times 0 is NaN.
        labels_BC = labels_B if augmented_B is None else labels_B.masked_fill(augmented_B[:, None], 0.0)
        loss_B = _of_labels(student_BC.float(), labels_BC, class_weights_C, label_smoothing, gamma)
        return mean_over_rows(loss_B, counted_B)
    if labels_B.dim() == 2:
        student_BC, labels_B = student_BC.flatten(0, 1), labels_B.flatten()
        loss_N = F.cross_entropy(student_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)
        return mean_over_rows(loss_N, labels_B != NO_TOKEN)
    if student_BC.shape[-1] == 1:
        labels_B = labels_B.float() if augmented_B is None else labels_B.float().masked_fill(augmented_B, 0.0)
        loss_B = (student_BC[:, 0].float() - labels_B).square()
        return mean_over_rows(loss_B, counted_B)
    loss_B = F.cross_entropy(student_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)
    if gamma:
        loss_B = loss_B * _rest(student_BC.float(), labels_B) ** gamma
    if class_weights_C is None:
        return mean_over_rows(loss_B, counted_B)
    weights_B = class_weights_C[labels_B.clamp(min=0)] * (labels_B >= 0)
    weights_B = weights_B if counted_B is None else weights_B * counted_B
    return (loss_B * weights_B).sum() / denominator(weights_B.sum(), at_least=1e-12)


def _rest(student_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Returns 1 - p_y [B], the probability of all classes but the gold one."""
    p_BC = student_BC.softmax(-1)
    return 1 - p_BC.gather(-1, labels_B.clamp(min=0)[:, None])[:, 0]


def _of_labels(student_BC: Tensor, labels_BC: Tensor, weights_C: Tensor | None, label_smoothing: float, gamma: float) -> Tensor:
    """Returns the mean over the labels of each row [B]."""
    targets_BC = labels_BC.float()
    if label_smoothing:
        targets_BC = targets_BC * (1 - label_smoothing) + label_smoothing / 2
    if not gamma:
        loss_BC = F.binary_cross_entropy_with_logits(student_BC, targets_BC, pos_weight=weights_C, reduction="none")
        return loss_BC.mean(-1)
    yes_BC, no_BC = F.logsigmoid(student_BC), F.logsigmoid(-student_BC)
    weights = 1.0 if weights_C is None else weights_C
    loss_BC = -targets_BC * weights * no_BC.exp() ** gamma * yes_BC - (1 - targets_BC) * yes_BC.exp() ** gamma * no_BC
    return torch.mean(loss_BC, -1)
