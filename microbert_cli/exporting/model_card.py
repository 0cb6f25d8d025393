"""The model card: README.md of an export, made from plain values.

The values come from task files, manifests and directory names of others: none is taken as Markdown, HTML or YAML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microbert_cli.text import escape_markdown, safe_text

DIGITS = 4
JAVASCRIPT = """import { pipeline } from "@huggingface/transformers";

const classify = await pipeline("text-classification", "OWNER/NAME", { dtype: "q8" }); // of this repository
await classify("a text");"""
TAG_WORDS = """from transformers import pipeline

tag = pipeline("token-classification", model=".", aggregation_strategy="first")  # this directory, or: OWNER/NAME
tag("words between spaces")"""


@dataclass(frozen=True)
class Score:
    """One measured score. `teacher`: the teacher's on the same rows; `dataset`: a Hub id, None for own data."""

    metric: str
    value: float
    task: str
    split: str
    dataset: str | None = None
    config: str | None = None
    teacher: float | None = None
    rows: int | None = None


@dataclass(frozen=True)
class File:
    """One form of the model and what was measured of it; latency for one sequence, throughput in sequences a second."""

    name: str
    bytes: int
    form: str
    max_difference: float | None = None
    score: float | None = None
    latency_ms: float | None = None
    throughput: float | None = None


@dataclass(frozen=True)
class Card:
    """All that a card says; what is left out is left out of the text.

    base_models, datasets   Hub ids only: they become links. Directories belong into the lineage
    lineage     sentences, oldest first: what was made from what
    layer_map   student layer -> teacher layer, 0 the embeddings
    sizes       rows of a table: what -> (this model, teacher or None), as text
    embeddings  a sentence on how the small files store word vectors, and how near they are
    conditions  where and how speed was measured
    command     what reproduces the model
    worth       the verdict on the model and what else there is, as Markdown
    library     the Hub's name of what loads it
    name        a title for people
    pairs       whether it reads two texts;  javascript: whether transformers.js opens it
    thresholds  of rows that may have several labels: the probability from which on each is given
    of_words    it answers for every word of a text
    """

    name: str
    task_title: str
    labels: Sequence[str] | None
    scores: Sequence[Score]
    command: str
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    language: str | None = None
    license: str | None = None
    lineage: Sequence[str] = ()
    layer_map: Mapping[int, int] | None = None
    sizes: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    files: Sequence[File] = ()
    embeddings: str | None = None
    conditions: str | None = None
    limits: Sequence[str] = ()
    max_length: int | None = None
    version: str | None = None
    worth: str = ""
    library: str = "transformers"
    pairs: bool = False
    javascript: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    of_words: bool = False

    @property
    def pipeline(self) -> str:
        """The Hub's name of what the model does."""
        return "token-classification" if self.of_words else "text-classification"


def model_card(card: Card) -> str:
    """Returns the text of README.md: YAML front matter for the Hub, then the body for people."""
    sections = [
        _opening(card),
        _section("Score", _scores(card)),
        _section("What it is worth", card.worth),
        _section("Files", _files(card)),
        _section("Size", _sizes(card)),
        _section("Where it comes from", _lineage(card)),
        _section("Use", _use(card)),
        _section("Made by", fenced(card.command) + (f"\n\nmbert {card.version}" if card.version else "")),
        _section("Limits", "\n".join(f"- {escape_markdown(limit)}" for limit in card.limits)),
    ]
    return front_matter(card) + "\n" + "\n\n".join(section for section in sections if section) + "\n"


def front_matter(card: Card) -> str:
    """Returns the YAML block between `---` lines, as the Hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    scores = [
        EvalResult(
            task_type=card.pipeline,
            dataset_name=score.task,
            dataset_type=score.dataset or score.task,
            dataset_config=score.config,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_value=round(float(score.value), DIGITS),
        )
        for score in card.scores
    ]
    # `or None`: ModelCardData leaves out what is None, and would write an empty list
    data = ModelCardData(
        language=card.language or None,
        license=card.license or None,
        library_name=card.library,
        pipeline_tag=card.pipeline,
        base_model=list(card.base_models) or None,
        datasets=list(card.datasets) or None,
        metrics=list(dict.fromkeys(score.metric for score in card.scores)) or None,
        tags=["knowledge-distillation", "mbert"],
        model_name=card.name,
        eval_results=scores or None,
    )
    if not scores:
        data.pop("model_name")  # it only names the results
    return f"---\n{_yaml(data.to_dict())}---\n"


def _yaml(values: dict[str, Any]) -> str:
    """Returns YAML in which every string is on one line.

    `ModelCardData.to_yaml` spreads a string with line breaks over several lines, and one of them may be the `---` that ends
    the front matter: a name could then add keys of its own.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    Dumper.add_representer(str, represent)
    return yaml.dump(values, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=float("inf"), line_break="\n")


def fenced(text: str, language: str = "") -> str:
    """Returns a block of code whose fence is longer than any in the text, so that it ends where it should."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{safe_text(text)}\n{fence}"


def _opening(card: Card) -> str:
    answers = f"Answers: {', '.join(map(escape_markdown, card.labels))}." if card.labels else "Answers with a number."
    title = card.task_title if card.task_title.endswith((".", "?", "!")) else f"{card.task_title}."
    if card.thresholds:
        answers = answers.replace("Answers:", "Answers with any number of:", 1)
    length = f" Reads up to {card.max_length} tokens." if card.max_length else ""
    what = "model that tags words" if card.of_words else "text classifier"
    return f"# {escape_markdown(card.name)}\n\nA small {what}. {escape_markdown(title)} {answers}{length}"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _scores(card: Card) -> str:
    if not card.scores:
        return ""
    rows = [
        [
            escape_markdown(f"{score.task}, {score.split}") + (f" ({score.rows} rows)" if score.rows else ""),
            words(score.metric),
            f"{score.value:.4f}",
            "" if score.teacher is None else f"{score.teacher:.4f}",
            _retention(score),
        ]
        for score in card.scores
    ]
    return _table(["data", "metric", "this model", "teacher", "kept"], rows)


def _retention(score: Score) -> str:
    return f"{100 * score.value / score.teacher:.1f} %" if score.teacher is not None and score.teacher > 0 else ""


def _files(card: Card) -> str:
    rows = [
        [
            f"`{file.name}`",
            file.form,
            megabytes(file.bytes),
            "" if file.max_difference is None else f"{file.max_difference:.1e}",
            _number(file.score, 4),
            _number(file.latency_ms, 2),
            _number(file.throughput, 0),
        ]
        for file in card.files
    ]
    if not rows:
        return ""
    metric = words(card.scores[0].metric) if card.scores else "score"
    headers = [
        "file",
        "form",
        "size",
        "largest difference of logits",
        f"dev {metric}",
        "ms a sequence",
        "sequences a second",
    ]
    return "\n\n".join(part for part in (_table(headers, rows), card.embeddings, card.conditions) if part)


def _sizes(card: Card) -> str:
    rows = [
        [escape_markdown(name), escape_markdown(student), escape_markdown(teacher or "")]
        for name, (student, teacher) in card.sizes.items()
    ]
    return _table(["", "this model", "teacher"], rows) if rows else ""


def _lineage(card: Card) -> str:
    steps = "\n".join(f"{number}. {escape_markdown(step)}" for number, step in enumerate(card.lineage, 1))
    if not card.layer_map:
        return steps
    pairs = ", ".join(f"{student} <- {teacher}" for student, teacher in sorted(card.layer_map.items()))
    return f"{steps}\n\nLayers, student <- teacher (0 = embeddings): {pairs}".strip()


def _use(card: Card) -> str:
    if card.of_words:
        return fenced(TAG_WORDS, "python")
    call = '{"text": "a text", "text_pair": "another"}' if card.pairs else '"a text"'
    every = ", top_k=None" if card.thresholds else ""
    lines = (
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", model=".")  # this directory, or its repository: OWNER/NAME',
        *((f"classify({call}, truncation=True{every})  # after {card.max_length} tokens",) if card.max_length else ()),
    )
    python = fenced("\n".join(lines), "python") + _thresholds(card)
    if not card.javascript:
        return python
    return f"{python}\n\nIn a browser or under Node, with transformers.js:\n\n{fenced(JAVASCRIPT, 'js')}"


def _thresholds(card: Card) -> str:
    """Returns the thresholds of several labels, which the pipeline of transformers knows nothing of."""
    if not card.thresholds:
        return ""
    rows = [[escape_markdown(name), f"{value:.4f}"] for name, value in card.thresholds.items()]
    text = (
        "The pipeline gives the probability of every label. A text has those whose probability is above their threshold, "
        "chosen on dev by the best F1 and stored in `config.json` as `label_thresholds`; `mbert predict` applies them."
    )
    return f"\n\n{text}\n\n{_table(['label', 'threshold'], rows)}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table without the columns that are empty in every row."""
    columns = [column for column in range(len(headers)) if any(row[column] for row in rows)]
    lines = [[headers[column] for column in columns], ["---"] * len(columns)]
    lines += [[row[column] for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def words(name: object) -> str:
    """Returns the name of a loss, phase or metric as words."""
    return str(name).replace("_", " ")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def megabytes(size: int) -> str:
    """Bytes as text in MB (a million bytes), with one decimal."""
    return f"{size / 1e6:,.1f} MB"
