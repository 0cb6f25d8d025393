"""What a forward pass shows, against the same computed by hand from the weights, for every architecture we name."""

import json

import pytest
import torch
import transformers
from tiny_models import tiny_bert
from torch.nn.functional import layer_norm, linear

from microbert_cli.models.architectures import input_names
from microbert_cli.models.capture import ATTENTION, ModelOutputs, OutputRequest, forward_outputs, show_scores
from microbert_cli.models.load import load_model

SHAPE = dict(
    vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40
)
DISTIL = dict(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40)
EDGES = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
ARCHITECTURES = {
    "Bert": SHAPE,
    "Roberta": SHAPE | dict(type_vocab_size=1, pad_token_id=1),
    "XLMRoberta": SHAPE | dict(type_vocab_size=1, pad_token_id=1),
    "Electra": SHAPE | dict(embedding_size=8),
    "DistilBert": DISTIL,
    "Albert": SHAPE | dict(embedding_size=8),
    "MobileBert": SHAPE | dict(num_attention_heads=4, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    "ModernBert": SHAPE | EDGES,
}
# Computes its attention by itself: everything else works.
CLOSED = {"DebertaV2": SHAPE}
EVERY = OutputRequest(logits=True, hidden=frozenset({0, 1, 2}), scores=frozenset({1, 2}))


def build(name, head="ForSequenceClassification"):
    config = getattr(transformers, f"{name}Config")(**{**ARCHITECTURES, **CLOSED}[name])
    torch.manual_seed(0)
    return getattr(transformers, name + head)(config).eval()


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 2:] = 0, 0
    types = torch.zeros_like(ids)
    types[:, 4:] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def plain_output(model, batch, **more):
    return model(**{name: batch[name] for name in input_names(model)}, **more)


def real(values, batch):
    return values[batch["attention_mask"].bool()]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("reference", ["eager", "sdpa"])
def test_nothing_changes_by_looking(name, reference, batch):
    """Logits and hidden states are those of transformers' own attention, whether scores are kept or not."""
    model = build(name)
    model.set_attn_implementation(reference)
    expected = plain_output(model, batch, output_hidden_states=True)
    show_scores(model)
    for scores in (frozenset(), frozenset({2}), frozenset({1, 2})):
        seen = forward_outputs(model, batch, OutputRequest(logits=True, hidden=frozenset({0, 1, 2}), scores=scores))
        assert torch.allclose(seen.logits, expected.logits, atol=1e-5)
        assert sorted(seen.scores) == sorted(scores)
        for layer, hidden in seen.hidden.items():
            assert torch.allclose(real(hidden, batch), real(expected.hidden_states[layer], batch), atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_softmax_of_the_scores_is_the_attention(name, batch):
    """In eval mode transformers' eager probabilities are the softmax of our scores, padding masked."""
    model = build(name)
    model.set_attn_implementation("eager")
    expected = plain_output(model, batch, output_attentions=True).attentions
    show_scores(model)
    seen = forward_outputs(model, batch, EVERY)
    hidden = ~batch["attention_mask"].bool()[:, None, None, :]
    for layer, probabilities in enumerate(expected, 1):
        softmax = seen.scores[layer].masked_fill(hidden, float("-inf")).softmax(-1)
        rows = batch["attention_mask"].bool()
        assert torch.allclose(softmax.transpose(1, 2)[rows], probabilities.transpose(1, 2)[rows], atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_queries_and_keys_make_the_scores(name, batch):
    model = build(name)
    show_scores(model)
    seen = forward_outputs(model, batch, OutputRequest(scores=frozenset({2}), qkv=frozenset({1, 2})))
    assert sorted(seen.qkv) == [1, 2]
    queries, keys, values = seen.qkv[2]
    assert torch.allclose(queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5, seen.scores[2], atol=1e-5)
    assert values.shape[:3] == (3, model.config.num_attention_heads, 9)


def test_values_by_hand(batch):
    model = build("Bert")
    show_scores(model)
    seen = forward_outputs(model, batch, OutputRequest(hidden=frozenset({1}), qkv=frozenset({2})))
    layer = model.bert.encoder.layer[1].attention.self.value
    assert torch.allclose(seen.qkv[2][2], heads(linear(seen.hidden[1], layer.weight, layer.bias), 2), atol=1e-6)


def heads(values, count):
    return values.unflatten(-1, (count, -1)).transpose(1, 2)


def by_hand(hidden_BTd, layer, count):
    """Q K^T / sqrt(d / heads) from the weights."""
    attention = layer.attention.self
    query, key = (heads(linear(hidden_BTd, part.weight, part.bias), count) for part in (attention.query, attention.key))
    return query @ key.transpose(-1, -2) / (query.shape[-1] ** 0.5)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra"])
def test_scores_by_hand(name, batch):
    model = build(name)
    show_scores(model)
    seen = forward_outputs(model, batch, EVERY)
    for number, layer in enumerate(model.base_model.encoder.layer, 1):
        # The scores are before mask and softmax: padded positions have them, too.
        assert torch.allclose(seen.scores[number], by_hand(seen.hidden[number - 1], layer, 2), atol=1e-6)


def test_scores_of_distilbert_by_hand(batch):
    model = build("DistilBert")
    show_scores(model)
    seen = forward_outputs(model, batch, EVERY)
    for number, layer in enumerate(model.distilbert.transformer.layer, 1):
        attention = layer.attention
        query, key = (heads(linear(seen.hidden[number - 1], p.weight, p.bias), 2) for p in (attention.q_lin, attention.k_lin))
        assert torch.allclose(seen.scores[number], query @ key.transpose(-1, -2) / 8**0.5, atol=1e-6)


def test_layer_0_is_the_embedding_output_after_its_layer_norm(batch):
    model = build("Bert")
    table = model.bert.embeddings
    total = table.word_embeddings(batch["input_ids"]) + table.token_type_embeddings(batch["token_type_ids"])
    total = total + table.position_embeddings.weight[:9]
    expected = layer_norm(total, (16,), table.LayerNorm.weight, table.LayerNorm.bias, 1e-12)
    show_scores(model)
    assert torch.allclose(forward_outputs(model, batch, EVERY).hidden[0], expected, atol=1e-6)


def test_only_what_was_asked_is_kept(batch):
    model = build("Bert")
    show_scores(model)
    seen = forward_outputs(model, batch, OutputRequest(hidden=frozenset({1}), scores=frozenset({2})))
    assert sorted(seen.hidden) == [1] and sorted(seen.scores) == [2]
    assert seen.logits is None and seen.token_logits is None
    assert forward_outputs(model, batch, OutputRequest(logits=True)).scores == {}


def test_two_passes_do_not_mix(batch):
    """What one model showed stays what it was when another is looked at."""
    bert, distilbert = build("Bert"), build("DistilBert")
    show_scores(bert)
    show_scores(distilbert)
    first = forward_outputs(bert, batch, EVERY)
    kept = {layer: scores.clone() for layer, scores in first.scores.items()}
    forward_outputs(distilbert, batch, EVERY)
    assert all(torch.equal(first.scores[layer], kept[layer]) for layer in kept)


def test_padding_does_not_reach_real_tokens(batch):
    model = build("Bert")
    show_scores(model)
    longer = {name: torch.nn.functional.pad(value, (0, 7)) for name, value in batch.items()}
    short, long = forward_outputs(model, batch, EVERY), forward_outputs(model, longer, EVERY)
    assert torch.allclose(short.logits, long.logits, atol=1e-6)
    for layer in (1, 2):
        assert torch.allclose(real(short.hidden[layer], batch), real(long.hidden[layer], longer), atol=1e-6)
        assert torch.allclose(short.scores[layer], long.scores[layer][:, :, :9, :9], atol=1e-6)


@pytest.mark.parametrize("name", ["Bert", "DistilBert"])
def test_gradients_are_those_of_eager_attention(name, batch):
    def gradients(attention):
        model = build(name)
        model.set_attn_implementation(attention)
        seen = forward_outputs(
            model, batch, OutputRequest(logits=True, scores=frozenset({1, 2} if attention == ATTENTION else {}))
        )
        seen.logits.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    actual, expected = gradients(ATTENTION), gradients("eager")
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert torch.allclose(value, expected[key], atol=1e-5), key


@pytest.mark.parametrize("name", [*ARCHITECTURES, *CLOSED])
def test_the_vocabulary_head_at_chosen_positions(name, batch):
    model = build(name, "ForMaskedLM")
    expected = plain_output(model, batch).logits.flatten(0, 1)
    positions = torch.tensor([0, 4, 10])
    show_scores(model)
    seen = forward_outputs(model, batch | {"token_positions": positions}, OutputRequest(token_logits=True))
    assert torch.allclose(seen.token_logits, expected[positions], atol=1e-5)
    again = plain_output(model, batch).logits  # the model is whole afterwards
    assert torch.allclose(again.flatten(0, 1), expected, atol=1e-5)


def test_gradients_go_through_the_vocabulary_head(batch):
    model = build("Bert", "ForMaskedLM")
    show_scores(model)
    seen = forward_outputs(model, batch | {"token_positions": torch.tensor([3])}, OutputRequest(token_logits=True))
    seen.token_logits.sum().backward()
    assert model.bert.embeddings.LayerNorm.weight.grad.abs().sum() > 0


def test_what_computes_its_attention_by_itself_says_so(batch):
    model = build("DebertaV2")
    show_scores(model)
    assert forward_outputs(model, batch, OutputRequest(logits=True, hidden=frozenset({1}))).logits.shape == (3, 2)
    with pytest.raises(RuntimeError, match=r"DebertaV2.*layers \[1\]"):
        forward_outputs(model, batch, OutputRequest(scores=frozenset({1})))


def test_an_architecture_of_our_own_shows_itself(batch):
    class Own(torch.nn.Module):
        def look(self, batch, want):
            return ModelOutputs(logits=torch.zeros(3, 2), hidden=dict.fromkeys(want.hidden, torch.ones(1)))

    assert sorted(forward_outputs(Own(), batch, OutputRequest(hidden=frozenset({1}))).hidden) == [1]


def test_segments_go_only_where_there_are_several(batch):
    assert "token_type_ids" in input_names(build("Bert"))
    for name in ("Roberta", "DistilBert", "ModernBert"):
        model = build(name)
        assert "token_type_ids" not in input_names(model)
        show_scores(model)
        forward_outputs(model, batch, OutputRequest(logits=True))  # a segment id of 1 would be beyond RoBERTa's table


def test_config_json_has_no_trace_of_us(tmp_path):
    loaded = load_model(tiny_bert(tmp_path / "one"), "classifier", where="model")
    loaded.model.save_pretrained(tmp_path / "two")
    text = (tmp_path / "two" / "config.json").read_text()
    assert ATTENTION not in text and "attn_implementation" not in json.loads(text)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "two")
    assert again.config._attn_implementation != ATTENTION


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("hidden", "scores"), [({0}, set()), ({0, 1}, {1}), (set(), {1}), ({2}, set()), (set(), {2})])
def test_what_lies_above_the_deepest_layer_asked_does_not_change_it(name, hidden, scores, batch):
    model = build(name)
    show_scores(model)
    whole = forward_outputs(model, batch, EVERY)
    some = forward_outputs(model, batch, OutputRequest(hidden=frozenset(hidden), scores=frozenset(scores)))
    assert some.hidden.keys() == hidden and some.scores.keys() == scores
    assert all(torch.allclose(some.hidden[layer], whole.hidden[layer], atol=1e-5) for layer in hidden)
    assert all(torch.allclose(some.scores[layer], whole.scores[layer], atol=1e-5) for layer in scores)
    assert torch.equal(forward_outputs(model, batch, EVERY).logits, whole.logits)  # all is in its place again


@pytest.mark.parametrize(("deepest", "ran"), [(0, [1]), (1, [1]), (2, [1, 2])])
def test_layers_and_pooler_that_nobody_reads_do_not_run(deepest, ran, batch):
    model, seen = build("Bert"), []
    show_scores(model)
    for number, layer in enumerate(model.bert.encoder.layer, 1):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    model.bert.pooler.register_forward_hook(lambda *_: seen.append("pooler"))
    forward_outputs(model, batch, OutputRequest(hidden=frozenset({deepest})))
    assert seen == ran
    forward_outputs(model, batch, OutputRequest(logits=True, hidden=frozenset({2})))
    assert seen == [*ran, 1, 2, "pooler"]


def test_layers_come_back_after_an_error(batch):
    model = build("Bert")
    show_scores(model)
    with pytest.raises(IndexError):
        forward_outputs(model, {**batch, "input_ids": batch["input_ids"] + 1000}, OutputRequest(hidden=frozenset({1})))
    assert len(model.bert.encoder.layer) == 2 and model.bert.pooler is not None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_alone_are_the_same_with_less_work_at_the_top(name, batch):
    """Values and gradients: the top layer of a classifier computes the token that its head reads."""
    model = build(name)
    show_scores(model)
    names = input_names(model)
    whole = model(**{key: batch[key] for key in names}).logits
    whole.square().sum().backward()
    expected = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    some = forward_outputs(model, batch, OutputRequest(logits=True)).logits
    some.square().sum().backward()
    assert torch.allclose(some, whole, atol=1e-5)
    actual = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert actual.keys() == expected.keys()
    assert all(torch.allclose(actual[key], expected[key], atol=1e-4) for key in expected)


@pytest.mark.parametrize(("name", "width"), [("Bert", 1), ("Roberta", 1), ("Electra", 1), ("DistilBert", 9)])
def test_how_many_tokens_the_top_layer_computes(name, width, batch):
    model, seen = build(name), []
    show_scores(model)
    stack = model.base_model.transformer if name == "DistilBert" else model.base_model.encoder
    last = stack.layer[-1]
    part = last.ffn if name == "DistilBert" else last.intermediate
    part.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    forward_outputs(model, batch, OutputRequest(logits=True))
    forward_outputs(model, batch, EVERY)
    assert seen == [width, 9]
    assert stack.layer[-1] is last


def test_dropout_is_at_work_in_the_first_token(batch):
    model = build("Bert").train()
    show_scores(model)
    first, second = (forward_outputs(model, batch, OutputRequest(logits=True)).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Electra"])
def test_a_shallow_first_look_takes_nothing_from_later_ones(name, batch):
    """transformers decides at the first call which layers it listens to."""
    model = build(name)
    show_scores(model)
    forward_outputs(model, batch, OutputRequest(hidden=frozenset({1})))
    forward_outputs(model, batch, OutputRequest(logits=True))
    assert forward_outputs(model, batch, EVERY).hidden.keys() == {0, 1, 2}
