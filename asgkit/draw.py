"""The Generator's side of the signal: how well drawn candidates fit the Solver's view of the real image.

Symbols of the paper: `m` is :func:`soft_match`, `S_fid` :func:`qa_fidelity`, `S_cyc`
:func:`cycle_consistency`, `S_div` :func:`diversity`, `S_ctr` :func:`contradiction`, `R_g`
:func:`generator_reward`.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from asgkit.solve import core_span, normalise_answer

Score = TypeVar("Score", float, Tensor)

_WORD = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"\d+\.\d+|[^\W_]+")  # keeps 3.5 one word
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_EDGE = ".,:;!?\"'"
_YES = frozenset({"yes", "true", "present"})
_NO = frozenset({"no", "false", "absent"})

STRUCTURE_SIDE, HISTOGRAM_SIDE, HISTOGRAM_BINS = 96, 64, 32
STRUCTURE_SCALE, HISTOGRAM_SCALE = 0.30, 0.25  # a distance this large counts as fully different
MAX_QA = 3


def soft_match(prediction: str, reference: str, *, word_boundaries: bool = False) -> float:
    """Graded agreement m of two answers, in [0, 1]; both are normalised first.

    First rule that applies: empty reference 0.5; equal 1; one inside the other 0.8; both hold a number:
    relative error <= 1% 1, <= 5% 0.7, <= 20% 0.4, else 0 (denominator max(|reference|, 1)); else the Jaccard
    index of their word sets.

    Quirks kept as published: "no" is inside "north", "4" inside "41" (0.8; `word_boundaries=True` lets only
    whole words count), "2 cats" equals "2 dogs" (first numbers), "two" is no number. Source: paper (exact /
    substring / near-numeric / overlap); numbers: released code; spec: generation 2.1, D19.
    """
    if not core_span(reference):
        return 0.5
    a, b = normalise_answer(prediction), normalise_answer(reference)
    if a == b:
        return 1.0
    if _contains(a, b, word_boundaries) or _contains(b, a, word_boundaries):
        return 0.8
    numbers = _NUMBER.search(a), _NUMBER.search(b)
    if numbers[0] and numbers[1]:
        return _numeric_match(float(numbers[0].group()), float(numbers[1].group()))
    left, right = set(_WORD.findall(a)), set(_WORD.findall(b))
    return len(left & right) / len(left | right) if left | right else 0.0


def _contains(whole: str, part: str, word_boundaries: bool) -> bool:
    if not word_boundaries:
        return part in whole
    words = _TOKEN.findall(part)
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(_TOKEN.findall(whole))} "


def _numeric_match(value: float, reference: float) -> float:
    error = abs(value - reference) / max(abs(reference), 1.0)
    for limit, score in ((0.01, 1.0), (0.05, 0.7), (0.20, 0.4)):
        if error <= limit + 1e-12:  # 1.2 against 1.0 is 20%, whatever binary fractions make of it
            return score
    return 0.0


def question_fidelity(match: float, majority_fraction: float, w_match: float = 0.7) -> float:
    """Fidelity of one question: `w_match * m + (1 - w_match) * majority_fraction`, in [0, 1].

    The second term pays for certainty even when the answer is wrong (at most 0.3); that is the published
    form. Raises ValueError outside [0, 1]. Source: paper; spec: generation 2.1.
    """
    if not (0.0 <= match <= 1.0 and 0.0 <= majority_fraction <= 1.0 and 0.0 <= w_match <= 1.0):
        raise ValueError(f"scores must lie in [0, 1], got {match}, {majority_fraction}, {w_match}")
    return w_match * match + (1.0 - w_match) * majority_fraction


def qa_fidelity(matches: Sequence[float], fractions: Sequence[float], w_match: float = 0.7) -> float:
    """QA fidelity of one candidate: `S_fid = mean_j question_fidelity(m_j, f_j)` over its M questions.

    Shapes: matches (M,), fractions (M,). Raises ValueError when empty or of different lengths.
    Source: paper; spec: generation 2.1.
    """
    _check_pairs(matches, fractions, "matches and fractions")
    scores = [question_fidelity(float(m), float(f), w_match) for m, f in zip(matches, fractions, strict=True)]
    return sum(scores) / len(scores)


def contradiction(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of QA pairs whose answers take opposite sides of a yes/no question: `S_ctr` in [0, 1].

    An answer has polarity when its first whole word is yes, true or present, or no, false or absent; "north"
    and the counts 0 and 1 have none (the released code reads prefixes and takes them in).
    Raises ValueError when empty or of different lengths. Source: paper; spec: generation 2.2, D19.
    """
    _check_pairs(predictions, references, "predictions and references")
    sides = [(_polarity(a), _polarity(b)) for a, b in zip(predictions, references, strict=True)]
    return sum(a * b < 0 for a, b in sides) / len(sides)


def _polarity(answer: str) -> int:
    first = (core_span(answer).split() or [""])[0].strip(_EDGE)
    return (first in _YES) - (first in _NO)


def _check_pairs(left: Sequence[object], right: Sequence[object], names: str) -> None:
    if len(left) != len(right) or len(left) == 0:
        raise ValueError(f"{names} must have the same length, at least 1, got {len(left)} and {len(right)}")


def spec_quality(valid: int, raw: int, distinct: int, all_yes_no: bool) -> float:
    """Quality of a set of diagnostic questions, in [0, 1]; it gates and scales the generation reward.

    `clamp01(0.5 min(1, n/2) + 0.3 n/raw + 0.2 distinct/n - 0.2 [n >= 2 and all yes/no])`, `n = min(valid,
    3)`.

    raw: questions written; valid: those that passed; distinct: different ones among the valid. n = 0 gives
    0. Raises ValueError unless 0 <= distinct <= valid <= raw. Source: released code; spec: generation 1.1
    step 5.
    """
    if not 0 <= distinct <= valid <= raw:
        raise ValueError(f"need 0 <= distinct <= valid <= raw, got {distinct}, {valid}, {raw}")
    n = min(valid, MAX_QA)
    if n == 0:
        return 0.0
    score = 0.5 * min(1.0, n / 2) + 0.3 * n / raw + 0.2 * min(distinct, n) / n
    return min(1.0, max(0.0, score - 0.2 * (n >= 2 and all_yes_no)))


def image_distance(images: Tensor) -> Tensor:
    """Visual distance of every pair of images: layout and colour, no learned model.

    `d_ij = 0.6 clamp01((1 - cos(gray_i, gray_j)) / 0.30) + 0.4 clamp01((1 - BC_ij) / 0.25)`; gray at no more
    than 96x96; BC the Bhattacharyya coefficient of 32-bin histograms at no more than 64x64, averaged over the
    three channels. (The released code sums it, so BC reaches 3 and colour never counts: D5.)

    Shapes: images (L, 3, H, W) in [0, 1] -> (L, L) float32 in [0, 1], symmetric, zero diagonal.
    Raises ValueError for other shapes or values. Source: released code, mended; spec: generation 2.4, D5.
    """
    if images.dim() != 4 or images.shape[0] < 1 or images.shape[1] != 3:
        raise ValueError(f"images must be (L, 3, H, W) with L >= 1, got {tuple(images.shape)}")
    # Distances of near-twins are tiny: a float32 (or TF32) product would drown them in rounding.
    images = images.detach().double()
    if not ((images >= -1e-4) & (images <= 1 + 1e-4)).all():
        raise ValueError("images must lie in [0, 1]: rescale pixel values (x / 255 or (x + 1) / 2) first")
    images = images.clamp(0.0, 1.0)
    structure = (1.0 - _gray_cosine(images)) / STRUCTURE_SCALE
    colour = (1.0 - _bhattacharyya(images)) / HISTOGRAM_SCALE
    distance = 0.6 * structure.clamp(0.0, 1.0) + 0.4 * colour.clamp(0.0, 1.0)
    return distance.fill_diagonal_(0.0).float()


def _gray_cosine(images: Tensor) -> Tensor:
    pooled = _shrink(images, STRUCTURE_SIDE)
    weights = pooled.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    gray = (pooled * weights).sum(dim=1).flatten(1)  # (L, h*w)
    norm = gray.norm(dim=1, keepdim=True)
    unit = gray / norm.clamp(min=1e-12)
    black = (norm < 1e-8).double()
    return unit @ unit.T + black @ black.T  # two black images are the same image, though their cosine is 0/0


def _bhattacharyya(images: Tensor) -> Tensor:
    pooled = _shrink(images, HISTOGRAM_SIDE).flatten(2)  # (L, 3, h*w)
    bins = (pooled * HISTOGRAM_BINS).long().clamp(max=HISTOGRAM_BINS - 1)
    counts = pooled.new_zeros(*pooled.shape[:2], HISTOGRAM_BINS)
    counts.scatter_add_(2, bins, torch.ones_like(pooled))
    root = (counts / pooled.shape[2]).sqrt()
    return torch.einsum("ick,jck->ij", root, root) / 3.0


def _shrink(images: Tensor, side: int) -> Tensor:
    return adaptive_avg_pool2d(images, (min(images.shape[2], side), min(images.shape[3], side)))


def group_diversity(images: Tensor) -> float:
    """Diversity D of a whole group: the mean of :func:`image_distance` over its pairs, 0 for a single image.

    Shapes: images (L, 3, H, W) in [0, 1]. Source: spec: generation 2.4.
    """
    distance = image_distance(images)
    count = distance.shape[0]
    return float(distance.sum() / (count * (count - 1))) if count > 1 else 0.0


def diversity(images: Tensor, *, normalise: bool = False) -> Tensor:
    """Leave-one-out contribution of each candidate to the diversity of its group: `S_div`.

    `S_div_i = max(0, D(all) - D(all without i))`. Two images: both D; one: 0. `normalise=True` divides by the
    group's largest contribution where that exceeds 1e-3, as the released code does: then the odd one out always
    earns 1, however alike the group is. With the paper's weight 0.10 that lowered the within-group rank
    correlation of R_g with the truth on the tiny base, since a drawing unlike the others is often the wrong one.

    D is a mean, so contributions sum to zero before the max(0, .): candidates equally far from each other all
    get 0, however far apart, and only those further out than the rest are paid.
    Shapes: images (L, 3, H, W) in [0, 1] -> (L,) float32 in [0, 1]. Source: paper; spec: generation 2.4.
    """
    distance = image_distance(images)
    count = distance.shape[0]
    if count == 1:
        return distance.new_zeros(1)
    if count == 2:
        return distance[0, 1].repeat(2)
    total = distance.sum()
    everyone = total / (count * (count - 1))
    without = (total - 2.0 * distance.sum(dim=1)) / ((count - 1) * (count - 2))
    contribution = (everyone - without).clamp(min=0.0)
    if not normalise:
        return contribution
    top = contribution.max()
    return contribution / top if float(top) > 1e-3 else torch.zeros_like(contribution)


def cycle_consistency(text_similarity: Score, image_text_similarity: Score) -> Score:
    """Cycle score `S_cyc = clamp01(0.5 sim(f(t), f(t^)) + 0.5 sim_vl(I', t))`, floats or tensors alike.

    t is the prompt, t^ the Solver's caption of the drawn image I'. Source: paper; spec: generation 2.3.
    """
    mean = 0.5 * text_similarity + 0.5 * image_text_similarity
    return mean.clamp(0.0, 1.0) if isinstance(mean, Tensor) else min(1.0, max(0.0, mean))


def generator_reward(
    fidelity: float | Tensor,
    cycle: float | Tensor,
    diversity: float | Tensor,
    contradiction: float | Tensor,
    quality: float | Tensor,
    *,
    w_fidelity: float = 0.65,
    w_cycle: float = 0.20,
    w_diversity: float = 0.10,
    w_contradiction: float = 0.20,
    min_quality: float = 0.35,
    renormalise: bool = False,
) -> float | Tensor:
    """Reward R_g of a drawn candidate, in [0, 1].

    `R_g = quality * clamp01(0.65 S_fid + 0.20 S_cyc + 0.10 S_div - 0.20 S_ctr)`, and 0 where `quality <
    min_quality`. The weights sum to 0.95, so the best reward is 0.95; `renormalise=True` divides the three
    positive ones by their sum, as the released code does (the penalty is left alone).

    Five floats give a float; if any is a tensor the result is a tensor of the broadcast shape, e.g. (L,).
    Raises ValueError on NaN or inf. Source: paper; spec: generation 2.5, 13.4.
    """
    inputs = (fidelity, cycle, diversity, contradiction, quality)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else None
    dtype = torch.float32 if tensors else torch.float64
    parts = [torch.as_tensor(x, dtype=dtype, device=device) for x in inputs]
    names = ("fidelity", "cycle", "diversity", "contradiction", "quality")
    for name, part in zip(names, parts, strict=True):
        if not torch.isfinite(part).all():
            raise ValueError(f"generator_reward: {name} has NaN or inf; drop that candidate before scoring")
    fid, cyc, div, ctr, gate = parts
    scale = (w_fidelity + w_cycle + w_diversity) if renormalise else 1.0
    positive = (w_fidelity * fid + w_cycle * cyc + w_diversity * div) / scale
    reward = (positive - w_contradiction * ctr).clamp(0.0, 1.0) * gate
    reward = torch.where(gate < min_quality, torch.zeros_like(reward), reward)
    return reward if tensors else reward.item()
