"""Tags, entities and their scores by hand and by seqeval's published examples; words as rows of a batch."""

import pytest
import torch

from microbert_cli.catalog.kinds.token_classification import Kind
from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.catalog.losses.soft_target import soft_target
from microbert_cli.models.capture import ModelOutputs
from microbert_cli.models.words.rows import aligned, words_as_rows
from microbert_cli.models.words.scores import count_entities, over_all
from microbert_cli.models.words.tags import all_tags, entities, first_break, repaired, scheme_of
from microbert_cli.models.words.text import split_text, word_spans


def test_entities_as_seqevals_documentation_has_them():
    assert entities(["B-PER", "I-PER", "O", "B-LOC"]) == [("PER", 0, 2), ("LOC", 3, 4)]


def test_scores_as_seqevals_readme_has_them():
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    counts = count_entities(predicted, gold)
    assert counts["MISC"].scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert counts["PER"].scores == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert over_all(counts) == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    lenient = over_all(count_entities([["I-NP", "I-NP", "O"]], [["B-NP", "I-NP", "O"]]))
    assert lenient["f1"] == 1.0, "the default mode: an I- without a B- begins an entity"


def test_scores_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "B-PER", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "B-LOC", "B-LOC", "O"]]
    # Predicted: PER(0,1) wrong end; LOC right; LOC right, LOC, LOC wrong: 2 of 5. Gold: 4, of which 2 are there.
    scores = over_all(count_entities(predicted, gold))
    assert (scores["precision"], scores["recall"]) == (pytest.approx(2 / 5), pytest.approx(2 / 4))
    assert scores["f1"] == pytest.approx(2 * 0.4 * 0.5 / 0.9)


@pytest.mark.parametrize(
    ("tags", "scheme", "broken"),
    [
        (["O", "B-X", "I-X"], "bio", None),
        (["O", "I-X"], "bio", 1),
        (["B-X", "I-Y"], "bio", 1),
        (["I-X"], "bio", 0),
        (["O", "X-PER"], "bio", 1),
        (["B-X", "E-X", "S-Y"], "bioes", None),
        (["B-X", "O"], "bioes", 1),
        (["S-X", "E-X"], "bioes", 1),
        (["O", "B-X"], "bioes", 1),
        (["NOUN", "I-THINK"], "plain", None),
    ],
)
def test_what_breaks_a_scheme(tags, scheme, broken):
    result = first_break(tags, scheme)
    assert (result and result[0]) == broken


def test_schemes_and_their_tags():
    assert scheme_of({"O", "B-PER"}) == "bio" and scheme_of({"O", "S-PER"}) == "bioes" and scheme_of({"NOUN", "O"}) == "plain"
    assert all_tags({"O", "B-PER", "B-LOC"}) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert repaired(["I-PER", "I-PER", "B-PER", "O", "I-LOC"], "bio") == ["B-PER", "I-PER", "B-PER", "O", "B-LOC"]
    assert repaired(["I-PER", "I-PER", "O", "I-LOC"], "bioes") == ["B-PER", "E-PER", "O", "S-LOC"]


def test_words_stand_between_spaces():
    text = " New\tYork  is\u00a0big\n"
    assert split_text(text) == ["New", "York", "is\u00a0big"]
    assert [text[start:end] for start, end in word_spans(text)] == split_text(text)


def test_soft_targets_and_labels_are_means_over_word_starts():
    """Two rows of two words and one; other pieces and padding have logits that would change a mean over tokens."""
    words = torch.tensor([[-1, 0, -1, 1, -1], [-1, 0, -1, -1, -1]])
    student_BTC = torch.full((2, 5, 2), 9.0)
    teacher_BTC = torch.full((2, 5, 2), -7.0)
    pairs = [([0.0, 0.0], [2.0, 0.0]), ([1.0, 0.0], [0.0, 4.0]), ([0.0, 2.0], [0.0, 2.0])]
    for (row, token), (s, t) in zip([(0, 1), (0, 3), (1, 1)], pairs, strict=True):
        student_BTC[row, token], teacher_BTC[row, token] = torch.tensor(s), torch.tensor(t)
    labels = torch.tensor([[-100, 0, -100, 1, -100], [-100, 1, -100, -100, -100]])
    batch, student, teacher = words_as_rows(
        {"words": words, "labels": labels}, ModelOutputs(student_BTC), ModelOutputs(teacher_BTC)
    )
    soft = soft_target(student.logits, teacher.logits, temperature=2.0, divergence="kl", squared_temperature=True)
    expected = 0.0
    for s, t in pairs:
        p, q = (torch.tensor(z, dtype=torch.float64).div(2).softmax(0) for z in (t, s))
        expected += float((p * (p / q).log()).sum()) * 4 / 3
    assert soft.item() == pytest.approx(expected, abs=1e-6)
    hard = hard_label(student.logits, batch["labels"])
    by_hand = -sum(float(torch.tensor(s).log_softmax(0)[y]) for (s, _), y in zip(pairs, [0, 1, 1], strict=True)) / 3
    assert hard.item() == pytest.approx(by_hand, abs=1e-6)


def test_augmented_rows_have_augmented_words():
    words, flags = torch.tensor([[0, 1], [0, -1]]), torch.tensor([False, True])
    batch, _, _ = words_as_rows({"words": words, "augmented": flags}, ModelOutputs(torch.zeros(2, 2, 3)), ModelOutputs())
    assert batch["augmented"].tolist() == [False, False, True]


def test_a_teacher_of_other_tokens_answers_for_the_same_words():
    teacher_words = torch.tensor([[-1, 0, 1, -1]])  # it did not read word 2
    logits = torch.arange(8.0).reshape(1, 4, 2)
    words = torch.tensor([[-1, 0, -1, 1, 2, -1]])
    result = aligned(logits, teacher_words, words)
    assert result[0, 1].tolist() == [2.0, 3.0] and result[0, 3].tolist() == [4.0, 5.0]
    assert result[0, [0, 2, 4, 5]].isnan().all()
    batch = {"words": words, "labels": torch.zeros(1, 6, dtype=torch.long)}
    batch, student, teacher = words_as_rows(batch, ModelOutputs(torch.zeros(1, 6, 2)), ModelOutputs(result))
    assert len(batch["labels"]) == len(student.logits) == len(teacher.logits) == 2, "a word that it did not read is left out"


def test_answers_have_places_in_the_text():
    import numpy as np

    kind = Kind(("O", "B-PER", "I-PER"))
    logits = np.full((1, 3, 3), -4.0, np.float32)
    logits[0, [0, 1, 2], [1, 2, 0]] = 4.0
    logits[0, 2] = np.nan  # cut off
    (record,) = kind.text_answers(logits, [("Anna  Smith in Rome",)])
    (entity,) = record["entities"]
    assert (entity["type"], entity["text"], entity["start"], entity["end"]) == ("PER", "Anna  Smith", 0, 11)
    assert record["tags"] == ["B-PER", "I-PER", "O", "O"] and record["unread_words"] == 2
    assert record["scores"][2:] == [None, None]
