"""Students that write: an encoder and a decoder of transformers' own, built from a description or loaded, and their answers."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.architectures import model_type_of, positions_of, writes_texts
from microbert_cli.models.config import NO_CODE, read_config, without_code
from microbert_cli.models.find import find_model
from microbert_cli.models.generation.vocabulary import check_special_tokens
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.models.size import check_memory
from microbert_cli.models.tokenizers import pad_right, rows_needed
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.student_shapes import read_student

SEQ2SEQ = "seq2seq"  # the kind of model, as load.CLASSES names it
POSITIONS = 512  # of a new student
HEAD_WIDTHS = (64, 32, 16, 8)  # of a new student's attention, the first that divides the width


def describes_writer(name: str, catalog: Catalog) -> bool:
    """Whether a name is that of a student of the catalogue with a decoder that writes."""
    return factory.is_description(name, catalog) and "decoder_layers" in read_student(name, catalog)


def new_or_loaded(
    name: str, catalog: Catalog, *, tokenizer: Any, seed: int, where: str, positions: int | None = None
) -> LoadedModel:
    """Returns a student that writes: a checkpoint, or a new one of the catalogue with the tokens of `tokenizer`.

    positions  of a new student;  seed  decides its weights
    Raises M395 for a student or checkpoint that writes nothing.
    """
    if not factory.is_description(name, catalog):
        config = read_config(find_model(name, where=where), where=where)
        if not writes_texts(config):
            raise writes_nothing(f"{where} {name}", model_type_of(config))
        return load_model(name, SEQ2SEQ, where=where)
    config = student_config(read_student(name, catalog), tokenizer, where=f"{where} {name}", positions=positions)
    check_memory(factory.config_parameters(config, SEQ2SEQ), where=where, fix="Choose a smaller student: mbert list students")
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config), dtype=torch.float32, **NO_CODE)
    set_generation(model, tokenizer)
    return LoadedModel(model, pad_right(tokenizer), name, [])


def student_config(description: Mapping[str, Any], tokenizer: Any, *, where: str, positions: int | None = None) -> Any:
    """Returns the configuration of a described student with this vocabulary; raises M395 for one that writes nothing."""
    check_special_tokens(tokenizer, where=where)
    fields = {key: value for key, value in description.items() if key not in ("title", "model_type")}
    model_type = str(description.get("model_type", ""))
    width = fields.get("d_model", 0)
    heads = next((width // part for part in HEAD_WIDTHS if width and width % part == 0), 1)
    for side in ("encoder", "decoder"):
        if fields.get(f"{side}_attention_heads") in (None, factory.TEACHER):
            fields[f"{side}_attention_heads"] = heads
    if width:  # as the Transformer's: with BART's 0.02 a narrow student hardly attends to anything for hundreds of steps
        fields.setdefault("init_std", width**-0.5)
    fields.setdefault("max_position_embeddings", positions or POSITIONS)
    fields |= {"vocab_size": rows_needed(tokenizer), "pad_token_id": tokenizer.pad_token_id, **_special_ids(tokenizer)}
    fields |= {"decoder_vocab_size": fields["vocab_size"]} if model_type == "marian" else {}
    if "d_model" not in description:
        raise writes_nothing(where, model_type)
    try:
        config = without_code(AutoConfig.for_model(model_type, **fields))
    except Exception as error:  # a description fails in as many ways as transformers has configurations
        raise MbertError(
            "M026",
            f"this description makes no student that writes: {type(error).__name__}: {str(error)[:200]}",
            where=where,
            allowed="The keys of BART's or Marian's configuration: model_type, d_model, encoder_layers, decoder_layers ...",
            fix="Start from one: mbert copy students seq2seq",
        ) from error
    if not writes_texts(config):
        raise writes_nothing(where, model_type)
    return config


def _special_ids(tokenizer: Any) -> dict[str, int | None]:
    """Returns what a decoder begins and ends with: [CLS] and [SEP] of a BERT's tokens."""
    return {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.cls_token_id,
        "forced_eos_token_id": None,
    }


def set_generation(model: Any, tokenizer: Any) -> None:
    """Writes into a new model how it generates where nobody says otherwise; in training it keeps no keys and values."""
    model.config.use_cache = False
    generation = model.generation_config
    for name, value in {**_special_ids(tokenizer), "pad_token_id": tokenizer.pad_token_id}.items():
        setattr(generation, name, value)
    generation.use_cache = True
    generation.num_beams, generation.length_penalty = 5, 0.6
    generation.max_length = positions_of(model.config) or POSITIONS


@torch.no_grad()
def write(model: Any, batch: Mapping[str, Tensor], *, beams: int, length_penalty: float, most: int) -> Tensor:
    """Returns the ids [B, T] of the texts that a model writes for a batch's sources, what it began with left out.

    beams, length_penalty   of transformers' beam search, 1 beam = the likeliest token at every step
    most                    tokens at most, the one that ends the text among them
    """
    was_training = model.training
    model.eval()
    try:
        ids: Tensor = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=beams,
            length_penalty=length_penalty if beams > 1 else None,
            do_sample=False,
            max_new_tokens=most,
            max_length=None,
            use_cache=True,
        )
    finally:
        model.train(was_training)
    return ids[:, 1:]


def decode(tokenizer: Any, ids_BT: Tensor) -> list[str]:
    """Returns ids as texts, without special tokens."""
    texts: list[str] = tokenizer.batch_decode(ids_BT, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    return [" ".join(text.split()) for text in texts]


def is_lower_case(tokenizer: Any) -> bool:
    """Whether a tokenizer makes no difference between `A` and `a`."""
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("A", "a")]
    return bool(encoded[0] == encoded[1])


def writes_nothing(where: str, model_type: str, fix: str = "--student seq2seq") -> MbertError:
    """Returns the error for a model that cannot write a text."""
    return MbertError(
        "M395",
        f'a model of type "{model_type}" has no decoder, so that it writes nothing, and the task is to write a text',
        where=where,
        allowed="Students with an encoder and a decoder: seq2seq, seq2seq-LxH, marian-LxH, or a checkpoint of such a type.",
        fix=fix,
    )
