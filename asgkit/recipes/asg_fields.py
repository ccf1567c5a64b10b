"""What ASG logs: the tables of its fields, U and G. docs/log_glossary.md is made from them.

Name, JSON type (a last "?" makes the field nullable), unit, meaning. K = candidate questions, N = framings, M =
diagnostic questions, L = candidate images.
"""

from __future__ import annotations

from asgkit.runs.schema import EVERY, FieldTable, field_table, update_rows

_BOTH = [
    ("questions", "list[str]", "text", "The Proposer's K candidate (U) or M diagnostic (G) questions."),
    ("questions/valid", "list[bool]", "-", "Per question: passed the validity test."),
    ("questions/problems", "list[str]", "text", "Per question: why it is invalid; empty when valid."),
]

_UNDERSTANDING = [
    ("questions/duplicate", "list[bool]", "-", "Per candidate: repeats an earlier one of its group."),
    ("question", "str", "text", "The chosen question q*: that of highest R_p, or (a control) best paid."),
    ("proposer/reward", "float", "reward", "R_p of the chosen question."),
    ("proposer/rewards", "list[float]", "reward", "R_p per candidate, under a control too."),
    ("proposer/advantages", "list[float]", "-", "Group-relative advantage per candidate."),
    ("proposer/difficulty", "list[float?]", "fraction", "d_ste per candidate: rank of its STE among recent."),
    ("proposer/self_consistency_reward", "list[float?]", "reward", "r_sc in [-1, 1] per candidate."),
    ("proposer/zero_variance", "bool", "-", "All candidates earned the same R_p: no gradient this step."),
    ("proposer/target_entropy", "float", "nats", "Running target mu of medium self-consistency entropy."),
    ("solver/answers", "list[str]", "text", "Raw answers to the chosen question, one per framing (N)."),
    ("solver/normalised", "list[str]", "text", "The same answers, normalised for the vote."),
    ("solver/majority", "str?", "text", "Most frequent normalised answer a*."),
    ("solver/majority_count", "int?", "count", "Number of framings that gave a*."),
    ("solver/majority_fraction", "float?", "fraction", "Share of the N framings that gave a*."),
    ("solver/self_consistency_entropy", "float?", "nats", "H_sc of the vote on the chosen question."),
    ("solver/margin", "float?", "fraction", "Vote share of a* minus that of the runner-up."),
    ("solver/entropies", "list[float?]", "nats", "H_sc per candidate question."),
    ("solver/greedy_answer", "str?", "text", "Greedy answer to the chosen question, from the STE pass."),
    ("solver/token_entropy", "float?", "nats", "STE of the chosen question: max over its first tokens."),
    ("solver/token_entropies", "list[float?]", "nats", "STE per candidate question."),
    ("solver/token_entropy_mean", "float?", "nats", "Mean instead of max over the same tokens (a control)."),
    ("solver/difficulty", "float?", "fraction", "d_ste of the chosen question, in [0, 1]."),
    ("solver/window_size", "int", "count", "Values in the rolling STE window when d_ste was taken."),
    ("solver/rewards", "list[float]", "reward", "R_s per framing on the chosen question; a control's, if one is set."),
    ("solver/advantages", "list[float]", "-", "Per framing: R_s minus the baseline, group-relative, or 1 (sft)."),
    ("solver/update", "str", "-", "Update rule: reinforce, group or sft."),
    ("solver/trained", "bool", "-", "The chosen question entered the Solver's update."),
    ("solver/skip_reason", "str", "text", "Why it did not; empty when it did, or was not considered."),
    ("solver/baseline", "float?", "reward", "EMA baseline taken off R_s, before this step changes it."),
    ("frac_reward_zero_std", "float", "fraction", "Share of reward groups with zero spread in this step."),
    ("completions/mean_length", "float", "tokens", "Mean length of the Proposer's sampled completions."),
    ("num_tokens", "int", "tokens", "Sampled tokens so far: questions, and answers of U steps."),
]

_GENERATION = [
    ("prompt", "str", "text", "Drawing prompt t: the Solver's caption of the real image."),
    ("references", "list[str]", "text", "The Solver's majority answers on the real image (M)."),
    ("references/fraction", "list[float]", "fraction", "Vote share behind each reference."),
    ("spec/quality", "float", "fraction", "Quality of the prompt card (prompt and questions), in [0, 1]."),
    ("spec/passed", "bool", "-", "The card passed the quality gate."),
    ("generator/rewards", "list[float]", "reward", "R_g per candidate image (L), under a control too."),
    ("generator/fidelity", "list[float]", "fraction", "S_fid: the candidate's answers against references."),
    ("generator/cycle", "list[float]", "fraction", "S_cyc per candidate: mean of the next two values."),
    ("generator/text_similarity", "list[float]", "cosine", "Prompt against the candidate's caption."),
    ("generator/image_text_similarity", "list[float]", "probability", "Prompt given the candidate, per token."),
    ("generator/diversity", "list[float]", "fraction", "S_div: leave-one-out part of group diversity."),
    ("generator/contradiction", "list[float]", "fraction", "S_ctr: share of explicit yes/no conflicts."),
    ("generator/captions", "list[str]", "text", "The Solver's caption of each candidate."),
    ("generator/answers", "list[list[str]]", "text", "The Solver's majority answers per candidate (L x M)."),
    ("generator/best", "int?", "-", "Index of the candidate of highest R_g."),
    ("generator/best_reward", "float?", "reward", "Its R_g."),
    ("generator/advantages", "list[float]", "-", "Group-relative advantage per candidate."),
    ("generator/zero_variance", "bool", "-", "Equal R_g, or a card below the gate: no gradient this step."),
    ("generator/seeds", "list[int]", "-", "Seed that draws each candidate again."),
    ("replay/pushed", "bool", "-", "The best candidate entered the replay buffer."),
    ("judge_scores", "list[float]", "fraction", "Scores of an injected control judge; else empty."),
]

_CONTROLS = {
    EVERY: [("control/rewards", "list[float]", "reward", "What the control pays each question (U) or drawing (G).")],
    "U": [
        ("control/trained", "list[bool]", "-", "Per candidate: its answers entered the Solver's update."),
        ("control/labels", "list[str?]", "text", "Per candidate: the answer taught to all its framings; else null."),
        ("control/donors", "list[str?]", "-", "Per candidate: the image whose answers it was taught instead, if any."),
    ],
}

FIELDS: FieldTable = field_table({
    EVERY: _BOTH,
    "U": _UNDERSTANDING + update_rows("proposer") + update_rows("solver"),
    "G": _GENERATION + update_rows("generator"),
}, controls=_CONTROLS)
