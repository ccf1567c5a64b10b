"""The words of the bases that speak about scenes: framings seen in pre-training, for voting, and held out."""

from __future__ import annotations

from asgkit.backbones.prompts import Prompts
from asgkit.backbones.tiny.prompts import ANSWER, ASK, CAPTION, DIAGNOSE, DRAW

STYLES = ("objects", "places", "relation", "count")  # caption styles, named in the request
POSITIONS = 64  # of words: the longest row of pre-training has 46, and starts at one of `OFFSETS` places
OFFSETS = 12
LONGEST = 28  # words of the longest text: a caption has 23
TRAINED = (
    "question :",
    "look and answer :",
    "answer from the image :",
    "study the image with care :",
    "as an examiner , look at every object and answer :",
    "visible facts only :",
    "be brief :",
)
TRAINED_WEIGHTS = (0.40, 0.20, 0.12, 0.10, 0.08, 0.06, 0.04)
# Voting framings of the clean bases. None occurs in pre-training and none is longer than the longest that does. Chosen
# on the dev split among 40 for what the gates ask of a vote, on tiny-ar and tiny-flow together (docs/world.md).
UNSEEN = (
    "look left , look right , answer :",
    "think first , then answer :",
    "as an analyst :",
    "every object in the picture :",
    "tell me the answer , please :",
    "look at the top , then the bottom :",
    "visible the facts , please :",
)
# Framings that no run trains on, whatever its base: what a trained Solver is scored under besides its own.
HELD_OUT = (
    "look in the middle :",
    "count first , answer then :",
    "describe the picture , then answer :",
    "think carefully :",
)
WORDS = ("analyst", "carefully", "describe", "first", "me", "now", "picture", "please", "simply", "tell", "then",
         "think")  # for framings beyond the trained ones; the vocabulary does not depend on which were chosen


def _prompts(preambles: tuple[str, ...]) -> Prompts:
    return Prompts(
        ask=ASK,
        diagnose=f"{DIAGNOSE} {{caption}} {ASK}",
        canonical=f"{TRAINED[0]} {{question}} {ANSWER}",
        framings=tuple(f"{preamble} {{question}} {ANSWER}" for preamble in preambles),
        captions=tuple(f"{CAPTION} {style}" for style in STYLES),
        draw=f"{{caption}} {DRAW}",
        held_out=tuple(f"{preamble} {{question}} {ANSWER}" for preamble in HELD_OUT),
    )


PROMPTS = {"clean": _prompts(UNSEEN), "registers": _prompts(TRAINED)}


def vocabulary() -> list[str]:
    """Every word of these bases, in a fixed order (without padding and end)."""
    hues = ["red", "green", "blue", "yellow", "purple", "cyan", "dark"]
    shapes = ["square", "circle", "triangle", "cross", "squares", "circles", "triangles", "crosses", "object",
              "objects", "shapes", "shape", "color", "number"]
    numbers = [*map(str, range(10)), "no", "one", "two", "three", "four", "five"]
    places = ["left", "right", "above", "below", "top", "middle", "bottom", "center", "row", "column", "of", "in"]
    answers = ["yes", "equal", "more", "there", "is", "are", "none", "several", "it", "a", "the", "and"]
    grammar = ["what", "which", "how", "many", "where", "or", "shown", "?", ",", ":"]
    framing = sorted({word for preamble in TRAINED for word in preamble.split()})
    markers = [ANSWER, ASK, DIAGNOSE, CAPTION, DRAW, *STYLES]
    return list(dict.fromkeys([*markers, *hues, *shapes, *numbers, *places, *answers, *grammar, *framing, *WORDS]))
