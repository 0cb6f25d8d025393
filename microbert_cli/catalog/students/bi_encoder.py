"""A student that reads the two texts of a pair apart: one encoder, a vector for each text, a head over both.

    u, v    vectors [d] of the first and the second text: the mean of their tokens' vectors, or that of the first token
    logits  W f + b,   f the `features` one after another:
            "first" u,  "second" v,  "difference" |u - v|,  "product" u * v,  "cosine" u . v / (|u| |v|)

Rows come as those of any classifier of pairs, [CLS] A [SEP] B [SEP]; the model makes the sequences [CLS] A [SEP] and
[CLS] B [SEP] of them and encodes 2 B rows at once, as long as the longest text. A's tokens have segment 0 and B's segment 1;
where there are no segments, the first separator ends A. Both texts are read with segment 0, as by encoders of sentences, so
that a text's vector does not depend on the other text, and can be kept.

The encoder is a BERT under BERT's names: BertModel.from_pretrained(DIR) loads it. Loaded by transformers' Auto classes once
this module is imported. Source: Sentence-BERT (Reimers and Gurevych, EMNLP 2019), whose classifier reads u, v and |u - v|.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertPreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from microbert_cli.models.tokenizers import separate

MODEL_TYPE = "mbert-bi-encoder"
FEATURES = ("first", "second", "difference", "product", "cosine")
DEFAULT_FEATURES = ("difference", "product")
COSINE_WEIGHT, COSINE_BIAS = 4.0, -2.0  # of a new score, in units of its spread: cosines 0 to 1 are two spreads to both sides
POOLING = ("mean", "first")


class BiEncoderConfig(BertConfig):
    """BERT's configuration and: what is made of a text's tokens, what the head reads, and what ends the first text.

    pooling             "mean" of all tokens, special ones included, or "first"
    features            some of FEATURES; None = DEFAULT_FEATURES
    separator_token_id  of the tokenizer
    """

    model_type = MODEL_TYPE

    pooling: str = "mean"
    features: list | tuple | None = None
    separator_token_id: int | None = None

    @property
    def head_features(self) -> tuple[str, ...]:
        """The names of the head's features; raises ValueError for one that does not exist."""
        if self.features is None:
            return DEFAULT_FEATURES
        if not self.features or set(self.features) - set(FEATURES):
            raise ValueError(f"features = {self.features}; they are some of {', '.join(FEATURES)}")
        return tuple(self.features)

    @property
    def head_width(self) -> int:
        """The number of values that the head reads."""
        return sum(1 if feature == "cosine" else self.hidden_size for feature in self.head_features)


class BiEncoderModel(BertModel):
    """The encoder, which reads one sequence a row."""

    config_class = BiEncoderConfig


class BiEncoderForMaskedLM(BertForMaskedLM):
    """The encoder with the masked-LM head."""

    config_class = BiEncoderConfig


class PairHead(nn.Linear):
    """W f + b; a score grows with the cosine from the start, for with a random sign it learns badly."""

    def __init__(self, config: BiEncoderConfig):
        super().__init__(config.head_width, config.num_labels)
        widths = [1 if feature == "cosine" else config.hidden_size for feature in config.head_features]
        starts = dict(zip(config.head_features, itertools.accumulate([0, *widths]), strict=False))
        self.cosine_column = starts.get("cosine") if config.num_labels == 1 else None


class BiEncoderForSequenceClassification(BertPreTrainedModel):
    """The encoder, run on both texts of a pair, with a head over the two vectors."""

    config_class = BiEncoderConfig
    reads_apart = True  # its layers are of single texts, which no layer of another model can be compared with

    def __init__(self, config: BiEncoderConfig):
        super().__init__(config)
        if config.pooling not in POOLING:
            raise ValueError(f'pooling = "{config.pooling}"; it is {" or ".join(POOLING)}')
        self.bert = BiEncoderModel(config, add_pooling_layer=False)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = PairHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PairHead) and module.cosine_column is not None:
            if not getattr(module.weight, "_is_hf_initialized", False):  # it was loaded
                module.weight[:, module.cosine_column] = COSINE_WEIGHT
                module.bias.fill_(COSINE_BIAS)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Returns the logits [B, C] of pairs; hidden states and attentions, where asked for, are of 2 B rows."""
        texts = separate(
            input_ids,
            attention_mask,
            token_type_ids,
            separator=self.config.separator_token_id,
            pad=self.config.pad_token_id or 0,
        )
        output = self.bert(*texts, return_dict=True, **kwargs)
        vectors = self.pooled(output.last_hidden_state, texts[1])
        rows = input_ids.shape[0]  # not len(): exporters would take it for a constant
        logits = self.head(vectors[:rows], vectors[rows:])
        return SequenceClassifierOutput(logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the vectors [B, d] of single texts, tokenized as such; `head` compares two of them."""
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        output = self.bert(input_ids, mask_BT, token_type_ids=token_type_ids)
        return self.pooled(output.last_hidden_state, mask_BT)

    def head(self, first_Bd: Tensor, second_Bd: Tensor) -> Tensor:
        """Returns the logits [B, C] of two texts' vectors."""
        # Dropout would leave nothing of a feature of one number.
        parts = {
            "first": lambda: self.dropout(first_Bd),
            "second": lambda: self.dropout(second_Bd),
            "difference": lambda: self.dropout((first_Bd - second_Bd).abs()),
            "product": lambda: self.dropout(first_Bd * second_Bd),
            "cosine": lambda: F.cosine_similarity(first_Bd, second_Bd, dim=-1)[:, None],
        }
        logits: Tensor = self.classifier(torch.cat([parts[name]() for name in self.config.head_features], dim=-1))
        return logits

    def pooled(self, hidden_BTd: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns a vector [B, d] for each text, of its tokens' last hidden states."""
        if self.config.pooling == "first":
            return hidden_BTd[:, 0]
        mask_BT1 = mask_BT[..., None].to(hidden_BTd.dtype)
        return (hidden_BTd * mask_BT1).sum(1) / mask_BT1.sum(1)


AutoConfig.register(MODEL_TYPE, BiEncoderConfig)


AutoModel.register(BiEncoderConfig, BiEncoderModel)


AutoModelForMaskedLM.register(BiEncoderConfig, BiEncoderForMaskedLM)


AutoModelForSequenceClassification.register(BiEncoderConfig, BiEncoderForSequenceClassification)
