"""Labels for texts: lines, a table's columns, or a stream."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from microbert_cli.data.examples import Examples
from microbert_cli.data.generation.rows import Lengths, text_pairs
from microbert_cli.data.labels import and_more
from microbert_cli.data.limits import check_text
from microbert_cli.data.tables import AS_SHOWN, Table, read_table
from microbert_cli.data.tables.content import decode, read_bytes
from microbert_cli.data.tokenized import TokenizedExamples, for_cascade, tokenize_examples
from microbert_cli.distillation.generation.text_task import fills_in, is_filler
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import scoring
from microbert_cli.evaluation.generation.writing import written_texts
from microbert_cli.models.architectures import check_length, check_texts, positions_of
from microbert_cli.models.exits.answers import chosen_speed
from microbert_cli.models.generation.writer import SEQ2SEQ, directory_writes
from microbert_cli.models.load import frozen, load_model
from microbert_cli.models.predictor import Predictor, open_predictor
from microbert_cli.recipe.task_kinds import TaskKind, kind_class, kind_of_model
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.table_format import TABLE_SUFFIXES, TableFormat, is_table
from microbert_cli.text import is_valid_text, json_line, one_line

Texts = list[tuple[str, ...]]


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
    """Returns one record a text: {"label", "score", "probabilities"}; {"score"} for scores; `task` for a model of several."""
    if directory_writes(model):
        return _write(model, texts, max_length=max_length, batch_size=batch_size, speed=speed, reporter=reporter)
    if is_filler(model):
        raise fills_in(f"MODEL {model}", model)
    answers = open_predictor(model, None, task_name=task, speed=speed)
    if not texts:
        return []
    check_texts(len(texts[0]), answers.model.config, where=f"MODEL {model}", fix="Two texts a line, a tab between: --pairs")
    if max_length:
        check_length(max_length, answers.model.config, where="--max-length")
    length = max_length or _trained_length(Path(model)) or 512
    _check_characters(texts)
    encoded = _tokenize(texts, answers, length)
    if (big := answers.sends_to) is not None:
        encoded = for_cascade(encoded, _tokenize(texts, big, length), big.tokenizer.pad_token_id)
    pad_id = answers.tokenizer.pad_token_id
    logits = scoring.logits_of(
        answers.answers, encoded, pad_id=pad_id, batch_size=batch_size, reporter=reporter, name="predict", place="text"
    )
    return kind_of_model(answers.model.config).answers(logits)


def _write(
    model: str, texts: Texts, *, max_length: int | None, batch_size: int, speed: float | None, reporter: Reporter
) -> list[dict[str, Any]]:
    """Returns one record a text, {"text"}: what a model that writes makes of it, by the search of its generation_config."""
    if not texts:
        return []
    if len(texts[0]) > 1:
        raise _reads_single_texts(model)
    _check_characters(texts)
    loaded = load_model(model, SEQ2SEQ, where=f"MODEL {model}")
    config, search = loaded.model.config, loaded.model.generation_config
    chosen_speed(config, speed, where=f"MODEL {model}")
    if max_length:
        check_length(max_length, config, where="--max-length")
    length = min(max_length or _trained_length(Path(model)) or 512, positions_of(config) or 512)
    pairs = text_pairs(Examples(texts), loaded.tokenizer, Lengths(length, length))
    if pairs.truncated:
        reporter.warn(
            f"{pairs.truncated:,} of {len(texts):,} texts are longer than {length} tokens: the rest of them is not read"
        )
    written = written_texts(
        frozen(loaded.model), loaded.tokenizer, pairs, beams=search.num_beams or 1, length_penalty=search.length_penalty or 1.0,
        most=length, batch_size=batch_size, reporter=reporter, name="predict",
    )  # fmt: skip
    return [{"text": text} for text in written]


def _tokenize(texts: Texts, answers: Predictor, length: int) -> TokenizedExamples:
    positions = positions_of(answers.model.config) or length
    return tokenize_examples(Examples(texts), answers.tokenizer, min(length, positions))


def read_inputs(
    texts: Sequence[str],
    file: Path | None,
    stream: IO[bytes] | None,
    *,
    columns: Sequence[str],
    pairs: bool,
    model: str | None = None,
    form: TableFormat = AS_SHOWN,
    reporter: Reporter = SILENT,
) -> Texts:
    """Texts as given, lines of a file or a stream, or columns of a table; a pair is two texts with a tab between.

    model  whose own training table says which columns a table's texts are in, where none are named
    form   what is said of the file's format
    """
    if columns and (file is None or stream is not None):
        raise _no_table()
    if texts and file is not None:
        raise _two_inputs(file)
    if file is not None and stream is None and not columns and is_table(file):
        columns = _trained_columns(model)
        if not columns:
            raise _which_column(file)
    if columns and file is not None:
        table = read_table(file, form, reporter=reporter)
        rows = list(zip(*(_column_texts(table, name) for name in columns), strict=True))
        return _check_lengths(rows, table.where)
    if stream is not None:
        place, lines = "stdin", _decode_lines(stream.read(), "stdin", form, reporter)
    else:
        place = str(file or "TEXTS")
        lines = list(texts) if file is None else _decode_lines(_read_bytes(file), place, form, reporter)
    rows = [_split_pair(line, number) if pairs else (line,) for number, line in enumerate(lines, 1)]
    return _check_lengths(rows, lambda row: f"{place}, line {row + 1}")


def as_lines(answers: Sequence[dict[str, Any]], *, as_json: bool) -> list[str]:
    """Records as text, one a line; a label of a foreign model may hold line feeds, and what else its author put there."""
    if as_json:
        return [json_line(answer) for answer in answers]
    return [_as_line(answer) for answer in answers]


def _as_line(answer: dict[str, Any]) -> str:
    named = next((answer[name] for name in ("label", "text") if name in answer), None)
    return f"{answer['score']:.4f}" if named is None else one_line(str(named))


def _trained_length(model: Path) -> int | None:
    output = manifest.output_of(model.parent if model.is_file() else model)
    if output is None:
        return None
    facts = manifest.read(output)
    # Of several tasks the identity has an entry each; the recipe has the length of all.
    lengths = (table.get("data", {}).get("max_length") for table in (facts["identity"], facts.get("recipe", {})))
    return next((length for length in lengths if isinstance(length, int)), None)


def _trained_columns(model: str | None) -> list[str]:
    """Returns the text columns of the user's own table that a model was trained on; none where it was another task."""
    home = Path(model or "")
    home = home.parent if home.is_file() else home
    if not model or not (home / manifest.FILE).is_file():
        return []
    data = manifest.read(home).get("recipe", {}).get("data", {})
    if not data.get("train_file"):
        return []
    columns = data.get("text") or (kind_class(data["kind"]) if data.get("kind") else TaskKind).columns[0]
    return [columns] if isinstance(columns, str) else [str(column) for column in columns]


def _column_texts(table: Table, column: str) -> list[str]:
    """Returns the texts of a column; numbers are texts too, but what is missing, NaN, a list or an object is none."""
    values = table.column(column)
    wrong = [row for row, value in enumerate(values) if _is_no_text(value)]
    if wrong:
        value = values[wrong[0]]
        what = (
            "there is no text" if value is None or isinstance(value, float) else f"there is a {type(value).__name__}, no text,"
        )
        raise MbertError(
            "M381",
            f'{what} in column "{column}"{and_more(len(wrong))}',
            where=table.where_all(wrong),
            allowed="A text in every row; an empty one is a text.",
            fix=f"Mend or delete {'that row' if len(wrong) == 1 else 'these rows'}, or name another column: --text COLUMN.",
        )
    return [str(value) for value in values]


def _is_no_text(value: Any) -> bool:
    return not isinstance(value, str | int | float) or isinstance(value, float) and not math.isfinite(value)


def _check_characters(texts: Texts) -> None:
    for number, row in enumerate(texts, 1):
        if not all(map(is_valid_text, row)):
            raise MbertError(
                "M382",
                "this text holds half a character (a lone surrogate)",
                where=f"text {number}",
                allowed="Texts of whole characters, in UTF-8.",
                fix="Mend that text; of a file in another encoding say which: --set data.encoding=NAME",
            )


def _read_bytes(file: Path) -> bytes:
    try:
        return read_bytes(file)[0] or b""
    except MbertError as error:
        if error.code != "M252":
            raise
        raise MbertError(
            "M206",
            f"this file cannot be read: {error.what}",
            where=f"--file {file}",
            allowed="A text file with one text a line, or a table with --text COLUMN.",
            fix="Check the path.",
        ) from None


def _decode_lines(raw: bytes, name: str, form: TableFormat, reporter: Reporter) -> list[str]:
    try:
        text = decode(raw, Path(name), form.encoding, reporter=reporter)
    except MbertError as error:
        if error.code != "M353":
            raise
        raise MbertError("M360", error.what, where=error.where, allowed=error.allowed, fix=error.fix) from None
    lines = text.split("\n")  # only a line feed ends a line, as in tables: texts hold other separators
    return [line.removesuffix("\r") for line in lines[: len(lines) - (not lines[-1])]]


def _check_lengths(rows: Texts, where: Callable[[int], str]) -> Texts:
    for number, row in enumerate(rows):
        for text in row:
            check_text(text, where(number))
    return rows


def _split_pair(line: str, number: int) -> tuple[str, ...]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise MbertError(
            "M361",
            "this line has no tab, so it is no pair",
            where=f"line {number}",
            allowed="Two texts with one tab between them.",
            fix="Leave out --pairs for single texts.",
        )
    return first, second


def _reads_single_texts(model: str) -> MbertError:
    return MbertError(
        "M150",
        "this model writes a text for a text, and here are pairs of texts",
        where=f"MODEL {model}",
        allowed="One text a row.",
        fix="Leave out --pairs, or name one column: --text source",
    )


def _no_table() -> MbertError:
    return MbertError(
        "M107",
        "a text column is named, but no table",
        where="--text",
        allowed=f"--text goes with --file, and a file that ends in {', '.join(TABLE_SUFFIXES)}.",
        fix="Name the table: --file FILE --text COLUMN, or leave out --text for plain lines.",
    )


def _two_inputs(file: Path) -> MbertError:
    return MbertError(
        "M108",
        "texts are given as arguments, and a file as well",
        where=f"--file {file}",
        allowed="One of the two.",
        fix=f"Leave out the texts: mbert predict MODEL --file {file}",
    )


def _which_column(file: Path) -> MbertError:
    return MbertError(
        "M106",
        "this is a table, and no column is named",
        where=f"--file {file}",
        allowed="--text COLUMN, twice for pairs.",
        fix=f"mbert predict MODEL --file {file} --text text",
    )
