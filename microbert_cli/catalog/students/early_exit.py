"""A classifier with exits: after some of its layers a branch answers, so that easy rows need not run through all of them.

    h_i       hidden states [T, d] behind layer i;  z_i  the logits [C] of the branch there;  z_N  the classifier's own

    "attention"  a = tanh(h_i W_0 + b_0), a row [T, w];  c = Attention(a_1; a) over real tokens, A heads;
                 z_i = W_2 tanh(W_1 c + b_1) + b_2           (FastBERT; the first token alone asks, since it alone is read)
    "linear"     z_i = W h_i,1 + b

The classifier is one of transformers' own, whole and under its own names in `backbone`, so that without `output_exits` it
answers as it did before, to the bit. When all of it is frozen it stays in eval mode in training: branches learn what the model
says, not what its dropout makes of it. Loaded by transformers' Auto classes once this module is imported.
Source: FastBERT (Liu et al., ACL 2020) and its released code for the branch; "linear" is this toolkit's.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MODEL_TYPE = "mbert-early-exit"
DROPOUT = 0.1
NAMES_OF_CODE = ("auto_map", "custom_pipelines")


class EarlyExitConfig(PreTrainedConfig):
    """The configuration of the classifier within, and of its exits.

    classifier    the configuration of the classifier, as its own config.json has it
    branch        "attention" or "linear"
    exit_layers   layers with a branch, from 1; the last layer has none, since the classifier answers there
    branch_width, branch_heads   of the attention branch
    speed         how sure an exit must be where nobody says it; 0 = every row runs through all layers
    score_spread  of a score: the standard deviation of the training labels, the unit of its uncertainty
    """

    model_type = MODEL_TYPE

    classifier: dict | None = None
    branch: str = "attention"
    exit_layers: list | tuple = ()
    branch_width: int = 128
    branch_heads: int = 2
    speed: float = 0.0
    score_spread: float | None = None
    pad_token_id: int | None = 0

    @property
    def classifier_config(self) -> Any:
        """The configuration of the classifier within; of this one's number of labels. Never of code beside a model."""
        values = {key: value for key, value in (self.classifier or {}).items() if key not in NAMES_OF_CODE}
        config = AutoConfig.for_model(**values)
        config.id2label, config.label2id = dict(self.id2label), dict(self.label2id)
        config.problem_type = self.problem_type
        return config


@dataclass
class EarlyExitOutput(SequenceClassifierOutput):
    """A classifier's output, and the logits [E, B, C] of all exits, the last of them the classifier's own."""

    exits: Tensor | None = None


class AttentionBranch(nn.Module):
    """FastBERT's branch: narrowed to w, one round of self-attention, and two layers over its first token."""

    def __init__(self, width: int, labels: int, *, narrow: int, heads: int):
        super().__init__()
        self.heads = heads
        self.narrow = nn.Linear(width, narrow)
        self.query, self.key, self.value, self.mix = (nn.Linear(narrow, narrow) for _ in range(4))
        self.dense = nn.Linear(narrow, narrow)
        self.out = nn.Linear(narrow, labels)

    def forward(self, hidden_BTd: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Returns the logits [B, C]."""
        narrow_BTw = self.narrow(hidden_BTd).tanh()
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, narrow_BTw[:, :1]), (self.key, narrow_BTw), (self.value, narrow_BTw))
        )
        mask = None if mask_BT is None else mask_BT[:, None, None, :].bool()
        dropout = DROPOUT if self.training else 0.0
        mixed_BA1h = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        first_Bw = self.mix(mixed_BA1h.transpose(1, 2).flatten(2)[:, 0])
        logits: Tensor = self.out(self.dense(first_Bw).tanh())
        return logits


class LinearBranch(nn.Module):
    """One product with the first token's vector."""

    def __init__(self, width: int, labels: int):
        super().__init__()
        self.out = nn.Linear(width, labels)

    def forward(self, hidden_BTd: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Returns the logits [B, C]."""
        logits: Tensor = self.out(F.dropout(hidden_BTd[:, 0], DROPOUT, self.training))
        return logits


class EarlyExitForSequenceClassification(PreTrainedModel):
    """A classifier and its branches."""

    config_class = EarlyExitConfig
    base_model_prefix = "backbone"

    def __init__(self, config: EarlyExitConfig):
        super().__init__(config)
        inner = config.classifier_config
        self.backbone = AutoModelForSequenceClassification.from_config(inner)
        self.branches = nn.ModuleDict({str(layer): _branch(config, inner.hidden_size) for layer in config.exit_layers})
        self.post_init()

    @property
    def base_model(self) -> nn.Module:
        """The encoder within the classifier, which is what others look into."""
        encoder: nn.Module = self.backbone.base_model
        return encoder

    def get_input_embeddings(self) -> nn.Module:
        """Returns the table of token embeddings of the classifier within."""
        table: nn.Module = self.backbone.get_input_embeddings()
        return table

    @property
    def output_layers(self) -> list[nn.Linear]:
        """The last layers of all branches, which end in one output a label as the classifier does."""
        branches: Any = self.branches.values()
        return [branch.out for branch in branches]

    def set_attn_implementation(self, attn_implementation: Any, *arguments: Any, **options: Any) -> None:
        """Sets the attention of the classifier within; branches have their own."""
        self.backbone.set_attn_implementation(attn_implementation, *arguments, **options)
        self.config._attn_implementation_internal = self.backbone.config._attn_implementation

    def train(self, mode: bool = True) -> "EarlyExitForSequenceClassification":
        """Sets the mode; a classifier that is frozen as a whole stays in eval mode."""
        super().train(mode)
        if mode and not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_exits: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the classifier's output; with `output_exits` also the logits of all exits [E, B, C]."""
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, **kwargs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        shows = bool(output_hidden_states or output_exits)
        output = self.backbone(input_ids, output_hidden_states=shows, **inputs)
        if not output_exits:
            return output
        exits = [branch(output.hidden_states[int(layer)], attention_mask) for layer, branch in self.branches.items()]
        return EarlyExitOutput(
            logits=output.logits, hidden_states=output.hidden_states, exits=torch.stack([*exits, output.logits])
        )


def _branch(config: EarlyExitConfig, width: int) -> nn.Module:
    """Returns a new branch; raises ValueError for a kind that does not exist."""
    if config.branch == "attention":
        return AttentionBranch(width, config.num_labels, narrow=config.branch_width, heads=config.branch_heads)
    if config.branch == "linear":
        return LinearBranch(width, config.num_labels)
    raise ValueError(f'branch = "{config.branch}"; it is attention or linear')


AutoConfig.register(MODEL_TYPE, EarlyExitConfig)


AutoModelForSequenceClassification.register(EarlyExitConfig, EarlyExitForSequenceClassification)
