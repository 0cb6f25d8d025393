"""The plain encoder out of a model that reads the two texts of a pair apart: what makes the vectors that can be kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, BertModel

from microbert_cli.errors import MbertError
from microbert_cli.models.load import LoadedModel, count_all_parameters, load_model
from microbert_cli.models.save import save_model
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results

NAME = "extract"
TOLERANCE = 1e-6
ROWS, LENGTH = 4, 9  # of the trial batch by which the written encoder is compared


def extract_encoder(path: Path, out: Path, *, source: str, controls: Mapping[str, Any]) -> StageResult:
    """Writes the encoder of a bi-encoder as a plain BERT with its tokenizer into OUT.

    OUT is done when transformers alone, reading it, gives the vectors of the model's own `encode` to 1e-6. A text's vector is
    the mean of its tokens' last hidden states, or the first one: `pooling` in metrics.json.
    """
    identity = {"model": manifest.identify(str(path)), "part": "encoder"}
    with stage_output(out, stage=NAME, identity=identity, **controls) as work:
        if work.done:
            return up_to_date(NAME, out)
        metrics = _write_encoder(load_model(path, "classifier", where="MODEL"), work.path)
        return write_results(
            work, stage=NAME, recipe={}, metrics=metrics, inputs={"model": identity["model"]}, sources={"model": source}
        )


@torch.no_grad()
def _write_encoder(loaded: LoadedModel, directory: Path) -> dict[str, Any]:
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
    ids_BT = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 7919 % config.get_text_config().vocab_size
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
