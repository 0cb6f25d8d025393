"""Dynamic masking: a share of real tokens, 80 / 10 / 10, drawn from (seed, batch number) alone."""

import pytest
import torch
from tiny_models import tiny_tokenizer

from microbert_cli.data.corpus.masking import mask_batch


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def batch(tokenizer):
    """Many rows of ordinary tokens between [CLS] and [SEP], the second half of each padding."""
    ids = torch.randint(40, len(tokenizer), (200, 80), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[:, 0], ids[:, 39] = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids[:, 40:], mask[:, 40:] = tokenizer.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask}


def test_shares(tokenizer, batch):
    masked = mask_batch(batch, tokenizer, share=0.15, seed=1, number=0)
    before, after = (b["input_ids"].flatten()[masked["token_positions"]] for b in (batch, masked))
    assert torch.equal(before, masked["token_labels"])
    count = len(before)
    assert count / (200 * 38) == pytest.approx(0.15, abs=0.015)
    assert (after == tokenizer.mask_token_id).sum().item() / count == pytest.approx(0.8, abs=0.04)
    assert (after == before).sum().item() / count == pytest.approx(0.1, abs=0.03)


def test_nothing_else_changes(tokenizer, batch):
    kept = batch["input_ids"].clone()
    masked = mask_batch(batch, tokenizer, share=0.15, seed=1, number=0)
    changed = (masked["input_ids"] != batch["input_ids"]).flatten().nonzero()[:, 0]
    assert set(changed.tolist()) <= set(masked["token_positions"].tolist())
    assert torch.equal(batch["input_ids"], kept)
    chosen = batch["input_ids"].flatten()[masked["token_positions"]]
    assert not torch.isin(chosen, torch.tensor(tokenizer.all_special_ids)).any()


def test_seed_and_number_decide(tokenizer, batch):
    def positions(seed, number):
        return mask_batch(batch, tokenizer, share=0.15, seed=seed, number=number)["token_positions"].tolist()

    state = torch.get_rng_state()
    assert positions(1, 0) == positions(1, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert positions(1, 0) != positions(1, 1) and positions(1, 0) != positions(2, 0)
    assert positions(0, -1) != positions(0, 1)


def test_at_least_one_word_is_asked_for(tokenizer):
    row = {"input_ids": torch.tensor([[tokenizer.cls_token_id, 50, 51, tokenizer.sep_token_id]])}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    masked = mask_batch(row, tokenizer, share=1e-9, seed=0, number=0)
    assert masked["token_positions"].tolist() in ([1], [2])


def test_special_tokens_are_never_asked_for(tokenizer):
    row = {"input_ids": torch.tensor([[tokenizer.cls_token_id, tokenizer.sep_token_id]])}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    assert len(mask_batch(row, tokenizer, share=0.5, seed=0, number=0)["token_positions"]) == 0
