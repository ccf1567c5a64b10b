"""The tiny family's words: task markers, framings seen in pre-training, and phrasings that it never saw."""

from __future__ import annotations

from asgkit.backbones.prompts import Prompts

ANSWER, ASK, DIAGNOSE, CAPTION, DRAW = "<answer>", "<ask>", "<diagnose>", "<caption>", "<draw>"
STYLES = ("objects", "relation", "count", "shapes")  # caption styles, named in the request

TRAINED = (
    "question :",
    "look and answer :",
    "answer from the image :",
    "study the image :",
    "as an examiner :",
    "visible facts only :",
    "be brief :",
)
TRAINED_WEIGHTS = (0.40, 0.20, 0.12, 0.10, 0.08, 0.06, 0.04)

# Voting framings of the clean base. None occurs in pre-training, and each names a perceptual focus (layout, text,
# left and right, counting, colour, identity, detail), so their errors differ: a vote among them measures prompt
# robustness, not new knowledge. Chosen on the dev split among 29 candidates for single-framing
# accuracies between 65% and 85% (see the premise report).
UNSEEN = (
    "look in the middle :",
    "study the digit and the shapes :",
    "look left , look right , answer :",
    "as an analyst count the objects :",
    "red or blue ? look :",
    "what is shown ? look :",
    "be brief , study the objects :",
)


# How a caption of each style but the first begins, or what it holds.
FORMS = ((r"\b(left of|right of|above|below)\b", STYLES.index("relation")), (r"^[2-9] ", STYLES.index("count")),
         (r"^(square|circle|triangle|cross)\b", STYLES.index("shapes")))


def _prompts(preambles: tuple[str, ...]) -> Prompts:
    return Prompts(
        ask=ASK,
        diagnose=f"{DIAGNOSE} {{caption}} {ASK}",
        canonical=f"{TRAINED[0]} {{question}} {ANSWER}",
        framings=tuple(f"{preamble} {{question}} {ANSWER}" for preamble in preambles),
        captions=tuple(f"{CAPTION} {style}" for style in STYLES),
        draw=f"{{caption}} {DRAW}",
        forms=FORMS,
    )


PROMPTS = {"clean": _prompts(UNSEEN), "registers": _prompts(TRAINED)}


def vocabulary() -> list[str]:
    """Every word the tiny family can read or write, in a fixed order (without padding and end)."""
    from asgkit.shapes.world import COLOR_NAMES, PLURALS, SHAPES

    markers = [ANSWER, ASK, DIAGNOSE, CAPTION, DRAW, *STYLES]
    world = [*COLOR_NAMES, *SHAPES, *PLURALS.values(), *map(str, range(10)), "yes", "no", "equal", "none"]
    places = ["left", "right", "above", "below", "top", "middle", "bottom", "of"]
    grammar = ["is", "are", "there", "a", "what", "color", "the", "shape", "object", "how", "many", "where", "from",
               "in", "which", "row", "column", "more", "or", "digit", "shown", "?", ",", ":"]
    framing = sorted({word for preamble in (*TRAINED, *UNSEEN) for word in preamble.split()})
    return list(dict.fromkeys([*markers, *world, *places, *grammar, *framing]))
