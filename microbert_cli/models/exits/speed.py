"""How early rows may leave a model with exits: the speed that is asked for, checked. No torch is needed for that."""

from collections.abc import Sequence
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import model_type_of
from microbert_cli.models.exported.files import EXITS_FILE

MODEL_TYPE = "mbert-early-exit"


def has_exits(config: Any) -> bool:
    """Whether a configuration is that of a model with exits."""
    return model_type_of(config) == MODEL_TYPE


def chosen_speed(config: Any, speed: float | None, *, where: str, option: str = "--speed") -> float:
    """Returns the speed that a model answers with: what is asked for, else what its configuration says; 0 without exits.

    Raises M155 for a speed outside [0, 1], M157 for one above 0 of a model without exits.
    """
    if speed is None:
        return float(config.speed) if has_exits(config) else 0.0
    check_speed(speed, where=option)
    if speed > 0 and not has_exits(config):
        raise MbertError(
            "M157",
            "this model has no exits, so that no row can leave it early",
            where=f"{where}, {option} {speed:g}",
            allowed="A model with exits, such as the method fastbert makes; of any other, speed 0: the whole model.",
            fix="Leave the speed out, or put exits in: mbert task-distill --teacher MODEL --set method=fastbert -o OUT",
        )
    return speed


def check_speed(speed: float, *, where: str) -> None:
    """Raises M155 for a speed outside [0, 1]."""
    if not 0 <= speed <= 1:  # false for NaN too
        raise MbertError(
            "M155",
            f"{speed:g} is no speed: it is compared with an uncertainty between 0 and 1",
            where=where,
            allowed="0, where every row runs through all layers, to 1, where every row leaves at the first exit.",
            fix=f"{where.split()[0]} 0, or a larger one",
        )


def parse_speeds(text: str) -> Sequence[float]:
    """Returns the speeds of `0,0.1,0.5`; raises M156 where that is no list of numbers, M155 for one outside [0, 1]."""
    try:
        speeds = [float(word) for word in text.split(",")]
    except ValueError:
        raise MbertError(
            "M156",
            f'"{text}" is no list of speeds',
            where="--speed",
            allowed="Numbers from 0 to 1 with commas between.",
            fix="Write them as in 0,0.1,0.3,0.5,0.8",
        ) from None
    for speed in speeds:
        check_speed(speed, where="--speed")
    return list(dict.fromkeys(speeds))


def check_exits_file(precision: str, *, where: str) -> None:
    """Raises M158 for a file of an export that answers whole: rows leave the exits' file alone, which is float32."""
    if precision != "fp32":
        raise MbertError(
            "M158",
            f"the {precision} file answers whole, and rows are to leave early",
            where=where,
            allowed=f"The export's directory, whose {EXITS_FILE} is float32; any of its files without a speed.",
            fix="Name the export's directory in its place, or leave the speed out",
        )
