"""Rewards and advantages of the text roles: from votes and entropies to what each question and answer is worth.

Scores are already in the rows; here they become R_p and R_s, and those become advantages. No model is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asgkit.ask import TargetEntropy, proposer_reward, self_consistency_reward
from asgkit.config import Config
from asgkit.recipes.asg_work import UnderstandingRow
from asgkit.recipes.controls import control_rewards, control_vote, donors, keeps_gate, needs_judge
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.solve import Vote, pseudo_label_mask, solver_rewards, words_said
from asgkit.solve import vote as vote_again
from asgkit.ste import RollingPercentile
from asgkit.updates import EMABaseline, group_advantages

EXTRA_VOTES = 3  # of the candidates that the released code does not choose, which also have no STE (understanding B7)


def reward_questions(table: Sequence[UnderstandingRow], config: Config, window: RollingPercentile,
                     target: TargetEntropy, rng: np.random.Generator) -> None:
    """R_p of every candidate on one scale, then group-relative advantages within each image's K candidates.

    All STE values of a step are ranked against the window as it was before the step; mu moves once, by their mean
    H_sc. Fills the rows; raises NonFiniteValue for a NaN entropy or reward. Source: paper (understanding step 3).
    """
    p, s = config.proposer, config.solver
    cells = [(row, k, v) for row in table for k, v in enumerate(row.votes) if v is not None]
    raw = [(row.ste if s.ste_aggregation == "max" else row.ste_mean)[k] for row, k, _ in cells]
    for value in raw:
        BadStepGuard.check_finite("solver/token_entropy", value)
    extras = _extras(cells, raw) if p.group == "released" else ()
    for j, ((row, k, vote), d) in enumerate(zip(cells, window.update_many(raw), strict=True)):
        row.difficulty[k] = d
        if j in extras:
            row.difficulty[k], vote = 0.0, vote_again(vote.answers[:EXTRA_VOTES])
        row.frontier[k] = self_consistency_reward(vote.entropy, vote.margin, mu=target.mu, sigma=p.sigma)
    for row in table:
        row.rewards = [proposer_reward(row.difficulty[k] if s.ste and q.valid else 0.0, row.frontier[k] or 0.0,
                                       valid=q.valid, duplicate=q.duplicate, w_ste=p.w_ste, w_sc=p.w_sc)
                       for k, q in enumerate(row.questions)]
    if cells:
        target.update(float(np.mean([vote.entropy for _, _, vote in cells])))
    _pay_questions(table, config.control, rng)


def _extras(cells: Sequence[tuple[UnderstandingRow, int, Vote]], raw: Sequence[float]) -> set[int]:
    """The cells that are not their picture's hardest question by STE: the released code chooses one, and compares it
    with others that it measures less."""
    chosen: dict[int, int] = {}
    for j, (row, _, _) in enumerate(cells):
        if id(row) not in chosen or raw[j] > raw[chosen[id(row)]]:
            chosen[id(row)] = j
    return set(range(len(cells))) - set(chosen.values())


def _pay_questions(table: Sequence[UnderstandingRow], control: str, rng: np.random.Generator) -> None:
    """What each candidate is paid, which chooses q* too, and its advantage; truth and another picture's answers say
    nothing of a question, so these controls pay it R_p."""
    rewards = torch.tensor([row.rewards for row in table])
    if control == "format":
        rewards = torch.tensor([[float(q.valid) for q in row.questions] for row in table])
    elif control != "other_picture" and not needs_judge(control):
        rewards = control_rewards(control, rewards, None, rng)
    BadStepGuard.check_finite("proposer/rewards", rewards)
    advantages, active = group_advantages(rewards)
    for row, paid, a, alive in zip(table, rewards.tolist(), advantages.tolist(), active.tolist(), strict=True):
        row.advantages, row.zero_variance = a, not alive
        if control:
            row.paid = paid


@dataclass
class _Seat:
    """A question that may teach the Solver: picture i, candidate k, the vote to be taught, R_s (1, N) by that vote,
    and why it may not teach ("" while it may)."""

    picture: int
    k: int
    row: UnderstandingRow
    vote: Vote
    rewards: Tensor
    reason: str = ""


def reward_answers(table: Sequence[UnderstandingRow], where: Sequence[tuple[int, int]], config: Config,
                   baseline: EMABaseline, truth: Sequence[str | None] | None, rng: np.random.Generator) -> None:
    """R_s and advantages of the questions that may teach the Solver; the others get a reason.

    where: (row, candidate) of each question that was asked; truth: its answer, for the oracle controls alone.
    Fills the rows; raises NonFiniteValue for a NaN reward. Source: paper (understanding step 5: q* alone, REINFORCE
    with the EMA baseline); the other updates are ours.
    """
    seats = []
    for j, (i, k) in enumerate(where):
        row = table[i]
        if config.solver.train_on == "best" and k != row.best:
            continue
        vote = control_vote(config.control, row.votes[k], truth[j] if truth else None, rng)
        if vote is None:
            row.skip[k] = "no true answer"
            continue
        rewards = torch.tensor([solver_rewards(vote, words=[words_said(text) for text in row.raw[k]],
                                               low_info=config.solver.low_information_penalty)])
        BadStepGuard.check_finite("solver/rewards", rewards)
        seats.append(_Seat(i, k, row, vote, rewards))
    if keeps_gate(config.control):
        for seat in seats:
            seat.reason = _gate(config, seat)
    _pay_answers([seat for seat in seats if not seat.reason], config, rng)
    for seat in seats:
        _teach(seat, config, baseline)


def _pay_answers(seats: Sequence[_Seat], config: Config, rng: np.random.Generator) -> None:
    """A control's rewards or labels for the questions that passed; the method's are there already."""
    control, labels = config.control, config.solver.update == "sft"
    if control == "other_picture" or (control == "permuted" and labels):
        given = donors(control, [seat.picture for seat in seats], rng)
        rewards = [seat.rewards for seat in seats]
        for seat, donor in zip(seats, given, strict=True):
            if donor is None:
                seat.reason = "no other picture taught a question"
                continue
            seat.rewards, seat.row.donor[seat.k] = rewards[donor], (seats[donor].picture, seats[donor].k)
            seat.row.taught[seat.k] = seats[donor].vote.majority
    elif control == "permuted" and seats:
        stacked = control_rewards(control, torch.cat([seat.rewards for seat in seats]), None, rng)
        for seat, rewards in zip(seats, stacked.split(1), strict=True):
            seat.rewards = rewards
    elif not needs_judge(control):  # the truth acts through the vote
        for seat in seats:
            seat.rewards = control_rewards(control, seat.rewards, None, rng)


def _teach(seat: _Seat, config: Config, baseline: EMABaseline) -> None:
    """Advantages of one question, or the reason why it has none."""
    s, row, k = config.solver, seat.row, seat.k
    row.solver_rewards[k] = seat.rewards[0].tolist()
    relative, active = group_advantages(seat.rewards)
    reason = seat.reason or _unlearnable(config, seat, bool(active[0]))
    if reason:
        row.skip[k] = reason
    elif s.update == "sft":
        row.solver_advantages[k] = [1.0] * len(seat.vote.answers)
    else:
        row.solver_advantages[k] = (relative if s.update == "group" else baseline.advantage(seat.rewards))[0].tolist()
    if seat.vote is not row.votes[k]:
        row.taught[k] = seat.vote.majority


def _gate(config: Config, seat: _Seat) -> str:
    """Why the method would not teach a question, by its own vote; "" when it would."""
    s, own = config.solver, seat.row.votes[seat.k]
    share = s.pseudo_label_share if s.update == "sft" else s.min_share
    if not pseudo_label_mask(own, share):
        return f"vote share below {share:.3f}"
    if s.all_different == "skip" and own.count == 1 < len(own.answers):
        return "all answers differ"
    unanimous, flat = own.count == len(own.answers), not group_advantages(seat.rewards)[1].item()
    if s.update != "sft" and flat and not (unanimous and s.unanimous == "teach"):
        return "zero variance"
    return "unanimous vote" if unanimous and s.skips_unanimous else ""  # whose rewards differ by length alone, or sft


def _unlearnable(config: Config, seat: _Seat, active: bool) -> str:
    """Why there is nothing to learn from what a question is paid or labelled; "" when there is."""
    if config.solver.update == "sft" and config.control != "constant":
        return "" if seat.vote.count else "no framing gave the taught answer"
    # what passed the gate by its own vote teaches, also where all rewards are alike: unanimous=teach, or shuffled so
    paid = config.control in ("", "best_of", "permuted", "other_picture")
    return "" if active or paid else "zero variance"
