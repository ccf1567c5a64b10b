"""Rewards and advantages of the text roles: from votes and entropies to what each question and answer is worth.

Scores are already in the rows; here they become R_p and R_s, and those become advantages. No model is called.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from asgkit.ask import TargetEntropy, proposer_reward, self_consistency_reward
from asgkit.config import Config
from asgkit.recipes.asg_work import UnderstandingRow
from asgkit.recipes.controls import control_rewards, control_vote
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.solve import Vote, pseudo_label_mask, solver_rewards, words_before_answer
from asgkit.solve import vote as vote_again
from asgkit.ste import RollingPercentile
from asgkit.updates import EMABaseline, group_advantages

EXTRA_VOTES = 3  # of the released code's second and third candidate, which also have no STE (spec: understanding B7)


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
    for (row, k, vote), d in zip(cells, window.update_many(raw), strict=True):
        row.difficulty[k] = d
        if p.group == "released" and k > 0:
            row.difficulty[k], vote = 0.0, vote_again(vote.answers[:EXTRA_VOTES])
        row.frontier[k] = self_consistency_reward(vote.entropy, vote.margin, mu=target.mu, sigma=p.sigma)
    for row in table:
        row.rewards = [proposer_reward(row.difficulty[k] if s.ste and q.valid else 0.0, row.frontier[k] or 0.0,
                                       valid=q.valid, duplicate=q.duplicate, w_ste=p.w_ste, w_sc=p.w_sc)
                       for k, q in enumerate(row.questions)]
    if cells:
        target.update(float(np.mean([vote.entropy for _, _, vote in cells])))
    control = "" if config.control == "oracle" else config.control  # truth says nothing of a question
    if control == "format":
        rewards = torch.tensor([[float(q.valid) for q in row.questions] for row in table])
    else:
        rewards = control_rewards(control, torch.tensor([row.rewards for row in table]), None, rng)
    BadStepGuard.check_finite("proposer/rewards", rewards)
    advantages, active = group_advantages(rewards)
    for row, a, alive in zip(table, advantages.tolist(), active.tolist(), strict=True):
        row.advantages, row.zero_variance = a, not alive


def reward_answers(table: Sequence[UnderstandingRow], where: Sequence[tuple[int, int]], config: Config,
                   baseline: EMABaseline, truth: Sequence[str | None] | None, rng: np.random.Generator) -> None:
    """R_s and advantages of the questions that may teach the Solver; the others get a reason.

    where: (row, candidate) of each question that was asked; truth: its answer, for the oracle control alone.
    Fills the rows; raises NonFiniteValue for a NaN reward. Source: paper (understanding step 5: q* alone, REINFORCE
    with the EMA baseline); the other updates are ours.
    """
    s = config.solver
    for j, (i, k) in enumerate(where):
        row = table[i]
        if s.train_on == "best" and k != row.best:
            continue
        vote = control_vote(config.control, row.votes[k], truth[j] if truth else None, rng, label=s.update == "sft")
        rewards = torch.tensor([solver_rewards(vote, words=[words_before_answer(text) for text in row.raw[k]],
                                               low_info=s.low_information_penalty)])
        rewards = control_rewards(config.control, rewards, rewards, rng)  # the oracle acts through the vote
        BadStepGuard.check_finite("solver/rewards", rewards)
        row.solver_rewards[k] = rewards[0].tolist()
        relative, active = group_advantages(rewards)
        reason = _skip_reason(config, row.votes[k], vote, bool(active[0]))
        if reason:
            row.skip[k] = reason
        elif s.update == "sft":
            row.solver_advantages[k] = [1.0] * len(vote.answers)
        else:
            chosen = relative if s.update == "group" else baseline.advantage(rewards)
            row.solver_advantages[k] = chosen[0].tolist()
        if vote is not row.votes[k]:
            row.taught[k] = vote.majority


def _skip_reason(config: Config, own: Vote, taught: Vote, active: bool) -> str:
    """Why a question may not teach the Solver, "" when it may. A control has no gate: its reward says nothing."""
    s = config.solver
    share = s.pseudo_label_share if s.update == "sft" else s.min_share
    if config.control in ("", "best_of") and not pseudo_label_mask(own, share):  # best_of concerns drawings alone
        return f"vote share below {share:.3f}"
    if s.update == "sft" and config.control != "constant":
        return "" if taught.count else "no framing gave the taught answer"
    return "" if active else "zero variance"
