"""Measures models: parameters, floating-point operations of a forward pass, bytes on disk and in memory."""

import copy
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import architecture_of, inner_config, model_shape
from microbert_cli.recipe.task_kinds import answers_words

if TYPE_CHECKING:
    from torch import nn

OOM_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")
MOST_COUNTED = 200_000_000  # parameters of a model that is made only to count its operations


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters; a shared one counts once. total = embedding + rest."""

    total: int
    embedding: int

    @property
    def rest(self) -> int:
        return self.total - self.embedding


def count_parameters(model: "nn.Module") -> Parameters:
    """Counts the parameters of a model, and those of its embedding tables (words, positions, segments)."""
    from torch import nn

    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return Parameters(total, sum(table.numel() for table in tables))


def forward_flops(config: Any, length: int) -> int | None:
    """Counts the floating-point operations to classify one sequence, from the configuration alone.

        L (8 T d^2 + 4 T^2 d + 4 T d F)  +  2 T e d [e != d]  +  2 d^2 + 2 d C

    Only matrix products count, a multiplication and an addition as one operation each: per layer the four d x d
    projections, the attention scores and the sum over values, the feed-forward block; then the map from embedding width
    e to d where the two differ (ELECTRA), and the head on the first token. Bias, LayerNorm, softmax and look-ups are
    left out. At T = 128 BERT-base has 22.3 G and TinyBERT's 4 x 312 1.2 G (printed in that paper: 22.5 G and 1.2 G).

    L layers, T = length in tokens (padding included), d width, F feed-forward width, C outputs.
    Architectures of another shape are run once, and torch counts; None for those that cannot be. Of a model with exits they are
    those of a row that runs through all layers.
    """
    config = inner_config(config)
    flops = batch_flops(config, rows=1, tokens=length, squares=length * length)
    config_class: Any = type(config)
    return _counted_flops(config.to_json_string(), config_class, length) if flops is None else flops


@lru_cache
def _counted_flops(config_json: str, config_class: Any, length: int) -> int | None:
    """Counts the operations of a forward pass as torch does: on the meta device, which computes nothing, else on the CPU.

    An architecture that looks at values does not run on the meta device, and some look at the mask alone.
    """
    for device, with_mask in (("meta", False), ("meta", True), ("cpu", True)):
        config = config_class.from_dict(json.loads(config_json))
        try:
            return _flops_on(device, config, length, with_mask=with_mask)
        except Exception:  # a foreign architecture fails in more ways than can be listed
            continue
    return None


def _flops_on(device: str, config: Any, length: int, *, with_mask: bool) -> int | None:
    if device == "cpu" and count_parameters(_classifier(config, "meta")).total > MOST_COUNTED:
        return None
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = _classifier(config, device)
        ids_1T = torch.zeros(1, length, dtype=torch.long, device=device)
        mask = {"attention_mask": torch.ones_like(ids_1T)} if with_mask else {}
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids_1T, **mask)
    return counter.get_total_flops() or None


def _classifier(config: Any, device: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    with torch.device(device):
        return (
            (AutoModelForTokenClassification if answers_words(config) else AutoModelForSequenceClassification)
            .from_config(copy.deepcopy(config), attn_implementation="eager", trust_remote_code=False)
            .eval()
        )


def batch_flops(
    config: Any,
    *,
    rows: float,
    tokens: float,
    squares: float,
    head: str = "classifier",
    predicted: float = 0,
    first_token: bool = False,
) -> int | None:
    """Counts the floating-point operations of a forward pass of whole batches, by the head that is read.

        L (8 S d^2 + 4 Q d + 4 S d F)  +  2 S e d [e != d]  +  head
        head  classifier: R (2 d^2 + 2 d C);  masked-lm: P (2 d e + 2 e V);  encoder: 0

    first_token  the top layer computes that token alone (capture.py): it takes 4 S d^2 + 4 S d + R (4 d^2 + 4 d F)

    R rows; S = sum of their padded lengths; Q = sum of the squares of these; P predicted positions, V vocabulary.
    Texts of a pair that are read apart are taken for equally long, with a first token each: 2 R rows, S + R tokens,
    (Q + 2 S + R) / 2 squares, and a head of 2 R h C, h the width of what it reads.
    A recurrent network's is 16 S H (x + H) for two directions of width H over inputs of width x, and a head of two products.
    In a mixture of experts F is the width that a token passes through, and a gate of tokens or rows adds its product.
    Returns None for architectures of another shape.
    """
    config = inner_config(config)
    rule = architecture_of(config).flops
    if rule == "bottleneck" and config.use_bottleneck:
        return _bottleneck_flops(config, rows, tokens, squares, head, predicted)
    if rule == "recurrent":
        return _recurrent_flops(config, rows, tokens, head)
    if rule == "apart" and head == "classifier":
        squares, tokens = (squares + 2 * tokens + rows) / 2, tokens + rows
    elif rule not in ("plain", "apart"):
        return None
    shape = model_shape(config)
    d, L, e, F = shape.width, shape.layers, shape.embedding, shape.inner or 0
    body = L * (8 * tokens * d * d + 4 * squares * d + 4 * tokens * d * F)
    if experts := len(getattr(config, "moe_layers", ())):
        narrower = F - config.top_k * (config.expert_width or F)
        gated = {"token": tokens, "sentence": rows}.get(config.routing, 0)
        body += experts * (2 * gated * d * config.experts - 4 * tokens * d * narrower)
    if first_token:
        body -= 4 * tokens * d * d + 4 * (squares - tokens) * d + 4 * tokens * d * F - rows * (4 * d * d + 4 * d * F)
    widening = 2 * tokens * e * d if e != d else 0
    heads = {
        "classifier": rows * (2 * d * d * (rule == "plain") + 2 * getattr(config, "head_width", d) * config.num_labels),
        "masked-lm": predicted * (2 * d * e + 2 * e * shape.vocabulary),
        "encoder": 0,
    }
    if answers_words(config):
        heads["classifier"] = 2 * tokens * d * config.num_labels
    return int(body + widening + heads[head])


def _bottleneck_flops(config: Any, rows: float, tokens: float, squares: float, head: str, predicted: float) -> int:
    """Counts those of MobileBERT and its teacher: 2 S (L W + 3 e d) + 4 L Q w + head.

    w is the width within a block, W the size of its matrices:

    W = b d w + 2 r w + v w + w^2 + 2 n w F + w d    b bottlenecks in, queries and keys read r features, values v, n FFNs
    head  classifier: R (2 d^2 [activation] + 2 d C);  masked-lm: P (2 d^2 + 2 d V);  encoder: 0
    """
    shape = model_shape(config)
    d, w, F, e = shape.width, config.intra_bottleneck_size, shape.inner or 0, shape.embedding
    narrow = config.use_bottleneck_attention
    shared = config.key_query_shared_bottleneck and not narrow
    read, values = w if narrow or shared else d, w if narrow else d
    matrices = (1 + shared) * d * w + 2 * read * w + values * w + w * w + 2 * config.num_feedforward_networks * w * F + w * d
    L, pieces = shape.layers, 3 if config.trigram_input else int(e != d)
    heads = {
        "classifier": rows * (2 * d * d * config.classifier_activation + 2 * d * config.num_labels),
        "masked-lm": predicted * (2 * d * d + 2 * d * shape.vocabulary),
        "encoder": 0,
    }
    return int(2 * tokens * (L * matrices + pieces * e * d) + 4 * L * squares * w + heads[head])


def _recurrent_flops(config: Any, rows: float, tokens: float, head: str) -> int:
    """Counts those of a bidirectional LSTM: 16 S H (x + H) + head, four gates a direction over inputs of width x and states.

    head  classifier: R (2 f c + 2 c C), f features of a row, c rows of the first product;  encoder: 0
    Texts that are read apart have a first token each: S + R tokens.
    """
    H, hidden = model_shape(config).width, config.classifier_size
    read = tokens + (rows if config.siamese else 0)
    classifier = rows * (2 * config.head_width * hidden + 2 * hidden * config.num_labels)
    return int(16 * read * H * (config.input_size + H) + (classifier if head == "classifier" else 0))


def weights_bytes(path: Path) -> int:
    """Returns the bytes on disk: of the file itself, or of the weights in a model directory (safetensors, else `.bin`).

    Those of a cascade are the ONNX files of its two models.

    Raises FileNotFoundError if there are no weights at `path`.
    """
    if path.is_file():
        weights = path.with_suffix(".bin")  # of OpenVINO's graphs
        return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)
    cascade = ("*/*.onnx", "*/onnx/*.onnx") if (path / "cascade.json").is_file() else ()
    for pattern in ("*.safetensors", "pytorch_model*.bin", *cascade):
        if files := sorted(path.glob(pattern)):
            return sum(file.stat().st_size for file in files)
    raise FileNotFoundError(f"no weights in {path}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed. Torch raises a class of its own for a GPU, and a bare RuntimeError for the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OOM_MESSAGES)


def out_of_memory_error(error: BaseException, *, where: str, fix: str) -> MbertError:
    """Returns the error for work that does not fit into memory."""
    return MbertError(
        "M222",
        f"memory ran out: {str(error).strip().splitlines()[0][:160] if str(error).strip() else 'the allocator gave none'}",
        where=where,
        allowed="Work that fits into memory: `mbert plan` says how much each stage takes.",
        fix=fix,
    )


def check_memory(parameters: int, *, where: str, fix: str) -> None:
    """Raises M223 for a model whose float32 weights and gradients, 8 bytes a parameter, are more than this machine has."""
    needed, available = 8 * parameters, machine_bytes()
    if available and needed > available:
        raise MbertError(
            "M223",
            f"a model of {parameters:,} parameters does not fit: its weights and gradients take {needed / 1e9:,.0f} GB, "
            f"and this machine has {available / 1e9:,.0f}",
            where=where,
            allowed=f"Fewer than {available // 8:,} parameters; training needs twice the room, for the optimiser.",
            fix=fix,
        )


def machine_bytes() -> int | None:
    """Returns the machine's memory, or the limit of its control group; None where the system does not say."""
    limits = []
    with suppress(ValueError, OSError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits, default=None)
