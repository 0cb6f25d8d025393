"""A student that is no Transformer: word embeddings and one bidirectional LSTM layer, with a small head.

    x_t     embedding [e] of token t; with two channels [2 e]: one that is trained and one that stays as it began
    h_t     [forward_t, backward_t]  [2 H],  the states of an LSTM that reads the text and of one that reads it from its end
    z       pooling "last": [forward_n, backward_1], the states after the whole text;  "max": the largest of h_1 .. h_n
    logits  W2 dropout(relu(W1 f + b1)) + b2,   f = z,  or for pairs [a, b, |a - b|, a * b] of the two texts' z

A pair's texts are read apart by the same network, as by the bi-encoder (`siamese`); without it a pair is one sequence. Padding
is never read: the backward LSTM begins at a text's last token, so that the same text gives the same answer in any batch. As
ONNX both directions are one LSTM node, which is given the lengths.

Loaded by transformers' Auto classes once this module is imported.
Source: Tang et al. 2019 (arXiv 1903.12136): H = 150 or 300, W1 of 200 or 400 rows, dropout 0.1, word2vec in two channels; here
tokens are the teacher's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from microbert_cli.models.tokenizers import separate

MODEL_TYPE = "mbert-bilstm"
CHANNELS = ("trainable", "static", "both")
POOLING = ("last", "max")
GATES_OF_ONNX = (0, 3, 1, 2)  # torch has input, forget, cell, output; ONNX input, output, forget, cell


class BiLSTMConfig(PreTrainedConfig):
    """The sizes of the network.

    hidden_size         H, of one direction
    embedding_size      e, of one channel
    channels            word embeddings that are "trainable", "static", or "both"
    pooling             "last" or "max"
    classifier_size     rows of W1
    siamese             whether the two texts of a row are read apart; None = the task decides as a classifier is made
    separator_token_id  of the tokenizer; ends the first text where a tokenizer gives no segments
    """

    model_type = MODEL_TYPE

    vocab_size: int = 30522
    hidden_size: int = 150
    embedding_size: int = 300
    num_hidden_layers: int = 1
    channels: str = "trainable"
    pooling: str = "last"
    classifier_size: int = 200
    classifier_dropout: float = 0.1
    initializer_range: float = 0.1
    siamese: bool | None = None
    pad_token_id: int | None = 0
    separator_token_id: int | None = None

    @property
    def input_size(self) -> int:
        """The width of what the LSTM reads: of all channels."""
        return self.embedding_size * (2 if self.channels == "both" else 1)

    @property
    def type_vocab_size(self) -> int:
        """The number of segments that are told apart."""
        return 2 if self.siamese else 1

    @property
    def head_width(self) -> int:
        """The number of values that the head reads."""
        return 2 * self.hidden_size * (4 if self.siamese else 1)


class BiLSTMPreTrainedModel(PreTrainedModel):
    """What the network and the classifier share: how weights begin."""

    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torch does: uniform within 1 / sqrt(inputs), of an LSTM 1 / sqrt(H); embeddings N(0, initializer_range^2)."""
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LSTM | nn.Linear):
            width = module.hidden_size if isinstance(module, nn.LSTM) else module.in_features
            for parameter in module.parameters():
                init.uniform_(parameter, -(width**-0.5), width**-0.5)


class WordEmbeddings(nn.Module):
    """Looks tokens up in one table or two; the static one has no gradient."""

    def __init__(self, config: BiLSTMConfig):
        super().__init__()
        self.has_static = config.channels in ("static", "both")
        self.has_trained = config.channels != "static"
        if self.has_trained:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        if self.has_static:
            self.static_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
            self.static_embeddings.weight.requires_grad_(False)

    @property
    def tables(self) -> list[nn.Embedding]:
        """The tables, the trained one first."""
        tables = [getattr(self, name, None) for name in ("word_embeddings", "static_embeddings")]
        return [table for table in tables if table is not None]

    def forward(self, ids_BT: Tensor) -> Tensor:
        parts = [self.word_embeddings(ids_BT)] if self.has_trained else []
        if self.has_static:
            parts.append(self.static_embeddings(ids_BT).detach())  # transformers makes weights trainable as it loads them
        return torch.cat(parts, dim=-1)


class BidirectionalLSTM(nn.Module):
    """One layer: an LSTM that reads a text, and one that reads it from its end."""

    def __init__(self, config: BiLSTMConfig):
        super().__init__()
        self.forward_lstm = nn.LSTM(config.input_size, config.hidden_size, batch_first=True)
        self.backward_lstm = nn.LSTM(config.input_size, config.hidden_size, batch_first=True)

    def forward(self, embedded_BTe: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states of all tokens [B, T, 2 H], and those after the whole text [B, 2 H]."""
        run = self._as_one_node if torch.compiler.is_exporting() else self._both_ways
        return run(embedded_BTe, length_B)

    def _both_ways(self, embedded_BTe: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        # Two LSTMs of plain batches take half the time of one of packed sequences: oneDNN does not know those.
        steps_T = torch.arange(embedded_BTe.shape[1], device=embedded_BTe.device)
        last_B1 = length_B[:, None] - 1
        mirrored_BT = torch.where(steps_T <= last_B1, last_B1 - steps_T, steps_T)
        forward_BTH, _ = self.forward_lstm(embedded_BTe)
        backward_BTH, _ = self.backward_lstm(_taken(embedded_BTe, mirrored_BT))
        ends = [_taken(states, last_B1)[:, 0] for states in (forward_BTH, backward_BTH)]
        return torch.cat([forward_BTH, _taken(backward_BTH, mirrored_BT)], dim=-1), torch.cat(ends, dim=-1)

    def _as_one_node(self, embedded_BTe: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the same by an ONNX node of both directions that knows the lengths."""
        rows, width, H = *embedded_BTe.shape[:2], self.forward_lstm.hidden_size
        lstms = (self.forward_lstm, self.backward_lstm)
        weights = [torch.stack([_by_gate(getattr(lstm, f"weight_{part}_l0")) for lstm in lstms]) for part in ("ih", "hh")]
        biases = [torch.cat([_by_gate(getattr(lstm, f"bias_{part}_l0")) for part in ("ih", "hh")]) for lstm in lstms]
        states_T2BH, ends_2BH, _ = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (embedded_BTe.transpose(0, 1), *weights, torch.stack(biases), length_B.int()),
            {"hidden_size": H, "direction": "bidirectional"},
            dtypes=[torch.float32] * 3,
            shapes=[(width, 2, rows, H), (2, rows, H), (2, rows, H)],
            version=14,
        )
        return states_T2BH.permute(2, 0, 1, 3).flatten(2), ends_2BH.transpose(0, 1).flatten(1)


class BiLSTMModel(BiLSTMPreTrainedModel):
    """The network, which reads one sequence a row."""

    def __init__(self, config: BiLSTMConfig):
        super().__init__(config)
        for key, allowed in (("channels", CHANNELS), ("pooling", POOLING)):
            if getattr(config, key) not in allowed:
                raise ValueError(f'{key} = "{getattr(config, key)}"; it is one of {", ".join(allowed)}')
        self.embeddings = WordEmbeddings(config)
        self.layers = nn.ModuleList([BidirectionalLSTM(config)])  # so that it is a layer by name: "layer.1" can be frozen
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the table that is trained, else the static one."""
        return self.embeddings.tables[0]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Returns the states [B, T, 2 H] and the vectors z [B, 2 H] of texts; states of padding mean nothing.

        A text's tokens come first in the states, whichever side is padded.
        """
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        steps_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        length_B = mask_BT.sum(1).clamp(min=1)
        start_B1 = (mask_BT.cumsum(1) == 0).sum(1, keepdim=True)
        ids_BT = input_ids.gather(1, (start_B1 + steps_T).clamp(max=input_ids.shape[1] - 1))
        embedded_BTe = self.embeddings(ids_BT)
        states_BTd, ends_Bd = self.layers[0](embedded_BTe, length_B)
        if self.config.pooling == "max":
            is_real_BT1 = (steps_T < length_B[:, None])[..., None]
            ends_Bd = states_BTd.masked_fill(~is_real_BT1, -1.0).amax(1)  # states lie between -1 and 1
        hidden_states = (embedded_BTe, states_BTd) if output_hidden_states else None
        return BaseModelOutputWithPooling(last_hidden_state=states_BTd, pooler_output=ends_Bd, hidden_states=hidden_states)


class BiLSTMForSequenceClassification(BiLSTMPreTrainedModel):
    """The network with a head over its vectors of texts."""

    def __init__(self, config: BiLSTMConfig):
        super().__init__(config)
        self.bilstm = BiLSTMModel(config)
        self.classifier = Head(config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Returns the logits [B, C]; hidden states, where asked for, are of 2 B rows if texts are read apart."""
        if not self.config.siamese:
            output = self.bilstm(input_ids, attention_mask, **kwargs)
            return SequenceClassifierOutput(logits=self.classifier(output.pooler_output), hidden_states=output.hidden_states)
        texts = separate(
            input_ids,
            attention_mask,
            token_type_ids,
            separator=self.config.separator_token_id,
            pad=self.config.pad_token_id or 0,
        )
        output = self.bilstm(*texts, **kwargs)
        rows = input_ids.shape[0]  # not len(): exporters would take it for a constant
        logits = self.head(output.pooler_output[:rows], output.pooler_output[rows:])
        return SequenceClassifierOutput(logits=logits, hidden_states=output.hidden_states)

    def head(self, first_Bd: Tensor, second_Bd: Tensor) -> Tensor:
        """Returns the logits [B, C] of two texts' vectors."""
        features = [first_Bd, second_Bd, (first_Bd - second_Bd).abs(), first_Bd * second_Bd]
        logits: Tensor = self.classifier(torch.cat(features, dim=-1))
        return logits


class Head(nn.Module):
    """W2 dropout(relu(W1 f + b1)) + b2."""

    def __init__(self, config: BiLSTMConfig):
        super().__init__()
        self.dense = nn.Linear(config.head_width, config.classifier_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.classifier_size, config.num_labels)

    def forward(self, features_Bf: Tensor) -> Tensor:
        logits: Tensor = self.out_proj(self.dropout(self.dense(features_Bf).relu()))
        return logits


def _taken(values_BTd: Tensor, steps_BS: Tensor) -> Tensor:
    """Returns the vectors [B, S, d] at these steps of each row."""
    return values_BTd.gather(1, steps_BS[..., None].expand(-1, -1, values_BTd.shape[-1]))


def _by_gate(weights_4H: Tensor) -> Tensor:
    """Returns the rows of an LSTM's weight or bias in ONNX's order of gates."""
    return weights_4H.unflatten(0, (4, -1))[list(GATES_OF_ONNX)].flatten(0, 1)


AutoConfig.register(MODEL_TYPE, BiLSTMConfig)


AutoModel.register(BiLSTMConfig, BiLSTMModel)


AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification)
