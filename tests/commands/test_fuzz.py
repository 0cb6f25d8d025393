"""Whatever comes in, it works and gives something well-formed, or an MbertError with all its parts: nothing else, and soon.

Every property is written once and run twice: a few inputs, always the same, with `make test`; many, always others, with
`make torture`, which says how many it ran. `PROPERTIES` holds them with the number of inputs for each.
"""

import contextlib
import csv
import functools
import gzip
import io
import json
import math
import re
import shutil
import signal
import tomllib
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strange_inputs import HALVES, TEXTS, damaged, long, replaced, values
from tiny_models import WORDS, tiny_bert, tiny_glue, tiny_rows

from microbert_cli.augmentation.algorithm import AugmentSettings, DatasetAugmenter
from microbert_cli.augmentation.word_vectors import load_word_table, read_vectors
from microbert_cli.augmentation.words import Spelling, has_substance, stop_words
from microbert_cli.data.batching import epoch_batches
from microbert_cli.data.corpus.documents import read_documents, split_sentences
from microbert_cli.data.examples import Examples, from_table
from microbert_cli.data.load import complete, load_augmented, load_split, own_task, write_augmented
from microbert_cli.data.tables import read_table
from microbert_cli.data.tables.texts import open_inputs
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.errors import FAMILIES, MbertError
from microbert_cli.evaluation.metrics import compute
from microbert_cli.evaluation.submission import assemble_zip, write_submission
from microbert_cli.models.labels import match_names
from microbert_cli.models.load import load_model
from microbert_cli.recipe.layers import flatten
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Task, load_task
from microbert_cli.recipe.toml import to_toml
from microbert_cli.runs import manifest, run_record
from microbert_cli.runs.output_dir import differences, is_up_to_date, stage_output
from microbert_cli.runs.stage_inputs import steps
from microbert_cli.runs.stage_result import read_metrics
from microbert_cli.stages import predict
from microbert_cli.stages.augment import run as augment
from microbert_cli.stages.evaluate import run as evaluate
from microbert_cli.table_format import TableFormat

SLOW = 60  # seconds after which an input counts as one that hangs; a megabyte of text takes a few
LEAST = 100_000

settings.register_profile("quick", derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("torture", settings.get_profile("quick"), derandomize=False, print_blob=True)


@dataclass(frozen=True)
class Property:
    """What must hold for every input, and how many inputs it is shown."""

    check: Callable[[Any], Any]
    inputs: st.SearchStrategy[Any]
    quick: int
    torture: int


PROPERTIES: dict[str, Property] = {}
RAN: Counter[tuple[str, str]] = Counter()
REFUSED: Counter[tuple[str, str]] = Counter()


def holds_for(inputs: st.SearchStrategy[Any], *, quick: int = 15, torture: int) -> Callable[[Callable[[Any], Any]], Any]:
    """Enters a function of one input among the properties."""

    def enter(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
        PROPERTIES[check.__name__] = Property(check, inputs, quick, torture)
        return check

    return enter


class Hangs(AssertionError):
    """An input took longer than anyone waits."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Hangs(f"no answer after {SLOW} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SLOW)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def whole(error: MbertError) -> None:
    """All four parts of an error say something, and can be written wherever it is shown."""
    for each in [error, *getattr(error, "errors", [])]:
        parts = [each.what, each.where, each.allowed, each.fix]
        assert re.fullmatch(r"M\d{3}", each.code) and each.code[1] in FAMILIES
        assert all(isinstance(part, str) and part.strip() for part in parts), (each.code, parts)
        assert each.exit_code
    json.dumps(error.as_dict(), ensure_ascii=False).encode()
    str(error).encode()


def works_or_refuses(check: Callable[[Any], Any], value: Any) -> bool:
    """One input: in time, without a word on stdout, and without any exception but a whole MbertError; whether it worked."""
    output, works = io.StringIO(), True
    with in_time(), contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(value)
        except MbertError as error:
            works = False
            whole(error)
    assert output.getvalue() == ""
    return works


@contextlib.contextmanager
def without_refusal() -> Iterator[None]:
    """What was accepted once is no reason for an error later."""
    try:
        yield
    except MbertError as error:
        raise AssertionError(f"refused too late: {error}") from error


def drive(name: str, profile: str) -> None:
    """Shows a property its inputs."""
    tested = PROPERTIES[name]

    @settings(settings.get_profile(profile), max_examples=getattr(tested, profile))
    @given(tested.inputs)
    def run(value: Any) -> None:
        RAN[name, profile] += 1
        REFUSED[name, profile] += not works_or_refuses(tested.check, value)

    run()


@pytest.fixture(scope="module", autouse=True)
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for files, with models and data in it; models are opened once, since it is not they who are tested."""
    root = tmp_path_factory.mktemp("strange")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MBERT_CACHE", str(root / "cache"))
        patch.setattr(predict, "open_predictor", functools.cache(predict.open_predictor))
        patch.setattr("microbert_cli.models.load.load_model", functools.cache(load_model))
        tiny_glue("glue", FOLDERS, rows=12)
        tiny_bert("classifier", labels=["bad", "good"], positions=48, dropout=0.0)
        tiny_bert("filler", kind="masked-lm", positions=48, dropout=0.0)
        Path("vectors.txt").write_bytes(GLOVE)
        yield root


@pytest.fixture(scope="module", autouse=True)
def counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says in the end how many inputs really ran."""
    yield
    plugins = request.config.pluginmanager
    reporter = plugins.get_plugin("terminalreporter")
    if reporter is None:  # a worker of several has no terminal
        return
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line("")
        for (name, profile), count in RAN.items():
            reporter.write_line(f"{count:>9,} inputs, {REFUSED[name, profile]:>6,} refused: {name}, {profile}")
        reporter.write_line(f"{RAN.total():>9,} inputs in all")


def put(name: str, content: bytes | str) -> Path:
    """A file of this content in the workshop."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


# --- recipes ----------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
CATALOG = Catalog()
RECIPES = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.toml"))]
METHODS = [path.read_bytes() for path in sorted((ROOT / "microbert_cli" / "catalog" / "methods").glob("*.toml"))]
KEYS = [
    *flatten(Recipe().model_dump(mode="json")),
    *(f"phases.{phase}.{key}" for phase in ("intermediate", "prediction") for key in ("steps", "epochs", "losses", "data")),
    *("phases", "variant.x.stage", "variant.x.seeds", "variant.x.finetune.steps", "by_task.sst2.seed"),
    *("general.losses.embedding", "general.losses.soft_target.temperature", "finetune.losses.hard_label.weight"),
    *("data", "corpus", "vectors", "vocabulary", "teacher", "losses", "finetun", "a.b.c", ".", "..", "a..b", "data.folder.x"),
]
MEANT = (
    "sst2", "python-docs", "tinybert", "tinybert-4l-312", "bert-2x16", "bert-2x" + "9" * 5000, "auto", "fp32", "bf16", "off",
    "8GB", "first", "uniform", "masked", "reference", "adamw", "linear", "pairs", "packed", "once", "alone", "parquet",
    "tsv", "augmented", "google-bert/bert-base-uncased", "finetune", "finetun", "x", [1, 2], [0],
    ["finetune", "augment", "x"], ["masked_lm"], "classes", {"weight": 1.0}, {"soft_target": {"temperature": 2}},
    {"embedding": 1.0}, {"stage": "finetune"}, "2" * 5000, ["text", "label"],
)  # fmt: skip
TOML_VALUES = values(*MEANT, toml=True)
JSON = values("sst2", "accuracy", 16, 10**400, "9" * 5000)


def resolved(**given: Any) -> None:
    """The recipe resolves, its stages find their inputs, and what is written of it reads back as it was."""
    result = resolve(catalog=CATALOG, environment=given.pop("environment", {}), **given)
    values = {key: value for key, value in result.recipe.model_dump(mode="json").items() if value is not None}
    assert flatten(tomllib.loads(to_toml(values))) == {k: v for k, v in flatten(values).items() if v not in (None, {})}
    assert result.origins.keys() and all(result.origins.values())
    epoch_batches([3, 4], batch_size=1, seed=result.recipe.seed, epoch=0)
    for step in steps(result, Path("runs"), CATALOG):
        manifest.digest(step.resolved.recipe.identity(*Recipe.model_fields))


@holds_for(damaged(RECIPES), torture=3_000)
def recipe_files(content: bytes) -> None:
    resolved(recipe=put("recipe.toml", content))


@holds_for(damaged(METHODS), torture=1_500)
def method_files(content: bytes) -> None:
    resolved(flags={"method": str(put("method.toml", content)), "task": "cola"})


@holds_for(st.dictionaries(st.sampled_from(KEYS), TOML_VALUES, min_size=1, max_size=4), torture=4_000)
def recipe_values(flags: dict[str, Any]) -> None:
    resolved(flags=flags)


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


WORDS_OF_VALUES = st.one_of(TOML_VALUES.map(_as_word), TEXTS, HALVES, st.sampled_from(("[" * 3000, "{a=" * 3000, "9" * 5000)))
SETS = st.one_of(
    st.builds("{}={}".format, st.one_of(st.sampled_from(KEYS), TEXTS, st.just(".".join("a" * 2000))), WORDS_OF_VALUES),
    TEXTS,
    HALVES,
)


@holds_for(st.lists(SETS, min_size=1, max_size=3), torture=7_000)
def set_words(sets: list[str]) -> None:
    resolved(sets=sets)


@holds_for(st.dictionaries(TEXTS.map("MBERT_SET_{}".format), WORDS_OF_VALUES, max_size=2), torture=1_000)
def environments(environment: dict[str, str]) -> None:
    resolved(environment=environment)


# --- tasks ------------------------------------------------------------------------------------------------------------------

FOLDERS = ("sst2", "cola", "mrpc", "stsb", "mnli", "rte")
TASK_FILES = {path.stem: path.read_bytes() for path in sorted((ROOT / "microbert_cli" / "catalog" / "tasks").glob("*.toml"))}
OWN_TASK = {
    "name": "own",
    "text": ["text"],
    "label": {"column": "label", "names": ["bad", "good"], "kind": "classes"},
    "files": {"train": "own.csv", "dev": "own.csv"},
    "metrics": ["accuracy", "mean"],
    "submission": {"files": {"test": "own.tsv"}, "labels": "names", "filler": "bad", "rows": {"test": 2}},
}
TASK_WORDS = ("mean", "accuracy", "f1", "pearson", "score", "classes", "text", "label", "sentence", -1, -100, ["mean"])


def usable(task: Task) -> None:
    """A task that is accepted can be scored and read."""
    assert task.splits and len(task.text) in (1, 2)
    if task.kind.is_complete:
        given = np.arange(8.0) if task.kind.name == "score" else np.arange(8) % task.kind.num_outputs
        assert compute(task.metrics, given, given).keys() == set(task.metrics)
    for split in ("train", "dev"):
        if split in task.splits and not task.builtin:
            well_formed(load_split(task, split, data_dir=Path("glue")), task)


def well_formed(rows: Examples, task: Task) -> None:
    """Rows as every stage expects them."""
    assert len(rows) and all(len(texts) == len(task.text) for texts in rows.texts)
    for texts in rows.texts:
        for text in texts:
            assert task.allow_empty or text.strip()
            text.encode()
    for label in rows.labels or ():
        assert math.isfinite(label) if task.kind.name == "score" else 0 <= label < task.kind.num_outputs
    assert rows.fingerprint and len(rows.ids or ()) == len(rows)


@holds_for(damaged(list(TASK_FILES.values())), torture=6_000)
def task_files(content: bytes) -> None:
    usable(load_task(put("task.toml", content)))


TABLES_OF_TASKS = [OWN_TASK, *(tomllib.loads(TASK_FILES[name].decode()) | {"name": name} for name in FOLDERS)]


@holds_for(
    st.one_of([replaced(table, values(*TASK_WORDS, toml=True)) for table in TABLES_OF_TASKS]).filter(dict.__instancecheck__),
    torture=5_000,
)
def task_values(tables: Any) -> None:
    put("own.csv", "text,label\n" + "fine,good\npoor,bad\n" * 3)
    usable(load_task(tables))


# --- tables -----------------------------------------------------------------------------------------------------------------


def _csv(delimiter: str, rows: list[tuple[str, ...]]) -> bytes:
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return sink.getvalue().encode()


def _jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(table: pa.Table | None = None, **columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table or pa.table(columns), sink)
    return sink.getvalue()


ROWS = [(texts[0], ("bad", "good")[int(label)]) for texts, label in tiny_rows("sst2", 12)["train"]]
TEXT, LABEL = [text for text, _ in ROWS], [label for _, label in ROWS]
OWN_FILES = {
    "csv": [_csv(",", [("text", "label"), *ROWS]), b'text,label\n"a, ""b""",good\nc d,"bad"\n\n' + b"e,good\nf,bad\n" * 3],
    "tsv": [_csv("\t", [("text", "label"), *ROWS]), b"text\tlabel\nplain\t1\nother\t0\nthird\t1\nfourth\t0\n"],
    "jsonl": [
        _jsonl([{"text": text, "label": label} for text, label in ROWS]),
        _jsonl([{"label": i / 2, "text": f"no {i}", "more": None} for i in range(8)]),
    ],
    "parquet": [
        _parquet(text=TEXT, label=LABEL),
        _parquet(text=pa.array(TEXT).dictionary_encode(), label=list(range(12))),
        _parquet(label=[1.5] * 12, text=pa.array(TEXT, pa.large_string())),
        _parquet(**{"text": [{"a": 1}] * 3, "la.bel": [[1]] * 3}),
    ],
}
NAMES = ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.NDJSON", "a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "a.txt")
FILES = st.tuples(st.sampled_from(NAMES), damaged([*OWN_FILES["csv"], *OWN_FILES["tsv"], *OWN_FILES["jsonl"]]))


def _packed(name: str, content: bytes) -> bytes:
    """Most of what is called .gz is gzip."""
    return gzip.compress(content, 1) if name.endswith(".gz") and len(content) % 4 else content


@holds_for(st.tuples(FILES, st.sampled_from((True, False, None)), st.booleans(), st.integers(0, 2)), torture=13_000)
def tables(given: tuple[tuple[str, bytes], bool | None, bool, int]) -> None:
    (name, content), quoting, header, skipped = given
    form = TableFormat(quoting=quoting, header=header, skip_empty=skipped > 1)
    table = read_table(put(name, _packed(name, content)), form, skip_broken_rows=skipped)
    assert len(table)
    for name in table.names:
        with contextlib.suppress(MbertError):  # M356 for a name that is there twice, M355 for a key that some rows lack
            assert len(table.column(name)) == len(table) and table.names.count(name) == 1
    assert list(table.lines) == sorted(table.lines) and table.where(len(table) - 1)


@holds_for(damaged(OWN_FILES["parquet"]), torture=6_000)
def parquet_tables(content: bytes) -> None:
    table = read_table(put("a.parquet", content))
    assert len(table) and all(len(table.column(name)) == len(table) for name in table.names)
    from_table(table, load_task(OWN_TASK), "train")


OWN_CASES = st.one_of(
    st.tuples(st.just("csv"), damaged(OWN_FILES["csv"])),
    st.tuples(st.just("tsv"), damaged(OWN_FILES["tsv"])),
    st.tuples(st.just("jsonl"), damaged(OWN_FILES["jsonl"])),
    st.tuples(
        st.just("jsonl"),
        st.lists(st.fixed_dictionaries({"text": st.one_of(TEXTS, HALVES, JSON), "label": JSON}), max_size=5).map(_jsonl),
    ),
)


@holds_for(OWN_CASES, torture=8_000)
def own_files(case: tuple[str, bytes]) -> None:
    suffix, content = case
    task = complete(own_task(put(f"train.{suffix}", content), text="text", label="label"))
    assert task.kind.is_complete and all(len(name.splitlines()) == 1 for name in task.label.names or ())
    for split in ("train", "dev"):
        well_formed(load_split(task, split), task)


GLUE_FILES = {
    "SST-2/train.tsv": "sst2",
    "SST-2/test.tsv": "sst2",
    "CoLA/train.tsv": "cola",
    "MRPC/dev.tsv": "mrpc",
    "STS-B/train.tsv": "stsb",
    "MNLI/dev_matched.tsv": "mnli",
    "RTE/test.tsv": "rte",
}


@functools.cache
def _glue(place: str) -> bytes:
    return (Path("glue") / place).read_bytes()


GLUE_CASES = st.sampled_from(sorted(GLUE_FILES)).flatmap(
    lambda place: st.tuples(st.just(place), st.deferred(lambda: damaged([_glue(place)])))
)


@holds_for(GLUE_CASES, torture=5_000)
def glue_folders(case: tuple[str, bytes]) -> None:
    place, content = case
    put(f"broken/{place}", content)
    task = load_task(CATALOG.path("tasks", GLUE_FILES[place], where=""))
    split = Path(place).stem.removesuffix("_matched")
    well_formed(load_split(task, split, data_dir=Path("broken")), task)


@holds_for(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), torture=1_500)
def tables_come_back(rows: list[tuple[str, str]]) -> None:
    """What any of the formats can hold is read as it was written."""
    written = {
        "b.csv": _csv(",", [("text", "label"), *rows]),
        "b.tsv.gz": gzip.compress(_csv("\t", [("text", "label"), *rows]), 1),
        "b.jsonl": _jsonl([dict(zip(("text", "label"), row, strict=True)) for row in rows]),
        "b.parquet": _parquet(text=[row[0] for row in rows], label=[row[1] for row in rows]),
    }
    for name, content in written.items():
        table = read_table(put(name, content))
        assert list(zip(table.column("text"), table.column("label"), strict=True)) == rows, name


@holds_for(st.tuples(st.sampled_from(("csv", "tsv", "jsonl")), long(), st.integers(0, 3)), quick=2, torture=60)
def long_lines_of_tables(case: tuple[str, str, int]) -> None:
    suffix, text, form = case
    line = (text, f'"{text}', f'"a",{text}"x"y', json.dumps({"text": text, "label": "1" * 9000 + "x"}))[form]
    path = put(f"long.{suffix}", f"text{',' if suffix == 'csv' else chr(9)}label\n{line}\n")
    for quoting in (True, False):
        with contextlib.suppress(MbertError):
            read_table(path, TableFormat(quoting=quoting))
    complete(own_task(path, text="text", label="label"))


# --- corpora and word vectors -------------------------------------------------------------------------------------------------

CORPUS = [
    b'One sentence. "Another one!" And (a third) here.\nThe same document?\n\nA second one. It ends here.',
    "Ünïcode. 中文。 Ein Satz.\r\n\r\nNoch einer.\n".encode(),
]
CORPORA = st.one_of(
    st.tuples(st.just("c.txt"), damaged(CORPUS)),
    st.tuples(st.just("c.gz"), damaged([gzip.compress(text) for text in CORPUS])),
    st.tuples(st.just("c.gz"), damaged(CORPUS).map(lambda data: gzip.compress(data, 1))),
    st.tuples(st.just("c.parquet"), damaged([_parquet(text=TEXT), _parquet(text=[None, "a"]), _parquet(text=[1, 2])])),
)


@holds_for(CORPORA, torture=9_000)
def corpora(case: tuple[str, bytes]) -> None:
    for document in read_documents(str(put(*case))):
        assert document and all(isinstance(sentence, str) and sentence.strip() for sentence in document)


@holds_for(st.one_of(long(), TEXTS), quick=3, torture=200)
def long_paragraphs(text: str) -> None:
    assert all(split_sentences(text)) and all(map(str.strip, split_sentences(text)))
    list(read_documents(str(put("c.txt", text))))


GLOVE = b"".join(b"%s %.2f %.2f -0.5\n" % (word.encode(), i / 7, 1 - i / 5) for i, word in enumerate(WORDS[:20]))
FASTTEXT = b"2 3\nthe 0.1 0.2 0.3\n\xe4\xb8\xad -1 2e-3 .5 \n"


def _zip(name: str, content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return sink.getvalue()


@holds_for(damaged([GLOVE, FASTTEXT]), torture=9_000)
def word_vectors(content: bytes) -> None:
    words, vectors = read_vectors(io.BytesIO(content), limit=10, name="vectors")
    assert vectors.shape[0] == len(words) == len(set(words)) <= 10 and np.isfinite(vectors).all()


VECTOR_FILES = st.one_of(
    st.tuples(st.just("v.txt"), damaged([GLOVE])),
    st.tuples(st.just("v.gz"), damaged([gzip.compress(GLOVE)])),
    st.tuples(st.just("v.zip"), damaged([_zip("glove.txt", GLOVE), _zip("ü.txt", FASTTEXT)])),
)


@holds_for(VECTOR_FILES, torture=3_000)
def word_tables(case: tuple[str, bytes]) -> None:
    table = load_word_table(put(*case))
    neighbours = table.neighbours([table.words[0], "\0", "no such"], 3)
    assert len(neighbours) == 3 and len(neighbours[0]) <= 3 and set(neighbours[0]) <= set(table.words)


@holds_for(st.tuples(long(), st.booleans()), quick=1, torture=40)
def long_lines_of_vectors(case: tuple[str, bool]) -> None:
    text, second = case
    load_word_table(put("long.txt", GLOVE * second + f"a {text}x 1\n".encode()))


@holds_for(st.one_of(damaged([b"the\nof\n", "\ufeffüber\n".encode()])), torture=500)
def stop_word_files(content: bytes) -> None:
    assert all(words == words.strip() and words for words in stop_words(str(put("stop.txt", content))).words)


# --- text through the stages --------------------------------------------------------------------------------------------------

ANY_TEXT = st.one_of(TEXTS, TEXTS, TEXTS, HALVES, st.sampled_from(("", " ", "\u200b", "\ue000", "\t\n")))
PAIRS = st.one_of(st.lists(st.tuples(TEXTS), max_size=4), st.lists(st.tuples(TEXTS, TEXTS), max_size=4))


@functools.cache
def _loaded(kind: str) -> Any:
    return load_model(kind, {"filler": "masked-lm"}.get(kind, kind), where="test")


@functools.cache
def _table() -> Any:
    return load_word_table("vectors.txt")


@holds_for(st.tuples(PAIRS, st.integers(3, 48)), torture=10_000)
def encoded(case: tuple[list[tuple[str, ...]], int]) -> None:
    texts, length = case
    tokenized = tokenize_examples(Examples(texts), _loaded("classifier").tokenizer, length)
    assert len(tokenized) == len(texts) and len(tokenized.ids) == tokenized.offsets[-1] and tokenized.types is not None
    assert all(1 < n <= length for n in tokenized.lengths) and 0 <= tokenized.truncated <= len(texts)
    batch = tokenized.batch(range(len(texts)))
    assert batch["input_ids"].shape == (len(texts), max(tokenized.lengths, default=0))


@holds_for(TEXTS, torture=12_000)
def words_of_texts(text: str) -> None:
    words = _spelling().splitter.split(text)
    assert all(word and not any(map(str.isspace, word)) for word in words)
    assert sum(map(has_substance, words)) <= len(words)
    # Tokenizers may not know later characters than Unicode 3.2; a special token's name in a text is that token to them.
    if "[" not in text and all(unicodedata.ucd_3_2_0.category(char) != "Cn" for char in text):
        ids = _spelling().tokenizer([text, " ".join(words)], add_special_tokens=False)["input_ids"]
        assert ids[0] == ids[1] == [piece for word in words for piece in _spelling().pieces(word)]


@functools.cache
def _spelling() -> Spelling:
    return Spelling(_loaded("filler").tokenizer)


def own_rows_file(texts: list[str]) -> Task:
    """A task of these texts, labels in turn; the file is what a user would have."""
    rows = [{"text": text, "label": ("bad", "good")[i % 2]} for i, text in enumerate(texts)]
    path = put("texts.jsonl", _jsonl(rows))
    return own_task(path, path, text="text", label="label", labels=("bad", "good"))


FILLED = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5)
TEXT_LISTS = st.one_of(FILLED, FILLED, st.lists(ANY_TEXT, min_size=1, max_size=5))


@holds_for(st.tuples(TEXT_LISTS, st.sampled_from(("once", "sequential")), st.sampled_from(("tsv", "parquet"))), torture=2_500)
def augmented_rows(case: tuple[list[str], str, Any]) -> None:
    """Originals stay as they are, to the byte, each followed by its copies, and the file holds what was made."""
    texts, candidates, form = case
    task = own_rows_file(texts)
    rows = load_split(task, "dev")
    assert rows.texts == [(text,) for text in texts]
    with without_refusal():
        _varied(rows, task, candidates, form)


def _varied(rows: Examples, task: Task, candidates: str, form: Any) -> None:
    loaded = _loaded("filler")
    tools = {"tokenizer": loaded.tokenizer, "masked_lm_model": loaded.model, "vectors": _table()}
    augmented = DatasetAugmenter(rows, settings=AugmentSettings(copies=2, candidates=candidates), **tools).shard(0)
    kept = [row for row, varied in zip(augmented.texts, augmented.augmented or (), strict=True) if not varied]
    assert kept == rows.texts
    assert augmented.source == sorted(augmented.source or ()) and len(augmented) <= 3 * len(rows)
    path = Path(f"made.{form}")
    write_augmented(augmented, path, task, form)
    assert load_augmented(path, task) == augmented


@holds_for(st.tuples(TEXT_LISTS, st.sampled_from(("tsv", "parquet"))), quick=3, torture=200)
def augment_stage(case: tuple[list[str], str]) -> None:
    texts, form = case
    task = own_rows_file(texts)
    load_split(task, "train")
    with without_refusal():
        _augmented(texts, task, form)


def _augmented(texts: list[str], task: Task, form: str) -> None:
    flags = {"data.train_file": "texts.jsonl", "data.dev_file": "texts.jsonl", "augment.copies": 2, "augment.format": form}
    recipe = resolve(catalog=CATALOG, flags={**flags, "data.labels": ["bad", "good"]}, environment={}).recipe
    shutil.rmtree("augment", ignore_errors=True)
    result = augment.run(recipe, Path("augment"), catalog=CATALOG, masked_lm="filler", vectors="vectors.txt", force=False)
    rows = load_augmented(result.out, task)
    assert [row for row, varied in zip(rows.texts, rows.augmented or (), strict=True) if not varied] == [(t,) for t in texts]
    assert read_metrics(result.out)["rows_out"] == len(rows)


@holds_for(TEXT_LISTS, quick=3, torture=300)
def evaluate_stage(texts: list[str]) -> None:
    load_split(own_rows_file(texts), "dev")
    with without_refusal():
        _evaluated(texts)


def _evaluated(texts: list[str]) -> None:
    flags = {"data.train_file": "texts.jsonl", "data.dev_file": "texts.jsonl", "data.max_length": 32}
    recipe = resolve(catalog=CATALOG, flags={**flags, "data.labels": ["bad", "good"]}, environment={}).recipe
    shutil.rmtree("evaluate", ignore_errors=True)
    evaluate.run(recipe, Path("evaluate"), catalog=CATALOG, model="classifier")
    predictions = pq.read_table("evaluate/predictions.parquet").to_pydict()
    assert predictions["id"] == [str(i) for i in range(len(texts))] and set(predictions["prediction"]) <= {"bad", "good"}
    assert read_metrics(Path("evaluate"))["splits"]["dev"]["rows"] == len(texts)


def predicted(texts: list[tuple[str, ...]], **options: Any) -> None:
    """One answer a text, in the order of the texts: backwards gives the same backwards."""
    answers = predict.run("classifier", texts, **options)
    assert len(answers) == len(predict.as_lines(answers, as_json=True)) == len(texts)
    lines = [json.loads(line) for line in predict.as_lines(answers, as_json=True)]
    again = predict.run("classifier", texts[::-1], **options)[::-1]
    for first, second in zip(lines, again, strict=True):
        assert first["label"] in ("bad", "good") and sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-4)


@holds_for(st.tuples(st.lists(ANY_TEXT, max_size=5), st.sampled_from((None, 4, 48, 49, 10**6))), torture=4_000)
def predictions(case: tuple[list[str], int | None]) -> None:
    texts, length = case
    predicted(list(open_inputs(texts, None, None, columns=(), pairs=False).rows), max_length=length)


@holds_for(st.tuples(damaged([b"one line\nanother\n\nlast", b"a\tb\r\nc\td\n"]), st.booleans()), torture=6_000)
def predicted_lines(case: tuple[bytes, bool]) -> None:
    """A line is what ends in a line feed, as everywhere."""
    content, pairs = case
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16, whose line feeds are two bytes
        return
    texts = list(open_inputs((), None, io.BytesIO(content), columns=(), pairs=pairs).rows)
    assert len(texts) == content.count(b"\n") + (content != b"" and not content.endswith(b"\n") and content != b"\xef\xbb\xbf")
    assert list(open_inputs((), put("lines.txt", content), None, columns=(), pairs=pairs).rows) == texts
    if len(content) % 5 == 0:
        predicted(texts)


@holds_for(OWN_CASES, torture=2_000)
def predicted_tables(case: tuple[str, bytes]) -> None:
    path = put(f"predict.{case[0]}", case[1])
    texts = list(open_inputs((), path, None, columns=["text"], pairs=False).rows)
    assert texts == [(str(value),) for value in read_table(path).column("text") if value is not None]
    predicted(texts)


@holds_for(st.one_of(long(50_000), long()), quick=2, torture=12)
def long_texts(text: str) -> None:
    predicted([(text,), ("short",), (text + "a",)])
    task = own_rows_file([text, "the baker"])
    tokenize_examples(load_split(task, "dev"), _loaded("classifier").tokenizer, 48)
    _spelling().splitter.split(text)


@holds_for(long(30_000), quick=1, torture=10)
def long_texts_augmented(text: str) -> None:
    augmented_rows(([text, "the baker"], "once", "tsv"))


# --- tables as other programs write them --------------------------------------------------------------------------------------

FORMS_SAID = st.fixed_dictionaries(
    {},
    optional={
        "encoding": st.one_of(
            st.sampled_from(("utf-8", "UTF8", "cp1252", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-7", "cp037")),
            st.sampled_from(("idna", "punycode", "undefined", "base64", "mbcs", "unicode_escape", "raw_unicode_escape")),
            TEXTS,
        ),
        "delimiter": st.one_of(st.sampled_from((";", "|", "tab", "space", ",", "a", '"', "\n", "")), TEXTS),
        "header": st.booleans(),
        "quoting": st.sampled_from((True, False, None)),
        "skip_empty": st.booleans(),
    },
)  # fmt: skip
FOREIGN = [
    _csv(";", [("text", "label"), *ROWS]),
    _csv("|", [("text", "label", ""), *((*row, "") for row in ROWS)]),
    "text;label\nschön;gut\nübel;böse\n".encode("cp1252") * 2,
    "text\tlabel\n好\tgood\n坏\tbad\n".encode("utf-16"),
    json.dumps([{"text": text, "label": label} for text, label in ROWS]).encode(),
]


@holds_for(
    st.tuples(
        st.sampled_from(("a.csv", "A.TSV", "a.json", "a.csv.gz")),
        st.one_of(st.sampled_from(FOREIGN), damaged(FOREIGN)),
        st.one_of(st.just({}), FORMS_SAID),
    ),
    torture=3_000,
)
def foreign_tables(case: tuple[str, bytes, dict[str, Any]]) -> None:
    name, content, options = case
    path = put(name, _packed(name, content))
    task = complete(
        load_task({"name": "own", "text": ["text"], "label": {"column": "label"}, "files": {"train": str(path), **options}})
    )
    for split in ("train", "dev"):
        well_formed(load_split(task, split), task)


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030")


@holds_for(
    st.tuples(
        st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
        st.sampled_from(",;|\t"),
        st.sampled_from(ENCODINGS),
        st.booleans(),
    ),
    torture=1_500,
)
def foreign_tables_come_back(case: tuple[list[tuple[str, str]], str, str, bool]) -> None:
    """With its delimiter said or shown by the header, in any encoding that is said, in any packing: every cell as written."""
    rows, delimiter, encoding, shown = case
    lines = [dict(zip(("text", "label"), row, strict=True)) for row in rows]
    text = _csv(delimiter, [("text", "label"), *rows]).decode()
    form = TableFormat(encoding=encoding, delimiter=None if shown else delimiter, quoting=True)
    written = {
        "c.csv": (text.encode(encoding), form),
        "c.CSV.GZ": (gzip.compress(text.encode(encoding), 1), form),
        "c.csv.zip": (_zip("inner/C.CSV", text.encode(encoding)), form),
        "c.json": (json.dumps(lines).encode(), TableFormat()),
        "lines.json": (_jsonl(lines), TableFormat()),
        "c.zip": (_zip("c.parquet", _parquet(text=[row[0] for row in rows], label=[row[1] for row in rows])), TableFormat()),
        "c.pq": (_parquet(text=[row[0] for row in rows], label=[row[1] for row in rows]), TableFormat()),
    }
    for name, (content, options) in written.items():
        table = read_table(put(name, content), options)
        assert list(zip(table.column("text"), table.column("label"), strict=True)) == rows, name


def _members(members: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name.replace("\0", "") or "x", content)
    return sink.getvalue()


MEMBER_NAMES = st.one_of(
    st.sampled_from(("a.csv", "../a.csv", "/etc/a.csv", "d/", "__MACOSX/._a.csv", "a.CSV.gz", "a.json", "a.parquet", "a.zip")),
    TEXTS.map("{}.csv".format), TEXTS,
)  # fmt: skip
ZIPS = st.one_of(
    damaged([_zip("a.csv", OWN_FILES["csv"][0]), _zip("a.parquet", OWN_FILES["parquet"][0])]),
    st.tuples(MEMBER_NAMES, st.sampled_from(OWN_FILES["csv"])).map(lambda member: _members([member])),
    st.lists(st.tuples(MEMBER_NAMES, damaged([*OWN_FILES["csv"], *OWN_FILES["jsonl"]])), max_size=3).map(_members),
)


@holds_for(
    st.tuples(st.sampled_from(("a.zip", "a.zip", "a.zip", "a.csv.zip", "a.JSON.ZIP", "a.parquet.zip")), ZIPS), torture=3_000
)
def zips_of_tables(case: tuple[str, bytes]) -> None:
    table = read_table(put(*case))
    assert len(table) and table.where(len(table) - 1)
    for name in table.names:
        with contextlib.suppress(MbertError):
            assert len(table.column(name)) == len(table)


def _arrow_stream() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": TEXT, "label": pa.array([int(label == "good") for label in LABEL], pa.int64())})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


SAVED = {
    "state.json": {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None, "_split": "train"},
    "dataset_info.json": {
        "features": {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    },
}
JSON_OF_FOLDERS = values("ClassLabel", "data-00000-of-00001.arrow", "..", ["bad", "good"], [], {})
SAVED_FOLDERS = st.tuples(
    st.one_of(st.just(SAVED["state.json"]), replaced(SAVED["state.json"], JSON_OF_FOLDERS)),
    st.one_of(st.just(SAVED["dataset_info.json"]), replaced(SAVED["dataset_info.json"], JSON_OF_FOLDERS)),
    st.one_of(st.just(_arrow_stream()), damaged([_arrow_stream()])),
)


@holds_for(SAVED_FOLDERS, torture=3_000)
def saved_folders(case: tuple[Any, Any, bytes]) -> None:
    state, info, content = case
    put("saved/state.json", json.dumps(state))
    put("saved/dataset_info.json", json.dumps(info))
    put("saved/data-00000-of-00001.arrow", content)
    task = complete(own_task("saved", text="text", label="label"))
    well_formed(load_split(task, "train"), task)


# --- labels -------------------------------------------------------------------------------------------------------------------


@holds_for(st.lists(ANY_TEXT, min_size=1, max_size=5), torture=3_000)
def answers_are_one_line_each(labels: list[str]) -> None:
    """Whatever a foreign model calls its labels; in JSON they are whole."""
    answers = [{"label": label, "score": 0.5, "probabilities": {label: 0.5, "b": float("nan")}} for label in labels]
    for line in predict.as_lines(answers, as_json=False):
        assert len(line.splitlines()) <= 1
        line.encode()
    for line, label in zip(predict.as_lines(answers, as_json=True), labels, strict=True):
        assert len(line.splitlines()) == 1 and json.loads(line, parse_constant=pytest.fail)["label"] == label


NAMES_OF_LABELS = st.one_of(
    st.sampled_from(
        ("good", "Good", "GOOD", " good", "go-od", "go_od", "go od", "LABEL_0", "LABEL_1", "LABEL_10", "label 1", "1", "01",
         "1.0", "-1", "+1", "1 star", "2 stars", "", "²", "\u0663", "e\u0301", "\xe9", "\xdf", "ss", "\u0130", "i")
    ),
    ANY_TEXT,
)  # fmt: skip


@holds_for(
    st.tuples(st.lists(NAMES_OF_LABELS, max_size=6), st.lists(NAMES_OF_LABELS, max_size=6), st.randoms()), torture=10_000
)
def labels_match_one_to_one(case: tuple[list[str], list[str], Any]) -> None:
    labels, outputs, random = case
    for others in (outputs, outputs[: len(labels)] + labels[len(outputs) :], random.sample(labels, len(labels))):
        columns = match_names(labels, others)
        if columns is None:
            assert len(set(labels)) < len(labels) or sorted(labels) != sorted(others)
            continue
        assert sorted(columns) == list(range(len(labels))) and len(others) == len(labels)
        for label, column in zip(labels, columns, strict=True):  # what is called the same is the same
            assert others[column] == label or label not in others
        again = random.sample(range(len(others)), len(others))  # and the order of either side changes nothing
        moved = match_names(labels, [others[i] for i in again])
        assert moved is not None and [again[column] for column in moved] == columns


# --- losses -------------------------------------------------------------------------------------------------------------------

LOSSES = CATALOG.names("losses")
LOSS_KEYS = ("weight", "temperature", "heads", "relations", "divergence", "reduction", "normalisation", "layers", "x")
USUAL_TERMS = (
    ("finetune", "hard_label", "weight"), ("general", "hidden_states", "weight"), ("general", "embedding", "weight"),
    ("phases.intermediate", "attention_scores", "weight"), ("phases.prediction", "soft_target", "weight"),
    ("phases.prediction", "soft_target", "temperature"), ("phases.prediction", "soft_target", "divergence"),
)  # fmt: skip
NUMBERS = st.one_of(
    st.floats(0, 30),
    st.sampled_from((0.0, -0.0, 1e-30, -1e-30, 1e-3, 1e3, 1e30, 1e308, 1, 2)),
    values(0, -1e-30, 1e-30, 1e308, -1, 0.0, 5, "nan", "1", True, "kl", "auto", toml=True),
)


@holds_for(
    st.dictionaries(
        st.one_of(
            st.sampled_from(USUAL_TERMS),
            st.sampled_from(USUAL_TERMS),
            st.tuples(st.sampled_from(USUAL_TERMS).map(itemgetter(0)), st.sampled_from(LOSSES), st.sampled_from(LOSS_KEYS)),
        ),
        NUMBERS, min_size=1, max_size=3,
    ),
    torture=4_000,
)  # fmt: skip
def loss_parameters(parameters: dict[tuple[str, str, str], Any]) -> None:
    """Weights and temperatures that are accepted are numbers one can train with."""
    flags = {f"{phase}.losses.{loss}.{key}": value for (phase, loss, key), value in parameters.items()}
    recipe = resolve(catalog=CATALOG, environment={}, flags=flags).recipe.model_dump(mode="json")
    for (phase, loss, key), value in parameters.items():
        table = functools.reduce(dict.__getitem__, phase.split("."), recipe)["losses"][loss]
        if key == "weight":
            assert math.isfinite(table[key]) and table[key] >= 0, (phase, loss, value)
        if key == "temperature":
            assert 1e-3 <= table[key] <= 1e6, (phase, loss, value)


# --- what outputs say of themselves -------------------------------------------------------------------------------------------

MANIFEST = {
    "schema": 1,
    "stage": "finetune",
    "identity": {"recipe": {"task": "sst2", "data": {}}, "data": {"max_length": 16, "train": "x"}},
    "identity_hash": "0" * 64,
    "result": "1" * 64,
    "recipe": {"task": "sst2", "data": {"folder": None, "text": "text", "train_file": "a.csv"}},
    "argv": ["mbert", "finetune"],
    "outputs": {"model.safetensors": "2" * 64},
}
SCORES = {"task": "own", "dev": {"accuracy": 0.5, "f1": 1}, "splits": {"dev": {"metrics": {"accuracy": 0.5}, "rows": 2}}}
ANY_JSON = st.one_of(
    JSON.map(json.dumps).map(str.encode),
    replaced(MANIFEST, JSON).map(json.dumps).map(str.encode),
    replaced(SCORES, JSON).map(json.dumps).map(str.encode),
    damaged([json.dumps(MANIFEST).encode(), json.dumps(SCORES).encode()]),
)


def each(*looks: Callable[[], Any]) -> None:
    """Looks one after another, also where an earlier one was refused."""
    for look in looks:
        try:
            look()
        except MbertError as error:
            whole(error)


@holds_for(ANY_JSON, torture=3_000)
def manifests(content: bytes) -> None:
    from microbert_cli.cli.execute import resolve_for_model, task_flags
    from microbert_cli.cli.options import CommonOptions, TaskOptions

    folder = put("made/manifest.json", content).parent
    put("made/config.json", "{}")
    each(
        lambda: manifest.identify(folder),
        lambda: is_up_to_date(folder, {"a": 1}),
        lambda: differences(folder, {"a": 1}),
        lambda: predict._trained_length(folder),
        lambda: task_flags(str(folder), TaskOptions()),
        lambda: resolve_for_model(str(folder), TaskOptions(), CommonOptions()),
    )


@holds_for(ANY_JSON, torture=500)
def begun_work(content: bytes) -> None:
    """What is left of begun work says nothing sensible: the work begins anew."""
    put("begun.partial/begun.json", content)
    put("begun.partial/log.jsonl", "")
    manifest.finishing_command(Path("begun.partial"))
    shutil.rmtree("begun", ignore_errors=True)
    with stage_output(Path("begun"), stage="x", identity={}) as work:
        put(str(work.path / "file"), "x")
    for left in Path().glob("begun*"):
        shutil.rmtree(left)
    put("run/run.json", content)
    each(lambda: run_record.claim(Path("run"), "recipe"), lambda: run_record.is_unchanged(Path("run"), "recipe", []))
    assert run_record._read(Path("run")) is not None


@holds_for(ANY_JSON, torture=1_500)
def scores(content: bytes) -> None:
    from microbert_cli.cli.evaluate import _read_baseline
    from microbert_cli.evaluation.gates import Gates

    path = put("scored/metrics.json", content)
    each(
        lambda: Gates(baseline=_read_baseline(path)).check(SCORES),
        lambda: read_metrics(path.parent).keys(),
    )


SUBMITTED = b"index\tprediction\n0\tbad\n1\tgood\n"


@holds_for(damaged([SUBMITTED, b"index\tprediction\n"]), torture=1_500)
def submissions(content: bytes) -> None:
    task = load_task(OWN_TASK)
    assemble_zip({"own.tsv": put("own.tsv", content)}, Path("all.zip"), tasks=[task])
    with zipfile.ZipFile("all.zip") as bundle:
        assert bundle.testzip() is None and bundle.namelist() == ["own.tsv"]
        assert all(line.count(b"\t") == 1 for line in bundle.read("own.tsv").removesuffix(b"\n").split(b"\n"))


CELLS = TEXTS.map(lambda text: text.translate({9: "_", 10: "_"}))


@holds_for(st.lists(st.tuples(CELLS, st.integers(0, 1)), max_size=4), torture=1_000)
def submissions_come_back(rows: list[tuple[str, int]]) -> None:
    task = load_task(OWN_TASK)
    with without_refusal():
        _submitted(task, rows)


def _submitted(task: Task, rows: list[tuple[str, int]]) -> None:
    write_submission(task, "test", [name for name, _ in rows], [label for _, label in rows], Path("mine.tsv"))
    assemble_zip({"own.tsv": Path("mine.tsv")}, Path("mine.zip"), tasks=[task])
    with zipfile.ZipFile("mine.zip") as bundle:
        lines = bundle.read("own.tsv").decode().split("\n")
    assert [line.split("\t")[1] for line in lines[1:-1]] == [("bad", "good")[label] for _, label in rows]


# --- what was found ----------------------------------------------------------------------------------------------------------

DEEP, DIGITS, NO_NAME = b"[" * 3000, b"9" * 5000, "a" * 300
RTE = tomllib.loads(TASK_FILES["rte"].decode()) | {"name": "rte"}


def _rte(**folder: Any) -> dict[str, Any]:
    return {**RTE, "folder": {**RTE["folder"], **folder}}


def _manifest(**parts: Any) -> bytes:
    return json.dumps({**MANIFEST, **parts}).encode()


FOUND: list[tuple[Callable[[Any], Any], Any]] = [
    (recipe_files, b"a = " + DEEP),
    (recipe_files, b"seed = " + DIGITS),
    (recipe_files, b"a." * 2000 + b"a = 1"),
    (recipe_files, b'[variant."\xc3\xa9."]\nseed = 1'),
    (set_words, ["seed=0x" + "f" * 5000]),
    (set_words, ["\udce9"]),
    (set_words, [f"student={NO_NAME}"]),
    (set_words, [f"method={NO_NAME}.toml"]),
    (recipe_values, {"seed": -1}),
    (recipe_values, {"finetune.epochs": math.inf}),
    (recipe_values, {"stages": ["evaluate"], "evaluate.model": NO_NAME}),
    (recipe_values, {"title": "\x7f"}),
    (method_files, b"by_task = 3"),
    (task_files, b"text = " + DEEP),
    (task_values, {**OWN_TASK, "metrics": 5}),
    (task_values, {**OWN_TASK, "metrics": ["mean"]}),
    (task_values, {**OWN_TASK, "files": {"train": "a\0.csv"}}),
    (task_values, _rte(splits=5)),
    (task_values, _rte(columns={"sentence1": -100})),
    (task_values, _rte(columns={"sentence1": []})),
    (task_values, _rte(name="a/b/" * 1500)),
    (tables, (("a.tsv", b"text\tlabel\nno label\n"), True, True, 1)),
    (tables, (("a.jsonl", b'{"text":' + DEEP), True, True, 0)),
    (tables, (("a.jsonl", b'{"text":' + DIGITS + b"}"), True, True, 0)),
    (parquet_tables, _parquet(pa.Table.from_arrays([TEXT, TEXT, LABEL], ["text", "text", "label"]))),
    (own_files, ("csv", b"text,label\n" + b"".join(b"t%d,%s\n" % (i, DIGITS + b"%d" % (i % 2)) for i in range(9)))),
    (own_files, ("csv", b"text,label\na,%s\nb,1\n" % (b"1" * 200_000 + b"x"))),
    (own_files, ("csv", b'text,label\na,"two\nlines"\nb,one\nc,one\n')),
    (corpora, ("c.gz", gzip.compress(CORPUS[0])[:10] + b"\xff" * 20)),
    (corpora, ("c.parquet", _parquet(text=[None, "a"]))),
    (corpora, ("c.parquet", _parquet(text=[1, 2]))),
    (corpora, ("c.parquet", _parquet(text=TEXT)[:20] + b"\xff" * 40 + _parquet(text=TEXT)[60:])),
    (word_vectors, b"a 1 2\nb " + b"1" * 200_000 + b"x\n"),
    (words_of_texts, "the\x0bboat\x85is\x1cwarm"),
    (augmented_rows, (["\u200b"], "once", "tsv")),
    (augmented_rows, (["the\rboat", "fine\x85"], "once", "tsv")),
    (predicted_lines, (b"one\xe2\x80\xa8line\x0b\n", False)),
    (predictions, (["\udce9"], None)),
    (predictions, (["the boat " * 60], 10**6)),
    (predicted_tables, ("jsonl", b'{"text": null}\n')),
    (manifests, _manifest(identity=5)),
    (manifests, _manifest(identity={"data": []})),
    (manifests, _manifest(recipe=[1])),
    (manifests, _manifest(argv=[["mbert"]])),
    (manifests, _manifest(recipe={"tasks": 5})),
    (manifests, DEEP),
    (begun_work, b"[]"),
    (begun_work, b'{"argv": 5, "identity_hash": 5}'),
    (scores, b"[]"),
    (scores, b'{"dev": {"accuracy": 1' + b"0" * 400 + b"}}"),
    (submissions_come_back, [("a\x85b", 0), ("c\rd", 1)]),
]


@pytest.mark.parametrize(("check", "value"), FOUND, ids=[f"{check.__name__}-{i}" for i, (check, _) in enumerate(FOUND)])
def test_what_was_found(check: Callable[[Any], Any], value: Any) -> None:
    works_or_refuses(check, value)


# --- all of them --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_few_inputs(name: str) -> None:
    drive(name, "quick")


@pytest.mark.torture
@pytest.mark.parametrize("name", PROPERTIES)
def test_many_inputs(name: str) -> None:
    drive(name, "torture")


@pytest.mark.torture
def test_many_inputs_were_many() -> None:
    """Comes last; says nothing where only some properties were chosen."""
    ran = [RAN[name, "torture"] for name in PROPERTIES]
    assert not all(ran) or sum(ran) >= LEAST
