"""Text and JSON that stay on a line and are what they say, whatever labels and numbers hold."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from strange_inputs import HALVES, TEXTS

from microbert_cli.stages.predict import as_lines
from microbert_cli.text import counted, dump_json, json_line, one_line

BREAKS = "a\nb\rc\r\nd\x0be\x0cf\x1cg\x1dh\x1ei\x85j\u2028k\u2029l\tm\x1b[2Jn\x00o\ud800p\u202eq"
hostile = st.one_of(TEXTS, HALVES, st.text(alphabet=BREAKS, max_size=12))


@given(st.lists(hostile, max_size=5))
def test_one_line_an_answer_whatever_the_labels_are(labels):
    answers = [{"label": label, "score": 0.5, "probabilities": {label: 0.5}} for label in [*labels, BREAKS]]
    for as_json in (False, True):
        lines = as_lines(answers, as_json=as_json)
        written = "".join(f"{line}\n" for line in lines)
        assert written.encode().decode().splitlines() == lines and len(lines) == len(answers)
    assert [json.loads(line) for line in lines] == answers


def test_a_label_is_escaped_as_text_and_whole_as_json():
    assert one_line("a\nb\tc\x85") == "a\\nb\\tc\\x85"
    assert one_line("öl, 水 🙂 \\n") == "öl, 水 🙂 \\n"
    assert json_line({"label": "öl\n\u2028"}) == '{"label": "öl\\n\\u2028"}'


@given(st.recursive(st.floats() | st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_has_no_numbers_that_json_does_not_have(value):
    def refuse(constant):
        raise AssertionError(constant)

    json.loads(dump_json(value), parse_constant=refuse)
    json.loads(json_line({"value": (value,)}), parse_constant=refuse)


def test_what_is_not_finite_is_null():
    assert dump_json({"a": [math.nan, (math.inf, -math.inf)], "b": 1.5}) == '{"a": [null, [null, null]], "b": 1.5}'
    assert json.loads(dump_json({math.nan: 1, 2.5: math.nan})) == {"nan": 1, "2.5": None}


def test_counts_have_their_plural():
    assert [counted(count, "thread") for count in (0, 1, 2, 1200)] == ["0 threads", "1 thread", "2 threads", "1,200 threads"]
