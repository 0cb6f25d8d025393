"""Names that users and their scripts rely on stay: error codes, exit codes, recipe keys, options, names of the catalogue.

tests/golden/outer_names.json was written before the package was laid out in folders. Names may be added, none may go.
"""

import json
import re
from pathlib import Path

import pytest
import typer

from microbert_cli.cli.main import app
from microbert_cli.errors import Exit
from microbert_cli.recipe.layers import flatten
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "outer_names.json").read_text(encoding="utf-8"))


def test_every_error_code_is_still_raised() -> None:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "microbert_cli").rglob("*.py"))
    codes = {code for source in sources for code in re.findall(r'"([MB]\d{3})"', source)}
    assert set(GOLDEN["codes"]) - codes == set()


def test_exit_codes_are_the_same() -> None:
    assert {exit_code.name: int(exit_code) for exit_code in Exit} == GOLDEN["exit_codes"]


def test_every_recipe_key_is_still_there() -> None:
    assert set(GOLDEN["keys"]) - set(flatten(Recipe().model_dump(mode="json"))) == set()


@pytest.mark.parametrize("kind", GOLDEN["names"])
def test_every_name_of_the_catalogue_is_still_there(kind: str) -> None:
    assert set(GOLDEN["names"][kind]) - set(Catalog().names(kind)) == set()


@pytest.mark.parametrize("command", GOLDEN["options"])
def test_every_option_is_still_there(command: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(GOLDEN["options"][command]) - options == set()
