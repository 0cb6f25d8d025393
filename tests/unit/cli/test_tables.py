"""Tables on screens of any width: nothing is cut, and every part of a table that was split begins with the names."""

import io
import random

import pytest
from rich.cells import cell_len
from rich.console import Console

from microbert_cli.cli.tables import column_groups, layout

COLUMNS = ["model", "accuracy on dev", "spread (seeds)", "of the teacher", "parameters", "MB", "ms a row", "rows/s"]
ROW = ["student 2 x 64, distilled", "0.8290", "0.0030 (3)", "95.9 %", "393,282", "1.6", "1.08", "14,144"]


def rendered(columns: list[str], rows: list[list[str]], width: int, texts: tuple[str, ...] = ()) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width)
    for table in layout(columns, rows, width, texts):
        console.print(table)
    return file.getvalue()


def test_what_does_not_fit_stands_below_beside_the_names_again() -> None:
    assert column_groups(COLUMNS, [ROW], 200) == [list(range(8))]
    assert column_groups(COLUMNS, [ROW], 80) == [[0, 1, 2, 3], [0, 4, 5, 6, 7]]  # 25 + 2 + 15 + 2 + 14 + 2 + 14 = 74


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    random.seed(width)
    rows = [[f"row {n} {'x' * random.randint(0, 12)}", *(str(random.randint(0, 10**9)) for _ in COLUMNS[1:])] for n in range(9)]
    text = rendered(COLUMNS, rows, width)
    assert "…" not in text
    for row in [COLUMNS, *rows]:
        assert all(cell in text for cell in row)
    assert max(map(cell_len, text.splitlines())) <= width


def test_text_is_broken_over_lines_and_numbers_are_not() -> None:
    text = rendered(["key", "default", "what it is"], [["a.long.name.of.a.key", "12345", "word " * 30]], 60, ("what it is",))
    assert text.count("word") == 30 and "a.long.name.of.a.key" in text and "12345" in text
    assert max(map(cell_len, text.splitlines())) <= 60


def test_signs_of_markup_are_shown_as_they_are() -> None:
    assert "[bold]x[/bold]" in rendered(["n", "v"], [["[bold]x[/bold]", "1"]], 80)
