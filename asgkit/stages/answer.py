"""What the roles do with a model: ask, solve and caption in batches; the signals are pure functions elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from asgkit.ask import parse_question, question_problems
from asgkit.backbones.base import Answers, Backbone, Prefix
from asgkit.errors import NonFiniteValue
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.solve import Vote, vote
from asgkit.ste import solver_token_entropy, token_entropy


@dataclass(frozen=True)
class Question:
    """One parsed completion of the Proposer; `problems` is empty for a valid question."""

    text: str
    problems: tuple[str, ...]
    duplicate: bool

    @property
    def valid(self) -> bool:
        """Whether it may be asked."""
        return not self.problems


def read_questions(completions: Sequence[str], group: int) -> list[Question]:
    """Parse completions (B * group,); a question that repeats an earlier one of its group is a duplicate."""
    found: list[Question] = []
    for start in range(0, len(completions), group):
        seen: set[str] = set()
        for completion in completions[start : start + group]:
            text = parse_question(completion)
            problems = ("no question found",) if text is None else tuple(question_problems(text))
            text = text or ""
            found.append(Question(text, problems, not problems and text in seen))
            seen.add(text)
    return found


def propose(
    backbone: Backbone, prefix: Prefix, requests: Sequence[str], count: int, *, temperature: float,
    top_p: float, max_new_tokens: int, seed: int,
) -> tuple[list[str], list[int], Answers, list[Question]]:
    """Sample `count` questions for each image of a prefix: stage 2 of a U step, stage 2 of a G step.

    requests: one Proposer prompt per image. Returns the B * count prompts and image rows as asked, the sampled
    completions and the parsed questions, image by image. Raises NonFiniteValue for NaN in their log-probabilities.
    Source: paper (K candidates form one group).
    """
    prompts = [request for request in requests for _ in range(count)]
    rows = [row for row in range(len(requests)) for _ in range(count)]
    sampled = backbone.answer(prefix, prompts, rows=rows, max_new_tokens=max_new_tokens, temperature=temperature,
                              top_p=top_p, seed=seed)
    # broken weights write no readable question, so nothing later in the step would notice them
    BadStepGuard.check_finite("proposer/logp", sampled.logp)
    return prompts, rows, sampled, read_questions(sampled.texts, count)


@dataclass(frozen=True)
class Rollout:
    """Sampled text that a role is trained on: exactly the prompts, image rows and ids that were sampled."""

    prompts: list[str]
    rows: list[int]
    answers: Answers


@dataclass(frozen=True)
class Solved:
    """Answers to Q questions under N framings: `votes` (Q,), and the Q * N rows they were sampled from."""

    votes: list[Vote]
    prompts: list[str]
    rows: list[int]
    answers: Answers


def answer_questions(
    backbone: Backbone, prefix: Prefix, questions: Sequence[str], rows: Sequence[int], *, framings: int,
    temperature: float, top_p: float = 1.0, max_new_tokens: int, seed: int = 0, perturb: bool = True,
    hints: bool = False,
) -> Solved:
    """Answer each question about image `rows[i]` once under each of the first `framings` framings, in one batch.

    `perturb=False`: as many samples of the canonical framing instead (temperature sampling, table 4). Otherwise only
    the instruction preamble varies between a question's N prompts (paper, table S7), and with `hints` a focus hint
    above it. Raises ValueError when the backbone has fewer framings, NonFiniteValue for NaN in log-probabilities.
    Source: paper (prompt-perturbed self-consistency).
    """
    have = len(backbone.spec.prompts.framings)
    if framings > have:
        raise ValueError(f"{framings} framings asked for, {backbone.spec.name} has {have}: lower solver.framings")
    asked = [backbone.spec.prompts.solve(q, n if perturb else None, n if hints else None)
             for q in questions for n in range(framings)]
    where = [row for row in rows for _ in range(framings)]
    sampled = backbone.answer(prefix, asked, rows=where, max_new_tokens=max_new_tokens, temperature=temperature,
                              top_p=top_p, seed=seed)
    BadStepGuard.check_finite("solver/logp", sampled.logp)
    votes = [vote(sampled.texts[i : i + framings]) for i in range(0, len(asked), framings)]
    return Solved(votes, asked, where, sampled)


def greedy_difficulty(
    backbone: Backbone, prefix: Prefix, questions: Sequence[str], rows: Sequence[int], *, tokens: int,
    max_new_tokens: int, start: str = "answer",
) -> tuple[list[float], list[float], list[str]]:
    """One greedy canonical answer per question: STE by max, by mean (nats), and the answers.

    start: where the first `tokens` tokens are counted from. `answer`: after an opening `<answer>` tag, if there is one
    (paper); `generated`: from the first generated token, the tag's own among them (as released), and a tag that the
    prompt ends with counts as one. Entropies come from raw logits, before temperature and top-p. Raises NonFiniteValue
    for NaN among them. Source: paper (STE).
    """
    asked = [backbone.spec.prompts.solve(q) for q in questions]
    call = partial(backbone.answer, prefix, asked, rows=rows, max_new_tokens=max_new_tokens)
    greedy, past_tag = call(keep_logits=tokens), None
    if start == "generated":
        tokens = max(1, tokens - asked[0].rstrip().endswith("<answer>"))
    elif greedy.starts is not None:  # once more, with the logits behind the longest tag
        greedy = call(keep_logits=int(greedy.starts.max()) + tokens)
        past_tag = torch.arange(greedy.logits.shape[1])[None] >= greedy.starts[:, None]
    if torch.isnan(greedy.logits).any():
        raise NonFiniteValue("solver/logits", "NaN in the greedy answers' logits")
    entropy = token_entropy(greedy.logits)
    mask = greedy.mask[:, : entropy.shape[1]]
    mask = mask if past_tag is None else mask & past_tag.to(mask.device)
    top = solver_token_entropy(entropy, mask, first=tokens, aggregation="max")
    mean = solver_token_entropy(entropy, mask, first=tokens, aggregation="mean")
    return top.tolist(), mean.tolist(), greedy.texts


def caption(backbone: Backbone, prefix: Prefix, requests: Sequence[str], *, temperature: float = 0.0,
            max_new_tokens: int, seed: int = 0) -> list[str]:
    """The Solver's caption of every image of a prefix, one request each."""
    return backbone.answer(prefix, requests, max_new_tokens=max_new_tokens, temperature=temperature,
                           seed=seed).texts


def taught_rollout(solved: Solved, taught: Sequence[int], framings: int, labels: Sequence[str] | None,
                   donors: Sequence[int] | None = None) -> Rollout:
    """The N rows of each taught question; with `labels` (Q,) every framing is given the label's sampled ids instead.

    donors (Q,): the question whose answers each one is taught, a control's (None: its own). Prompts and ids are those
    that were sampled in this batch, never re-tokenised text. Raises ValueError when no framing of a question's donor
    gave its label.
    """
    keep = [j * framings + n for j in taught for n in range(framings)]
    given = [j if donors is None else donors[j] for j in taught]
    if labels is None:
        source = [d * framings + n for d in given for n in range(framings)]
    else:
        source = [d * framings + solved.votes[d].answers.index(labels[j])
                  for j, d in zip(taught, given, strict=True) for _ in range(framings)]
    a, index = solved.answers, torch.tensor(source)
    answers = Answers([a.texts[x] for x in source], a.ids[index], a.mask[index], a.logp[index])
    return Rollout([solved.prompts[x] for x in keep], [solved.rows[x] for x in keep], answers)
