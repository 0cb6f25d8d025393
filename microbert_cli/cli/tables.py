"""How a table fits a screen: nothing is cut; columns that do not fit stand in a second table below, under the same names."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

GAP = 2  # spaces between columns
NARROWEST = 24  # a column of text is broken over lines until it is as narrow


def column_groups(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, texts: Sequence[str] = ()
) -> list[list[int]]:
    """Returns which columns stand in one table: as many as fit beside the first one, which every table begins with.

    width  of the screen, in cells;  texts  columns that may be broken over lines
    """
    needed = [_needed(column, [row[n] for row in rows], column in texts) for n, column in enumerate(columns)]
    groups: list[list[int]] = [[0]]
    used = needed[0]
    for number in range(1, len(columns)):
        if len(groups[-1]) > 1 and used + GAP + needed[number] > width:
            groups.append([0])
            used = needed[0]
        groups[-1].append(number)
        used += GAP + needed[number]
    return groups


def layout(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, texts: Sequence[str] = ()) -> Iterator[Table]:
    """Yields the tables, of cells without control characters; numbers to the right, texts to the left."""
    for group in column_groups(columns, rows, width, texts):
        table = Table(header_style="bold", box=None, pad_edge=False)
        for number in group:
            is_text = columns[number] in texts
            left = number == 0 or is_text
            table.add_column(escape(columns[number]), justify="left" if left else "right", no_wrap=not is_text, overflow="fold")
        for row in rows:
            table.add_row(*(escape(row[number]) for number in group))
        yield table


def _needed(column: str, cells: Sequence[str], is_text: bool) -> int:
    widest = max(map(cell_len, [column, *cells]))
    return min(widest, NARROWEST) if is_text else widest
