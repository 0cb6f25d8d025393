"""The int8 copy of a masked language model: answers near those of float32, that depend on the query alone, written once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mbert_command import works
from tiny_glue import WORDS
from tiny_models import tiny_bert, tiny_glue

from microbert_cli.augmentation.int8_masked_lm import Int8MaskedLm
from microbert_cli.data.examples import Examples
from microbert_cli.models import onnx
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.load import load_model
from microbert_cli.runs import cache

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow
ASKED = OutputRequest(token_logits=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("int8") / "base", kind="masked-lm", vocab=WORDS, hidden=32)


def queries(loaded: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    batch = dict(loaded.tokenizer(texts, padding=True, return_tensors="pt"))
    return batch | {"token_positions": torch.arange(len(texts)) * batch["input_ids"].shape[1] + 2}


def test_answers_are_near_and_depend_on_the_query_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path))
    loaded = load_model(str(folder), "masked-lm", where="augment.masked_lm")
    texts = [" ".join(WORDS[i : i + 3 + i % 5]) for i in range(12)]
    rows = Examples([(text,) for text in texts])
    copy = Int8MaskedLm(loaded.model.eval(), loaded.tokenizer, weights="w", rows=rows)
    with torch.inference_mode():
        batch = queries(loaded, texts)
        exact = forward_outputs(loaded.model, batch, ASKED).token_logits
        together = forward_outputs(copy, batch, ASKED).token_logits
        assert exact is not None and together is not None
        assert 0 < (exact - together).abs().max() < 0.1 * exact.std() + 0.05
        for number in (0, 7):
            alone = forward_outputs(copy, queries(loaded, texts[number : number + 1]), ASKED).token_logits
            assert alone is not None and torch.allclose(alone[0], together[number], atol=1e-5)
    monkeypatch.setattr("microbert_cli.augmentation.int8_masked_lm.write_outputs", None)
    Int8MaskedLm(loaded.model, loaded.tokenizer, weights="w", rows=rows)  # from the cache
    assert len(list(cache.root().glob("int8-masked-lm/*/encoder.int8.onnx"))) == 1 and onnx.write_graph


def test_the_stage_says_what_it_was_made_with(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    data = tiny_glue(tmp_path / "glue")
    outputs = []
    for number, batch_size in enumerate((4, 64)):
        words = ["augment", "--task", "sst2", "--data", str(data), "--masked-lm", str(folder), "--set", "data.limit=12"]
        keys = ["--set", "augment.precision=int8", "--set", f"augment.batch_size={batch_size}", "--set", "augment.copies=2"]
        works(*words, *keys, "--device", "cpu", "-o", str(tmp_path / str(number)))
        outputs.append((tmp_path / str(number) / "augmented.parquet").read_bytes())
    assert outputs[0] == outputs[1]
    assert 'precision = "int8"' in (tmp_path / "0" / "recipe.resolved.toml").read_text()
