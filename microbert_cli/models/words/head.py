"""Which models answer for every token: those with a class of transformers' for it."""

from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import model_type_of
from microbert_cli.recipe.task_kinds import TaskKind, answers_words


def set_answers(config: Any, kind: TaskKind, *, where: str) -> None:
    """Writes what a new head answers for into a model's configuration; raises M436 where the model cannot."""
    if kind.of_words:
        check_token_classifier(config, where=where)
    elif answers_words(config):
        config.architectures = [name for name in config.architectures if not name.endswith("ForTokenClassification")]
    kind.configure(config)


def has_token_classifier(model_type: str) -> bool:
    """Whether transformers has a class of this model type that answers for every token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

    return model_type in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES


def check_token_classifier(config: Any, *, where: str) -> None:
    """Raises M436 for a model type that cannot answer for words, or for a model that writes or reads left to right."""
    if not has_token_classifier(model_type_of(config)) or getattr(config, "is_encoder_decoder", False):
        raise no_token_classifier(model_type_of(config), where)


def no_token_classifier(model_type: str, where: str) -> MbertError:
    """Returns the error for a model type that cannot answer for words."""
    return MbertError(
        "M436",
        f'a model of type "{model_type}" gives one answer a text, and the task asks one for every word',
        where=where,
        allowed="Encoders with a class for token classification in transformers: BERT, DistilBERT, RoBERTa, XLM-R, ELECTRA, "
        "ALBERT, MobileBERT, DeBERTa, MPNet, ModernBERT.",
        fix="Choose another model: --model DIR, or another student: --student tinybert-4l-312",
    )


def name_class(model: Any) -> None:
    """Writes a classifier's class into its configuration, as `save_pretrained` does: it says what the model answers for."""
    if type(model).__name__.endswith(("ForTokenClassification", "ForSequenceClassification")):
        model.config.architectures = [type(model).__name__]
