"""One plain sentence per kind of figure, and which figure of the paper it repeats: what the index pages say."""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """What a figure shows, and the number of the paper's figure that it is the twin of (empty: ours alone)."""

    text: str
    paper: str = ""

    @property
    def folder(self) -> str:
        """Below the folder of figures: `paper` for twins of the paper's, `ours` for all others."""
        return "paper" if self.paper else "ours"


# In the order of the pages. A figure of every base is named `<kind>_<base>`.
CAPTIONS: dict[str, Caption] = {
    "figure3_signals": Caption("How uncertain the chosen questions are as training goes on (a), how the two signals of "
                               "doubt relate (b), and how the two scores of drawings move (c).", "3"),
    "figure4_scores": Caption("Right answers and right drawings over steps, with both loops and with each loop alone.",
                              "4"),
    "figure4_signals": Caption("The same runs as the loop itself sees them: how far its votes agree, and how well its "
                               "drawings match their questions.", "4"),
    "figure5_dynamics": Caption("Four signals of the joint loop over steps, on three backbones.", "5"),
    "before_after_answers": Caption("Questions with the answers of the base and of the evolved model, chosen by a "
                                    "fixed rule.", "6 and S4 to S6"),
    "before_after_drawings": Caption("Drawings of the same prompts by the base and by the evolved model, chosen by a "
                                     "fixed rule.", "6 and S4 to S6"),
    "figureS1_checkpoints": Caption("Whether the loop's own score rises with the score on held-out items, a dot per "
                                    "checkpoint.", "S1"),
    "figureS1_within_prompts": Caption("How well each signal ranks the drawings of one prompt, early and late in "
                                       "training.", "S1"),
    "figureS2_outcomes": Caption("How large the two signals of doubt are where the vote is right, wrong, or split.",
                                 "S2"),
    "figureS3_lags": Caption("Whether one loop moves first and the other follows: their correlation over lags.", "S3"),
    "gains": Caption("What training changed, in points over the base, for the method and its controls."),
    "learning_curve": Caption("Right answers and right drawings over steps, for the method and its controls."),
    "learning_rates": Caption("What training gains at each learning rate."),
    "premise": Caption("What the base can do, and how well it knows its own errors, before any run."),
    "signals": Caption("The logged signals of every run over steps."),
    "ours_self_consistency": Caption("Agreement, which the loop sees, and accuracy, which it does not, over steps."),
    "ours_agreement_accuracy": Caption("How much more the votes agree, and how much more often they are right, after "
                                       "training."),
    "ours_reliability": Caption("How often the vote is right, by how far it agrees and by how sure its tokens are."),
    "ours_zero_variance": Caption("How many groups of equal rewards there are, from which nothing is learnt."),
    "ours_long_runs": Caption("What five times the usual steps do to the scores and to the loop's own signals."),
    "ours_judges": Caption("How much drawings gain under judges of rising accuracy."),
    "ours_generator_updates": Caption("How much drawings gain under each rule of update, and with rewards that mean "
                                      "nothing."),
    "ours_reward_truth": Caption("Whether drawings that earn more reward are also right more often."),
    "ours_blind": Caption("How many questions are answered rightly with the picture, with another's, and with none."),
}
