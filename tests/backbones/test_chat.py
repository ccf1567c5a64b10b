"""Prompts in English, the chat tokenizer and the phrase tokenizer of tiny random models."""

import pytest
import torch

from asgkit.ask import parse_question, question_problems
from asgkit.backbones.chat import (
    PHRASES,
    PREAMBLES,
    PROMPTS,
    RULES,
    ChatTokenizer,
    pad_rows,
    phrase_tokenizer,
)

SPECIAL = ["<|start|>", "<|end|>", "<|pad|>"]


@pytest.fixture(scope="module")
def chat():
    return ChatTokenizer(phrase_tokenizer(SPECIAL), "<|end|>\n<|start|>assistant\n", end=257, pad=258)


def test_special_tokens_follow_the_bytes_and_phrases_follow_them(chat):
    assert chat.encode("<|start|><|end|><|pad|>") == [256, 257, 258]
    assert [chat.encode(phrase) for phrase in PHRASES] == [[259 + i] for i in range(len(PHRASES))]
    assert len(chat) == 259 + len(PHRASES)


@pytest.mark.parametrize("text", ["plain", "naïve é ✓", 'quotes "and" <tags>', "What color is the ball? two\nlines"])
def test_any_text_survives_the_round_trip(chat, text):
    assert chat.decode(chat.encode(text)) == text


def test_decoding_stops_at_the_first_end_and_drops_what_is_special(chat):
    ids = [*chat.encode("a cat"), 256, chat.end, *chat.encode("never")]
    assert chat.decode(ids) == "a cat"
    assert chat.decode([chat.pad, *chat.encode("x")]) == "" == chat.decode([])


def test_prompts_are_closed_by_the_template_and_padded_on_the_left(chat):
    ids, mask = chat.batch(["a", "bcd"], left=True)
    assert mask.sum(1).tolist() == [len(chat.encode("a" + chat.after)), ids.shape[1]]
    assert ids[0, :2].tolist() == [chat.pad] * 2 and not mask[0, :2].any() and mask[:, 2:].all()
    assert ids[0, 2:].tolist() == chat.encode("a<|end|>\n<|start|>assistant\n")


def test_rows_are_padded_on_either_side():
    left, shown = pad_rows([[1], [2, 3]], 9, left=True)
    right, kept = pad_rows([[1], [2, 3]], 9)
    assert left.tolist() == [[9, 1], [2, 3]] and right.tolist() == [[1, 9], [2, 3]]
    assert shown.tolist() == [[False, True], [True, True]] and kept.tolist() == [[True, False], [True, True]]
    assert left.dtype == torch.int64


def test_half_of_the_phrases_are_questions_that_may_be_asked():
    asked = [parse_question(phrase) for phrase in PHRASES if "<question>" in phrase]
    assert len(asked) == 8 and not any(question_problems(question) for question in asked)


def test_framings_differ_in_the_preamble_alone():
    assert len(PREAMBLES) == len(set(PREAMBLES)) == 7
    for preamble, framing in zip(PREAMBLES, PROMPTS.framings, strict=True):
        assert framing == f"{preamble} {RULES}"
    assert PROMPTS.canonical == PROMPTS.framings[0]
    assert PROMPTS.solve("Is {it} red?", 3).endswith("Question: Is {it} red?")
