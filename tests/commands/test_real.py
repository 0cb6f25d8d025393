"""Real weights on real text; slower than the fast suite allows. `make real` runs these and then the recorded runs."""

import numpy as np
import pytest

from microbert_cli import api
from microbert_cli.data.corpus.blocks import BlockSettings, make_blocks
from microbert_cli.data.corpus.masking import mask_batch
from microbert_cli.models.load import load_model
from microbert_cli.stages.pretrain.run import masked_lm_scores

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("real")
    patch.setenv("MBERT_CACHE", str(place / "cache"))
    yield place
    patch.undo()


def test_masked_lm_knows_wikipedia(shared, folder):
    """Its maker measured an accuracy of 0.359 at masked positions of held-out 64-token blocks."""
    loaded = load_model(shared / "models" / "minilm-l6-mlm", "masked-lm", where="test")
    settings = BlockSettings(format="packed", max_length=64, documents=300, heldout=0.2)
    _, held = make_blocks(str(shared / "data" / "corpus" / "wiki_en.txt.gz"), loaded.tokenizer, settings)
    rows = np.arange(200).reshape(4, 50)
    batches = [mask_batch(held.batch(r), loaded.tokenizer, share=0.15, seed=1, number=i) for i, r in enumerate(rows)]
    scores = masked_lm_scores(loaded.model, batches)
    assert 0.30 < scores["accuracy"] < 0.50 and 3.0 < scores["loss"] < 5.0


def test_general_distillation_learns(shared, folder):
    done = api.general_distill(
        teacher=shared / "models" / "minilm-l6-mlm",
        student="bert-3x312x1200",
        corpus=shared / "data" / "corpus" / "wiki_en.txt.gz",
        out=folder / "general",
        layer_map=[2, 4, 6],
        corpus__documents=60,
        corpus__max_length=64,
        general__steps=30,
        general__batch_size=16,
        general__learning_rate=6e-4,
    )
    before, after = done.metrics["heldout_before"], done.metrics["heldout"]
    assert after["loss"] < 0.8 * before["loss"]
    assert all(after[name] < before[name] for name in ("embedding", "hidden_states", "attention_scores"))


def test_trimming_for_sst2(shared, folder):
    """BERT's vocabulary, for SST-2's training rows and the 12,000 commonest tokens of Wikipedia."""
    model, glue = shared / "models" / "minilm-l6-mlm", shared / "data" / "glue"
    keys = {"model": model, "task": "sst2", "data__folder": glue}
    alone = api.trim(out=folder / "alone", **keys).metrics
    assert alone["rows"]["kept_for"]["added"] == 5 and alone["rows"]["kept_for"]["texts"] == 11_487
    assert alone["texts"]["split_alike"] == alone["texts"]["count"] == 67_349
    done = api.trim(out=folder / "wiki", corpus=shared / "data" / "corpus" / "wiki_en.txt.gz", **keys).metrics
    assert done["rows"]["after"] == 18_406 and done["bytes"]["saved"] > 18e6
    assert 195 <= done["split"]["rows_cut_finer"] <= 207 and done["split"]["share_cut"] == pytest.approx(0.0121, abs=5e-4)
    assert done["parity"]["max_difference"] < 1e-5 and done["kind"] == "masked-lm"
