"""The benchmarks in miniature: that the plain code and the ceiling compute what mbert computes, and that the rows come out."""

import json

import ceiling
import distilling
import evaluating
import general
import gpu
import meter
import numpy as np
import ours
import plain
import pytest
import screens
import speed
import speed_page
import torch
import wiki_kinds
from ours import INTERMEDIATE, Pair
from shapes import Setup, Shape, bucketed, build, by_length, evenly, shuffled
from tiny_models import WORDS, tiny_tokenizer

from microbert_cli.augmentation.words import Spelling, stop_words
from microbert_cli.data.batching import non_padding_share
from microbert_cli.data.examples import Examples
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.size import forward_flops
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

TEACHER, STUDENT = Shape(4, 16, 2, 32), Shape(2, 8, 2, 16)
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def sentences(count, seed):
    random = np.random.default_rng(seed)
    words = WORDS[:-8]  # "a" is in the tiny vocabulary twice, so ids reach beyond its size
    return [" ".join(random.choice(words, size=random.integers(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join("\n".join(sentences(6, seed)) for seed in range(40)) + "\n", encoding="utf-8")
    train, dev = ([(text,) for text in sentences(count, seed)] for count, seed in ((160, 100), (24, 101)))
    return Setup(
        tokenizer=tiny_tokenizer(folder / "tokenizer"),
        train=Examples(train, [i % 2 for i in range(len(train))]),
        dev=Examples(dev, [i % 2 for i in range(len(dev))]),
        corpus=corpus,
        teacher=TEACHER,
        student=STUDENT,
        length=16,
        corpus_length=24,
        batch_size=4,
    )


@pytest.fixture(autouse=True)
def small_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(meter, "GEMM", 64)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def batch(setup):
    sample = bucketed(setup, 4)
    return shuffled(sample).batch(1, pad_to=setup.length)


def calm_objective(setup, normalisation):
    teacher, student = (build(s, "classifier", setup.tokenizer, seed=i, **CALM) for i, s in enumerate((TEACHER, STUDENT)))
    torch.manual_seed(0)
    objective = Objective(
        make_terms({name: (1.0, {}) for name in INTERMEDIATE}, Catalog()),
        student,
        ask_teacher=lambda batch, want: forward_outputs(teacher, batch, want),
        map_layers=[0, 2, 4],
        student_width=STUDENT.width,
        teacher_width=TEACHER.width,
        normalisation=normalisation,
    )
    return teacher, student, objective


def test_the_plain_model_is_the_same_function(setup, batch):
    model = build(TEACHER, "classifier", setup.tokenizer, seed=1)
    shown = plain.classifier_like(model).eval()(**plain.inputs(batch))
    layers = frozenset(range(1, 5))
    expected = forward_outputs(model.eval(), batch, OutputRequest(logits=True, hidden=layers | {0}, scores=layers))
    real = batch["attention_mask"].bool()
    assert not real.all()
    torch.testing.assert_close(shown.logits, expected.logits, atol=1e-6, rtol=1e-5)
    assert len(shown.states) == 5 and len(shown.scores) == 4
    for layer in range(5):
        torch.testing.assert_close(shown.states[layer][real], expected.hidden[layer][real], atol=1e-5, rtol=1e-5)
    keys = real[:, None, None].expand_as(shown.scores[0])
    for layer in layers:
        torch.testing.assert_close(shown.scores[layer - 1][keys], expected.scores[layer][keys], atol=1e-6, rtol=1e-5)


def test_the_plain_losses_are_the_released_ones(setup, batch):
    teacher, student, objective = calm_objective(setup, "reference")
    slow, taught = plain.classifier_like(student, TEACHER.width), plain.classifier_like(teacher)
    slow.fit_dense.load_state_dict(objective.projection.state_dict())
    attention, hidden = plain.intermediate_losses(slow(**plain.inputs(batch)), taught(**plain.inputs(batch)))
    _, total, parts = next(objective.losses(batch))
    assert attention.item() == pytest.approx(parts["attention_scores"].item(), rel=1e-5)
    assert hidden.item() == pytest.approx((parts["embedding"] + parts["hidden_states"]).item(), rel=1e-5)
    (attention + hidden).backward()
    (total * 1.0).backward()
    expected = student.bert.encoder.layer[0].attention.self.query.weight.grad
    torch.testing.assert_close(slow.layers[0].query.weight.grad, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("autograd", [False, True])
def test_plain_steps_train_the_student_alone(setup, batch, autograd):
    teacher, student, optimiser = distilling.plain_pair(Pair(setup), meter.Watch())
    assert teacher.training  # as published: dropout is at work in the teacher
    before, taught = student.layers[0].query.weight.clone(), teacher.layers[0].query.weight.clone()
    plain.intermediate_step(teacher, student, optimiser, batch, autograd=autograd)
    first = student.layers[0].query.weight.clone()
    plain.prediction_step(teacher, student, optimiser, batch)
    assert not torch.equal(before, first) and not torch.equal(student.layers[0].query.weight, first)
    assert torch.equal(teacher.layers[0].query.weight, taught)


def test_the_ceiling_computes_the_same_loss(setup, batch):
    teacher, student, objective = calm_objective(setup, "masked")
    bare = ceiling.Ceiling(teacher, student, [2, 4], learning_rate=1e-3)
    bare.fit.load_state_dict(objective.projection.state_dict())
    expected = objective(batch).item()
    assert bare.losses(batch).item() == pytest.approx(expected, rel=1e-4)
    for _ in range(5):
        bare.step(batch)
    assert bare.losses(batch).item() < expected


def test_laps_count_what_is_executed(setup):
    watch, pair, sample = meter.Watch(), Pair(setup), bucketed(setup, 3)
    pair.watched(watch)
    lap = ours.training_lap(pair.objective(INTERMEDIATE), sample.batch, 3, watch)
    shapes = [tuple(sample.batch(i)["input_ids"].shape) for i in range(3)]
    teacher, student = pair.teacher.model.config, pair.student.model.config
    expected = sum(rows * (forward_flops(teacher, width) + 3 * forward_flops(student, width)) for rows, width in shapes)
    assert lap.flops == expected and lap.samples == 12 and len(lap.seconds) == 3
    assert lap.tokens == 2 * sum(rows * width for rows, width in shapes)
    assert lap.real == 2 * int(sample.rows.lengths.sum())
    assert 0 < sum(lap.seconds) < 60 and lap.rate > 0


def test_samples_stand_for_the_whole(setup):
    sample = bucketed(setup, 10)
    assert len(sample.batches) == 10 and len(sample.rows) == 40
    assert sample.rows.lengths.mean() == pytest.approx(setup.encoded.lengths.mean(), rel=0.1)
    shares = [non_padding_share(each.rows.lengths, each.batches) for each in (shuffled(sample), sample, by_length(sample))]
    assert shares[0] < shares[1] <= shares[2]
    assert sorted(np.concatenate(shuffled(sample).batches)) == list(range(40))
    assert evenly([5, 1, 4, 2, 3, 0], 2, beside=3).tolist() == [[5, 1, 3], [4, 2, 0]]


ROWS = ("intermediate", "prediction-cached", "teacher-pass", "augment-with-original", "augment-alone", "evaluate")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_in_miniature(setup, monkeypatch, name, capsys):
    monkeypatch.setattr(distilling, "PASS_ROWS", 16)
    monkeypatch.setattr(evaluating, "_int8", lambda model, place: None)
    row = speed.measure([name], setup, steps=1, rounds=1)[name]
    assert name in capsys.readouterr().out
    if "skipped" in row:
        assert "cache" in row["skipped"] and not ours.has_cache()
        return
    assert all(each["rate"] > 0 for each in row["contestants"].values())
    assert all(each["ratio"] > 0 for each in row["ratios"].values())
    json.dumps(row)
    if name == "evaluate":
        assert row["largest_difference"] < 1e-5
    if name == "augment-with-original":
        assert row["candidates"]["words"] > 0 and row["candidates"]["different"] == 0


@pytest.mark.slow
def test_what_could_run_instead_in_miniature_and_its_page(setup, tmp_path):
    rows = speed.measure(["inference"], setup, steps=1, rounds=1)
    rates = {name: each["rate"] for name, each in rows["inference"]["contestants"].items()}
    assert {"teacher, PyTorch", "teacher, ONNX int8", "student, ONNX int8", "static vectors", "TF-IDF, linear"} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())
    speed._write(tmp_path / "speed.json", {"machine": speed.machine(), "steps": 1, "rows": rows, "some_rows": True})
    speed_page.write(tmp_path / "speed.json", tmp_path / "speed.md")
    page = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert f"| TF-IDF, linear | {rows['inference']['contestants']['TF-IDF, linear']['latency_ms']:.2f} |" in page
    assert "ROWS=inference" in page and "## Training" not in page


def test_a_page_says_when_where_and_whether_an_aim_was_missed():
    row = {
        "what": "A stage.",
        "unit": "samples/s",
        "date": "2026-11-29",
        "commit": "abc1234+",
        "contestants": {"plain": {"rate": 2.0}, "mbert": {"rate": 5.0, "of_gemm_peak": 0.8}},
        "ratios": {"mbert / plain": {"ratio": 2.5, "target": 3.0, "reached": False}},
        "rounds": 3,
        "load_before": 0.5,
        "load_after": 3.0,
        "quiet": False,
    }
    rows = {"stage": row, "textbrewer": {"what": "a peer", "skipped": "not installed"}}
    page = speed_page.page({"machine": speed.machine(), "steps": 4, "rows": rows})
    assert "| A stage | samples/s | 2 | 5 | **2.5** | 0.8 |  | 0.5-3, not quiet | 2026-11-29, abc1234+ |" in page
    assert "| stage | mbert / plain | 2.5 | 3 | missed |" in page and "- textbrewer: not installed" in page


def test_the_plain_augmenter_varies_eligible_words(setup):
    model = build(TEACHER, "masked-lm", setup.tokenizer, seed=3)
    slow = plain.Augmenter(plain.masked_lm_like(model), Spelling(setup.tokenizer), stop_words())
    text = "the lovely boat of the baker"
    variants = slow.vary(text, copies=5, probability=1.0)
    words = [each.split() for each in variants]
    assert slow.forwards == 3 and variants
    assert all(each[0] == "the" and each[3:5] == ["of", "the"] for each in words)


def test_general_laps_in_miniature(setup):
    blocks = general.blocks_of(setup, 20)
    for name in ("plain", "mbert"):
        lap = general.lap_of(name, setup, blocks, 2)
        assert lap.samples == 8 and len(lap.seconds) == 2
    assert lap.real < lap.tokens  # short blocks are padded
    assert sum(not line.strip() for line in general.first_documents(setup.corpus, 5)) == 5
    assert 10 * 2**20 < meter.peak_bytes() < 2**36 and general.free_bytes() > 0


def test_targets_are_compared():
    result = meter.compared({"contestants": {"a": {"rate": 6.0}, "b": {"rate": 2.0}}}, {"a / b": 2.5, "b / a": 1.0, "a / c": 1})
    assert result["ratios"]["a / b"] == {"ratio": 3.0, "target": 2.5, "reached": True}
    assert not result["ratios"]["b / a"]["reached"] and "a / c" not in result["ratios"]


def test_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MBERT_SHARED", str(tmp_path / "nowhere"))
    assert speed.main([]) == 0 and "MBERT_SHARED" in capsys.readouterr().err
    assert speed.main(["--list"]) == 0 and "teacher-pass" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        speed.main(["--only", "nothing"])


@pytest.mark.slow
def test_the_gpu_script_in_miniature_on_the_cpu(setup, monkeypatch):
    monkeypatch.setattr(general, "DOCUMENTS", 30)
    sizes = {"tokens": 64, "blocks": 8}
    results = dict(gpu.measure(setup, "cpu", steps=4, names=list(gpu.ROWS), size=64, **sizes))
    assert results["agreement"]["reached"]
    assert sum(name.endswith("fp32") for name in results["agreement"]) == 4
    for row in ("general", "intermediate", "augment"):
        assert results[row]["mbert, bf16"]["rate"] > 0 and results[row]["mbert, bf16"]["share"] > 0
        assert results[row]["mbert bf16 / plain, fp32"] > 0
    assert results["run"]["extrapolated"] and results["run"]["augmented_rows"] > len(setup.train)


def test_without_a_gpu_the_script_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 0
    assert "nothing was measured" in capsys.readouterr().err


def test_a_picture_shows_what_is_left_on_the_screen():
    bars = "begin\r\n\x1b[?25lbar 1\r\nbar 2\r\x1b[2K\x1b[1A\x1b[2K\x1b[31mdone\x1b[0m\r\n"
    assert screens.at_the_end(bars) == "begin\n\x1b[31mdone\x1b[0m"
    assert screens.at_the_end("1 %\r50 %\r100 %\r\nend\r\n") == "100 %\nend"


ARTICLES = """Abbie Rowe (1905-1967) was an American photographer and writer, best known for the White House.
When Rowe was nine, a film by John Rowe showed Abbie Rowe at work.

Lone Lake is a lake in Canada.
The village of Long lies at Lone Lake, near the road to the north.
"""


def test_real_sets_out_of_articles(tmp_path):
    """Tags are those of the subject alone, labels are what the first sentence says, and an article has one part."""
    (tmp_path / "corpus.txt").write_text(ARTICLES, encoding="utf-8")
    (tmp_path / "titles.tsv").write_text("1\tAbbie Rowe\n2\tLone Lake\n", encoding="utf-8")
    wiki_kinds.write_sets(tmp_path / "corpus.txt", tmp_path / "titles.tsv", tmp_path / "sets")
    parts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "sets").iterdir()}
    rows = [row.splitlines() for name, text in parts.items() if name.endswith("conll") for row in text.split("\n\n") if row]
    tagged = sorted([line for line in row if not line.endswith(" O")] for row in rows)
    assert tagged == [["Lone B-PLACE", "Lake I-PLACE"], ["Rowe B-PERSON", "Abbie B-PERSON", "Rowe I-PERSON"]]
    (row,) = [json.loads(line) for name, text in parts.items() if name.endswith("jsonl") for line in text.splitlines()]
    assert row["labels"] == ["american", "writer"]
    assert row["text"].startswith("When Rowe was nine")
