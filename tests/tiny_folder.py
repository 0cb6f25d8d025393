"""The folder in which whole commands are tried: SST-2 in 40 rows, thirty documents of text, a masked-LM "base" and a recipe.

with tiny_folder(tmp_path_factory.mktemp("plan"), RECIPE, layers=2): ...     # the working directory while it lasts
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_bert, tiny_glue


@contextmanager
def tiny_folder(place: Path, recipe: str, *, name: str = "small.toml", **base: Any) -> Iterator[pytest.MonkeyPatch]:
    """Fills `place` and stands in it; `base` as `tiny_bert` takes it. Yields what is undone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        tiny_glue("glue", ["sst2"], rows=40)
        tiny_bert("base", kind="masked-lm", **base)
        Path("text.txt").write_text("\n\n".join(f"The baker sold boat {i}. It is lovely." for i in range(30)), encoding="utf-8")
        Path(name).write_text(recipe, encoding="utf-8")
        yield patch
