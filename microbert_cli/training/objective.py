"""Weights x losses x layer map -> one number and its named parts. Owns what only training needs, such as projections.

    L = sum over terms  w_i * L_i,   L_i = sum over the layers the loss is `over`

A term with weight 0 is not computed, and what nobody reads is not asked of the models. `losses()` yields (parameter group,
scalar) pairs, so that an adversary with its own optimiser is one more pair to the loop, no special case.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from microbert_cli.errors import MbertError
from microbert_cli.models.capture import ModelOutputs, OutputRequest, forward_outputs
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.training.loss_terms import LAYER_SLICES, LossTerm, output_request, parameter_names, without_teacher_terms
from microbert_cli.training.progressive import Progressive

Batch = Mapping[str, Tensor]
TeacherFunction = Callable[[Batch, OutputRequest], ModelOutputs]
OptionalTeacherFunction = Callable[[Batch, OutputRequest], ModelOutputs | None]  # None: nobody teaches this batch's task


class Objective(nn.Module):
    """Everything that turns a batch into losses.

    student          the model in training
    ask_teacher      shows what the teacher sees in a batch; None where nobody is asked
    map_layers       g(0)..g(M): the teacher layer of every student layer
    student_width, teacher_width   of the projected vectors; equal widths are projected too when `always_project`, since the
                     released code does so
    classes, tasks   outputs of the head and tasks of the run, for what a term trains beside the student: `own`
    numerics         of the forward passes and the projection; losses are computed in float32
    progressive      while the student trains, its layers learn one after the other; it is judged by all of them
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        student: nn.Module,
        *,
        ask_teacher: OptionalTeacherFunction | None = None,
        map_layers: Sequence[int] = (0,),
        student_width: int = 0,
        teacher_width: int = 0,
        classes: int = 0,
        tasks: int = 1,
        normalisation: str = "masked",
        always_project: bool = False,
        numerics: Precision = PLAIN,
        progressive: Progressive | None = None,
    ):
        super().__init__()
        if not terms:
            raise _nothing_to_learn()
        self.terms = list(terms)
        self.normalisation = normalisation
        self.numerics = numerics
        self.share = 0.0
        self.progressive = progressive
        self.turn = 1
        self.map_layers = list(map_layers)
        self._student = [student]
        self._ask_teacher = ask_teacher
        self.projection: nn.Linear | None = None
        if any(term.projects for term in terms) and (student_width != teacher_width or always_project):
            self.projection = _make_projection(student_width, teacher_width)
        sizes = {"classes": classes, "tasks": tasks, "student_width": student_width, "teacher_width": teacher_width}
        made = {term.name: term.own(**sizes) for term in self.terms}
        self.own = nn.ModuleDict({name: own for name, own in made.items() if own is not None})

    @property
    def student(self) -> nn.Module:
        """The model in training; it is not a submodule, so that training state and model stay apart."""
        return self._student[0]

    def asking(self, ask: OptionalTeacherFunction | None) -> "Objective":
        """The same objective with another way to ask the teacher: through the cache."""
        self._ask_teacher = ask
        return self

    @property
    def student_want(self) -> OutputRequest:
        return output_request(self.terms, self._looked_at(range(len(self.map_layers))))

    @property
    def teacher_want(self) -> OutputRequest:
        return output_request([term for term in self.terms if term.asks_teacher], self._looked_at(self.map_layers))

    def _looked_at(self, layers: Sequence[int]) -> Sequence[int]:
        """Of a net's mapped layers those that losses read now: all, or that below the layers and the one whose turn it is."""
        return layers if self.progressive is None or not self.student.training else (layers[0], layers[self.turn])

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """(parameter group, scalar, named parts) of one batch; nothing of an "idle" one counts (`processes.own_batch`)."""
        with self.numerics.forward():
            want = self.teacher_want
            shown = self._ask_teacher(batch, want) if self._ask_teacher and want != OutputRequest() else ModelOutputs()
            student = forward_outputs(self.student, batch, self.student_want)
        teacher = ModelOutputs() if shown is None else shown
        if "idle" in batch:
            batch = {name: value[:0] for name, value in batch.items()}
            teacher, student = _empty_outputs(teacher), _empty_outputs(student)
        terms = self.terms if shown is not None else without_teacher_terms(self.terms)
        parts = {term.name: self._value(term, student, teacher, batch) for term in terms}
        total = torch.stack([term.weight * parts[term.name] for term in terms]).sum()
        yield "student", total, parts | self._told()
        for term in terms:
            if term.against is not None:
                loss, told = self._call(term.against, term, student, teacher, batch, self._layers(term)[0])
                yield term.name, loss, told

    def _told(self) -> dict[str, Tensor]:
        telling = (cast(Any, own) for own in self.own.values() if hasattr(own, "told"))
        return {name: value for own in telling for name, value in own.told().items()}

    @property
    def weights(self) -> dict[str, float]:
        """What each named part counts in the student's scalar."""
        return {term.name: term.weight for term in self.terms}

    @property
    def adversaries(self) -> dict[str, Any]:
        """What a term trains against the student, each with an optimiser of its own."""
        return {term.name: self.own[term.name] for term in self.terms if term.against is not None}

    def note(self, parts: dict[str, float]) -> None:
        """Tells adversaries what a step came to, once it is taken and agreed on; not where it was without a teacher."""
        for name, adversary in self.adversaries.items():
            if name in parts:
                adversary.note(parts)

    def progress(self, step: int, steps: int) -> None:
        """How far the phase has come, told before every step: to terms that begin late, and to a student that asks for it."""
        self.share = step / steps
        self.turn = self.progressive.layer(step, steps) if self.progressive else 1
        if (told := getattr(self.student, "progress", None)) is not None:
            told(self.share)

    def forward(self, batch: Batch) -> Tensor:
        """The student's scalar alone."""
        return next(self.losses(batch))[1]

    def _value(self, term: LossTerm, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> Tensor:
        layers = self._looked_at(range(len(self.map_layers)))[1:] if self.progressive else self._layers(term)
        return torch.stack([self._call(term.function, term, student, teacher, batch, layer) for layer in layers]).sum()

    def _layers(self, term: LossTerm) -> Sequence[int]:
        """The student's layers that the loss is called for; one that is over the batch is called once."""
        return range(len(self.map_layers))[LAYER_SLICES.get(term.over, slice(0, 1))]

    def _call(
        self,
        function: Callable[..., Any],
        term: LossTerm,
        student: ModelOutputs,
        teacher: ModelOutputs,
        batch: Batch,
        layer: int,
    ) -> Any:
        """One of the term's functions with what its parameters are named after."""
        takes = parameter_names(function)
        student_value, teacher_value = self._pair(term, student, teacher, layer)
        known = {
            "student": student_value,
            "teacher": teacher_value,
            "student_logits": student.logits if "logits" in term.needs else None,
            "teacher_logits": teacher.logits if "logits" in term.needs else None,
            "student_hidden": student.hidden[layer] if "hidden" in term.needs else None,
            "teacher_hidden": teacher.hidden.get(self._taught_by(layer)) if "hidden" in term.needs else None,
            "student_qkv": student.qkv[layer] if "qkv" in term.needs else None,
            "teacher_qkv": teacher.qkv[self._taught_by(layer)] if "qkv" in term.needs else None,
            "mask": batch.get("attention_mask"),
            "teacher_mask": batch.get("attention_mask") if teacher.mask is None else teacher.mask,
            "labels": batch.get("labels"),
            "augmented": batch.get("augmented"),
            "task": batch.get("task"),
            "unrelated": batch.get("unrelated"),
            "token_labels": batch.get("token_labels"),
            "token_positions": batch.get("token_positions"),
            "token_logits": student.token_logits,
            "student_head": self._head(student),
            "teacher_head": self._head(teacher),
            "shares": student.routing and student.routing[0],
            "gates": student.routing and student.routing[1],
        }
        named = {name: known[short] for name in takes if (short := name.rpartition("_")[0]) in known}
        return function(**named, **{name: value for name, value in self._keywords(term).items() if name in takes})

    def _keywords(self, term: LossTerm) -> dict[str, Any]:
        handed = {
            "mapped_layers": len(self._layers(term)),
            "project": self._map,
            "share": self.share,
            "own": self.own[term.name] if term.name in self.own else None,
        }
        return {"normalisation": self.normalisation, **term.parameters, **handed}

    def _pair(self, term: LossTerm, student: ModelOutputs, teacher: ModelOutputs, layer: int) -> tuple[Any, Any]:
        if "scores" in term.needs:
            return student.scores[layer], teacher.scores[self._taught_by(layer)]
        if "hidden" in term.needs:
            return self._project(student.hidden[layer], term), teacher.hidden.get(self._taught_by(layer))
        return student.logits, teacher.logits

    def _head(self, seen: ModelOutputs) -> Callable[[Tensor], Tensor] | None:
        """A model's masked-LM head, computing as its forward pass does."""
        if (head := seen.token_head) is None:
            return None

        def logits(vectors_Pd: Tensor) -> Tensor:
            with self.numerics.forward():
                return head(vectors_Pd)

        return logits

    def _taught_by(self, layer: int) -> int:
        return self.map_layers[layer] if layer < len(self.map_layers) else 0

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


def _empty_outputs(seen: ModelOutputs) -> ModelOutputs:
    """The same tensors without their rows: every sum over them is 0, and so is its gradient."""
    hidden, scores = ({layer: value[:0] for layer, value in shown.items()} for shown in (seen.hidden, seen.scores))
    qkv = {layer: (q[:0], k[:0], v[:0]) for layer, (q, k, v) in seen.qkv.items()}
    logits, token_logits, mask = (None if value is None else value[:0] for value in (seen.logits, seen.token_logits, seen.mask))
    return ModelOutputs(logits, token_logits, seen.token_head, hidden, scores, qkv, mask, seen.routing)


def _nothing_to_learn() -> MbertError:
    return MbertError(
        "M007",
        "no loss has a weight above 0, so there is nothing to learn",
        where="losses",
        allowed="At least one loss; leave out the phase or the stage instead.",
        fix="See the weights: --explain-config",
    )


def _make_projection(student_width: int, teacher_width: int) -> nn.Linear:
    """TinyBERT's one biased map from student to teacher width, initialised as BERT's layers are."""
    linear = nn.Linear(student_width, teacher_width)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
