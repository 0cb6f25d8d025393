"""What pruning needs of a recipe: the phase, the shape to end with, and the checks that losses and student go with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.pruning.pruner import Pruner
from microbert_cli.distillation.pruning.shape import Sizes, check_prunable, pruned_config
from microbert_cli.errors import MbertError
from microbert_cli.models.factory import student_config
from microbert_cli.models.load import LoadedModel
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import Prune
from microbert_cli.training.loss_terms import LAYERWISE, LossTerm
from microbert_cli.training.objective import Objective


@dataclass(frozen=True)
class Pruning:
    """A student's pruning.

    phase     the phase of the recipe;  settings  its table
    target    the student that comes out: the teacher's configuration in the student's sizes, and the teacher's tokenizer
    projects  whether a loss of the phase maps the student's vectors to the teacher's width, as its columns are cut
    """

    phase: str
    settings: Prune
    first: Sizes
    target: LoadedModel
    projects: bool

    @property
    def last(self) -> Sizes:
        """The sizes that the student ends with."""
        return Sizes.of(self.target.model.config)

    def begin(self, loaded: LoadedModel) -> LoadedModel:
        """Returns the student at first; where vectors are mapped to the teacher's width, the map begins as the identity."""
        if not self.projects:
            return loaded
        return replace(loaded, projection={"weight": torch.eye(self.first.width), "bias": torch.zeros(self.first.width)})

    def attach(self, objective: Objective) -> Objective:
        """Gives the objective of the phase a pruner; returns the objective."""
        objective.pruner = Pruner(objective, self.last, self.settings)
        return objective

    def layers_in(self, phase: str, phases: Sequence[str]) -> int:
        """Returns how many layers the student has when a phase begins."""
        return self.last.layers if phases.index(phase) > phases.index(self.phase) else self.first.layers

    def layer_map(self, rule: str | int | Sequence[int], teacher_layers: int) -> list[int]:
        """Returns g(0)..g(N) while layers are dropped: each learns from the teacher's of its number; "top" and n hold."""
        if rule == "top" or isinstance(rule, int):
            return [0] + layer_map(rule, teacher_layers=teacher_layers, student_layers=teacher_layers)[-1:] * teacher_layers
        return list(range(teacher_layers + 1))


def pruning_of(
    recipe: Recipe, catalog: Catalog, teacher: LoadedModel, student: str, terms: Mapping[str, Sequence[LossTerm]]
) -> Pruning | None:
    """Returns the pruning of a recipe, None without any.

    terms  the losses by phase
    Raises M420 to M422 for a student that the teacher cannot be cut to, M423 and M424 for losses that do not go with it.
    """
    phase = recipe.pruning_phase
    if phase is None:
        return None
    spec = recipe.run_phases[phase]
    assert spec.prune is not None
    config = teacher.model.config
    check_prunable(teacher.model, where=f"phases.{phase}.prune")
    pruned = pruned_config(config, student_config(student, catalog, teacher), where=f"student {student}")
    first, last = Sizes.of(config), Sizes.of(pruned)
    narrower = last.width < first.width
    _check_losses(phase, terms[phase], narrower=narrower)
    projects = narrower and any(term.projects for term in terms[phase])
    target = LoadedModel(SimpleNamespace(config=pruned), teacher.tokenizer, student, [])
    return Pruning(phase, spec.prune, first, target, projects)


def layer_maps(
    rule: str | int | Sequence[int],
    terms: Mapping[str, Sequence[LossTerm]],
    pruning: Pruning | None,
    teacher: int,
    student: int,
) -> dict[str, list[int]]:
    """Returns g(0)..g(M) of every phase whose losses read layers.

    terms  the losses by phase, in order;  teacher, student  their numbers of layers, the student's before any phase
    """
    maps = {}
    for name, losses in terms.items():
        if not any(term.reads_layers for term in losses):
            continue
        if pruning is not None and name == pruning.phase:
            maps[name] = pruning.layer_map(rule, teacher)
            continue
        layers = pruning.layers_in(name, list(terms)) if pruning is not None else student
        # Losses that choose among all layers need no rule, and take any depths.
        mapped = any(term.over in LAYERWISE for term in losses)
        maps[name] = layer_map(rule if mapped else "first", teacher_layers=teacher, student_layers=layers)
    return maps


def _check_losses(phase: str, terms: Sequence[LossTerm], *, narrower: bool) -> None:
    if not any("logits" in term.needs for term in terms):
        raise _no_logits(phase)
    for term in terms:
        if narrower and (term.trains is not None or term.divides):
            raise _fixed_width(phase, term.name)


def _no_logits(phase: str) -> MbertError:
    return MbertError(
        "M423",
        "what is pruned is what the answers need least, and no loss of this phase sees the answers",
        where=f"phases.{phase}.losses",
        allowed="A loss on logits beside the others, such as soft_target or hard_label.",
        fix=f"--set phases.{phase}.losses.soft_target=1",
    )


def _fixed_width(phase: str, loss: str) -> MbertError:
    return MbertError(
        "M424",
        f"the student's width changes while it is pruned, and {loss} is bound to one",
        where=f"phases.{phase}.losses.{loss}",
        allowed="Losses of any width, such as soft_target, hidden_states; or a student as wide as its teacher.",
        fix=f"Leave it out: --set phases.{phase}.losses.{loss}=0",
    )
