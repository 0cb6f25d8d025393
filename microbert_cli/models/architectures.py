"""What is known of each model type."""

import re
from typing import Any

from microbert_cli.errors import MbertError

FIRST_TOKEN_READ = ("bert", "roberta", "xlm-roberta", "camembert", "electra")  # whose heads read [CLS] and nothing else
# whose layers hand one tensor from each to the next
STACKED = (*FIRST_TOKEN_READ, "distilbert", "mobilebert", "mbert-inverted-bottleneck", "mbert-routed-bert")


# Encoders of the plain shape: d -> d attention, d -> F -> d feed-forward, a d -> d -> C head on the first token.
PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
ROUTED = "mbert-routed-bert"
BOTTLENECKED = ("mobilebert", "mbert-inverted-bottleneck")


COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")


def check_length(max_length: int, config: Any, *, where: str) -> None:
    """Raises M012 if texts may become longer than the model has positions."""
    positions = positions_of(config) or max_length
    option = f"--set {'corpus' if where.startswith('corpus') else 'data'}.max_length="
    if max_length > positions:
        raise MbertError(
            "M012",
            f"a maximum length of {max_length} tokens is beyond the model's {positions} positions",
            where=where,
            allowed=f"1 to {positions} tokens.",
            fix=f"{'--max-length ' if where == '--max-length' else option}{positions}",
        )


def positions_of(config: Any) -> int | None:
    """How many tokens a model can read. RoBERTa's kind counts positions from behind the padding's number, which it wastes."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    wasted = config.pad_token_id + 1 if positions and getattr(config, "model_type", None) in COUNT_FROM_PADDING else 0
    return positions - wasted if positions else None


LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")  # encoder.layer.3., transformer.layer.3., layers.3.
