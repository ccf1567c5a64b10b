"""The Solver's side of the signal: normalise answers, let the framings vote, reward agreement.

Symbols of the paper: `a*` is `Vote.majority`, `p_c` the shares behind it, `H_sc` is `Vote.entropy`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


def word_set(words: str) -> frozenset[str]:
    """The words of a space-separated list, as a set: word lists stay readable in the source."""
    return frozenset(words.split())


UNKNOWN = "unknown"
MAX_WORDS = 8
_EDGE = " .,:;!?\"'`*“”‘’«»…¿¡。，！？、"
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_TAG = re.compile(r"</?answer>")
_MARKUP = re.compile(r"[<>{}\[\]|]")

_YES_NO = frozenset({"yes", "no", "true", "false"})
_EMPTY_WORDS = word_set(
    "unknown none nothing unsure unclear n/a object objects thing things something image picture photo scene "
    "many some several few lots various multiple other"
)
_EMPTY_PHRASES = frozenset({"a lot", "a few", "not sure", "not visible", "cannot tell", "can't tell"})
_HEDGES = word_set("maybe perhaps possibly probably likely or either approximately roughly")


def core_span(text: str) -> str:
    """The short core of an answer, or "" when nothing is left.

    Takes the inside of the first `<answer>` tag if there is one (to the end of the text if it was never
    closed), then lower case, commas to spaces, runs of space to one, punctuation and quotes off both edges,
    first 8 words. Articles stay. Source: paper (normalisation); spec: understanding 2.3.
    """
    text = text.lower()
    tagged = _TAGGED.search(text)
    text = tagged.group(1) if tagged else text
    text = _TAG.sub(" ", text).replace(",", " ")
    words = " ".join(text.split()).strip(_EDGE).split()[:MAX_WORDS]
    return " ".join(words).strip(_EDGE)  # again: the cut can leave punctuation on the new last word


def words_said(text: str) -> int:
    """How many words a Solver spends, w of :func:`solver_rewards`: before its `<answer>` tag, or all without one.

    The release asks for a tag and counts what stands before it. No shipped prompt asks for one, so there the answer is
    all that was said, and a long one is what the paper's penalty on verbosity means; up to 6 words cost nothing.
    Source: paper (penalty); released code; spec: understanding 2.6.
    """
    head, _, _ = text.lower().partition("<answer>")
    return len(head.split())


def normalise_answer(text: str) -> str:
    """Canonical text of an answer, so that equal answers of different framings are equal strings.

    :func:`core_span`, with "unknown" for an empty answer. Idempotent.
    Source: paper (normalisation); spec: understanding 2.3.
    """
    return core_span(text) or UNKNOWN


@dataclass(frozen=True)
class Vote:
    """Outcome of N framings: majority a*, its count and fraction, entropy H_sc (nats), margin p1 - p2."""

    majority: str
    count: int
    fraction: float
    entropy: float
    margin: float
    answers: tuple[str, ...]  # normalised, in the order of the framings


def vote(answers: Sequence[str]) -> Vote:
    """Count the normalised answers of the N framings.

    `p_c = n_c / N`, `a* = argmax_c p_c` (ties: first seen), `H_sc = -sum_c p_c ln p_c` nats, in [0, ln N];
    margin `p_1 - p_2` between the two most frequent answers (1 when unanimous).

    Raises ValueError without answers, TypeError for a bare string.
    Source: paper; spec: understanding 2.4.
    """
    if isinstance(answers, str):
        raise TypeError("vote needs a sequence of answers, got one string: wrap it in a list")
    if not answers:
        raise ValueError("vote needs at least one answer; drop questions that no framing answered")
    normalised = tuple(normalise_answer(answer) for answer in answers)
    ranked = Counter(normalised).most_common()  # equal counts keep the order of first appearance
    n = len(normalised)
    shares = [count / n for _, count in ranked]
    return Vote(
        majority=ranked[0][0],
        count=ranked[0][1],
        fraction=shares[0],
        entropy=sum(-p * math.log(p) for p in shares if p < 1.0),
        margin=shares[0] - (shares[1] if len(shares) > 1 else 0.0),
        answers=normalised,
    )


def is_low_information(answer: str, *, yes_no: bool = True) -> bool:
    """True for answers that say little: unknown, none, a vague count, a generic noun, a bare yes or no.

    The released code counts yes and no as low information, since its Proposer is asked for open questions;
    `yes_no=False` lets them pass. Source: paper (penalty); spec: understanding 2.3.
    """
    text = normalise_answer(answer)
    if text in _YES_NO:
        return yes_no
    words = [word for word in text.split() if word not in {"a", "an", "the"}]
    return text in _EMPTY_PHRASES or not words or all(word in _EMPTY_WORDS for word in words)


def is_canonical(answer: str, max_words: int = 5) -> bool:
    """True for one committed answer of 1 to `max_words` words: no markup, no hedge, no alternatives.

    An answer that could not be read ("unknown") is not canonical. Source: paper (97.6% of answers have at
    most 5 words); spec: understanding 2.1 and 2.3.
    """
    text = normalise_answer(answer)
    words = text.split()
    if text == UNKNOWN or len(words) > max_words or _MARKUP.search(text):
        return False
    return not _HEDGES.intersection(words)


def informativeness(
    entropy: float, margin: float, *, low: float = 0.15, high: float = 1.20, max_margin: float = 0.90
) -> float:
    """How much a vote can teach, in [0, 1]: high for middling H_sc and a narrow margin.

    `info = clip(0.5 exp(-(H - m)^2 / (2 w^2)) + 0.5 max(0, 1 - M / max_margin), 0, 1)`,
    `m = (low + high) / 2`, `w = (high - low) / 2`; H in nats, M = p1 - p2.

    Raises ValueError on NaN, a negative entropy or a margin outside [0, 1].
    Source: paper (local informativeness); constants: released code; spec: understanding 1.9.
    """
    if not (math.isfinite(entropy) and entropy >= 0.0 and 0.0 <= margin <= 1.0):
        raise ValueError(f"need entropy >= 0 and margin in [0, 1], got {entropy}, {margin}: use a Vote's")
    middle, width = (low + high) / 2, (high - low) / 2
    medium = math.exp(-((entropy - middle) ** 2) / (2 * width**2))
    contested = max(0.0, 1.0 - margin / max_margin)
    return min(1.0, max(0.0, 0.5 * medium + 0.5 * contested))


def solver_rewards(
    vote: Vote,
    *,
    words: Sequence[int] | None = None,
    gamma: float = 0.7,
    negative: float = 0.25,
    length_weight: float = 0.10,
    length_target: int = 6,
    noncanonical: float = 0.10,
    low_info: float = 0.08,
) -> list[float]:
    """Agreement reward R_s of each of the N answers, in the order of the framings.

    `raw_i = s (majority) or -negative * s (others), - noncanonical - low_info` where they apply,
    `s = max(1e-4, info(H_sc, M))`;
    `R_i = p(a_i)^gamma * (1 - length_weight * pen_i) * raw_i`, `pen_i = clip((w_i - 6) / 6, 0, 1)`.

    `words` holds w_i of :func:`words_said` (None: none, so no length penalty). The penalty shrinks a reward, also one
    below 0: a wordy answer is paid less when right and charged less when wrong (the release's form). Unanimous and
    all-different votes get the same formula: whether they may train at all is a gate's decision.
    Raises ValueError when `words` does not have one entry per answer.
    Source: paper; constants: released code; spec: understanding 2.6 (middle branch).
    """
    counts = [0] * len(vote.answers) if words is None else list(words)
    if len(counts) != len(vote.answers):
        raise ValueError(f"words has {len(counts)} entries for {len(vote.answers)} answers: one per answer")
    scale = max(1e-4, informativeness(vote.entropy, vote.margin))
    shares = Counter(vote.answers)
    rewards = []
    for answer, count in zip(vote.answers, counts, strict=True):
        raw = scale if answer == vote.majority else -negative * scale
        raw -= noncanonical * (not is_canonical(answer)) + low_info * is_low_information(answer)
        penalty = min(1.0, max(0.0, (count - length_target) / length_target))
        share = shares[answer] / len(vote.answers)
        rewards.append(share**gamma * (1.0 - length_weight * penalty) * raw)
    return rewards


def pseudo_label_mask(vote: Vote, minimum: float = 5 / 7) -> bool:
    """True when the majority is large enough to serve as a pseudo-label: `fraction >= minimum` (up to 1e-9).

    The tolerance is there because 5/7 and a configured 0.7142857143 must mean the same five votes.
    Source: ours, for the pseudo-label form of the Solver update (the paper uses REINFORCE).
    """
    return vote.fraction >= minimum - 1e-9
