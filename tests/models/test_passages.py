import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="splitting texts needs the extra demo")

from tiny_model import tokenizer

from refnorm.models._passages import LONGEST_PARAGRAPH, split_passages

TOKENIZER = tokenizer()
TOKENIZER.no_padding()
TOKENIZER.no_truncation()


def split(text, limit=8):
    return list(split_passages(io.StringIO(text), "f.txt", TOKENIZER, limit))


def lines(text, limit=8):
    return [(p.first_line, p.last_line, p.text) for p in split(text, limit)]


def test_short_paragraphs_share_a_passage():
    assert lines("the cat\n\nthe dog\n\n\nthe sun and the moon\n") == [
        (1, 4 - 1, "the cat\n\nthe dog"),
        (6, 6, "the sun and the moon"),
    ]


def test_a_long_paragraph_is_cut_behind_a_sentence():
    text = "the cat sat on. the dog run fast on the mat to it"
    assert lines(text) == [
        (1, 1, "the cat sat on."),
        (1, 1, "the dog run fast on the mat to"),
        (1, 1, "it"),
    ]


def test_a_long_paragraph_is_cut_at_a_line_break():
    text = "\nthe cat sat on it\nthe dog run fast on the mat"
    assert lines(text) == [(2, 2, "the cat sat on it"), (3, 3, "the dog run fast on the mat")]


def test_a_word_without_end_is_cut_behind_a_token():
    assert [p.text for p in split("ab" * 10, 8)] == ["abababab", "abababab", "abab"]


def test_decimal_points_and_names_do_not_end_a_sentence():
    assert next(p.text for p in split("the cat sat on 1.5 and it ran to the mat", 10)) == "the cat sat on 1.5 and it"


def test_line_breaks_of_all_systems_count():
    text = "the cat\r\n\r\n\r\nthe dog run fast on the mat\r"
    stream = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    found = list(split_passages(stream, "f.txt", TOKENIZER, 8))
    assert [(p.first_line, p.last_line) for p in found] == [(1, 1), (4, 4)]


@pytest.mark.parametrize("text", ["", "\n\n", "  \t\n \n"])
def test_a_text_without_words_gives_nothing(text):
    assert split(text) == []


def test_a_paragraph_of_which_the_tokenizer_leaves_nothing_gives_nothing():
    assert lines("\x01\x02\n\ncat") == [(3, 3, "cat")]


def test_a_file_without_line_breaks_is_read_in_parts():
    words = LONGEST_PARAGRAPH
    found = split("cat " * words, 30)
    assert sum(p.tokens for p in found) == words
    assert max(p.tokens for p in found) <= 30
    assert {p.first_line for p in found} == {1}


WORDS = st.sampled_from(["the", "cat", "xyz", "mat.", "end!", "ünï", "日本", "1.5", "-", "\n", "\n\n", "  ", "(a)"])


@given(words=st.lists(WORDS, max_size=60), limit=st.integers(1, 12))
def test_passages_hold_every_token_within_the_limit_where_they_say(words, limit):
    text = " ".join(words)
    found = split(text, limit)
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert sum(p.tokens for p in found) == len(ids)
    assert all(1 <= p.tokens <= limit for p in found)
    numbered = text.split("\n")
    for p in found:
        where = "\n".join(numbered[p.first_line - 1 : p.last_line])
        for piece in p.text.split("\n\n"):
            assert piece in where
    assert [p.first_line for p in found] == sorted(p.first_line for p in found)
