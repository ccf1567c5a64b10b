"""The Proposer's side of the signal: read its questions, check them, reward the instructive ones.

Symbols of the paper: `R_p` is :func:`proposer_reward`, `r_sc` is :func:`self_consistency_reward`, and its
running target `mu` is :class:`TargetEntropy`.
"""

import math
import re
from collections import Counter
from typing import Any

from asgkit.solve import informativeness, word_set

_BLOCK = re.compile(r"<question>(.*?)</question>", re.IGNORECASE | re.DOTALL)
_BLOCK_TAG = re.compile(r"</?question>", re.IGNORECASE)
_LABEL = re.compile(r"^[\s\-*•\"'“”‘’(]*(?:(?:question|q)\s*\d*\s*[:.)\-]\s*|\d+\s*[.):]\s*)?", re.IGNORECASE)
_MARKUP = re.compile(r"[<>{}\[\]|]|```|&\w+;")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_STARTERS = word_set(
    "what what's which who who's whom whose where when how why is are was were do does did has have had "
    "can could will would should may might"
)
_PREPOSITIONS = word_set("in on at of to from by with for under near behind")
_SUBJECTIVE = word_set(
    "why might could may should would likely probably possibly perhaps maybe opinion feel feels think "
    "believe suppose imagine guess beautiful pretty ugly nice interesting favorite favourite"
)
MIN_WORDS = 3
MAX_REPEATS = 3


def parse_questions(text: str) -> list[str]:
    """All questions of one Proposer completion, in order, duplicates kept.

    Closed `<question>` blocks if there are any, else every sentence that ends with "?". Labels and bullets
    are removed and runs of space collapsed; a space before "?" stays. Source: spec: understanding 1.3 and
    10.
    """
    blocks = _BLOCK.findall(text)
    found = blocks if blocks else _sentences(_BLOCK_TAG.sub("\n", text))
    cleaned = [" ".join(_LABEL.sub("", item, count=1).split()) for item in found]
    return [question for question in cleaned if _WORD.search(question)]


def parse_question(text: str) -> str | None:
    """The first question of one Proposer completion, or None: there is no stand-in for an unreadable one."""
    questions = parse_questions(text)
    return questions[0] if questions else None


def _sentences(text: str) -> list[str]:
    chunks = [chunk for line in text.splitlines() for chunk in re.findall(r"[^?]*\?", line)]
    return [re.split(r"(?<=[.!])\s+", chunk)[-1] for chunk in chunks]


def question_problems(text: str) -> list[str]:
    """What makes a question unfit to be asked; an empty list means valid.

    Checks form and objectivity only, never the answer: at least 3 words, "?" at the end, an interrogative or
    auxiliary word in front, no markup, no subjective word, no word more than 3 times.
    Source: released code, in a short language-general form; spec: understanding 1.5.
    """
    question = text.strip()
    words = [word.lower() for word in _WORD.findall(question)]
    problems = []
    if len(words) < MIN_WORDS:
        problems.append(f"fewer than {MIN_WORDS} words")
    if not question.endswith("?"):
        problems.append("does not end with a question mark")
    if not _starts_like_a_question(words):
        problems.append("does not start with an interrogative or auxiliary word")
    if _MARKUP.search(question):
        problems.append("contains markup")
    subjective = sorted(_SUBJECTIVE.intersection(words))
    if subjective:
        problems.append(f"subjective: {', '.join(subjective)}")
    repeated = sorted(word for word, count in Counter(words).items() if count > MAX_REPEATS)
    if repeated:
        problems.append(f"repeats: {', '.join(repeated)}")
    return problems


def _starts_like_a_question(words: list[str]) -> bool:
    if not words:
        return False
    first = words[1] if len(words) > 1 and words[0] in _PREPOSITIONS else words[0]
    return first in _STARTERS


def self_consistency_reward(
    entropy: float, margin: float, *, mu: float = 0.90, sigma: float = 0.25, band_weight: float = 0.90
) -> float:
    """Reward `r_sc` in [-1, 1] for questions on which the framings disagree a medium amount.

    `g = exp(-(H - mu)^2 / (2 sigma^2))`, `band = clip(2 info(H, M) - 1, -1, 1)`,
    `r_sc = clip(band_weight * band + (1 - band_weight) * g, -1, 1)`; H = H_sc in nats, M = p1 - p2.

    Raises ValueError for sigma <= 0 and for what :func:`asgkit.solve.informativeness` refuses.
    Source: paper; hybrid constants: released code; spec: understanding 1.9.
    """
    if not sigma > 0.0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    gaussian = math.exp(-((entropy - mu) ** 2) / (2 * sigma**2))
    band = _clip(2.0 * informativeness(entropy, margin) - 1.0, -1.0, 1.0)
    return _clip(band_weight * band + (1.0 - band_weight) * gaussian, -1.0, 1.0)


class TargetEntropy:
    """The Gaussian's target: a running mean of H_sc, kept in a band of medium entropies.

    `mu <- clip(momentum * mu + (1 - momentum) * H, low, high)`, nats; `adaptive=False` keeps mu fixed, as the
    released strict setting does. Source: paper (running EMA target); spec: understanding 0.
    """

    def __init__(
        self,
        mu: float = 0.9,
        momentum: float = 0.9,
        low: float = 0.40,
        high: float = 1.5,
        adaptive: bool = True,
    ) -> None:
        if not (0.0 <= momentum < 1.0 and low <= mu <= high):
            raise ValueError("TargetEntropy needs 0 <= momentum < 1 and low <= mu <= high")
        self.mu = mu
        self.momentum = momentum
        self.low = low
        self.high = high
        self.adaptive = adaptive

    def update(self, h: float) -> float:
        """Move mu towards one observed H_sc (nats) and return it; raises ValueError on NaN or inf."""
        h = float(h)
        if not math.isfinite(h):
            raise ValueError(f"TargetEntropy: {h} is not a finite entropy; skip the step that made it")
        if self.adaptive:
            self.mu = _clip(self.momentum * self.mu + (1.0 - self.momentum) * h, self.low, self.high)
        return self.mu

    def state_dict(self) -> dict[str, Any]:
        """What changes during a run, as JSON-able values."""
        return {"mu": self.mu}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; raises ValueError for other keys or a mu out of bounds."""
        if set(state) != {"mu"} or not self.low <= state["mu"] <= self.high:
            raise ValueError(f"a TargetEntropy state is {{'mu': {self.low}..{self.high}}}, got {state}")
        self.mu = float(state["mu"])


def proposer_reward(
    difficulty: float,
    self_consistency: float,
    *,
    valid: bool = True,
    duplicate: bool = False,
    w_ste: float = 0.70,
    w_sc: float = 0.30,
    invalid: float = -1.0,
    duplicate_penalty: float = 0.20,
) -> float:
    """Reward R_p of one question, on one scale for every member of a group.

    `R_p = clip(w_ste * d_ste + w_sc * r_sc - duplicate_penalty * [duplicate], -1, 1)`; an invalid question is
    never asked, so it has no scores and earns `invalid`.

    d_ste in [0, 1] (a percentile, not nats), r_sc in [-1, 1]; raises ValueError outside those ranges.
    Source: paper; weights: released code; spec: understanding 1.10 and 10.
    """
    if not valid:
        return _clip(invalid, -1.0, 1.0)
    if not (0.0 <= difficulty <= 1.0 and -1.0 <= self_consistency <= 1.0):
        raise ValueError(
            f"difficulty {difficulty} must lie in [0, 1], self_consistency {self_consistency} in [-1, 1]: "
            "rank the entropy with RollingPercentile first"
        )
    reward = w_ste * difficulty + w_sc * self_consistency - duplicate_penalty * duplicate
    return _clip(reward, -1.0, 1.0)


def _clip(x: float, low: float, high: float) -> float:
    return min(high, max(low, x))
