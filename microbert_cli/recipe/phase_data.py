"""Which rows a phase of stage two trains on: the training set, augmented rows, or a transfer set of unlabelled texts.

    data = "original"    the training set
    data = "augmented"   augmented rows where there are any, else the training set
    data = "transfer"    the transfer set: the unlabelled texts of `data.transfer_file`
    data = "auto"        the transfer set where there is one and no loss of the phase needs labels; else as "augmented"

A loss needs labels where its function cannot be called without: where `labels_B` has no default. So `hard_label` does, and
`soft_target`, which looks at them in one case and does without them else, does not.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microbert_cli.errors import MbertError, key_location
from microbert_cli.recipe.layers import table_at
from microbert_cli.recipe.registry import Catalog

if TYPE_CHECKING:
    from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import PhaseSpec

TRAIN, AUGMENTED, TRANSFER = "train", "augmented", "transfer"
SELECTED_BY = "dev"
ANSWERS = frozenset({"logits", "labels", "augmented", "task", "unrelated"})  # what a loss may need that looks into no model


def choose_split(requested: str, *, needs_labels: bool, available: Container[str]) -> str:
    """Returns the split for a phase's `data` value, of the splits that are available."""
    assert requested != TRANSFER or TRANSFER in available, "a recipe without a transfer set is refused as it is read"
    if TRANSFER in available and (requested == TRANSFER or requested == "auto" and not needs_labels):
        return TRANSFER
    return AUGMENTED if AUGMENTED in available and requested != "original" else TRAIN


def phase_split(phase: "PhaseSpec", catalog: Catalog, available: Container[str]) -> str:
    """Returns the split that a phase of a recipe trains on."""
    return choose_split(phase.data, needs_labels=_needs_labels(phase, catalog), available=available)


def trained_splits(recipe: "Recipe", catalog: Catalog) -> tuple[str, ...]:
    """Returns the splits that stage two reads beside augmented rows; a transfer set that no phase uses is not read."""
    return (
        (TRAIN, SELECTED_BY, TRANSFER)
        if recipe.data.transfer_file and _uses_transfer(recipe, catalog)
        else (TRAIN, SELECTED_BY)
    )


def unused_transfer_note(recipe: "Recipe", catalog: Catalog) -> str | None:
    """Returns a note about a transfer set that no phase uses; None where there is none, or a phase uses it."""
    if not recipe.data.transfer_file or _uses_transfer(recipe, catalog):
        return None
    return (
        f"the transfer set {recipe.data.transfer_file} is not read: no phase takes it. One does that has "
        'data = "transfer", or data = "auto" and no loss that needs labels'
    )


def check_transfer(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[MbertError]:
    """Checks phases that train on a transfer set: M140 there is none, M141 a loss needs labels.

    values  raw, so that all that is wrong with a recipe is said at once
    """
    has_transfer_file = bool(table_at(values, "data").get("transfer_file"))
    for name, phase in table_at(values, "phases").items():
        if not isinstance(phase, Mapping) or phase.get("data") != TRANSFER or phase.get("leave_out"):
            continue
        key = f"phases.{name}.data"
        if not has_transfer_file:
            yield _no_transfer_set(key, origins.get(key, "recipe"))
        for loss in _losses_needing_labels(_weighted_losses(phase), catalog):
            yield _labels_needed(f"phases.{name}", loss, origins.get(key, "recipe"))


def taught_by_table(recipe: "Recipe") -> bool:
    """Whether columns of a table are the teacher, in the place of a model."""
    return recipe.data.label_probabilities is not None or recipe.data.label_score is not None


def check_soft_labels(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[MbertError]:
    """Checks a distillation from columns of a table: M145 a teacher or tasks beside them, M146 losses that need a model.

    values  raw, so that all that is wrong with a recipe is said at once
    """
    data, teacher = table_at(values, "data"), table_at(values, "teacher")
    keys = [f"data.{key}" for key in ("label_probabilities", "label_score") if data.get(key) is not None]
    if not keys:
        return
    others = [f"teacher.{key}" for key in ("model", "models") if teacher.get(key)]
    others += [key for key in ("teachers", "tasks") if values.get(key)] + keys[1:]
    others += ["augmented"] if values.get("augmented") else []
    if others:
        yield _two_teachers(keys[0], others[0], origins.get(others[0], origins.get(others[0].partition(".")[0], "recipe")))
    for name, phase in table_at(values, "phases").items():
        if not isinstance(phase, Mapping) or phase.get("leave_out"):
            continue
        present = [loss for loss in _weighted_losses(phase) if not list(catalog.check("losses", loss, ""))]
        if deep := [loss for loss in present if _sees_inside(loss, catalog)]:
            yield needs_model(f"phases.{name}", deep, origins.get(f"phases.{name}", "recipe"))


def _weighted_losses(phase: Mapping[str, Any]) -> list[str]:
    """Returns the losses of a raw phase whose weight is not 0."""
    terms = table_at(phase, "losses")
    return [loss for loss, term in terms.items() if not isinstance(term, Mapping) or term.get("weight", 1.0) != 0]


def _sees_inside(loss: str, catalog: Catalog) -> bool:
    """Whether a loss reads more of a teacher than its answers, as far as its file shows."""
    needs = catalog.loss_facts(loss).get("needs")
    return catalog.loss_asks_teacher(loss) and bool(set(needs or ()) - ANSWERS)


def _uses_transfer(recipe: "Recipe", catalog: Catalog) -> bool:
    available = (TRAIN, AUGMENTED, TRANSFER)
    return any(phase_split(phase, catalog, available) == TRANSFER for phase in recipe.run_phases.values())


def _needs_labels(phase: "PhaseSpec", catalog: Catalog) -> bool:
    return bool(_losses_needing_labels([name for name, term in phase.losses.items() if term.weight], catalog))


def _losses_needing_labels(losses: Iterable[str], catalog: Catalog) -> list[str]:
    """Returns the losses that need labels; unknown names are reported elsewhere."""
    return [name for name in losses if not list(catalog.check("losses", name, "")) and catalog.loss_needs_labels(name)]


def _no_transfer_set(key: str, origin: str) -> MbertError:
    return MbertError(
        "M140",
        "this phase is to train on a transfer set, and none is named",
        where=key_location(origin, key),
        allowed='A file of texts as data.transfer_file; or "auto", "original" or "augmented" here.',
        fix=f"mbert task-distill --transfer-file FILE, or --set data.transfer_file=FILE; or --set {key}=auto",
    )


def needs_model(phase: str, losses: Sequence[str], origin: str) -> MbertError:
    """Returns the error for losses that compare hidden states or attention, where a table teaches, which has none."""
    return MbertError(
        "M146",
        f"{', '.join(losses)} read{'s' * (len(losses) == 1)} a teacher's layers, and columns of a table teach",
        where=key_location(origin, f"{phase}.losses"),
        allowed="Losses on answers alone, such as soft_target, logit_mse and hard_label; the method kd has no others.",
        fix="--set method=kd, or " + " ".join(f"--set {phase}.losses.{loss}=0" for loss in losses),
    )


def _two_teachers(key: str, other: str, origin: str) -> MbertError:
    return MbertError(
        "M145",
        f"{key} names columns that teach, and {other} is named beside them",
        where=key_location(origin, other),
        allowed="One task with one teacher: columns of its table, or a model; augmented rows have no such columns.",
        fix=f"Leave out one of the two: {key} or {other}.",
    )


def _labels_needed(phase: str, loss: str, origin: str) -> MbertError:
    return MbertError(
        "M141",
        f"the loss {loss} needs labels, and this phase trains on a transfer set, which has none",
        where=key_location(origin, f"{phase}.losses.{loss}"),
        allowed='Losses that ask the teacher alone, such as soft_target; or data = "original" for this phase.',
        fix=f"--set {phase}.losses.{loss}=0, or --set {phase}.data=original",
    )
