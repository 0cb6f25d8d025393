"""The card of a cascade: README.md, with what was checked, and code that asks both files without this package."""

from collections.abc import Mapping
from string import Template
from typing import Any

from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.guarantee import rounded_down
from microbert_cli.exporting.model_card import Card, Score, fenced, front_matter, megabytes
from microbert_cli.models.cascade.answers import BIG, PARTS, SMALL
from microbert_cli.text import command_line, counted, escape_markdown
from microbert_cli.version import __version__

CODE = Template('''import json

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

folder = "."  # of this card
files = {"small": "$small", "big": "$big"}
rule = json.load(open(f"{folder}/cascade.json"))
labels = json.load(open(f"{folder}/config.json"))["id2label"]
tokenizers = {part: AutoTokenizer.from_pretrained(f"{folder}/{part}") for part in files}
sessions = {part: onnxruntime.InferenceSession(f"{folder}/{part}/{file}") for part, file in files.items()}


def probabilities(part, *texts):
    tokens = tokenizers[part](*texts, truncation=True, return_tensors="np")
    inputs = {each.name: tokens[each.name] for each in sessions[part].get_inputs()}
    logits = sessions[part].run(["logits"], inputs)[0][0].astype("float64") / rule["temperature"][part]
    exponentials = np.exp(logits - logits.max())
    order = rule["columns"][part] or range(len(logits))
    return (exponentials / exponentials.sum())[list(order)]


def answer(*texts):
    """Returns label and probability of a text, or of the two texts of a pair."""
    shares = probabilities("small", *texts)
    if shares.max() <= rule["threshold"]:
        shares = probabilities("big", *texts)
    return labels[str(shares.argmax())], float(shares.max())''')


def cascade_card(name: str, data: TaskData, metrics: Mapping[str, Any], sources: Mapping[str, str], command: str = "") -> str:
    """Returns the text of README.md; what was not measured is left out.

    sources  the two models as they were named;  command: what made the cascade, where it was not this one
    """
    task, hub = data.task, data.task.hub
    scores = [
        Score(metric, value, task.name, "dev", dataset=hub.id if hub else None, config=hub.config if hub else None)
        for metric, value in metrics["dev"].items()
    ]
    title = task.title or task.name
    card = Card(
        name, title, task.label.names, scores, "", datasets=[hub.id] if hub else [], version=__version__, library="onnxruntime"
    )
    opening = (
        f"# {escape_markdown(name)}\n\nTwo text classifiers for {escape_markdown(title)} as one: the small one answers where "
        f"its largest probability is above {metrics['threshold']:.6g}, else the big one. "
        f"Answers: {', '.join(map(escape_markdown, task.label.names or ()))}."
    )
    sections = {
        "What was checked": checked_text(metrics) if "checked" in metrics else "",
        "Scores and speed": _table(metrics),
        "Probabilities": _calibration(metrics) if "calibration_error" in metrics else "",
        "Where it comes from": "\n".join(f"- {part}: {escape_markdown(sources[part])}" for part in PARTS),
        "Use": fenced(f"mbert predict {name} TEXT", "sh") + "\n\nWithout mbert:\n\n" + fenced(_code(metrics), "python"),
        "Made by": fenced(command or " ".join(command_line())) + f"\n\nmbert {__version__}",
        "Limits": _limits(metrics, task.name),
    }
    body = "\n\n".join([opening, *(f"## {heading}\n\n{text}" for heading, text in sections.items() if text)])
    return f"{front_matter(card)}\n{body}\n"


def checked_text(metrics: Mapping[str, Any]) -> str:
    """Returns the sentence that the threshold was made for."""
    checked, rows = metrics["checked"], metrics["rows"]
    wish = "" if checked["wish"] is None else f", {checked['wish']:g} wished for"
    what = "answered as the big model answers them" if checked["what"] == "agreement" else "answered rightly"
    return (
        f"Of {rows['checking']:,} rows of dev that did not choose the threshold ({rows['choosing']:,} others did), "
        f"{checked['value']:.2%} are {what}, and {checked['sent']:.1%} go to the big model. With a confidence of "
        f"{checked['confidence']:.0%} it is at least {rounded_down(checked['bound'])} on rows of the same kind{wish} "
        "(Clopper and Pearson, one-sided)."
    )


def _table(metrics: Mapping[str, Any]) -> str:
    primary, speed = metrics["primary"], metrics["speed"]
    lines = [f"| | {primary}, rows that check | ms a row, mean | rows a second | size |", "| --- | --- | --- | --- | --- |"]
    for name in (SMALL, BIG, "cascade"):
        model = speed["models"][name]
        cells = (
            f"{metrics['scores'][name][primary]:.4f}" if "scores" in metrics else "",
            f"{model['latency_mean_ms']:.2f}",
            f"{model['throughput']:,.0f}",
            megabytes(model["bytes"] or 0),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    conditions = speed["conditions"]
    where = f"{counted(conditions['threads'], 'thread')} of {counted(conditions['cores'], 'core')}"
    sizes = f"batches of {conditions['batch_size']}, load {conditions['load_before']} before"
    return "\n".join(lines) + f"\n\nOne interleaved run on rows of dev, {where}, {sizes}."


def _calibration(metrics: Mapping[str, Any]) -> str:
    errors, temperature = metrics["calibration_error"], metrics["temperature"]
    parts = [f"{part} {errors[part]['before']:.4f}, with a temperature of {temperature[part]:.3g} "
             f"{errors[part]['after']:.4f}" for part in PARTS]  # fmt: skip
    return (
        f"Expected calibration error on the rows that check: {'; '.join(parts)}; both as one {errors['cascade']['after']:.4f}."
    )


def _code(metrics: Mapping[str, Any]) -> str:
    return CODE.substitute(metrics["files"])


def _limits(metrics: Mapping[str, Any], task: str) -> str:
    return (
        f"- Chosen and checked on the dev split of {escape_markdown(task)}: the bound is about rows of the same kind, and "
        "about these two files.\n- A model that was itself selected on dev may be a little surer there than elsewhere."
    )
