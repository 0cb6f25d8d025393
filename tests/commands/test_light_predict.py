"""`mbert predict` of an export: no torch, the answers that transformers' reading of it gives, and any number of texts."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mbert_command import Done, mbert, refused, works
from onnx import TensorProto, helper, numpy_helper
from tiny_models import tiny_bert, tiny_glue, tiny_tokenizer
from transformers import AutoConfig

from microbert_cli import api
from microbert_cli.data.examples import Examples
from microbert_cli.data.tables import texts as inputs
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.models import predictor
from microbert_cli.models.config import register_model_type
from microbert_cli.models.exits.build import ExitSettings, exit_config
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.stages import predict

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "pyarrow")
LINES = [
    "a lovely boat", "", "the gloomy kettle near the harbour is broken, and nobody mended it", "Why?", "awful " * 60, " ",
    "the baker sold the boat", "x", "it is [MASK] lovely [SEP]", "don't; stop",
]  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def write_sum(path: Path, rows: int, outputs: int, *, speed: bool = False) -> None:
    """Writes a classifier whose logits are sums over tokens of a row of a table each, those of the second text doubled."""
    table = np.random.default_rng(outputs).normal(0, 0.4, (rows, outputs)).astype(np.float32)
    unit = numpy_helper.from_array(np.array([1], np.int64), "one")
    last = numpy_helper.from_array(np.array([2], np.int64), "last")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["values"]),
        helper.make_node("Add", ["token_type_ids", "one"], ["weights"]),
        helper.make_node("Mul", ["weights", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["wide"]),
        helper.make_node("Mul", ["values", "wide"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["logits"], keepdims=0),
    ]
    if speed:
        nodes += [
            helper.make_node("ReduceSum", ["attention_mask", "one"], ["tokens"], keepdims=0),
            helper.make_node("Cast", ["speed"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Mul", ["tokens", "whole"], ["nothing"]),
            helper.make_node("Sub", ["tokens", "tokens"], ["zeros"]),
            helper.make_node("Add", ["zeros", "one"], ["layers"]),
        ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    takes = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names]
    gives = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])]
    if speed:
        takes.append(helper.make_tensor_value_info("speed", TensorProto.FLOAT, []))
        gives.append(helper.make_tensor_value_info("layers", TensorProto.INT64, ["batch"]))
    graph = helper.make_graph(nodes, "sum", takes, gives, [numpy_helper.from_array(table, "table"), unit, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path)


def export(path: Path, model_type: str = "bert", names: tuple[str, ...] = ("bad", "fair", "good"), **keys: Any) -> Path:
    """Writes the directory of an export: configuration, tokenizer and a graph that is quickly made."""
    tokenizer = tiny_tokenizer(path, max_length=48)
    (path / "vocab.txt").unlink(missing_ok=True)
    register_model_type({"model_type": model_type})
    head: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    head = head if len(names) > 1 else {"num_labels": 1, "problem_type": "regression"}
    sizes = {} if model_type == "distilbert" else SIZES
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), **{**sizes, "max_position_embeddings": 48, **head, **keys}
    )
    config.save_pretrained(path)
    write_sum(path / "onnx/model.onnx", len(tokenizer), len(names))
    return path


def export_with_exits(path: Path) -> Path:
    export(path)
    config = exit_config(AutoConfig.from_pretrained(path), ExitSettings(layers=[1]))
    config.speed = 0.5
    config.save_pretrained(path)
    write_sum(
        path / "onnx/model_exits.onnx",
        json.loads((path / "config.json").read_text())["classifier"]["vocab_size"],
        3,
        speed=True,
    )
    return path


def cascade(path: Path) -> Path:
    """Two exports, of which the big one answers where the small one's largest probability is at most 0.7."""
    export(path / "small", names=("bad", "good"))
    export(path / "big", names=("good", "bad"))
    shutil.copy(path / "small" / "config.json", path)
    columns = {"small": None, "big": [1, 0]}
    rule = {"threshold": 0.7, "temperature": {"small": 1.5, "big": 0.5}, "columns": columns, "sent": 0.4}
    (path / "cascade.json").write_text(json.dumps(rule))
    return path


KINDS = {
    "single": export,
    "score": lambda path: export(path, names=("score",)),
    "distilbert": lambda path: export(path, "distilbert", dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "electra": lambda path: export(path, "electra", embedding_size=8),
    "bi-encoder": lambda path: export(path, "mbert-bi-encoder", separator_token_id=3),
    "bilstm": lambda path: export(path, "mbert-bilstm", separator_token_id=3, embedding_size=8),
    "exits": export_with_exits,
    "cascade": cascade,
}
PAIRS = ("bi-encoder",)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("light")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MBERT_CACHE", str(home / "cache"))
        for kind, make in KINDS.items():
            make(home / kind)
        tiny_glue("glue", ["sst2"], rows=40)
        export(home / "sst2", names=("negative", "positive"))
        Path("lines.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
        Path("pairs.txt").write_text("".join(f"{a}\t{b}\n" for a, b in zip(LINES, LINES[::-1], strict=True)), encoding="utf-8")
        yield home


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def loaded_after(*commands: tuple[str, ...]) -> list[str]:
    """Returns which heavy libraries a process of its own has loaded when the commands are done, with the first that did."""
    code = (
        "import sys\nfrom microbert_cli.cli.main import main\nloaded = {}\n"
        f"for words in {commands!r}:\n"
        "    sys.argv = ['mbert', *words]\n"
        "    try: main()\n    except SystemExit as leaving: assert not leaving.code, (words, leaving.code)\n"
        f"    for name in set({HEAVY!r}) & sys.modules.keys(): loaded.setdefault(name, words)\n"
        "if loaded: print(loaded)\n"
        "print(*sorted(loaded), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()


def test_predicting_loads_no_torch() -> None:
    texts = {kind: ("--pairs", "--file", "pairs.txt") if kind in PAIRS else ("a lovely boat",) for kind in KINDS}
    assert loaded_after(*(("predict", kind, *extra, "-q") for kind, extra in texts.items())) == []


@pytest.mark.slow
def test_predicting_leaves_no_usage_events(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | home
    command = [sys.executable, "-m", "microbert_cli", "predict", next(iter(KINDS)), "a lovely boat", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if "Microsoft" in path.parts]


def test_evaluating_and_timing_an_export_load_no_torch() -> None:
    rows = ("--task", "sst2", "--data", "glue")
    for words in (
        ("evaluate", "sst2", *rows, "-o", "scored"),
        ("bench", "sst2", *rows, "--no-baselines", "--rounds", "2", "--passes", "1"),
        ("bench", "sst2", *rows, "--rounds", "2", "--passes", "1"),
    ):
        assert not {"torch", "transformers", "datasets"} & set(loaded_after(words)), words


@pytest.fixture
def by_transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with exports read by transformers, as those are whose files do not say all."""

    def run(*arguments: str, stdin: str = "") -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(predictor, "_read_without_transformers", lambda directory: (None, None))
            patch.setattr(predictor, "read_exported_config", lambda directory: None)
            return mbert(*arguments, stdin=stdin)

    return run


OPTIONS: dict[str, tuple[str, ...]] = {
    "json": ("--file", "lines.txt", "--json"),
    "labels": ("--file", "lines.txt"),
    "short": ("--file", "lines.txt", "--max-length", "6", "--batch-size", "2", "--json"),
    "pairs": ("--file", "pairs.txt", "--pairs", "--json"),
    "short pairs": ("--file", "pairs.txt", "--pairs", "--max-length", "9", "--json"),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_output_as_with_transformers(kind: str, options: str, by_transformers: Any) -> None:
    done, expected = (run("predict", kind, *OPTIONS[options]) for run in (mbert, by_transformers))
    assert (done.code, done.out, done.err) == (expected.code, expected.out, expected.err)
    reads_pairs_alone = kind in PAIRS and "pairs" not in options
    assert "M324" in done.err if reads_pairs_alone else done.code == 0


def test_every_way_to_give_texts_gives_the_same_answers() -> None:
    text = Path("lines.txt").read_text(encoding="utf-8")
    expected = works("predict", "single", "--file", "lines.txt", "--json").out
    Path("table.csv").write_text("text\n" + "".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    Path("lines.txt.gz").write_bytes(gzip.compress(text.encode()))
    Path("wide.txt").write_text(text, encoding="utf-16")
    Path("marked.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert works("predict", "single", "--json", stdin=text).out == expected
    assert works("predict", "single", "--json", "--file", "-", stdin=text.removesuffix("\n")).out == expected
    for name in ("lines.txt.gz", "wide.txt", "marked.txt"):
        assert works("predict", "single", "--json", "--file", name).out == expected, name
    assert works("predict", "single", *LINES, "--json").out == expected
    assert works("predict", "single", "--file", "table.csv", "--text", "text", "--json").out == expected
    assert works("predict", "single", "--file", "lines.txt", "--json", "-o", "out.jsonl").out == "out.jsonl\n"
    assert Path("out.jsonl").read_text(encoding="utf-8") == expected
    answers = [json.loads(line) for line in expected.splitlines()]
    for answer, record in zip(answers, api.predict("single", LINES), strict=True):
        assert answer == record and sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_long_inputs_are_answered_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """In windows of three lines, from a file and from stdin; probabilities to 1e-6, since batches differ."""
    text = Path("lines.txt").read_text(encoding="utf-8")
    expected = [json.loads(line) for line in works("predict", "single", "--file", "lines.txt", "--json").out.splitlines()]
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 3)
    for done in (works("predict", "single", "--file", "lines.txt", "--json"), works("predict", "single", "--json", stdin=text)):
        answers = [json.loads(line) for line in done.out.splitlines()]
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
        for answer, whole in zip(answers, expected, strict=True):
            assert answer["probabilities"] == pytest.approx(whole["probabilities"], abs=1e-6)


def test_no_text_is_read_before_the_answers_to_the_window_before_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 4)
    read = answered = 0
    ahead = []

    def endless() -> Iterator[tuple[str, ...]]:
        nonlocal read
        while True:
            read += 1
            yield (LINES[read % len(LINES)],)

    for records in predict.answer("single", inputs.Inputs(endless(), None)):
        ahead.append(read - answered)
        answered += len(records)
        if answered >= 40:
            break
    assert max(ahead) == 4 and answered == 40 and read == 40


def test_a_stream_is_read_no_further_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 4)
    stream = Counting(b"a lovely boat\n" * 1000)
    opened = inputs.open_inputs((), None, stream, columns=(), pairs=False)
    assert opened.count is None and stream.lines == 4
    answers = predict.answer("single", opened)
    for window in range(1, 6):
        assert len(next(answers)) == 4 and stream.lines == 4 * window


class Counting(io.BytesIO):
    """A stream that counts the lines that were taken of it, and is never read to its end at once."""

    lines = 0

    def readline(self, *_: Any) -> bytes:
        self.lines += 1
        return super().readline()

    def read(self, *_: Any) -> bytes:
        raise AssertionError("read whole")


def test_long_texts_make_short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_CHARACTERS", 10)
    windows = list(inputs.windows_of([("abcdef",), ("g",), ("h" * 30,), ("i", "jk"), ("l",)]))
    assert [len(window) for window in windows] == [3, 2] and inputs.windows_of([]).__next__ and not list(inputs.windows_of([]))


def test_a_file_is_refused_before_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 2)
    Path("broken.txt").write_bytes(b"a\nb\nc\nd\ncaf\xe9 au lait\ne\n")
    Path("pairs-and-none.txt").write_bytes(b"a\tb\na\tb\na\tb\nnone\n")
    error = refused(5, "M360", "predict", "single", "--file", "broken.txt")
    assert error["where"] == "broken.txt, line 5" and "offset 11" in error["what"] and "cp1252" in error["fix"]
    assert "line 4" in refused(5, "M361", "predict", "single", "--pairs", "--file", "pairs-and-none.txt")["where"]
    for options in (("--file", "broken.txt"), ("--file", "pairs-and-none.txt", "--pairs")):
        assert mbert("predict", "single", *options).out == ""


def test_an_error_late_in_a_stream_names_its_line_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 2)
    stream = io.BytesIO(b"a\nb\nc\nd\ncaf\xe9 au lait\ne\n")
    opened = inputs.open_inputs((), None, stream, columns=(), pairs=False)
    answers = predict.answer("single", opened)
    assert len(next(answers)) == len(next(answers)) == 2
    with pytest.raises(predict.MbertError) as caught:
        next(answers)
    assert caught.value.code == "M360" and caught.value.where == "stdin, line 5" and "offset 11" in caught.value.what
    Path("kept.txt").write_text("as it was")
    error = refused(5, "M361", "predict", "single", "--pairs", "-o", "kept.txt", stdin="a\tb\n" * 5 + "none\n")
    assert error["where"] == "line 6" and Path("kept.txt").read_text() == "as it was"
    assert not list(place.glob(".kept.txt*"))


def test_rows_of_no_finite_numbers_are_counted_over_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 2)
    monkeypatch.setattr(
        predictor._OnnxModel, "logits", lambda self, batch: np.where(batch["input_ids"][:, 1:2] == 5, np.nan, np.ones((1, 3)))
    )
    letter = load_tokenizer("single", AutoConfig.from_pretrained("single"), where="model").convert_ids_to_tokens(5)
    done = mbert("predict", "single", "--json", stdin=f"boat\nboat\nboat\n{letter}\n")
    error = json.loads(done.out.splitlines()[-1])["error"]
    assert done.code == 5 and len(done.out.splitlines()) == 3 and error["code"] == "M317"
    assert error["where"] == "text 4" and error["what"].startswith("the logits of 1 of 4 rows")


def test_a_foreign_export_is_still_read_by_transformers(tmp_path: Path) -> None:
    """One whose tokenizer has a word that only its settings name."""
    shutil.copytree("single", tmp_path / "foreign")
    settings = tmp_path / "foreign" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "strip_accents": False}))
    assert predictor._read_without_transformers(tmp_path / "foreign") == (None, None)
    assert works("predict", str(tmp_path / "foreign"), "a lovely boat").out == works("predict", "single", "a lovely boat").out


@pytest.mark.slow
def test_an_export_of_a_real_model_is_read_without_torch(place: Path) -> None:
    tiny_bert("model", labels=["negative", "positive"])
    works("export", "model", "--task", "sst2", "--data", "glue", "-o", "exported", "--set", "export.optimize=false")
    for model in ("exported", "exported/onnx/model_quantized.onnx"):
        assert loaded_after(("predict", model, "a lovely boat", "-q")) == []
    whole, torch_answers = (
        [json.loads(line)["probabilities"]["positive"] for line in works("predict", model, *LINES, "--json").out.splitlines()]
        for model in ("exported", "model")
    )
    assert whole == pytest.approx(torch_answers, abs=1e-6)


@pytest.mark.parametrize("length", [3, 4, 9, 48])
@pytest.mark.parametrize("texts", [1, 2])
def test_rows_are_assembled_as_one_by_one(texts: int, length: int) -> None:
    """[CLS] a [SEP] b [SEP]; the longer text loses tokens from its end, the second where both are equally long."""
    tokenizer = load_tokenizer("single", AutoConfig.from_pretrained("single"), where="model")
    rows = [(line, LINES[-number])[:texts] for number, line in enumerate(LINES, 1)]
    encoded = tokenize_examples(Examples(rows), tokenizer, length)
    assert encoded.types is not None
    for number, row in enumerate(rows):
        pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row]
        room = max(0, length - texts - 1)
        while sum(map(len, pieces)) > room:
            longest = max(reversed(range(texts)), key=lambda i: len(pieces[i]))
            pieces[longest] = pieces[longest][:-1]
        ids, types = [tokenizer.cls_token_id], [0]
        for segment, piece in enumerate(pieces):
            ids += [*piece, tokenizer.sep_token_id]
            types += [segment] * (len(piece) + 1)
        span = slice(encoded.offsets[number], encoded.offsets[number + 1])
        assert encoded.ids[span].tolist() == ids and encoded.types[span].tolist() == types
    assert encoded.truncated == sum(
        sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in row) > max(0, length - texts - 1)
        for row in rows
    )
