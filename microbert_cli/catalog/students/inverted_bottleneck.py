"""The teacher of MobileBERT: its block turned inside out, wide within and narrow between. `ib-bert` is the published shape.

    in [T, d] -> d' within -> attention and FFN at d' -> d out, + in, LayerNorm          d' = intra_bottleneck_size > d

Queries, keys and values read the map between blocks, d wide. transformers' MobileBERT has values read it, while queries and
keys read a bottleneck; with `key_query_shared_bottleneck = false` they are given the map and fail unless d' = d. That is all
that is other here, so the fields are MobileBertConfig's, and so are the names of the weights.

Loaded by transformers' Auto classes once this module is imported. Source: the configuration and the model code released with
MobileBERT (Sun et al., ACL 2020), IB-BERT_LARGE.
"""

from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MobileBertForSequenceClassification,
    MobileBertModel,
)

MODEL_TYPE = "mbert-inverted-bottleneck"


class InvertedBottleneckConfig(MobileBertConfig):
    """MobileBERT's configuration; queries and keys read hidden_size features, whatever is within."""

    model_type = MODEL_TYPE

    key_query_shared_bottleneck: bool = False
    num_feedforward_networks: int = 1
    hidden_act: str = "gelu_pytorch_tanh"
    normalization_type: str = "layer_norm"


def _resize_query_key(model: Any, encoder: Any) -> None:
    """New queries and keys of the right width in every layer, and their initial weights."""
    for layer in encoder.layer:
        own = layer.attention.self
        own.query, own.key = (nn.Linear(model.config.hidden_size, own.all_head_size) for _ in range(2))
    model.post_init()


class InvertedBottleneckModel(MobileBertModel):
    """The encoder."""

    config_class = InvertedBottleneckConfig

    def __init__(self, config: InvertedBottleneckConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        _resize_query_key(self, self.encoder)


class InvertedBottleneckForMaskedLM(MobileBertForMaskedLM):
    """With the masked-LM head."""

    config_class = InvertedBottleneckConfig

    def __init__(self, config: InvertedBottleneckConfig):
        super().__init__(config)
        _resize_query_key(self, self.mobilebert.encoder)


class InvertedBottleneckForSequenceClassification(MobileBertForSequenceClassification):
    """With a classifier of texts."""

    config_class = InvertedBottleneckConfig

    def __init__(self, config: InvertedBottleneckConfig):
        super().__init__(config)
        _resize_query_key(self, self.mobilebert.encoder)


AutoConfig.register(MODEL_TYPE, InvertedBottleneckConfig)


AutoModel.register(InvertedBottleneckConfig, InvertedBottleneckModel)


AutoModelForMaskedLM.register(InvertedBottleneckConfig, InvertedBottleneckForMaskedLM)


AutoModelForSequenceClassification.register(InvertedBottleneckConfig, InvertedBottleneckForSequenceClassification)
