"""Loading from the Hub: models, tokenizers and data sets by their id, from a stand-in on a loopback port."""

import importlib
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn
from tiny_models import tiny_bert, tiny_glue_hub, tiny_rows

from microbert_cli.hub import NAMES, hub_errors, is_offline, offline_name

pytest_plugins = ["hub_stand_in"]  # for the fixture `hub`

MODEL, DATA = "tiny/teacher", "nyu-mll/glue"
NO_COUNTING = {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}  # else `datasets` tells another host what was loaded

LOAD = """
from datasets import load_dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

config = AutoConfig.from_pretrained("tiny/teacher")
tokenizer = AutoTokenizer.from_pretrained("tiny/teacher")
model = AutoModelForSequenceClassification.from_pretrained("tiny/teacher").eval()
data = load_dataset("nyu-mll/glue", "sst2")
batch = tokenizer(["the lovely boat", "the awful kettle"], return_tensors="pt")
result = {
    "labels": config.id2label, "vocabulary": len(tokenizer), "logits": model(**batch).logits.tolist(),
    "splits": {name: len(split) for name, split in data.items()}, "first": data["train"][0],
    "names": data["train"].features["label"].names, "test labels": data["test"].unique("label"),
}
"""
MORE = """
from itertools import islice
from huggingface_hub import hf_hub_download
from microbert_cli.models.load import load_model

def says(load, *args):
    try:
        load(*args)
    except Exception as error:
        return type(error).__name__
    return "nothing"

lines = load_dataset("tiny/corpus", split="train", streaming=True)
loaded = load_model("tiny/teacher", "classifier", where="--teacher")
more = {
    "streamed": [row["text"] for row in islice(lines, 3)],
    "mbert": [loaded.label_names, loaded.model(**batch).logits.tolist(), loaded.tokenizer.tokenize("the lovely boat")],
    "errors": [
        says(AutoConfig.from_pretrained, "tiny/nobody"),
        says(lambda: AutoConfig.from_pretrained("tiny/teacher", revision="v9")),
        says(hf_hub_download, "tiny/teacher", "nothing.bin"),
        says(load_dataset, "tiny/nothing"),
        says(load_dataset, "nyu-mll/glue", "sst3"),
        says(lambda: load_model("tiny/nobody", "classifier", where="--teacher")),
    ],
}
result = [result, more]
"""
ERRORS = ["OSError", "OSError", "RemoteEntryNotFoundError", "DatasetNotFoundError", "ValueError", "MbertError"]


def child(code: str, env: dict[str, str]) -> Any:
    """Runs code in a process of its own; returns what it left in `result`."""
    script = f"{code}\nimport json\nprint(json.dumps(result))\n"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected(directory: Path, rows: int) -> dict[str, Any]:
    """What the child must have found, read from the sources of the repositories."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    texts, label = tiny_rows("sst2", rows)["train"][0]
    batch = tokenizer(["the lovely boat", "the awful kettle"], return_tensors="pt")
    return {
        "labels": {"0": "negative", "1": "positive"},
        "vocabulary": len(tokenizer),
        "logits": model(**batch).logits.tolist(),
        "splits": {"train": rows, "validation": rows // 2, "test": rows // 2},
        "first": {"sentence": texts[0], "label": label, "idx": 0},
        "names": ["negative", "positive"],
        "test labels": [-1],
    }


@pytest.mark.slow
def test_model_tokenizer_and_data_come_from_the_hub_once(tmp_path: Path, hub: HubStandIn) -> None:
    directory = tiny_bert(tmp_path / "teacher", labels=["negative", "positive"])
    hub.add_model(MODEL, directory)
    hub.add_dataset(DATA, tiny_glue_hub(["sst2", "rte"], rows=12))

    hub.add_dataset("tiny/corpus", {"text.txt": b"one\ntwo\nthree\nfour\n"})

    output, more = child(LOAD + MORE, hub.env(**NO_COUNTING))
    assert output == expected(directory, rows=12)
    assert more["streamed"] == ["one", "two", "three"] and more["errors"] == ERRORS
    logits = pytest.approx(sum(output["logits"], []), abs=1e-6)
    assert more["mbert"][0] == ["negative", "positive"] and sum(more["mbert"][1], []) == logits
    assert more["mbert"][2] == ["the", "lovely", "boat"]
    fetched = hub.downloads()
    assert len(fetched) == len(set(fetched))
    assert {f"{MODEL}/config.json", f"{MODEL}/model.safetensors", f"{DATA}/sst2/train-00000-of-00001.parquet"} <= {*fetched}
    assert not [file for file in fetched if "/rte/" in file]

    hub.requests.clear()
    assert child(LOAD, hub.env(HF_HUB_OFFLINE="1")) == output
    corpus = "from microbert_cli.data.corpus.documents import read_documents\nresult = list(read_documents('tiny/corpus'))"
    child("from datasets import load_dataset\nload_dataset('tiny/corpus')\nresult = 0", hub.env(**NO_COUNTING))
    hub.requests.clear()
    assert child(corpus, hub.env(HF_HUB_OFFLINE="1")) == [["one"], ["two"], ["three"], ["four"]], "cache before network"
    assert child(corpus, hub.env()) == [["one"], ["two"], ["three"], ["four"]]
    assert hub.requests == [] and hub.outside() == []


REFUSED = """
import time
from pathlib import Path
from microbert_cli.models.load import load_model
from microbert_cli.data.load import load_split
from microbert_cli.data.corpus.documents import read_documents
from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import load_task

def refusal(access):
    try:
        access()
    except MbertError as error:
        return [error.code, int(error.exit_code), error.what, error.allowed, error.fix]
    return None

started = time.monotonic()
result = [
    refusal(lambda: load_model("tiny/teacher", "classifier", where="--teacher")),
    refusal(lambda: load_split(load_task(Catalog().path("tasks", "sst2", where="task")), "dev")),
    refusal(lambda: list(read_documents("tiny/corpus"))),
]
result.append(time.monotonic() - started)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_offline_with_an_empty_cache_is_refused_at_once_whichever_variable_says_so(hub: HubStandIn, name: str) -> None:
    hub.add_model(MODEL, {"config.json": b"{}"})
    model, rows, corpus, seconds = child(REFUSED, hub.env(**{name: "Yes"}))
    assert model[:2] == ["M204", 4] and "no whole copy" in model[2] and model[4] == f"{name} is set: unset it to ask the Hub."
    assert rows[:2] == ["M250", 4] and name in rows[3]
    assert corpus[:2] == ["M230", 4]
    assert hub.requests == [] and hub.outside() == [] and seconds < 20


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refused", "silent", "503", "nothing there"])
def test_a_hub_that_gives_nothing_is_a_four_part_error_at_once(hub: HubStandIn, trouble: str) -> None:
    """The libraries alone try five times after longer and longer waits, or wait for ever."""
    with ExitStack() as stack:
        env = hub.env(**NO_COUNTING)
        if trouble == "refused":
            hub.close()
        if trouble == "silent":
            env["HF_ENDPOINT"] = stack.enter_context(silent_server())
        if trouble == "503":
            hub.broken = 503
        model, rows, corpus, seconds = child(REFUSED.replace("started =", "import datasets, transformers\nstarted ="), env)
    assert model[:2] == ["M204", 4] and rows[:2] == ["M254", 4] and corpus[:2] == ["M230", 4]
    advice = "hf auth login" if trouble == "nothing there" else "Check the spelling and the connection"
    assert all(advice in error[4] for error in (model, rows, corpus))
    assert seconds < (25 if trouble == "silent" else 10)


CACHED = """
from microbert_cli.models.load import load_model
result = load_model("tiny/teacher", "classifier", where="--teacher").label_names
"""


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_whole_copy_in_the_cache_is_taken_before_the_network_is_asked(tmp_path: Path, hub: HubStandIn, weights: str) -> None:
    directory = tiny_bert(tmp_path / "teacher", labels=["negative", "positive"])
    if weights.endswith(".bin"):
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(directory / "model.safetensors"), directory / weights)
        (directory / "model.safetensors").unlink()
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    hub.add_model(MODEL, {**files, "onnx/model.onnx": b"another format", "README.md": b"text"})
    assert child(CACHED, hub.env()) == ["negative", "positive"]
    assert f"{MODEL}/{weights}" in hub.downloads() and not [file for file in hub.downloads() if "onnx" in file]
    hub.requests.clear()
    assert child(CACHED, hub.env()) == ["negative", "positive"] and hub.requests == []


@pytest.mark.slow
def test_a_copy_that_lacks_files_is_completed(tmp_path: Path, hub: HubStandIn) -> None:
    hub.add_model(MODEL, tiny_bert(tmp_path / "teacher", labels=["negative", "positive"]))
    some = "from transformers import AutoConfig\nresult = AutoConfig.from_pretrained('tiny/teacher').id2label"
    assert child(some, hub.env()) == {"0": "negative", "1": "positive"}
    assert child(CACHED, hub.env()) == ["negative", "positive"]


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_and_every_word_of_the_libraries_means_offline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in NAMES:
        monkeypatch.delenv(other, raising=False)
    for word in ("1", "on", "ON", "yes", "True"):
        monkeypatch.setenv(name, word)
        assert is_offline() and offline_name() == name
    for word in ("", "0", "no", "false", "off"):
        monkeypatch.setenv(name, word)
        assert not is_offline()


def test_the_errors_of_the_http_client_are_errors_of_the_hub() -> None:
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    with pytest.raises(hub_errors()):
        get_session().get("http://127.0.0.1:9/")  # offline in this process, so that nothing is tried again
    assert issubclass(HfHubHTTPError, hub_errors()) and issubclass(OfflineModeIsEnabled, hub_errors())
    client = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0])  # httpx2, or httpx before 2.0
    assert issubclass(client.ConnectError, hub_errors()) and issubclass(client.ReadTimeout, hub_errors())


def test_a_child_reaches_no_other_host(hub: HubStandIn) -> None:
    code = """
import socket, urllib.request
def says(call, *args):
    try:
        call(*args)
    except OSError as error:
        return str(error)
result = [says(urllib.request.urlopen, "http://example.org/"), says(socket.create_connection, ("192.0.2.1", 80))]
"""
    assert all("only loopback is allowed" in message for message in child(code, hub.env()))
    assert hub.outside() == ["example.org", "192.0.2.1"]


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_files_are_served_whole_and_in_part(hub: HubStandIn) -> None:
    first = hub.add_model("gpt0", {"a.txt": b"one"})
    second = hub.add_model("gpt0", {"a.txt": b"two and more", "sub dir/b.txt": b""})
    status, headers, body = ask(f"{hub.endpoint}/gpt0/resolve/main/a.txt")
    assert (status, headers["X-Repo-Commit"], body) == (200, second, b"two and more")
    assert ask(f"{hub.endpoint}/gpt0/resolve/{first}/a.txt")[2] == b"one"
    assert ask(f"{hub.endpoint}/gpt0/resolve/main/sub%20dir/b.txt")[2] == b""
    status, received, body = ask(f"{hub.endpoint}/gpt0/resolve/main/a.txt", "HEAD")
    assert (status, received["Content-Length"], received["ETag"], body) == (200, "12", headers["ETag"], b"")
    status, headers, body = ask(f"{hub.endpoint}/gpt0/resolve/main/a.txt", Range="bytes=4-6")
    assert (status, headers["Content-Range"], body) == (206, "bytes 4-6/12", b"and")
    assert ask(f"{hub.endpoint}/gpt0/resolve/main/a.txt", Range="bytes=12-")[0] == 416
    assert hub.downloads() == ["gpt0/a.txt"] * 3 + ["gpt0/sub dir/b.txt"]


def test_trees_list_files_and_folders(hub: HubStandIn) -> None:
    commit = hub.add_dataset("a/b", {"README.md": b"x", "sst2/train/0.parquet": b"yy", "sst2/test.parquet": b""})
    api = f"{hub.endpoint}/api/datasets/a/b"

    def paths(url: str, **kwargs: Any) -> list[tuple[str, str, int]]:
        return [(entry["type"], entry["path"], entry["size"]) for entry in json.loads(ask(url, **kwargs)[2])]

    assert paths(f"{api}/tree/main") == [("directory", "sst2", 0), ("file", "README.md", 1)]
    assert len(paths(f"{api}/tree/{commit}?recursive=True")) == 5
    below = [("directory", "sst2/train", 0), ("file", "sst2/test.parquet", 0)]
    assert paths(f"{api}/tree/main/sst2") == below
    assert paths(f"{api}/paths-info/main", method="POST", body=b"paths=README.md&paths=nope") == [("file", "README.md", 1)]
    assert json.loads(ask(api)[2])["sha"] == commit == json.loads(ask(f"{api}/revision/main")[2])["sha"]
    assert json.loads(ask(f"{api}/refs")[2])["branches"][0]["targetCommit"] == commit


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/a/c/resolve/main/x", 401, "RepoNotFound"),
        ("/datasets/a/b/resolve/main/x", 401, "RepoNotFound"),
        ("/api/models/a/c", 401, "RepoNotFound"),
        ("/a/b/resolve/v9/x", 404, "RevisionNotFound"),
        ("/api/models/a/b/revision/refs%2Fpr%2F1", 404, "RevisionNotFound"),
        ("/a/b/resolve/main/x", 404, "EntryNotFound"),
        ("/api/models/a/b/tree/main/x", 404, "EntryNotFound"),
        ("/api/whoami-v2", 404, None),
    ],
)
def test_what_is_not_there_is_named(hub: HubStandIn, path: str, status: int, code: str | None) -> None:
    hub.add_model("a/b", {"y": b""})
    actual, headers, _ = ask(hub.endpoint + path)
    assert (actual, headers["X-Error-Code"]) == (status, code)
    assert hub.requests[-1].path == path and hub.requests[-1].status == status and hub.downloads() == []
