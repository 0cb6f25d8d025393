"""Tiny random models of kinds that people have: python models.py OUT (seconds; transformers and tokenizers alone).

roberta-130                RoBERTa of 130 positions, of which 128 are usable
e5-like                    BERT beside a RoBERTa-like tokenizer
distilbert-bert-tokenizer  DistilBERT beside a BERT tokenizer
albert, bert, bert-12      classifiers, and a BERT to be fine-tuned on twelve classes
multi-label                problem_type multi_label_classification, three labels
released-tinybert          config.json without model_type, a .bin file, fit_dense weights
lora, trainer-run, no-tokenizer   an adapter, a folder with checkpoint-100 only, weights without a tokenizer
old-sentence                      a folder of sentence-transformers with the encoder in 0_Transformer
"""

import json
import random
import shutil
import sys
from pathlib import Path

import torch
import transformers as T
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(sys.argv[1])
torch.manual_seed(0)
R = random.Random(0)
NOUNS = (
    "soup bread waiter room parcel phone garden ticket driver lamp kettle coat apple bridge candle dragon engine forest".split()
)
KINDS = "splendid lovely warm fresh tidy bright dreadful soggy cold stale rude slow gloomy broken".split()
TEXTS = [
    f"the {R.choice(NOUNS)} was {R.choice(KINDS)} and the {R.choice(NOUNS)} seemed {R.choice(KINDS)} {R.randint(1, 9999)}"
    for _ in range(400)
]
TEXTS.append(" ".join("abcdefghijklmnopqrstuvwxyz0123456789"))
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


def folder(name):
    path = OUT / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def wordpiece(path):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer, tok.pre_tokenizer, tok.decoder = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    tok.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    )
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    vocab = tok.get_vocab()
    (path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n")
    fast = T.BertTokenizerFast(tokenizer_object=tok)
    fast.save_pretrained(path)
    return len(vocab)


def bpe(path):
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    T.PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    ).save_pretrained(path)
    return len(tok.get_vocab())


def named(names):
    return dict(num_labels=len(names), id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


p = folder("bert")
n = wordpiece(p)
T.BertForMaskedLM(T.BertConfig(vocab_size=n, max_position_embeddings=512, **SMALL)).save_pretrained(p)
p = folder("bert-12")
n = wordpiece(p)
T.BertForMaskedLM(
    T.BertConfig(
        vocab_size=n,
        max_position_embeddings=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
    )
).save_pretrained(p)
p = folder("roberta-130")
n = bpe(p)
T.RobertaForSequenceClassification(
    T.RobertaConfig(
        vocab_size=n,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **named(["NEG", "POS"]),
        **SMALL,
    )
).save_pretrained(p)
p = folder("distilbert-bert-tokenizer")
n = wordpiece(p)
T.DistilBertForSequenceClassification(
    T.DistilBertConfig(vocab_size=n, dim=32, n_layers=2, n_heads=2, hidden_dim=64, num_labels=2)
).save_pretrained(p)
p = folder("e5-like")
n = bpe(p)
T.BertModel(
    T.BertConfig(vocab_size=n, max_position_embeddings=512, type_vocab_size=2, pad_token_id=1, **SMALL)
).save_pretrained(p)
p = folder("multi-label")
n = wordpiece(p)
T.BertForSequenceClassification(
    T.BertConfig(vocab_size=n, problem_type="multi_label_classification", **named(["toxic", "insult", "threat"]), **SMALL)
).save_pretrained(p)
p = folder("albert")
n = wordpiece(p)
T.AlbertForSequenceClassification(
    T.AlbertConfig(vocab_size=n, embedding_size=16, max_position_embeddings=128, num_labels=2, **SMALL)
).save_pretrained(p)
classifier = T.BertForSequenceClassification(
    T.BertConfig(vocab_size=n, max_position_embeddings=512, **named(["bad", "good"]), **SMALL)
)
p = folder("no-tokenizer")
classifier.save_pretrained(p)
p = folder("trainer-run")
(p / "checkpoint-100").mkdir()
wordpiece(p / "checkpoint-100")
classifier.save_pretrained(p / "checkpoint-100")
p = folder("old-sentence")
(p / "0_Transformer").mkdir()
wordpiece(p / "0_Transformer")
classifier.save_pretrained(p / "0_Transformer")
(p / "modules.json").write_text(
    json.dumps([{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}])
)
p = folder("lora")
wordpiece(p)
(p / "adapter_config.json").write_text(
    json.dumps(
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": "bert",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["query", "value"],
        }
    )
)
save_file({"base_model.model.classifier.weight": torch.zeros(2, 32)}, str(p / "adapter_model.safetensors"))
p = folder("released-tinybert")
n = wordpiece(p)
[(p / f).unlink(missing_ok=True) for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]
weights = T.BertForPreTraining(T.BertConfig(vocab_size=n, max_position_embeddings=512, **SMALL)).state_dict()
torch.save(
    {**{k: v.clone() for k, v in weights.items()}, "fit_dense.weight": torch.zeros(64, 32), "fit_dense.bias": torch.zeros(64)},
    p / "pytorch_model.bin",
)
(p / "config.json").write_text(
    json.dumps(
        {
            "cell": {},
            "emb_size": 32,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "intermediate_size": 64,
            "max_position_embeddings": 512,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "pre_trained": "",
            "structure": [],
            "training": "",
            "type_vocab_size": 2,
            "vocab_size": n,
        }
    )
)
print("built in", OUT)
