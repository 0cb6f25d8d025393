"""The plain encoder out of a model that reads the two texts of a pair apart: what makes the vectors that can be kept."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, BertModel

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.load import LoadedModel, count_all_parameters
from microbert_cli.models.save import save_model

TOLERANCE = 1e-6
ROWS, LENGTH = 4, 9  # of the trial batch by which the written encoder is compared


@torch.no_grad()
def write_encoder(loaded: LoadedModel, directory: Path) -> dict[str, Any]:
    """Writes the encoder of a bi-encoder as a plain BERT with its tokenizer, reads it back, and returns what was measured.

    Read back by transformers alone it gives the vectors of the model's own `encode` to 1e-6; else M613. A text's vector is the
    mean of its tokens' last hidden states, or the first one: `pooling`.
    """
    model = loaded.model.eval()
    config = BertConfig(**{key: value for key, value in model.config.to_dict().items() if key not in _other_fields(model)})
    encoder = BertModel(config, add_pooling_layer=False).eval()
    encoder.load_state_dict(model.bert.state_dict())
    save_model(encoder, loaded.tokenizer, directory)
    reread = AutoModel.from_pretrained(directory, add_pooling_layer=False, local_files_only=True, trust_remote_code=False)
    ids_BT, mask_BT = _trial_batch(model.config)
    hidden_BTd = reread.eval()(ids_BT, mask_BT).last_hidden_state
    difference = float((model.pooled(hidden_BTd, mask_BT) - model.encode(ids_BT, mask_BT)).abs().max())
    if not difference <= TOLERANCE:  # true for NaN too
        raise _other_vectors(directory, difference)
    return {
        "pooling": model.config.pooling,
        "parity": {"max_difference": difference, "shapes": [list(ids_BT.shape)]},
        "parameters": {"before": count_all_parameters(model), "after": count_all_parameters(encoder)},
    }


def _other_fields(model: Any) -> set[str]:
    """Returns the fields of the configuration that a plain BERT's lacks."""
    return {"model_type", "architectures", "id2label", "label2id", "problem_type", *type(model.config).__annotations__}


def _trial_batch(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and mask of rows of several lengths, with ids from all over the vocabulary."""
    ids_BT = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 7919 % model_shape(config).vocabulary
    mask_BT = (torch.arange(LENGTH) < torch.arange(LENGTH, LENGTH - ROWS, -1)[:, None]).long()
    return ids_BT, mask_BT


def _other_vectors(directory: Path, difference: float) -> MbertError:
    return MbertError(
        "M613",
        f"the encoder that was written gives other vectors: they differ by {difference:.2g}",
        where=str(directory),
        allowed=f"At most {TOLERANCE:g}.",
        fix="Check the model for NaN: mbert verify DIR",
    )
