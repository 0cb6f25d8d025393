"""Smaller vocabularies: kept words are split as before, no text fails, and the files are whole for both libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strange_inputs import TEXTS
from tiny_glue import WORDS
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import AutoTokenizer

from microbert_cli.errors import MbertError
from microbert_cli.models.vocabulary import closure
from microbert_cli.models.vocabulary.tokenizer import cut_rules, cut_tokenizer, encode, fall_backs, read_rules, renumbered
from microbert_cli.models.vocabulary.weights import cut_config, cut_model, named_ids
from microbert_cli.recipe.values import Vocabulary
from microbert_cli.stages.trim.choose import choose, count_tokens

TRAIN = [f"the {word}s near a {word} were sold; {word}ing is lovely" for word in WORDS[:14]] + [
    "Café de l'Été, naïve 東京 ½ price!"
]
OTHER = ["unbelievable gardeners mended broken kettles", "exactly eleven windows", "ﬁne 東北 ÉTÉ ß", "why not perhaps"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_pieces() -> tuple[Any, Any]:
    """A WordPiece as BERT's, and a configuration of BERT for it."""
    core = Tokenizer(token_models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=420, special_tokens=BERT, show_progress=False)
    core.train_from_iterator([*TRAIN, *OTHER, *WORDS], trainer)
    tokenizer = transformers.BertTokenizerFast(vocab=core.get_vocab())
    return tokenizer, _config(transformers.BertConfig, tokenizer)


def byte_pairs() -> tuple[Any, Any]:
    """Byte-level pairs as RoBERTa's: padding has id 1, and positions are counted from it."""
    core = Tokenizer(token_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=ROBERTA, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([*TRAIN, *OTHER, *WORDS], trainer)
    learnt = json.loads(core.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = transformers.RobertaTokenizerFast(vocab=learnt["vocab"], merges=merges)
    return tokenizer, _config(transformers.RobertaConfig, tokenizer, type_vocab_size=1)


def plain_pairs() -> tuple[Any, Any]:
    """Pairs of characters with an end mark and an unknown token, without a class of their own."""
    core = Tokenizer(token_models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=ROBERTA, end_of_word_suffix="</w>", show_progress=False)
    core.train_from_iterator([*TRAIN, *OTHER, *WORDS], trainer)
    core.decoder = decoders.BPEDecoder()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), ROBERTA, strict=True))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)
    return tokenizer, _config(transformers.BertConfig, tokenizer)


def unigrams() -> tuple[Any, Any]:
    """Scored pieces as XLM-R's."""
    core = Tokenizer(token_models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=ROBERTA, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([*TRAIN, *OTHER, *WORDS], trainer)
    pieces = [tuple(entry) for entry in json.loads(core.to_str())["model"]["vocab"]]
    tokenizer = transformers.XLMRobertaTokenizerFast(vocab=pieces)
    return tokenizer, _config(transformers.XLMRobertaConfig, tokenizer, type_vocab_size=1)


def _config(config_class: Any, tokenizer: Any, **fields: Any) -> Any:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return config_class(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, initializer_range=0.2, **ids, **fields,
    )  # fmt: skip


KINDS = {"wordpiece": word_pieces, "byte-bpe": byte_pairs, "plain-bpe": plain_pairs, "unigram": unigrams}


class Cut:
    """A tokenizer, and what is left of it for TRAIN."""

    def __init__(self, kind: str, folder: Path):
        self.before, self.config = KINDS[kind]()
        used = count_tokens(self.before, TRAIN)
        choice = choose(self.before, self.config, Vocabulary(), used, None, where="test")
        self.numbers, self.rules = choice.numbers, choice.rules
        self.smaller_config = cut_config(self.config, self.numbers)
        self.after = cut_tokenizer(self.before, self.rules, self.numbers, self.smaller_config, where="test")
        self.after.save_pretrained(folder)
        self.folder = folder

    def unknown(self, tokenizer: Any, text: str) -> int:
        return encode(tokenizer, [text])[0].count(tokenizer.unk_token_id)


@pytest.fixture(scope="module", params=KINDS)
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return Cut(request.param, tmp_path_factory.mktemp(request.param))


def test_it_is_smaller_and_ids_keep_their_order(cut: Cut) -> None:
    assert 0.3 * len(cut.before) < len(cut.after) < 0.95 * len(cut.before)
    kept = sorted(cut.numbers)
    assert [cut.numbers[old] for old in kept] == list(range(len(kept)))
    for name in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        token, number = getattr(cut.before, f"{name}_token"), getattr(cut.after, f"{name}_token_id")
        assert getattr(cut.after, f"{name}_token") == token
        assert number == (cut.numbers[getattr(cut.before, f"{name}_token_id")] if token else None)
    assert cut.after.pad_token_id == cut.before.pad_token_id == cut.smaller_config.pad_token_id


def test_train_texts_are_split_token_for_token_as_before(cut: Cut) -> None:
    for text in TRAIN:
        assert cut.after.tokenize(text) == cut.before.tokenize(text)
        before, after = cut.before(text, text), cut.after(text, text)
        assert [cut.numbers[old] for old in before["input_ids"]] == after["input_ids"]
        assert {k: v for k, v in before.items() if k != "input_ids"} == {k: v for k, v in after.items() if k != "input_ids"}
    finer = [text for text in OTHER if cut.after.tokenize(text) != cut.before.tokenize(text)]
    assert finer, "no other text is split finer: nothing was tried"


def test_both_libraries_read_the_files(cut: Cut) -> None:
    alone, reread = Tokenizer.from_file(str(cut.folder / "tokenizer.json")), AutoTokenizer.from_pretrained(cut.folder)
    assert alone.get_vocab() == reread.get_vocab() == cut.after.get_vocab()
    for text in (*TRAIN, *OTHER):
        ids = cut.after(text)["input_ids"]
        assert reread(text)["input_ids"] == ids == alone.encode(text).ids
        assert alone.decode(ids) == reread.decode(ids, skip_special_tokens=True)
    assert {int(token) for token in reread.added_tokens_decoder} == {cut.numbers[n] for n in cut.before.added_tokens_decoder}


@settings(derandomize=True, database=None, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(TEXTS, st.text(), st.text(alphabet="aehlnorst ßÉé東京½ⅲ", max_size=24)))
@example(text="東東 unbelievable ﬁ ﬃ Éé e\u0301 ½")
def test_no_text_fails(cut: Cut, text: str) -> None:
    """What was written without the unknown token still is, and gives the same text back."""
    before, after = cut.unknown(cut.before, text), cut.unknown(cut.after, text)
    assert after <= before
    old, new = encode(cut.before, [text])[0], encode(cut.after, [text])[0]
    assert len(new) >= len(old) - (before - after)
    if not before:
        assert cut.after.decode(new) == cut.before.decode(old)
    if cut.numbers.keys() >= set(old):
        assert [cut.numbers[number] for number in old] == new


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM", "Model"])
def test_a_smaller_model_answers_the_same(cut: Cut, head: str) -> None:
    torch.manual_seed(0)
    stem = type(cut.config).__name__.removesuffix("Config")
    model = getattr(transformers, f"{stem}{head}")(cut.config).eval()
    smaller = cut_model(model, cut.smaller_config, cut.numbers, where="test")
    padded = [t(TRAIN[:9], padding=True, truncation=True, max_length=60, return_tensors="pt") for t in (cut.before, cut.after)]
    with torch.inference_mode():
        old, new = (part(**batch)[0] for part, batch in zip((model, smaller), padded, strict=True))
    kept = sorted(cut.numbers)
    assert (new - (old[..., kept] if head == "ForMaskedLM" else old)).abs().max() < 1e-6
    assert len(smaller.get_input_embeddings().weight) == len(kept) == smaller.config.vocab_size
    assert smaller.get_input_embeddings().padding_idx == cut.smaller_config.pad_token_id
    if head == "ForMaskedLM":
        output = smaller.get_output_embeddings()
        assert output.weight.data_ptr() == smaller.get_input_embeddings().weight.data_ptr() and len(output.bias) == len(kept)


def test_the_weights_of_other_tokens_are_gone(cut: Cut, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_config(cut.config)
    table = model.get_input_embeddings().weight
    smaller = cut_model(model, cut.smaller_config, cut.numbers, where="test")
    smaller.save_pretrained(tmp_path)
    cut.after.save_pretrained(tmp_path)
    reread = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(reread.get_input_embeddings().weight, table[sorted(cut.numbers)])
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == cut.after.get_vocab()


def test_pieces_on_the_way_are_kept() -> None:
    """`lowest` is merged from `low` and `est`, and these from others: without them it could not be merged."""
    merges = [("l", "o"), ("e", "s"), ("lo", "w"), ("es", "t"), ("low", "est"), ("o", "w"), ("w", "est")]
    pieces = ["l", "o", "w", "e", "s", "t", "lo", "es", "low", "est", "lowest", "ow", "west"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    rules = {
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]},
        "added_tokens": [], "post_processor": None, "padding": None,
    }  # fmt: skip
    kept = closure.parts_of(rules)(pieces.index("lowest"))
    assert {pieces[number] for number in kept} == {"l", "o", "w", "e", "s", "t", "lo", "es", "low", "est", "lowest"}
    smaller = cut_rules(rules, renumbered(rules, kept))
    assert smaller["model"]["merges"] == [list(pair) for pair in merges[:5]]


def test_a_character_that_has_no_piece_of_its_own_keeps_its_pieces() -> None:
    vocab = ["[UNK]", "a", "b", "##a", "##b", "##c", "xab", "ab", "##zc"]
    rules = {
        "model": {"type": "WordPiece", "vocab": {t: n for n, t in enumerate(vocab)}, "continuing_subword_prefix": "##",
                  "unk_token": "[UNK]"},
        "added_tokens": [{"content": "[UNK]", "id": 0}],
    }  # fmt: skip
    assert {vocab[number] for number in closure.fall_backs(rules)} == {"a", "b", "##a", "##b", "##c", "xab", "##zc", "[UNK]"}
    assert {vocab[n] for n in closure.fall_backs(rules, lambda piece: piece != "[UNK]")} == {*vocab} - {"ab", "[UNK]"}


def test_an_unknown_character_costs_what_it_did() -> None:
    tokenizer, config = unigrams()
    rules = read_rules(tokenizer, where="test")
    lowest = min(rules["model"]["vocab"], key=lambda entry: entry[1])
    assert closure.model_numbers(rules["model"])[lowest[0]] in fall_backs(tokenizer, rules)
    assert named_ids(config) >= {0, 1, 2}


def test_the_commonest_come_first_and_rows_are_kept_to() -> None:
    tokenizer, config = word_pieces()
    used, corpus = count_tokens(tokenizer, TRAIN), count_tokens(tokenizer, [*OTHER, *["gardeners unbelievable"] * 9])
    plain = choose(tokenizer, config, Vocabulary(), used, None, where="test")
    needed = len(plain.numbers)
    more = choose(tokenizer, config, Vocabulary(keep_common=3), used, corpus, where="test")
    assert set(plain.numbers) < set(more.numbers) and len(more.numbers) <= needed + 3
    capped = choose(tokenizer, config, Vocabulary(rows=needed + 1), used, corpus, where="test")
    assert len(capped.numbers) == needed + 1
    common = choose(tokenizer, config, Vocabulary(keep="common", rows=needed - 4), used, corpus, where="test")
    assert len(common.numbers) == needed - 4
    left_out = [number for number in np.flatnonzero(used) if number not in common.numbers]
    assert left_out and max(used[number] + corpus[number] for number in left_out) <= 2
    everything = choose(tokenizer, config, Vocabulary(keep="all"), used, None, where="test")
    assert list(everything.numbers) == list(everything.numbers.values()) == list(range(len(tokenizer)))
    with pytest.raises(MbertError) as error:
        choose(tokenizer, config, Vocabulary(rows=needed - 1), used, corpus, where="test")
    assert error.value.code == "M093" and str(needed) in error.value.fix


def test_a_vocabulary_of_whole_words_is_refused() -> None:
    core = Tokenizer(token_models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(MbertError) as error:
        read_rules(transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"), where="test")
    assert error.value.code == "M345" and "WordLevel" in error.value.what
    with pytest.raises(MbertError) as error:
        read_rules(object(), where="test")
    assert error.value.code == "M345"


def test_embeddings_that_are_no_table_are_refused() -> None:
    config = transformers.IBertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30
    )
    model = transformers.IBertForSequenceClassification(config)
    numbers = {number: number for number in range(10)}
    with pytest.raises(MbertError) as error:
        cut_model(model, cut_config(config, numbers), numbers, where="test")
    assert error.value.code == "M346"
