"""A WordPiece vocabulary is a function of the text: the same in another process, and a tokenizer transformers loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_glue import tiny_rows
from transformers import AutoTokenizer

from microbert_cli.data.corpus.vocabulary import SPECIAL_TOKENS, train_vocabulary


def documents():
    """A few hundred sentences with words to be cut into pieces."""
    rows = [row for task in ("sst2", "mnli", "stsb") for row in tiny_rows(task, 100)["train"]]
    return [[text, text.replace("the", "Gardening\u0301 walked quickly,")] for texts, _ in rows for text in texts]


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary(documents, size=400, lowercase=True, max_length=128)


def test_size_and_special_tokens(tokenizer):
    assert len(SPECIAL_TOKENS) < len(tokenizer) <= 400
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL_TOKENS
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id) == (0, 2, 4)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_words_of_the_text_are_known(tokenizer):
    ids = tokenizer("The splendid boat of the sailor.")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == ["the", "splendid", "boat", "of", "the", "sailor", "."]
    assert tokenizer("garden")["input_ids"] != tokenizer("gardening")["input_ids"]


def test_case_is_kept_where_asked():
    cased = train_vocabulary(documents, size=400, lowercase=False, max_length=128)
    assert cased.tokenize("The") != cased.tokenize("the")


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab() and again.model_max_length == 128
    assert again("The Boat's lamp")["input_ids"] == tokenizer("The Boat's lamp")["input_ids"]


SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[1:]
from test_vocabulary import documents
from microbert_cli.data.corpus.vocabulary import train_vocabulary
print(json.dumps(train_vocabulary(documents, size=400, lowercase=True, max_length=128).get_vocab()))
"""


@pytest.mark.slow
def test_another_process_makes_the_same(tokenizer, repo):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(repo), str(repo / "tests"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert json.loads(done.stdout.splitlines()[-1]) == tokenizer.get_vocab()
