"""The training objective: a weighted sum of losses over mapped layers, and the modules that only training needs.

    L = sum over terms  w_i * L_i,   L_i = sum over the layers the loss is `over`

Terms of weight 0 are not computed, and models are asked only for the outputs that some term needs. `losses()` yields (parameter
group, scalar) pairs, so that to the loop an adversary with an optimiser of its own is one more pair and no special case.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from microbert_cli.errors import DivergedError
from microbert_cli.models.capture import Batch, ModelOutputs, OptionalTeacherFunction, OutputRequest, forward_outputs
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.models.windows.pooling import pool_outputs, row_count
from microbert_cli.models.words.rows import words_as_rows
from microbert_cli.recipe.task_kinds import LabelForm, Standardisation
from microbert_cli.training.loss_terms import (
    LAYER_SLICES,
    DualModels,
    LossTerm,
    form_of_batch,
    make_projection,
    nothing_to_learn,
    output_request,
    parameter_names,
    without_teacher_terms,
)
from microbert_cli.training.progressive import Progressive
from microbert_cli.training.pruner import Pruner


class Objective(nn.Module):
    """Turns a batch into losses; owns the projection and the modules that terms train.

    student          the model in training
    ask_teacher      returns the teacher's outputs for a batch; None where there is no teacher
    map_layers       g(0)..g(M): the teacher layer of every student layer;  teacher_layers: N
    student_width, teacher_width   of the projected vectors; equal widths are projected too with `always_project`, as TinyBERT's
                     released code does
    standardise      the units that each task's labels are learnt in, by the task's number; None, or no entry = as they are
    forms            what losses must know of each task's labels, by its number; none = classes or scores, all alike
    classes, tasks   outputs of the head and tasks of the run, for the modules that terms train
    numerics         precision of the forward passes and the projection; losses are computed in float32
    progressive      trains the student's layers one after the other; evaluation uses all of them
    dual             a teacher that reads other tokens than the student and may be trained with it
    pruner           cuts the student while it is trained, where one is set; the loop calls it
    """

    pruner: Pruner | None = None

    def __init__(
        self,
        terms: Sequence[LossTerm],
        student: nn.Module,
        *,
        ask_teacher: OptionalTeacherFunction | None = None,
        map_layers: Sequence[int] = (0,),
        student_width: int = 0,
        teacher_width: int = 0,
        teacher_layers: int = 0,
        standardise: Sequence[Standardisation | None] = (),
        forms: Sequence[LabelForm] = (),
        classes: int = 0,
        tasks: int = 1,
        normalisation: str = "masked",
        always_project: bool = False,
        numerics: Precision = PLAIN,
        progressive: Progressive | None = None,
        dual: DualModels | None = None,
    ):
        super().__init__()
        if not terms:
            raise nothing_to_learn()
        self.terms = list(terms)
        self.normalisation, self.numerics, self.teacher_layers = normalisation, numerics, teacher_layers
        self.standardise, self.forms = list(standardise), list(forms)
        self.share, self.current_layer = 0.0, 1
        self.progressive = progressive
        self.map_layers = list(map_layers)
        self.layers = list(range(len(self.map_layers)))  # of the student, 0 = embeddings; a pruned one may have gaps
        self._student, self._ask_teacher = [student], ask_teacher  # in a list, so that it is no submodule: see `student`
        self.dual = dual
        self.trained_teacher = dual.teacher if dual else None  # a submodule: its weights are saved and trained
        self.projection: nn.Linear | None = None
        if any(term.projects for term in terms) and (student_width != teacher_width or always_project):
            self.projection = make_projection(student_width, teacher_width)
        sizes = {"classes": classes, "tasks": tasks, "student_width": student_width, "teacher_width": teacher_width}
        sizes["depth"] = len(self.map_layers) - 1
        modules = {term.name: term.make_module(**sizes) for term in self.terms}
        # The name is part of the resume state's keys, and the keyword by which losses take their module.
        self.own = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

    @property
    def student(self) -> nn.Module:
        """The model in training; it is not a submodule, so that its weights are not in the objective's state."""
        return self._student[0]

    @property
    def models(self) -> list[nn.Module]:
        """The models in training: the student, and a teacher that is trained with it."""
        return [self.student, *([self.trained_teacher] if self.trained_teacher is not None else [])]

    def with_teacher(self, ask: OptionalTeacherFunction | None) -> "Objective":
        """Replaces the teacher function, such as by one that reads the cache; returns the objective."""
        self._ask_teacher = ask
        return self

    @property
    def student_request(self) -> OutputRequest:
        return output_request(self.terms, self._read_layers(self.layers))

    @property
    def teacher_request(self) -> OutputRequest:
        teacher_layers = [self.map_layers[layer] for layer in self.layers]
        asking = [term for term in self.terms if term.asks_teacher]
        every = range(1, self.teacher_layers + 1)
        return output_request(asking, self._read_layers(teacher_layers), every, of_teacher=True)

    def _read_layers(self, layers: Sequence[int]) -> Sequence[int]:
        """Returns the mapped layers that losses read now: all, or layer by layer the embeddings and the current layer."""
        return layers if self.progressive is None or not self.student.training else (layers[0], layers[self.current_layer])

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Leaves all layers of the student but these, from 1, out of the losses; each learns from the layer it did before."""
        self.layers = [layer for layer in self.layers if layer in (0, *layers)]

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yields (parameter group, scalar, named parts) of one batch; an "idle" one (`distributed.rank_batch`) gives zeros."""
        with self.numerics.forward():
            request = self.teacher_request
            teacher_outputs = (
                self._ask_teacher(batch, request) if self._ask_teacher and request != OutputRequest() else ModelOutputs()
            )
            student = pool_outputs(forward_outputs(self.student, batch, self.student_request), batch)
        teacher = ModelOutputs() if teacher_outputs is None else teacher_outputs
        batch, teacher = self._in_learnt_units(batch, teacher)
        batch, student, teacher = words_as_rows(batch, student, teacher)
        if "idle" in batch:
            batch = {name: value[:0] for name, value in batch.items()}
            teacher, student = _empty_outputs(teacher), _empty_outputs(student)
        terms = self.terms if teacher_outputs is not None else without_teacher_terms(self.terms)
        parts = {term.name: self._value(term, student, teacher, batch) for term in terms}
        total = torch.stack([term.weight * parts[term.name] for term in terms]).sum()
        yield "student", total, parts | self._reported_values()
        for term in terms:
            if term.against is not None:
                loss, parts_against = self._call(term.against, term, student, teacher, batch, self._layers(term)[0])
                yield term.name, loss, parts_against

    def _in_learnt_units(self, batch: Batch, teacher: ModelOutputs) -> tuple[Batch, ModelOutputs]:
        """Returns the batch's labels and the teacher's logits, which are in the table's units, in those that are learnt."""
        if not any(self.standardise):
            return batch, teacher
        number = int(batch["task"][0]) if "task" in batch and len(batch["task"]) else 0
        if (scale := self.standardise[number]) is None:
            return batch, teacher
        if "labels" in batch:
            batch = {**batch, "labels": scale.apply(batch["labels"])}
        # The teacher's outputs may be a cache's own, so they are not changed in place.
        return batch, teacher if teacher.logits is None else replace(teacher, logits=scale.apply(teacher.logits))

    def _reported_values(self) -> dict[str, Tensor]:
        """Returns the values that modules of terms report for the log, by their method `told`."""
        reporting = (cast(Any, module) for module in self.own.values() if hasattr(module, "told"))
        return {name: value for module in reporting for name, value in module.told().items()}

    @property
    def weights(self) -> dict[str, float]:
        """Returns the weight of each named part in the student's scalar."""
        return {term.name: term.weight for term in self.terms}

    @property
    def adversaries(self) -> dict[str, Any]:
        """Returns the modules that terms train against the student, each with an optimiser of its own."""
        return {term.name: self.own[term.name] for term in self.terms if term.against is not None}

    def note(self, parts: dict[str, float]) -> None:
        """Passes a step's reduced values to the adversaries; a step of a task without a teacher has none for them."""
        for name, adversary in self.adversaries.items():
            if name in parts:
                adversary.note(parts)

    def progress(self, step: int, steps: int) -> None:
        """Sets the progress before every step, for terms with a schedule and for a student with a method `progress`."""
        self.share = step / steps
        self.current_layer = self.progressive.layer(step, steps) if self.progressive else 1
        if (on_progress := getattr(self.student, "progress", None)) is not None:
            on_progress(self.share)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the student's scalar alone."""
        return next(self.losses(batch))[1]

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[Batch], ask_teacher: OptionalTeacherFunction | None) -> float:
        """Returns the mean of the scalar over the rows of some batches, without dropout.

        ask_teacher  the teacher's function for these rows
        Raises M401 where it is no finite number.
        """
        self.eval()
        self.student.eval()
        training_ask, self._ask_teacher = self._ask_teacher, ask_teacher
        device = next(self.student.parameters()).device
        total, rows = 0.0, 0
        try:
            for batch in batches:
                size = row_count(batch)
                total += size * self({name: value.to(device) for name, value in batch.items()}).item()
                rows += size
        finally:
            self._ask_teacher = training_ask
        if not math.isfinite(total):
            raise _no_loss(total)
        return total / max(1, rows)

    def _value(self, term: LossTerm, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> Tensor:
        layers = self._read_layers(self.layers)[1:] if self.progressive else self._layers(term)
        return torch.stack([self._call(term.function, term, student, teacher, batch, layer) for layer in layers]).sum()

    def _layers(self, term: LossTerm) -> Sequence[int]:
        """Returns the student's layers that the loss is called for; a loss over the batch is called once."""
        return self.layers[LAYER_SLICES.get(term.over, slice(0, 1))]

    def _call(
        self,
        function: Callable[..., Any],
        term: LossTerm,
        student: ModelOutputs,
        teacher: ModelOutputs,
        batch: Batch,
        layer: int,
    ) -> Any:
        """Calls a function of the term; its parameters are filled in by name, without the shape suffix."""
        names = parameter_names(function)
        form, weights = form_of_batch(self.forms, batch)
        student_value, teacher_value = self._pair(term, student, teacher, layer)
        inputs = {
            "student": student_value,
            "teacher": teacher_value,
            "student_logits": student.logits if "logits" in term.needs else None,
            "teacher_logits": teacher.logits if "logits" in term.needs else None,
            "student_hidden": student.hidden[layer] if "hidden" in term.needs else None,
            "teacher_hidden": teacher.hidden.get(self._taught_by(layer)) if "hidden" in term.needs else None,
            "student_layers": [student.hidden[number] for number in self.layers[1:]] if "layers" in term.needs else None,
            "teacher_layers": [teacher.hidden[number] for number in sorted(teacher.hidden) if number],
            "student_qkv": student.qkv[layer] if "qkv" in term.needs else None,
            "teacher_qkv": teacher.qkv[self._taught_by(layer)] if "qkv" in term.needs else None,
            "mask": batch.get("attention_mask"),
            "teacher_mask": batch.get("attention_mask") if teacher.mask is None else teacher.mask,
            "labels": batch.get("labels"),
            "augmented": batch.get("augmented"),
            "class_weights": weights,
            "task": batch.get("task"),
            "unrelated": batch.get("unrelated"),
            "token_labels": batch.get("token_labels"),
            "token_positions": batch.get("token_positions"),
            "token_logits": student.token_logits,
            "student_head": self._head(student),
            "teacher_head": self._head(teacher),
            "shares": student.routing and student.routing[0],
            "gates": student.routing and student.routing[1],
            "exits": student.exits,
            "teacher_token_logits": teacher.token_logits,
            "teacher_token_labels": batch.get("teacher_token_labels"),
            "weights": self.dual.weights() if self.dual and "weights" in term.needs else (),
            "teacher_values": teacher.top and teacher.top[0],
            "teacher_tokens": teacher.top and teacher.top[1],
        }
        named = {name: inputs[short] for name in names if (short := name.rpartition("_")[0]) in inputs}
        facts = {"independent": form.independent, "of_words": form.of_words}
        named |= {name: fact for name, fact in facts.items() if name in names}
        return function(**named, **{name: value for name, value in self._keywords(term, layer).items() if name in names})

    def _keywords(self, term: LossTerm, layer: int) -> dict[str, Any]:
        context = {
            "layer": layer,
            "mapped_layers": len(self._layers(term)),
            "project": self._map,
            "share": self.share,
            "own": self.own[term.name] if term.name in self.own else None,
        }
        return {"normalisation": self.normalisation, **term.parameters, **context}

    def _pair(self, term: LossTerm, student: ModelOutputs, teacher: ModelOutputs, layer: int) -> tuple[Any, Any]:
        if "scores" in term.needs:
            return student.scores[layer], teacher.scores[self._taught_by(layer)]
        if "hidden" in term.needs:
            return self._project(student.hidden[layer], term), teacher.hidden.get(self._taught_by(layer))
        return student.logits, teacher.logits

    def _head(self, outputs: ModelOutputs) -> Callable[[Tensor], Tensor] | None:
        """Returns a model's masked-LM head, run in the precision of the forward pass."""
        if (head := outputs.token_head) is None:
            return None

        def logits(vectors_Pd: Tensor) -> Tensor:
            with self.numerics.forward():
                return head(vectors_Pd)

        return logits

    def _taught_by(self, layer: int) -> int:
        return self.map_layers[layer] if layer < len(self.map_layers) else 0

    def _project(self, hidden_BTd: Tensor, term: LossTerm) -> Tensor:
        """Projects student vectors for a loss that asks for it; a loss that takes `project` calls it itself."""
        return self._map(hidden_BTd) if term.projects and "project" not in term.argument_names else hidden_BTd

    def _map(self, vectors: Tensor) -> Tensor:
        """Maps student vectors [..., d] to the teacher's width."""
        if self.projection is None:
            return vectors
        with self.numerics.forward():
            mapped: Tensor = self.projection(vectors)
            return mapped


def _empty_outputs(outputs: ModelOutputs) -> ModelOutputs:
    """Returns the outputs without any rows: sums over them are 0 with a gradient of 0, so all ranks reduce alike."""
    hidden, scores = (
        {layer: value[:0] for layer, value in layer_values.items()} for layer_values in (outputs.hidden, outputs.scores)
    )
    qkv = {layer: (q[:0], k[:0], v[:0]) for layer, (q, k, v) in outputs.qkv.items()}
    logits, token_logits, mask = (
        None if value is None else value[:0] for value in (outputs.logits, outputs.token_logits, outputs.mask)
    )
    exits = None if outputs.exits is None else outputs.exits[:, :0]
    top = None if outputs.top is None else (outputs.top[0][:0], outputs.top[1][:0])
    return ModelOutputs(logits, token_logits, outputs.token_head, hidden, scores, qkv, mask, outputs.routing, exits, top)


def _no_loss(total: float) -> DivergedError:
    return DivergedError(
        f"the loss on dev is {total}",
        where="dev",
        allowed="Finite losses; a smaller learning rate or a longer warm-up usually mends it.",
        fix="The same command with --no-resume and a smaller learning rate",
    )
