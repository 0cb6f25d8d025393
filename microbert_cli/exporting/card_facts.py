"""The facts of a model card, gathered from manifests and measurements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData
from microbert_cli.exporting.card_alternatives import alternatives_section
from microbert_cli.exporting.model_card import Card, File, Score, megabytes, words
from microbert_cli.hub import is_hub_id
from microbert_cli.models.architectures import display_name, model_type_of
from microbert_cli.models.graphs.embeddings import BLOCK
from microbert_cli.models.load import LoadedModel
from microbert_cli.recipe.phase_data import TRANSFER
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_result import METRICS, read_metrics
from microbert_cli.text import NOT_COUNTED, counted
from microbert_cli.version import __version__

LONGEST_SUBJECT = 24
ANCESTORS = ("model", "teacher", "initial", "init")  # what of a manifest's sources a model's weights or answers come from
STAGES = {
    "finetune": "fine-tuned for the task",
    "task-distill": "distilled for the task",
    "general-distill": "distilled on plain text",
    "expert-teacher": "split into experts",
}
FORMS = {
    "safetensors": "PyTorch, float32",
    "fp32": "ONNX, float32",
    "int8": "ONNX, dynamic int8",
    "fp32-optimized": "float32 with fused operators, for ONNX Runtime alone",
    "int8-optimized": "dynamic int8 with fused operators, for ONNX Runtime alone",
    "q4": "weights of products in 4 bits, for ONNX Runtime and browsers",
    "openvino": "OpenVINO, int8 (its weights are the .bin beside it)",
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
        name=f"{display_name(facts.loaded.model.config)} for {_subject(facts)}",
        task_title=task.title or task.name,
        labels=task.label.names,
        of_words=task.kind.of_words,
        scores=_scores(facts),
        command=" ".join(map(str, model_manifest.get("argv", ()))) or f"mbert export {facts.model}",
        base_models=base_models(facts.model, facts.teacher),
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
        pairs=len(task.text) > 1,
        javascript=_opens_in_browsers(facts),
        thresholds=dict(getattr(facts.loaded.model.config, "label_thresholds", None) or {}) if task.kind.independent else {},
    )


def _subject(facts: Facts) -> str:
    """Returns the task's name for people: what stands before the colon of its title, where that is short."""
    task = facts.data.task
    before, colon, _ = (task.title or "").partition(": ")
    return before if colon and len(before) <= LONGEST_SUBJECT else task.name


def base_models(model: Path, teacher: str | None) -> list[str]:
    """Returns the Hub models that this one comes from: it began as one, or its teacher did, as far as manifests tell."""
    bases: list[str] = []
    waiting, seen = [str(model), *([teacher] if teacher else [])], set[str]()
    while waiting:
        source = waiting.pop(0)
        if source in seen:
            continue
        seen.add(source)
        if not Path(source).exists() and is_hub_id(source):
            bases.append(source.partition("@")[0])
        elif output := manifest.output_of(Path(source)) if Path(source).is_dir() else None:
            sources = _manifest(output).get("sources", {})
            places = [(role.partition(" ")[0], _place(output, source)) for role, source in sources.items() if source]
            waiting += [place for role, place in places if role in ANCESTORS or role == "student" and "/" in place]
    return list(dict.fromkeys(bases))


def _place(output: Path, source: str) -> str:
    """Returns a source as it is seen from here: manifests name directories as they are seen from the output."""
    place = output / source
    return str(place.resolve()) if place.exists() else source


def _worth(facts: Facts) -> str:
    rows, verdict = facts.metrics.get("alternatives"), facts.metrics.get("verdict")
    return alternatives_section(rows, verdict, words(facts.data.task.primary)) if rows and verdict else ""


def _opens_in_browsers(facts: Facts) -> bool:
    """Whether transformers.js opens the int8 file: it knows transformers' model types, single texts, standard operators."""
    is_known = not model_type_of(facts.loaded.model.config).startswith("mbert-")
    is_standard = "int8" in facts.metrics["files"] and facts.recipe.export.embeddings != "int4"
    return is_known and is_standard and len(facts.data.task.text) == 1


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
            task=_subject(facts),
            split=hub.splits.get("dev", "dev") if hub else "dev",
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
        stage = str(model_manifest.get("stage"))
        steps.append(f"{STAGES.get(stage, f'made by mbert {stage}')}, {str(model_manifest.get('finished'))[:10]}")
    if isinstance(phases := model_manifest.get("recipe", {}).get("phases"), dict):
        losses = {name: phase.get("losses") or () for name, phase in phases.items() if isinstance(phase, dict)}
        steps += [f"phase {words(name)}, learnt from: {', '.join(map(words, names))}" for name, names in losses.items()]
    if transfer_set := model_manifest.get("data", {}).get(TRANSFER):
        steps.append(f"transfer set: {transfer_set['rows']:,} texts without labels")
    return [f"teacher: {teacher}", *steps] if teacher else steps


def _sizes(facts: Facts) -> dict[str, tuple[str, str | None]]:
    models = facts.metrics["speed"]["models"]
    student, teacher = models["torch"], models.get("teacher", {})
    sizes = {"parameters": _pair(student, teacher, "parameters"), "FLOPs a row": _pair(student, teacher, "flops")}
    sizes["weights"] = (megabytes(student["bytes"] or 0), megabytes(teacher["bytes"]) if teacher.get("bytes") else None)
    for name, title, digits in (("latency_ms", "ms a sequence", 2), ("throughput", "sequences a second", 0)):
        sizes[title] = (f"{student[name]:,.{digits}f}", f"{teacher[name]:,.{digits}f}" if teacher else None)
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
    where = f"{counted(conditions['threads'], 'thread')} of {counted(conditions['cores'], 'core')}"
    load = f"load {conditions['load_before']} before and {conditions['load_after']} after"
    return f"Speed: one interleaved run on dev rows, {where}, batches of {conditions['batch_size']}, {load}; medians."


def _limits(facts: Facts) -> list[str]:
    return [
        f"Selected and scored on the dev split of {_subject(facts)}; a score on data of another kind may differ.",
        _long_texts(facts),
        *_exits(facts),
    ]


def _long_texts(facts: Facts) -> str:
    """Returns what is said of texts that are longer than the model reads at once."""
    windows = facts.data.windows_for(facts.loaded.model.config, where="export.model")
    if windows is None:
        return f"Texts are cut after {_length(facts)} tokens."
    return (
        f"Texts of more than {windows.max_length} tokens are read in windows of so many, of which neighbours share "
        f"{windows.stride}, and answered by the {windows.pool} of their logits; transformers alone cuts them."
    )


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
