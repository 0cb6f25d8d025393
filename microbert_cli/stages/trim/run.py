"""Cuts a model's vocabulary: tokenizer, embedding rows and what a head has for each token; checked on its own texts."""

from pathlib import Path
from typing import Any

import torch

from microbert_cli.data.corpus.documents import identify_corpus
from microbert_cli.data.task_data import load_task_data
from microbert_cli.errors import MbertError
from microbert_cli.models.config import NO_CODE, read_config
from microbert_cli.models.find import find_model, has_head
from microbert_cli.models.load import LoadedModel, class_of, count_all_parameters, load_model
from microbert_cli.models.moe.extract import is_routed
from microbert_cli.models.save import save_model
from microbert_cli.models.vocabulary.tokenizer import cut_tokenizer
from microbert_cli.models.vocabulary.weights import cut_config, cut_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, place_seen_from, up_to_date, write_results
from microbert_cli.stages.trim import STAGE
from microbert_cli.stages.trim.choose import Choice, choose, count_corpus, count_tokens, texts_of
from microbert_cli.stages.trim.pair import Pair, first_rows, whole_rows

FLOAT = 4  # bytes


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    augmented: str | None = None,
    source: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Writes `model` with a smaller vocabulary: every text whose tokens stay is split and answered as before.

    augmented  a directory made by `augment`, whose rows count among the training texts
    source     a corpus, whose commonest tokens stay too
    metrics.json: rows of the embedding before and after and why they stay, bytes, how dev is split, dev scores of a classifier
    before and after.
    """
    data = None
    if named := STAGE.splits_of(recipe, catalog):
        data = load_task_data(recipe, catalog, splits=named, augmented=augmented, reporter=reporter)
    identity: dict[str, Any] = {
        "recipe": recipe.identity(*STAGE.keys),
        "model": manifest.identify(model),
        "augmented": manifest.identify(augmented),
        "source": identify_corpus(source) if source else None,
        "data": data.fingerprints() if data else None,
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        kind = _kind_of(model)
        loaded = load_model(model, kind, where="trim.model")
        texts = texts_of(data) if data else []
        common = count_corpus(loaded.tokenizer, source, recipe.corpus.documents, reporter) if source else None
        used = count_tokens(loaded.tokenizer, texts)
        choice = choose(loaded.tokenizer, loaded.model.config, recipe.vocabulary, used, common, where=f"trim.model {model}")
        smaller = _cut(loaded, choice, kind, work.path, model)
        pair = Pair(loaded, smaller, choice.numbers, kind)
        alike = pair.check_tokens(texts)
        checked = whole_rows(data.rows["train"], alike) if data else first_rows(pair, source)
        metrics: dict[str, Any] = {
            "model": place_seen_from(out, model),
            "kind": kind,
            **_sizes(loaded, smaller, choice),
            "texts": {"count": len(texts), "split_alike": len(alike)},
            "parity": pair.check_outputs(checked, work.path),
        }
        if data:
            metrics |= {"task": data.task.name, "primary": data.task.primary, "split": pair.split_of(data.rows["dev"])}
            metrics |= pair.scores(data) if kind == "classifier" else {}
        _tell(metrics, reporter)
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={name: identity[name] for name in ("model", "augmented", "source")},
            sources={"model": model, "augmented": augmented, "source": source},
            data=data.facts() if data else {},
        )


def _kind_of(model: str) -> str:
    """Returns what a checkpoint was saved as: classifier, masked-lm or encoder."""
    path = find_model(model, where="trim.model")
    config = read_config(path, where="trim.model")
    if is_routed(config):
        raise _of_experts(model)
    names = [str(name) for name in config.architectures or ()]
    if any(name.endswith(("ForSequenceClassification", "ForTokenClassification")) for name in names):
        return "classifier"
    has_words = any(name.endswith(("ForMaskedLM", "ForPreTraining", "LMHeadModel")) for name in names)
    return "masked-lm" if has_words and has_head(path, "masked-lm") is not False else "encoder"


def _cut(loaded: LoadedModel, choice: Choice, kind: str, directory: Path, source: str) -> LoadedModel:
    """Writes the smaller model, and returns it as transformers alone reads it from there."""
    where = f"trim.model {source}"
    config = cut_config(loaded.model.config, choice.numbers)
    model = cut_model(loaded.model, config, choice.numbers, where=where)
    tokenizer = cut_tokenizer(loaded.tokenizer, choice.rules, choice.numbers, config, where=where)
    save_model(model, tokenizer, directory, projection=loaded.projection)
    reread = class_of(kind, config).from_pretrained(directory, dtype=torch.float32, local_files_only=True, **NO_CODE)
    return LoadedModel(reread.eval(), tokenizer, str(directory), [])


def _sizes(loaded: LoadedModel, smaller: LoadedModel, choice: Choice) -> dict[str, Any]:
    rows = [len(model.model.get_input_embeddings().weight) for model in (loaded, smaller)]
    sizes = [FLOAT * count_all_parameters(model.model) for model in (loaded, smaller)]
    return {
        "rows": {"before": rows[0], "after": rows[1], "kept_for": choice.reasons},
        "bytes": {"before": sizes[0], "after": sizes[1], "saved": sizes[0] - sizes[1]},
    }


def _tell(metrics: dict[str, Any], reporter: Reporter) -> None:
    """Says what was cut, and what that does to dev."""
    rows, size = metrics["rows"], metrics["bytes"]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rows["kept_for"].items())
    reporter.note(
        f"{rows['before']:,} -> {rows['after']:,} tokens ({reasons}), "
        f"{size['saved'] / 1e6:.1f} MB saved of {size['before'] / 1e6:.1f}"
    )
    if split := metrics.get("split"):
        reporter.note(
            f"dev: {split['rows_cut_finer']:,} of {split['rows']:,} rows are cut finer, "
            f"{split['tokens_cut']:,} of {split['tokens_before']:,} tokens ({split['share_cut']:.2%})"
        )
    if before := metrics.get("dev_before"):
        primary = metrics["primary"]
        reporter.note(f"dev {primary}: {before[primary]:.4f} -> {metrics['dev'][primary]:.4f}")


def _of_experts(model: str) -> MbertError:
    return MbertError(
        "M135",
        "this is a model of task heads or experts, and what is trimmed is a plain model",
        where=f"trim.model {model}",
        allowed="A classifier, masked-LM or encoder that transformers alone can load.",
        fix=f"Take each task's plain model out: mbert extract {model} -o OUT",
    )
