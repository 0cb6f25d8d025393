"""Every encoder type of transformers with a sequence classifier, from finetune to bench: works or is refused; and the page.

MBERT_WRITE_PAGE=1 pytest tests/cases/test_encoder_types.py        writes what came out into docs/architectures.md
"""

import os
import tempfile
from pathlib import Path

import pytest
from encoder_matrix import COLUMNS, FAILED, Workshop, page, read_rows
from encoder_types import TYPES, skipped
from filelock import FileLock
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
WRITE = bool(os.environ.get("MBERT_WRITE_PAGE"))
# One of each kind of tokens, in every run of the fast tests; the slow ones look at all types.
QUICK = ("bert", "roberta", "deberta-v2", "xlnet")
QUICK_COLUMNS = ("finetune", "teaches", "is taught", "evaluate", "predict")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, own_cache):
    return Workshop(tmp_path_factory.mktemp("encoder-types"))


def compare(model_type, cells):
    """The page's row must be what came out."""
    row = read_rows(PAGE.read_text(encoding="utf-8"))[model_type]
    differing = {
        column: f"{cell.result}, the page says {row[column]}; {cell.detail}"
        for column, cell in cells.items()
        if cell.result != row[column]
    }
    assert not differing, differing


@pytest.mark.parametrize("model_type", QUICK)
def test_the_commonest_types(model_type, workshop):
    compare(model_type, workshop.row(model_type, QUICK_COLUMNS))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_type(model_type, workshop):
    cells = workshop.row(model_type)
    if WRITE:
        with FileLock(Path(tempfile.gettempdir(), "mbert-architectures.lock")):
            rows = read_rows(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
            rows[model_type] = {column: cells[column].result for column in COLUMNS}
            PAGE.write_text(page({name: rows[name] for name in rows if name in TYPES}), encoding="utf-8")
    compare(model_type, cells)


def test_the_page_is_written_from_its_rows():
    text = PAGE.read_text(encoding="utf-8")
    rows = read_rows(text)
    assert rows.keys() == TYPES.keys()
    assert text == page(rows)


def test_no_type_fails():
    rows = read_rows(PAGE.read_text(encoding="utf-8"))
    assert not {name for name, row in rows.items() if FAILED in row.values()}


def test_every_type_of_transformers_is_tried_or_has_a_reason():
    """A new version of transformers brings new types: each wants a tiny checkpoint, or a reason to do without."""
    assert TYPES.keys() | skipped().keys() == MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.keys()
    assert not TYPES.keys() & skipped().keys()
