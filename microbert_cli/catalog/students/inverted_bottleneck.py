"""IB-BERT, the teacher of MobileBERT: narrow between its blocks and wide inside them. `ib-bert` is the published shape.

    in [T, d] -> d' inside -> attention and FFN at d' -> d out, + in, LayerNorm          d' = intra_bottleneck_size > d

Queries, keys and values read the vectors between blocks, d wide. In transformers' MobileBERT only the values do; queries and
keys read a bottleneck, and with `key_query_shared_bottleneck = false` they get the vectors between blocks and fail unless
d' = d. Nothing else differs, so the configuration's fields are MobileBertConfig's, and so are the names of the weights.

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
    """MobileBERT's configuration; queries and keys read `hidden_size` features, whatever the inner width."""

    model_type = MODEL_TYPE

    key_query_shared_bottleneck: bool = False
    num_feedforward_networks: int = 1
    hidden_act: str = "gelu_pytorch_tanh"
    normalization_type: str = "layer_norm"


def _resize_query_key(model: Any, encoder: Any) -> None:
    """Replaces queries and keys in every layer by layers of the right width, with new initial weights."""
    for layer in encoder.layer:
        attention = layer.attention.self
        attention.query, attention.key = (nn.Linear(model.config.hidden_size, attention.all_head_size) for _ in range(2))
    model.post_init()


class InvertedBottleneckModel(MobileBertModel):
    """The encoder, with a pooler."""

    config_class = InvertedBottleneckConfig

    def __init__(self, config: InvertedBottleneckConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        _resize_query_key(self, self.encoder)


class InvertedBottleneckForMaskedLM(MobileBertForMaskedLM):
    """The encoder with the masked-LM head."""

    config_class = InvertedBottleneckConfig

    def __init__(self, config: InvertedBottleneckConfig):
        super().__init__(config)
        _resize_query_key(self, self.mobilebert.encoder)


class InvertedBottleneckForSequenceClassification(MobileBertForSequenceClassification):
    """The encoder with a classifier of texts."""

    config_class = InvertedBottleneckConfig

    def __init__(self, config: InvertedBottleneckConfig):
        super().__init__(config)
        _resize_query_key(self, self.mobilebert.encoder)


AutoConfig.register(MODEL_TYPE, InvertedBottleneckConfig)


AutoModel.register(InvertedBottleneckConfig, InvertedBottleneckModel)


AutoModelForMaskedLM.register(InvertedBottleneckConfig, InvertedBottleneckForMaskedLM)


AutoModelForSequenceClassification.register(InvertedBottleneckConfig, InvertedBottleneckForSequenceClassification)
