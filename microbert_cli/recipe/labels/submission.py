"""Files for GLUE's test server hold one label a row."""

from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import has_several_labels
from microbert_cli.recipe.words.checks import labels_words


def check_submitted(recipe: Recipe, catalog: Catalog) -> None:
    """Raises M142 where rows of the recipe's task may have several labels, or one for every word."""
    has_several = has_several_labels(recipe, catalog)
    if has_several or labels_words(recipe, catalog):
        form = "several labels a row" if has_several else "labels of words"
        raise MbertError(
            "M142",
            f"GLUE's server takes one label a row, and this task has {form}",
            where="--submission",
            allowed="A task of GLUE: one class or one score a row.",
            fix="Leave --submission out; predictions.parquet has the answers to every row.",
        )
