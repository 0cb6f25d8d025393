"""Tables of a recipe that say which texts are read, and how: rows of a task, plain text, word vectors."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from microbert_cli.recipe.task_kinds import KindName
from microbert_cli.recipe.values import Count, NotNegativeCount, Place, Positive, Share, Strict, Whole, check_distinct
from microbert_cli.table_format import Delimiter, Encoding


class Data(Strict):
    """Where task data lies: a GLUE `folder`, files of the user's own; of any task the unlabelled texts of a `transfer_file`.

    `label_probabilities`, `label_score`: columns of what a teacher said of each row, which then teach (`data/soft_labels.py`).
    `windows`, `stride`, `transfer_windows`: how texts longer than max_length are read (`data/windows/`).
    `label_columns`: of 0 and 1, a label each; `class_weights`: a table, or "balanced", of hard labels; `primary`: selects.
    """

    folder: Place | None = None
    train_file: Place | None = None
    dev_file: Place | None = None
    test_file: Place | None = None
    transfer_file: Place | None = None
    text: list[str] | str | None = None
    label: str | None = None
    labels: list[str] | None = None
    kind: KindName | None = None
    label_probabilities: list[str] | str | None = None
    label_score: str | None = None
    label_columns: Annotated[list[str], Field(min_length=1), AfterValidator(check_distinct)] | None = None
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    primary: str | None = None
    encoding: Encoding = None
    delimiter: Delimiter = None
    header: bool = True
    quoting: bool | None = None
    skip_empty: bool = False
    repair_tags: bool = False
    max_length: Count | None = None
    windows: Literal["none", "mean", "max"] | None = None
    stride: NotNegativeCount | None = None
    transfer_windows: bool | None = None
    limit: Count | None = None


class Corpus(Strict):
    """Plain text, and how it is cut into blocks of at most `max_length` tokens."""

    source: Place | None = None
    format: Literal["pairs", "packed"] = "pairs"
    max_length: Annotated[Whole, Field(ge=8)] = 128
    heldout: Annotated[Share, Field(lt=1)] = 0.02
    documents: Count | None = None
    random_next: Share = 0.5
    short: Share = 0.1


class Vectors(Strict):
    """Word vectors: GloVe text or zip, or the input embeddings of a BERT directory."""

    source: Place | None = None
    limit: Count = 100_000
