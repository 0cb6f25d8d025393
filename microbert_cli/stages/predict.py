"""Labels for texts: lines, a table's columns, or a stream."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from microbert_cli.data.encoded.cascade import for_cascade
from microbert_cli.data.examples import Examples
from microbert_cli.data.generation.rows import Lengths, text_pairs
from microbert_cli.data.tables.texts import Inputs, Texts, windows_of
from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples
from microbert_cli.data.windows.examples import tokenize_windows
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import scoring
from microbert_cli.models.architectures import check_length, check_texts, positions_of
from microbert_cli.models.exits.speed import chosen_speed
from microbert_cli.models.exported.files import is_export
from microbert_cli.models.find import is_cascade
from microbert_cli.models.predictor import Predictor, open_predictor
from microbert_cli.models.windows.settings import windows_of_model
from microbert_cli.recipe.task_kinds import TaskKind, kind_of_model
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.text import is_valid_text, json_line, one_line

NO_TAG = "-"  # of a word that a model did not read


def run(
    model: str,
    texts: Texts,
    *,
    task: str | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    speed: float | None = None,
    reporter: Reporter = SILENT,
) -> list[dict[str, Any]]:
    """Returns one record a text: {"label", "score", "probabilities"}; {"score"} for scores; {"labels", "probabilities"} where a
    text may have several; `task` for a model of several.
    """
    options: dict[str, Any] = {"task": task, "max_length": max_length, "batch_size": batch_size, "speed": speed}
    blocks = answer(model, Inputs(texts, len(texts)), reporter=reporter, **options)
    return [record for block in blocks for record in block]


def answer(
    model: str,
    inputs: Inputs,
    *,
    task: str | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    speed: float | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[list[dict[str, Any]]]:
    """Yields the records of `run` in the texts' order, a list for every window of texts; no further text is read before.

    Within a window texts are answered by length, so that the answers of a batch come late but little of it is padding.
    """
    windows = windows_of(inputs.rows)
    first = next(windows, None)  # texts that cannot be read are said before a model is opened
    if not (is_export(Path(model)) or is_cascade(Path(model))):
        from microbert_cli.distillation.generation.text_task import fills_in, is_filler  # loads torch
        from microbert_cli.models.find import directory_writes

        if directory_writes(model):
            given = windows if first is None else chain([first], windows)
            yield from _write(model, given, max_length=max_length, batch_size=batch_size, speed=speed, reporter=reporter)
            return
        if is_filler(model):
            raise fills_in(f"MODEL {model}", model)
    predictor = open_predictor(model, None, task_name=task, speed=speed)
    if first is None:
        return
    config = predictor.model.config
    check_texts(len(first[0]), config, where=f"MODEL {model}", fix="Two texts a line, a tab between: --pairs")
    if max_length:
        check_length(max_length, config, where="--max-length")
    by_model = windows_of_model(config, where=f"MODEL {model}")
    length = max_length or (by_model.max_length if by_model else _trained_length(Path(model))) or 512
    kind, before = kind_of_model(config), 0
    if kind.of_words and len(first[0]) > 1:
        raise _tags_single_texts(model)
    for texts in chain([first], windows):
        _check_characters(texts, before)
        progress: dict[str, Any] = {"reporter": reporter, "name": "predict", "place": "text", "before": before}
        logits = scoring.logits_of(
            predictor.answers,
            _encode(texts, predictor, length, kind),
            pad_id=predictor.tokenizer.pad_token_id,
            batch_size=batch_size,
            total=inputs.count or 0,
            **progress,
        )
        records = kind.text_answers(logits, texts)
        if unread := sum(record.get("unread_words", 0) for record in records):
            reporter.warn(f"{unread:,} words are not read, behind {length:,} tokens or of no token: they have no score")
        yield records
        before += len(texts)


def _write(
    model: str, windows: Iterable[Texts], *, max_length: int | None, batch_size: int, speed: float | None, reporter: Reporter
) -> Iterator[list[dict[str, Any]]]:
    """Yields one record a text, {"text"}: what a model that writes makes of it, by the search of its generation_config."""
    from microbert_cli.evaluation.generation.writing import written_texts
    from microbert_cli.models.generation.writer import SEQ2SEQ
    from microbert_cli.models.load import frozen, load_model

    loaded, before = None, 0
    for texts in windows:
        if len(texts[0]) > 1:
            raise _reads_single_texts(model)
        _check_characters(texts, before)
        if loaded is None:
            loaded = load_model(model, SEQ2SEQ, where=f"MODEL {model}")
            config, search = loaded.model.config, loaded.model.generation_config
            chosen_speed(config, speed, where=f"MODEL {model}")
            if max_length:
                check_length(max_length, config, where="--max-length")
            length = min(max_length or _trained_length(Path(model)) or 512, positions_of(config) or 512)
            writer = frozen(loaded.model)
        pairs = text_pairs(Examples(texts), loaded.tokenizer, Lengths(length, length))
        if pairs.truncated:
            reporter.warn(
                f"{pairs.truncated:,} of {len(texts):,} texts are longer than {length} tokens: the rest of them is not read"
            )
        written = written_texts(
            writer, loaded.tokenizer, pairs, beams=search.num_beams or 1, length_penalty=search.length_penalty or 1.0,
            most=length, batch_size=batch_size, reporter=reporter, name="predict",
        )  # fmt: skip
        yield [{"text": text} for text in written]
        before += len(texts)


def _encode(texts: Texts, predictor: Predictor, length: int, kind: TaskKind) -> TokenizedExamples:
    encoded = _tokenize(texts, predictor, length, kind)
    if (big := predictor.sends_to) is not None:
        return for_cascade(encoded, _tokenize(texts, big, length, kind), big.tokenizer.pad_token_id)
    return encoded


def _tokenize(texts: Texts, answers: Predictor, length: int, kind: TaskKind) -> TokenizedExamples:
    positions = positions_of(answers.model.config) or length
    length = min(length, positions)
    if not kind.of_words and (by_model := windows_of_model(answers.model.config)):
        return tokenize_windows(Examples(texts), answers.tokenizer, by_model.of_length(length))
    return tokenize_examples(Examples(texts), answers.tokenizer, length, kind)


def as_lines(answers: Sequence[dict[str, Any]], *, as_json: bool) -> list[str]:
    """Records as text, one a line; a label of a foreign model may hold line feeds, and what else its author put there."""
    if as_json:
        return [json_line(answer) for answer in answers]
    if answers and "labels" in answers[0]:
        return ["|".join(one_line(str(label)) for label in answer["labels"]) for answer in answers]
    if answers and "tags" in answers[0]:  # of words
        return [" ".join(tag or NO_TAG for tag in answer["tags"]) for answer in answers]
    name = next((name for name in ("label", "text") if answers and name in answers[0]), None)
    if name is None:
        return [f"{answer['score']:.4f}" for answer in answers]
    shown = {text: one_line(str(text)) for text in {answer[name] for answer in answers}}
    return [shown[answer[name]] for answer in answers]


def _trained_length(model: Path) -> int | None:
    output = manifest.output_of(manifest.model_home(model))
    if output is None:
        return None
    facts = manifest.read(output)
    # Of several tasks the identity has an entry each; the recipe has the length of all.
    lengths = (table.get("data", {}).get("max_length") for table in (facts["identity"], facts.get("recipe", {})))
    return next((length for length in lengths if isinstance(length, int)), None)


def _check_characters(texts: Texts, before: int) -> None:
    for number, row in enumerate(texts, before + 1):
        if not all(map(is_valid_text, row)):
            raise MbertError(
                "M382",
                "this text holds half a character (a lone surrogate)",
                where=f"text {number}",
                allowed="Texts of whole characters, in UTF-8.",
                fix="Mend that text; of a file in another encoding say which: --set data.encoding=NAME",
            )


def _tags_single_texts(model: str) -> MbertError:
    return MbertError(
        "M439",
        "this model tags the words of a text, and here are pairs of texts",
        where=f"MODEL {model}",
        allowed="One text a row.",
        fix="Leave out --pairs, or name one column: --text tokens",
    )


def _reads_single_texts(model: str) -> MbertError:
    return MbertError(
        "M150",
        "this model writes a text for a text, and here are pairs of texts",
        where=f"MODEL {model}",
        allowed="One text a row.",
        fix="Leave out --pairs, or name one column: --text source",
    )
