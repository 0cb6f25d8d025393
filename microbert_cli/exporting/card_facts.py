"""The facts of a model card, gathered from manifests and measurements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData
from microbert_cli.exporting.card_alternatives import alternatives_section
from microbert_cli.exporting.model_card import Card, File, Score, megabytes
from microbert_cli.hub import is_hub_id
from microbert_cli.models.graphs.embeddings import BLOCK
from microbert_cli.models.load import LoadedModel
from microbert_cli.recipe.phase_data import TRANSFER
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_result import METRICS, read_metrics
from microbert_cli.text import NOT_COUNTED
from microbert_cli.version import __version__

FORMS = {
    "safetensors": "PyTorch, float32",
    "fp32": "ONNX, float32",
    "int8": "ONNX, dynamic int8",
    "fp32-optimized": "float32 with fused operators, for ONNX Runtime alone",
    "int8-optimized": "dynamic int8 with fused operators, for ONNX Runtime alone",
}
EMBEDDINGS = {"int8": "int8, a scale per row", "int4": f"int4, a scale per block of {BLOCK} columns"}
INT4_RUNS_ON = (
    " They use the operator com.microsoft.GatherBlockQuantized: ONNX Runtime 1.23 or later alone can run these files."
)


@dataclass(frozen=True)
class Facts:
    """What a card is made from: the model, its data, the recipe, and what the export measured."""

    recipe: Recipe
    data: TaskData
    loaded: LoadedModel
    model: Path
    teacher: str | None
    metrics: dict[str, Any]


def card(facts: Facts) -> Card:
    """Returns the card of an exported model: only what was measured here, or is written in its manifest."""
    task = facts.data.task
    model_manifest = _manifest(facts.model)
    return Card(
        name=facts.model.name,
        task_title=task.title or task.name,
        labels=task.label.names,
        of_words=task.kind.of_words,
        scores=_scores(facts),
        command=" ".join(map(str, model_manifest.get("argv", ()))) or f"mbert export {facts.model}",
        base_models=[facts.teacher] if facts.teacher and is_hub_id(facts.teacher) else [],
        datasets=[task.hub.id] if task.hub else [],
        lineage=_lineage(_manifest(_untrimmed(facts.model)), facts.teacher) + _trimmed(facts.model),
        sizes=_sizes(facts),
        files=_files(facts),
        embeddings=_embeddings(facts.metrics["files"]),
        conditions=_conditions(facts.metrics["speed"]["conditions"]),
        limits=_limits(facts),
        max_length=_length(facts),
        version=__version__,
        worth=_worth(facts),
    )


def _worth(facts: Facts) -> str:
    rows, verdict = facts.metrics.get("alternatives"), facts.metrics.get("verdict")
    return alternatives_section(rows, verdict, facts.data.task.primary) if rows and verdict else ""


def _manifest(directory: Path) -> dict[str, Any]:
    return manifest.read(directory) if (directory / manifest.FILE).is_file() else {}


def _scores(facts: Facts) -> list[Score]:
    task, rows = facts.data.task, len(facts.data.rows["dev"])
    teacher = _teacher_scores(facts)
    hub = task.hub
    return [
        Score(
            metric=name,
            value=value,
            task=task.name,
            split="dev",
            dataset=hub.id if hub else None,
            config=hub.config if hub else None,
            teacher=teacher.get(name),
            rows=rows,
        )
        for name, value in facts.metrics["dev"].items()
    ]


def _teacher_scores(facts: Facts) -> dict[str, float]:
    """The teacher's dev scores as the student's distillation measured them, if it was this teacher."""
    model = _untrimmed(facts.model)
    metrics = read_metrics(model) if (model / METRICS).is_file() else {}
    scores: dict[str, float] = metrics.get("teacher") or {}
    return scores


def _untrimmed(model: Path) -> Path:
    """Returns the model that was trimmed to this one; a model that no `trim` made, or whose source is gone, as it is."""
    made_by = _manifest(model)
    source = made_by.get("sources", {}).get("model") if made_by.get("stage") == "trim" else None
    return _untrimmed(model / source) if source and (model / source).is_dir() else model


def _trimmed(model: Path) -> list[str]:
    """Returns what `trim` did to this model, as a line of its lineage."""
    if _manifest(model).get("stage") != "trim":
        return []
    rows = read_metrics(model)["rows"]
    return [f"vocabulary trimmed from {rows['before']:,} to {rows['after']:,} tokens"]


def _lineage(model_manifest: dict[str, Any], teacher: str | None) -> list[str]:
    steps = []
    if model_manifest:
        steps.append(f"made by the stage {model_manifest.get('stage')}, {str(model_manifest.get('finished'))[:10]}")
    if isinstance(phases := model_manifest.get("recipe", {}).get("phases"), dict):
        losses = {name: phase.get("losses") or () for name, phase in phases.items() if isinstance(phase, dict)}
        steps += [f"phase {name}: {', '.join(map(str, names))}" for name, names in losses.items()]
    if transfer_set := model_manifest.get("data", {}).get(TRANSFER):
        steps.append(f"transfer set: {transfer_set['rows']:,} texts without labels")
    return [f"teacher: {teacher}", *steps] if teacher else steps


def _sizes(facts: Facts) -> dict[str, tuple[str, str | None]]:
    models = facts.metrics["speed"]["models"]
    student, teacher = models["torch"], models.get("teacher", {})
    sizes = {"parameters": _pair(student, teacher, "parameters"), "FLOPs a row": _pair(student, teacher, "flops")}
    sizes["weights"] = (megabytes(student["bytes"] or 0), megabytes(teacher["bytes"]) if teacher.get("bytes") else None)
    for name, digits in (("latency_ms", 2), ("throughput", 0)):
        sizes[name] = (f"{student[name]:,.{digits}f}", f"{teacher[name]:,.{digits}f}" if teacher else None)
    return sizes


def _pair(student: dict[str, Any], teacher: dict[str, Any], key: str) -> tuple[str, str | None]:
    return _count(student.get(key)), _count(teacher.get(key)) if teacher else None


def _count(value: int | None) -> str:
    return NOT_COUNTED if value is None else f"{value:,}"


def _files(facts: Facts) -> list[File]:
    speeds = facts.metrics["speed"]["models"]
    files = []
    for name, measured in facts.metrics["files"].items():
        speed = speeds.get("torch" if name == "safetensors" else name, {})
        files.append(
            File(
                name=measured["file"],
                bytes=measured["bytes"],
                form=FORMS[name],
                max_difference=measured["max_difference"],
                score=(measured["scores"] or {}).get(facts.data.task.primary),
                latency_ms=speed.get("latency_ms"),
                throughput=speed.get("throughput"),
            )
        )
    return files


def _embeddings(files: dict[str, Any]) -> str | None:
    """Returns the sentence on the word vectors of the int8 files; None without such a file."""
    small = next((files[name] for name in ("int8", "int8-optimized") if name in files), None)
    if small is None:
        return None
    if not (tables := small["embeddings"]):
        return "Embeddings of the int8 files: float32."
    largest = next(iter(tables.values()))
    form, error = largest["format"], 100 * largest["relative_error"]
    size = f"{largest['rows']:,} rows of {largest['width']:,}"
    sentence = f"Embeddings of the int8 files: {EMBEDDINGS[form]}; relative error of the largest table, {size}: {error:.2f} %."
    return sentence + INT4_RUNS_ON if form == "int4" else sentence


def _conditions(conditions: dict[str, Any]) -> str:
    return (
        f"Speed: one interleaved run on dev rows, {conditions['threads']} threads of {conditions['cores']} cores, batches of "
        f"{conditions['batch_size']}, load {conditions['load_before']} before and {conditions['load_after']} after; medians."
    )


def _limits(facts: Facts) -> list[str]:
    return [
        f"Selected and scored on the dev split of {facts.data.task.name}; a score on data of another kind may differ.",
        f"Texts are cut after {_length(facts)} tokens.",
        *_exits(facts),
    ]


def _exits(facts: Facts) -> list[str]:
    """Returns what is said of a model with exits."""
    if not (exits := facts.metrics.get("exits")):
        return []
    primary = facts.data.task.primary
    layers = facts.metrics["speed"]["models"]["torch"].get("layers", exits["layers"][-1])
    *exit_layers, depth = exits["layers"]
    return [
        f"Rows may leave `{exits['file']}` behind layers {', '.join(map(str, exit_layers))} of {depth}: it takes "
        "`speed` beside the tokens, and gives `layers` beside `logits`.",
        f"At speed {exits['speed']:g}, the default here, a row runs through {layers:.1f} layers on average and {primary} on "
        f"dev is {exits['scores'][primary]:.4f}; the ONNX files above answer with all layers.",
    ]


def _length(facts: Facts) -> int:
    return facts.data.length_for(facts.loaded.model.config, where="export.model")
