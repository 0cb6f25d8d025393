"""Weights x losses x layer map -> one number and its named parts. Owns what only training needs, such as projections.

    L = sum over terms  w_i * L_i,   L_i = sum over the layers the loss is `over`

A term with weight 0 is not computed, and what nobody reads is not asked of the models. `losses()` yields (parameter group,
scalar) pairs, so that an adversary with its own optimiser is one more pair to the loop, no special case.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.capture import Seen, Want, look
from microbert_cli.errors import MbertError
from microbert_cli.numerics import PLAIN, Numerics
from microbert_cli.terms import LossTerm, want_of, without_teacher

Batch = Mapping[str, Tensor]
Ask = Callable[[Batch, Want], Seen]
AskAny = Callable[[Batch, Want], Seen | None]  # None: nobody teaches this batch's task


class Objective(nn.Module):
    """Everything that turns a batch into losses.

    student          the model in training
    ask_teacher      shows what the teacher sees in a batch; None where nobody is asked
    map_layers       g(0)..g(M): the teacher layer of every student layer
    student_width, teacher_width   of the projected vectors; equal widths are projected too when `always_project`, since the
                     released code does so
    numerics         of the forward passes and the projection; losses are computed in float32
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        student: nn.Module,
        *,
        ask_teacher: AskAny | None = None,
        map_layers: Sequence[int] = (0,),
        student_width: int = 0,
        teacher_width: int = 0,
        normalisation: str = "masked",
        always_project: bool = False,
        numerics: Numerics = PLAIN,
    ):
        super().__init__()
        if not terms:
            raise _nothing_to_learn()
        self.terms = list(terms)
        self.normalisation = normalisation
        self.numerics = numerics
        self.share = 0.0
        self.map_layers = list(map_layers)
        self._student = [student]
        self._ask_teacher = ask_teacher
        self.projection: nn.Linear | None = None
        if any(term.projects for term in terms) and (student_width != teacher_width or always_project):
            self.projection = _fit_dense(student_width, teacher_width)

    @property
    def student(self) -> nn.Module:
        """The model in training; it is not a submodule, so that training state and model stay apart."""
        return self._student[0]

    def asking(self, ask: AskAny | None) -> "Objective":
        """The same objective with another way to ask the teacher: through the cache."""
        self._ask_teacher = ask
        return self

    @property
    def student_want(self) -> Want:
        return want_of(self.terms, range(len(self.map_layers)))

    @property
    def teacher_want(self) -> Want:
        return want_of(self.terms, self.map_layers)

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """(parameter group, scalar, named parts) of one batch; nothing of an "idle" one counts (`processes.own_batch`)."""
        with self.numerics.forward():
            teacher = self._ask_teacher(batch, self.teacher_want) if self._ask_teacher else Seen()
            terms = self.terms if teacher is not None else without_teacher(self.terms)
            teacher = teacher or Seen()
            student = look(self.student, batch, self.student_want)
        if "idle" in batch:
            batch = {name: value[:0] for name, value in batch.items()}
            teacher, student = _no_rows(teacher), _no_rows(student)
        parts = {term.name: self._value(term, student, teacher, batch) for term in terms}
        total = torch.stack([term.weight * parts[term.name] for term in terms]).sum()
        yield "student", total, parts

    def progress(self, step: int, steps: int) -> None:
        """How far the phase has come, told before every step: to terms that begin late, and to a student that asks for it."""
        self.share = step / steps
        if (told := getattr(self.student, "progress", None)) is not None:
            told(self.share)

    def forward(self, batch: Batch) -> Tensor:
        """The student's scalar alone."""
        return next(self.losses(batch))[1]

    def _value(self, term: LossTerm, student: Seen, teacher: Seen, batch: Batch) -> Tensor:
        keywords = dict(term.parameters)
        if "normalisation" in term.takes:
            keywords.setdefault("normalisation", self.normalisation)
        if "mapped_layers" in term.takes:
            keywords["mapped_layers"] = len(self._layers(term))
        if "project" in term.takes:
            keywords["project"] = self._map
        values = [
            term.function(**self._positional(term, student, teacher, batch, layer), **keywords) for layer in self._layers(term)
        ]
        return torch.stack(values).sum()

    def _layers(self, term: LossTerm) -> Sequence[int]:
        return range(1, len(self.map_layers)) if term.over == "layers" else [0]

    def _positional(self, term: LossTerm, student: Seen, teacher: Seen, batch: Batch, layer: int) -> dict[str, Any]:
        student_value, teacher_value = self._pair(term, student, teacher, layer)
        known = {
            "student": student_value,
            "teacher": teacher_value,
            "mask": batch.get("attention_mask"),
            "labels": batch.get("labels"),
            "augmented": batch.get("augmented"),
            "token_labels": batch.get("token_labels"),
            "token_logits": student.token_logits,
        }
        plain = {name: name.rpartition("_")[0] for name in term.takes}
        return {name: known[short] for name, short in plain.items() if short in known}

    def _pair(self, term: LossTerm, student: Seen, teacher: Seen, layer: int) -> tuple[Any, Any]:
        taught_by = self.map_layers[layer] if layer < len(self.map_layers) else 0
        if "scores" in term.needs:
            return student.scores[layer], teacher.scores[taught_by]
        if "hidden" in term.needs:
            return self._project(student.hidden[layer], term), teacher.hidden[taught_by]
        return student.logits, teacher.logits

    def _project(self, hidden_BTd: Tensor, term: LossTerm) -> Tensor:
        """As the loss compares it: mapped here, unless the loss takes `project` and maps what it makes of it."""
        return self._map(hidden_BTd) if term.projects and "project" not in term.takes else hidden_BTd

    def _map(self, vectors: Tensor) -> Tensor:
        """Student vectors [..., d] in the teacher's width."""
        if self.projection is None:
            return vectors
        with self.numerics.forward():
            mapped: Tensor = self.projection(vectors)
            return mapped


def _no_rows(seen: Seen) -> Seen:
    """The same tensors without their rows: every sum over them is 0, and so is its gradient."""
    hidden, scores = ({layer: value[:0] for layer, value in shown.items()} for shown in (seen.hidden, seen.scores))
    logits, token_logits = (None if value is None else value[:0] for value in (seen.logits, seen.token_logits))
    return Seen(logits, token_logits, hidden, scores)


def _nothing_to_learn() -> MbertError:
    return MbertError(
        "M007",
        "no loss has a weight above 0, so there is nothing to learn",
        where="losses",
        allowed="At least one loss; leave out the phase or the stage instead.",
        fix="See the weights: --explain-config",
    )


def _fit_dense(student_width: int, teacher_width: int) -> nn.Linear:
    """TinyBERT's one biased map from student to teacher width, initialised as BERT's layers are."""
    linear = nn.Linear(student_width, teacher_width)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
