"""A cascade through the commands: made, then taken like a model by predict, evaluate, bench and export; and what is refused."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advice import follow
from mbert_command import refused, works
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.data.tables import AS_SHOWN, read_table
from microbert_cli.evaluation.guarantee import Answered, choose_threshold, split_rows
from microbert_cli.models.cascade.answers import sureness
from microbert_cli.models.predictor import open_predictor
from microbert_cli.runs import manifest

pytestmark = pytest.mark.slow  # they share two models and a cascade, which take 18 s to make

ROWS = ("--task", "sst2", "--data", "glue")
TEXTS = ("the lovely boat", "a gloomy day", "awful", "the baker sold the warm boat . it is lovely", "kettle")
OUTER = ("small", "big")


def read(directory: str) -> Any:
    return json.loads((Path(directory) / "metrics.json").read_text())


def answers(model: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in works("predict", model, *TEXTS, "--json").out.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two classifiers with vocabularies of their own and labels in another order, and a cascade of them."""
    folder = tmp_path_factory.mktemp("cascade")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", ["sst2", "mrpc", "stsb"], rows=100)
        tiny_bert("small", labels=["negative", "positive"], layers=1, hidden=8, seed=1, vocab=("lovely", "boat"))
        tiny_bert("big", labels=["positive", "negative"], seed=2)
        works("cascade", "small", "big", *ROWS, "--threshold", "0.6", "-o", "both")
        # The temperature does not depend on the threshold: one that divides these texts can be set now.
        sure = sorted(sureness_of(answer, read("both")["temperature"]["small"]) for answer in answers("both/small"))
        works("cascade", "small", "big", *ROWS, "--threshold", f"{(sure[2] + sure[3]) / 2:.5f}", "-o", "both", "--force")
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_the_directory_holds_two_models_and_says_when_which_answers() -> None:
    rule, metrics = json.loads(Path("both/cascade.json").read_text()), read("both")
    assert rule["threshold"] == metrics["threshold"] and rule["columns"] == {"small": [0, 1], "big": [1, 0]}
    assert rule["temperature"] == metrics["temperature"] and rule["sent"] == metrics["checked"]["sent"]
    assert metrics["rows"] == {"choosing": 20, "checking": 30}
    assert sorted(path.name for path in Path("both/big").iterdir()) == sorted(
        path.name for path in Path("both/small").iterdir()
    )
    assert all((Path("both/small") / name).is_file() for name in ("onnx/model.onnx", "config.json", "tokenizer.json"))
    assert not list(Path("both").rglob("*.safetensors"))
    assert "nothing wrong" in works("verify", "both").out
    again = works("cascade", "small", "big", *ROWS, "--threshold", str(rule["threshold"]), "-o", "both")
    assert "up to date" in again.err and again.out.strip() == "both"
    assert metrics["latency_ms"].keys() == {"small", "big", "cascade", "expected"}
    small, big, expected = (metrics["latency_ms"][name] for name in ("small", "big", "expected"))
    assert expected == pytest.approx(small + metrics["checked"]["sent"] * big)


def test_each_row_is_answered_by_the_model_that_the_threshold_says() -> None:
    """The same from both models asked one by one, each over its temperature."""
    rule = json.loads(Path("both/cascade.json").read_text())
    parts = {part: answers(f"both/{part}") for part in OUTER}
    seen = set()
    for number, answer in enumerate(answers("both")):
        logits = {part: {n: np.log(p) for n, p in parts[part][number]["probabilities"].items()} for part in OUTER}
        shares = {part: softened(logits[part], rule["temperature"][part]) for part in OUTER}
        part = "small" if max(shares["small"].values()) > rule["threshold"] else "big"
        seen.add(part)
        assert answer["probabilities"] == pytest.approx(shares[part], abs=1e-5)
    assert seen == {"small", "big"}, "or else this shows nothing"


def sureness_of(answer: dict[str, Any], temperature: float) -> float:
    return max(softened({name: np.log(p) for name, p in answer["probabilities"].items()}, temperature).values())


def softened(logits: dict[str, float], temperature: float) -> dict[str, float]:
    exponentials = {name: np.exp(value / temperature) for name, value in logits.items()}
    return {name: value / sum(exponentials.values()) for name, value in exponentials.items()}


def test_evaluate_and_bench_take_it_like_a_model() -> None:
    metrics = works("evaluate", "both", "-o", "scored", "--json").json
    split = metrics["splits"]["dev"]
    assert metrics["dev"] == read("both")["dev"] and 0 < split["sent"] < 1
    assert 0 <= split["calibration_error"] <= 1
    alone = works("evaluate", "small", *ROWS, "-o", "scored-small", "--json").json["splits"]["dev"]
    assert "calibration_error" in alone and "sent" not in alone, "of every classifier"
    table = works("evaluate", "both", "-o", "scored-again").err
    assert "calibration error" in table and "sent to the big model" in table
    compared = works("evaluate", "big", "--teacher", "both", *ROWS, "-o", "taught", "--json").json["splits"]["dev"]["teacher"]
    assert compared["teacher_accuracy"] == metrics["dev"]["accuracy"]
    speeds = works("bench", "both", "both/small", "both/big", "--rounds", "3", "--passes", "1", "--json").json
    both, small, big = (speeds["models"][name] for name in ("both", "both/small (fp32)", "both/big (fp32)"))
    assert both["bytes"] == small["bytes"] + big["bytes"]
    assert both["flops"] == pytest.approx(small["flops"] + read("both")["checked"]["sent"] * big["flops"], rel=1e-4)
    assert both["latency_mean_ms"] > 0
    rows = {row["model"]: row for row in speeds["rows"]}
    assert rows["both"]["score"] == metrics["dev"]["accuracy"] and "both, int8" not in rows


def test_own_rows_and_the_api() -> None:
    Path("own.csv").write_text("sentence,label\n" + "a lovely boat,positive\nan awful day,negative\n" * 4)
    output = works("evaluate", "both", "--test-file", "own.csv", "-o", "own", "--json").json
    assert output["splits"]["test"]["rows"] == 8
    assert api.predict("both", ["the lovely boat"])[0] == answers("both")[0]


def test_a_shipped_cascade_answers_the_same_with_and_without_mbert() -> None:
    metrics = works("export", "both", "-o", "shipped", "--json").json
    assert metrics["parity"]["max_difference"] == 0 and metrics["dev"] == read("both")["dev"]
    assert metrics["checked"] == read("both")["checked"]
    for name in ("cascade.json", "config.json", "small/onnx/model.onnx", "big/onnx/model.onnx", "big/tokenizer.json"):
        assert (Path("both") / name).read_bytes() == (Path("shipped") / name).read_bytes()
    assert answers("shipped") == answers("both")
    card = Path("shipped/README.md").read_text()
    assert "30 rows of dev that did not choose the threshold" in card and "mbert cascade small big" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace('folder = "."', 'folder = "shipped"'), names)
    for text, answer in zip(TEXTS, answers("shipped"), strict=True):
        label, probability = names["answer"](text)
        assert label == answer["label"] and probability == pytest.approx(answer["score"], abs=1e-5)


def test_the_threshold_is_chosen_by_some_rows_and_checked_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the functions say, asked with the answers of both files; the bound is that of the rows that did not choose."""
    wish = ("--agreement", "0.6", "--confidence", "0.6")
    done = works("cascade", "small", "big", *ROWS, *wish, "-o", "chosen")
    assert "of 50 rows of dev 20 choose the threshold, 30 others check it" in done.err
    metrics = read("chosen")
    choosing, checking = split_rows(50, 0.4, 42)
    answered = answered_by_files(metrics)
    threshold = choose_threshold(answered.take(choosing), wish=0.6, confidence=0.6, rows=30)
    checked = answered.take(checking)
    if checked.bound(threshold, 0.6) < 0.6:
        threshold = 1.0
    assert metrics["threshold"] == pytest.approx(threshold)
    assert metrics["checked"]["bound"] == pytest.approx(checked.bound(threshold, 0.6)) and metrics["checked"]["bound"] >= 0.6
    assert metrics["checked"]["value"] == pytest.approx(checked.right(threshold) / 30)
    assert works("evaluate", "chosen", "-o", "chosen-scored", "--json").json["dev"] == metrics["dev"]
    # Another seed splits dev otherwise, and the temperatures follow.
    works("cascade", "small", "big", *ROWS, *wish, "--seed", "7", "-o", "chosen", "--force")
    assert read("chosen")["temperature"] != metrics["temperature"]


def answered_by_files(metrics: dict[str, Any]) -> Answered:
    texts = read_table(Path("glue/SST-2/dev.tsv"), AS_SHOWN).column("sentence")
    logits = {}
    for part in OUTER:
        records = api.predict(f"chosen/{part}", [str(text) for text in texts])
        shares = np.array([[record["probabilities"][name] for name in ("negative", "positive")] for record in records])
        logits[part] = np.log(shares) / metrics["temperature"][part]
    differs = logits["small"].argmax(-1) != logits["big"].argmax(-1)
    return Answered(sureness(logits["small"]), differs, np.zeros(len(differs), dtype=bool))


def test_thresholds_at_the_ends_are_the_models_themselves() -> None:
    for threshold, part, sent in (("0", "small", 0.0), ("1", "big", 1.0)):
        works("cascade", "small", "big", *ROWS, "--threshold", threshold, "-o", f"only-{part}")
        assert read(f"only-{part}")["checked"]["sent"] == sent
        labels = [answer["label"] for answer in answers(f"only-{part}")]
        assert labels == [answer["label"] for answer in answers(part)]


def test_too_few_rows_for_a_wish_send_every_row() -> None:
    done = works("cascade", "small", "big", *ROWS, "-o", "never")
    assert "30 rows that all agree show 0.9049; 149 would be needed for 0.98" in done.err
    assert read("never")["threshold"] == read("never")["checked"]["bound"] == 1.0


def test_exports_and_their_files_are_taken_as_they_are() -> None:
    works("export", "big", *ROWS, "--set", "export.optimize=false", "-o", "exported")
    works("cascade", "small", "exported/onnx/model_quantized.onnx", *ROWS, "--threshold", "0.6", "-o", "mixed")
    assert [path.name for path in Path("mixed/big").rglob("*.onnx")] == ["model_quantized.onnx"]
    assert Path("mixed/big/onnx/model_quantized.onnx").read_bytes() == Path("exported/onnx/model_quantized.onnx").read_bytes()
    assert read("mixed")["files"] == {"small": "onnx/model.onnx", "big": "onnx/model_quantized.onnx"}
    assert len(answers("mixed")) == len(TEXTS)
    works("cascade", "small", "big", *ROWS, "--threshold", "0.6", "--set", "cascade.precision=int8", "-o", "int8")
    assert set(read("int8")["files"].values()) == {"onnx/model_quantized.onnx"} and not list(Path("int8").rglob("model.onnx"))


def test_a_recipe_runs_plans_and_checks_it() -> None:
    Path("run.toml").write_text(
        'task = "sst2"\nbase = "big"\nstages = ["finetune", "cascade", "evaluate"]\n'
        'data = { folder = "glue", max_length = 24 }\ncascade = { small = "small", big = "finetune", threshold = 0.7 }\n'
        'evaluate = { model = "cascade" }\nfinetune = { steps = 2 }\n'
    )
    listed = works("run", "run.toml", "-o", "run", "--dry-run").out
    assert "small=small, big=run/finetune" in listed and "model=run/cascade" in listed
    rows = {row["name"]: row for row in works("plan", "run.toml", "-o", "run", "--json").json["stages"]}
    assert rows["cascade"]["seconds"] > 0 and rows["cascade"]["disk"] > 0 and "unknown" not in rows["evaluate"]
    assert works("doctor", "run.toml", "-o", "run").code == 0
    works("run", "run.toml", "-o", "run")
    assert manifest.read_verified(Path("run/cascade"))["stage"] == "cascade"
    assert "sent" in read("run/evaluate")["splits"]["dev"]
    again = works("plan", "run.toml", "-o", "run", "--set", 'evaluate.splits=["dev"]', "--json").json["stages"]
    assert "unknown" not in again[-1]


def test_wishes_outside_their_range_are_refused() -> None:
    for option, value in (
        ("--threshold", "1.2"), ("--threshold", "-0.1"), ("--threshold", "nan"), ("--agreement", "98"), ("--agreement", "0"),
        ("--score", "1.5"), ("--confidence", "1"), ("--confidence", "0"),
    ):  # fmt: skip
        error = refused(3, "M003", "cascade", "small", "big", *ROWS, f"{option}={value}", "-o", "no")
        assert option in error["where"] + error["fix"] or option.lstrip("-") in error["where"]
    refused(3, "M003", "cascade", "small", "big", *ROWS, "--threshold", "0.5", "--score", "0.5", "-o", "no")
    assert not Path("no").exists()


def test_both_models_answer_with_all_of_their_layers() -> None:
    error = refused(2, "M159", "predict", "both", "a text", "--speed", "0.5")
    assert "--speed" in error["where"]
    refused(2, "M160", "bench", "both", *ROWS, "--speed", "0.5")
    assert works("predict", "both", "a text", "--speed", "0").out == works("predict", "both", "a text").out


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    tiny_bert("other", labels=["boring", "gripping"])
    tiny_bert("three", num_labels=3)
    tiny_bert("scores", num_labels=1)
    assert "cascade.small" in refused(5, "M321", "cascade", "other", "big", *ROWS, "-o", "no")["where"]
    assert "cascade.big" in refused(5, "M321", "cascade", "small", "other", *ROWS, "-o", "no")["where"]
    assert "cascade.big" in refused(5, "M320", "cascade", "small", "three", *ROWS, "-o", "no")["where"]
    refused(5, "M320", "cascade", "small", "scores", *ROWS, "-o", "no")
    refused(2, "M136", "cascade", "scores", "scores", "--task", "stsb", "--data", "glue", "-o", "no")
    refused(4, "M203", "cascade", "small", "./nowhere", *ROWS, "-o", "no")
    refused(3, "M022", "cascade", "small", *ROWS, "-o", "no")
    for task in ("sst2", "mrpc"):
        api.finetune(model="big", out=f"of-{task}", task=task, data__folder="glue", finetune__steps=1)
    words = ("cascade", "of-sst2", "of-mrpc", *ROWS, "-o", "no")
    error = refused(2, "M137", *words)
    assert "sst2" in error["what"] and "mrpc" in error["what"]
    assert follow(error, words, tmp_path, {"BIG": "of-sst2"}) == 1


def test_a_score_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    words = ("cascade", "small", "big", *ROWS, "--score", "0.99", "-o", "no")
    error = refused(1, "M614", *words)
    assert "of the big model alone" in error["what"] or "at least" in error["what"]
    assert follow(error, words, tmp_path, {}) >= 1
    assert not Path("no.partial").exists(), "the same -o is free for a smaller wish"
    works("cascade", "small", "big", *ROWS, "--score", "0.2", "-o", "scored-wish")
    checked = read("scored-wish")["checked"]
    assert checked["what"] == "accuracy" and checked["bound"] >= 0.2


def test_few_rows_are_refused() -> None:
    Path("few.csv").write_text("sentence,label\n" + "a lovely boat,positive\nan awful day,negative\n" * 6)
    words = ("--train-file", "few.csv", "--dev-file", "few.csv", "--text", "sentence", "--label", "label")
    error = refused(4, "M282", "cascade", "small", "big", *words, "-o", "no")
    assert "--dev-file" in error["fix"] and "12 rows" in error["what"]


def test_a_cascade_is_no_single_model() -> None:
    for words in (
        ("finetune", "--model", "both", *ROWS, "-o", "no-finetune"),
        ("trim", "both", "-o", "no-trim"),
        ("cascade", "both", "big", *ROWS, "-o", "no-cascade"),
        ("task-distill", "--teacher", "both", "--student", "bert-1x8", *ROWS, "--set", "method=kd", "-o", "no-distil"),
    ):
        assert "both" in refused(4, "M280", *words)["where"]
        assert mentions_cascade(*words)
    refused(4, "M281", "evaluate", "both", "--set", "evaluate.precision=fp32", "-o", "no-evaluate")


def mentions_cascade(*words: str) -> bool:
    """Whether --dry-run refuses it too, before anything is done."""
    return "cascade" in refused(4, "M280", *words, "--dry-run")["what"]


def test_a_changed_cascade_is_noticed() -> None:
    shutil.copytree("both", "changed")
    rule = json.loads(Path("changed/cascade.json").read_text()) | {"threshold": 1.5}
    Path("changed/cascade.json").write_text(json.dumps(rule))
    refused(5, "M306", "predict", "changed", "boat")
    (Path("changed") / "manifest.json").unlink()
    for name in ("log.jsonl", "recipe.resolved.toml"):
        (Path("changed") / name).unlink(missing_ok=True)
    assert "threshold is 1.5" in refused(5, "M348", "predict", "changed", "boat")["what"]
    Path("changed/cascade.json").write_text(json.dumps(rule | {"threshold": read("both")["threshold"]}))
    assert answers("changed") == answers("both")
    config = json.loads(Path("changed/big/config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b", "2": "c"}, {"a": 0, "b": 1, "c": 2}
    Path("changed/big/config.json").write_text(json.dumps(config))
    refused(5, "M349", "predict", "changed", "boat")


@pytest.mark.real
def test_the_bound_holds_on_200_splits_of_real_reviews(shared: Path) -> None:
    """SST-2: a linear model of 1,000 rows asks one of 50,000; the bound of 200 dev sets holds as often as it says."""
    from scipy.stats import binom
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    table = read_table(shared / "data" / "glue" / "SST-2" / "train.tsv", AS_SHOWN)
    texts, labels = [str(text) for text in table.column("sentence")], [str(label) for label in table.column("label")]
    shares = []
    for rows in (1_000, 50_000):
        words = TfidfVectorizer(ngram_range=(1, 2))
        model = LogisticRegression(C=10.0, max_iter=300).fit(words.fit_transform(texts[:rows]), labels[:rows])
        shares.append(model.predict_proba(words.transform(texts[50_000:])))
    small, big = shares
    everybody = Answered(small.max(-1), small.argmax(-1) != big.argmax(-1), np.zeros(len(small), dtype=bool))
    random, splits, confidence = np.random.default_rng(0), 200, 0.95
    for wish in (0.95, 0.98, 0.99):
        held, confirmed, sent = 0, 0, []
        for number in range(splits):
            dev = everybody.take(random.integers(len(everybody), size=872))
            choosing, checking = split_rows(872, 0.4, seed=number)
            threshold = choose_threshold(dev.take(choosing), wish=wish, confidence=confidence, rows=len(checking))
            bound = dev.take(checking).bound(threshold, confidence)
            held += everybody.right(threshold) / len(everybody) >= bound
            confirmed += bound >= wish
            sent.append(everybody.sent(threshold))
        print(f"agreement {wish}: the bound holds in {held} of {splits}, confirmed {confirmed}, sent on {np.mean(sent):.3f}")
        assert held >= binom.ppf(0.01, splits, confidence)
        assert confirmed >= 0.8 * splits


def test_a_predictor_of_a_cascade_knows_both_models() -> None:
    opened = open_predictor("both", None)
    assert opened.sends_to is not None and opened.tokenizer.get_vocab() != opened.sends_to.tokenizer.get_vocab()
    assert [opened.model.config.id2label[number] for number in (0, 1)] == ["negative", "positive"]
