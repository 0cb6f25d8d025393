"""Soft targets: the student's class distribution approaches the teacher's at temperature T.

With p = softmax(z_T / T), q = softmax(z_S / T), both [B, C]:

    cross-entropy   - sum_c p_c log q_c                     (TinyBERT)
    kl              sum_c p_c log(p_c / q_c)                (DistilBERT, FastBERT, MT-DNN, PKD)
    symmetric-kl    (KL(p||q) + KL(q||p)) / 2               (MoEBERT)

reduction "batch" sums over classes and averages over rows; "elements" divides by B x C. `squared_temperature` multiplies
by T^2, so that the gradient does not shrink as T grows. Under normalisation = "reference" the default reduction is
"elements": the released TinyBERT averages over classes too, a gradient C times smaller.

Several labels a row: p = sigmoid(z_T / T), q = sigmoid(z_S / T), each label a distribution of yes and no:
    L = T^2 mean over rows and labels c of  D(p_c, q_c) + D(1 - p_c, 1 - q_c),   D one of the three above without its sum
whatever `reduction` and `squared_temperature` say: as in hard_label a mean over labels, and T^2 keeps its gradient's size.

temperature "auto" is 4 where a text has an answer, and 1 where every word has one: at 4 a student spends its steps on all the
logits of the many words that are surely O (docs/word-labels.md).

Regression (C = 1, no classes): mean (z_S - z_T)^2. normalisation = "reference" repeats the released rule for STS-B, which
ignores the teacher: mean (z_S - y)^2 with the gold score y, augmented rows included; of a row without a gold score y = z_T.

Source: TinyBERT, prediction-layer loss; Hinton et al. 2015 for the temperature.
"""

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from microbert_cli.reduce import mean_over_elements, mean_over_rows

needs = {"logits", "labels"}
over = "batch"
bounds = {"temperature": (1e-3, 1e3)}
OF_TEXTS, OF_WORDS = 4.0, 1.0  # temperature "auto"


def soft_target(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor | None = None,
    independent: bool = False,
    of_words: bool = False,
    *,
    temperature: float | Literal["auto"] = 1.0,
    divergence: Literal["cross-entropy", "kl", "symmetric-kl"] = "cross-entropy",
    reduction: Literal["auto", "batch", "elements"] = "auto",
    squared_temperature: bool = False,
    normalisation: str = "masked",
) -> Tensor:
    """Returns the batch's term; see the module's formulas."""
    student_BC, teacher_BC = student_BC.float(), teacher_BC.float()
    if temperature == "auto":
        temperature = OF_WORDS if of_words else OF_TEXTS
    if student_BC.shape[-1] == 1:
        target_B = teacher_BC[:, 0]
        if normalisation == "reference" and labels_B is not None:
            target_B = labels_B.to(student_BC.dtype).where(~labels_B.isnan(), target_B)
        return mean_over_rows((student_BC[:, 0] - target_B.to(student_BC.dtype)).square())
    if independent:
        z_T, z_S = teacher_BC / temperature, student_BC / temperature
        yes_BC, no_BC = (_divergence(divergence, logsigmoid(sign * z_T), logsigmoid(sign * z_S)) for sign in (1, -1))
        return temperature**2 * mean_over_rows((yes_BC + no_BC).mean(-1))
    log_p, log_q = (z.div(temperature).log_softmax(-1) for z in (teacher_BC, student_BC))
    terms_BC = _divergence(divergence, log_p, log_q)
    if reduction == "auto":
        reduction = "elements" if normalisation == "reference" else "batch"
    mean = mean_over_elements(terms_BC) if reduction == "elements" else mean_over_rows(terms_BC.sum(-1))
    return mean * temperature**2 if squared_temperature else mean


def _divergence(name: str, log_p: Tensor, log_q: Tensor) -> Tensor:
    if name == "cross-entropy":
        return -log_p.exp() * log_q
    if name == "kl":
        return log_p.exp() * (log_p - log_q)
    # The mean of KL(p || q) and KL(q || p) in one product: (p - q) (log p - log q) / 2.
    return 0.5 * (log_p.exp() - log_q.exp()) * (log_p - log_q)
