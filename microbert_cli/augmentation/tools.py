"""Makes the tools of augmenters: the masked language model, its tokenizer and word vectors."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from microbert_cli.augmentation.interface import Texts, Tools
from microbert_cli.augmentation.words import Spelling
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import positions_of
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import Reporter

MISSING_TOOL = {
    "masked_lm": "no masked language model is named",
    "vectors": "no word vectors are named",
    "dev_lengths": "there are no rows of dev",
}


def make_tools(spelling: Spelling, model: Any, **others: Any) -> Tools:
    """Returns the tools of one run; without a model `masked_lm` is None."""
    model_tools = (
        {} if model is None else {"masked_lm": _masked_lm_function(model), "max_positions": _max_positions(model, spelling)}
    )
    return Tools(spelling, **model_tools, **others)


def open_augmenters(
    names: Sequence[str], tools: Tools, *, options: Mapping[str, Mapping[str, Any]], catalog: Catalog, reporter: Reporter
) -> dict[str, Any]:
    """Makes the augmenters of these names with their options.

    Those whose tool is missing are left out with a warning, those for another number of texts with a note, so that one recipe
    may name `recombine` for pairs and `windows` for single texts.
    Raises M244 where none remains, M245 where a masked language model has no mask token, M246 where all are for another number
    of texts.
    """
    available = {"masked_lm": tools.masked_lm, "vectors": tools.vectors, "dev_lengths": tools.dev_lengths}
    modules = {name: catalog.module("augmenters", name) for name in names}
    unfit = {name: module.texts for name, module in modules.items() if not _fits(getattr(module, "texts", None), tools.rows)}
    if modules and len(unfit) == len(modules):
        raise _other_texts(*next(iter(unfit.items())), len(tools.rows[0]))
    for name, allowed in unfit.items():
        reporter.note(f"{name} is left out: it makes {_kinds(allowed)}")
        modules.pop(name)
    left_out = {
        name: MISSING_TOOL.get(need, f"there is no tool {need}")
        for name, module in modules.items()
        for need in sorted(module.needs)
        if available.get(need) is None
    }
    if len(left_out) == len(modules):
        raise _no_source(left_out)
    if any("masked_lm" in modules[name].needs for name in modules.keys() - left_out.keys()):
        _check_mask_token(tools)
    for name, missing in left_out.items():
        reporter.warn(f"{name} is left out, because {missing}: words that only it serves stay as they are")
    return {name: m.Augmenter(tools, **options.get(name, {})) for name, m in modules.items() if name not in left_out}


def check_augmenters(names: Sequence[str], options: Mapping[str, Mapping[str, Any]], catalog: Catalog) -> None:
    """Raises what one of these augmenters would lack of its own, such as data of a library."""
    for name in names:
        if check := getattr(catalog.module("augmenters", name), "check", None):
            check(options.get(name, {}))


def _no_source(left_out: Mapping[str, str]) -> MbertError:
    return MbertError(
        "M244",
        f"there is nothing to take other words from: {' and '.join(sorted(set(left_out.values()))) or 'no augmenter'}",
        where=f"augment.sources = {list(left_out)}",
        allowed="At least one augmenter that has what it needs.",
        fix="--set augment.masked_lm=DIR (a BERT with its masked-LM head), --set vectors.source=FILE, or both",
    )


def _fits(allowed: Collection[int] | None, rows: Sequence[Texts]) -> bool:
    return allowed is None or not rows or len(rows[0]) in allowed


def _kinds(allowed: Collection[int]) -> str:
    return " or ".join({1: "rows of one text", 2: "pairs of texts"}[count] for count in sorted(allowed))


def _other_texts(name: str, allowed: Collection[int], number: int) -> MbertError:
    return MbertError(
        "M246",
        f"{name} makes {_kinds(allowed)}, and the rows of this task are {_kinds([number])}",
        where=f"augment.sources, {name}",
        allowed="recombine for pairs of texts, windows for single texts, perturb and rules for both.",
        fix=f"""--set 'augment.sources=["{"windows" if number == 1 else "recombine"}"]'""",
    )


def _check_mask_token(tools: Tools) -> None:
    if tools.tokenizer.mask_token_id is None:
        raise MbertError(
            "M245",
            "the tokenizer of this model has no mask token",
            where="augment.masked_lm",
            allowed="A masked language model: BERT, RoBERTa and their kin.",
            fix="""Name another model, or use word vectors alone: --set 'augment.sources=["word_vectors"]'""",
        )


def _masked_lm_function(model: Any) -> Any:
    model.eval()
    device = next(model.parameters()).device

    def fill(batch: Mapping[str, Any]) -> Any:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        return forward_outputs(model, on_device, OutputRequest(token_logits=True)).token_logits

    return fill


def _max_positions(model: Any, spelling: Spelling) -> int:
    """Returns the longest input that both model and tokenizer allow."""
    return int(min(positions_of(model.config) or 512, spelling.tokenizer.model_max_length))
