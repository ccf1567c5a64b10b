"""GvU: a drawing is worth the probability that the model, reading it, gives its own prompt. Source: arXiv 2603.06043.

    R_i = exp( 1/|T| sum_t ln p(T_t | I'_i, request, T_<t) )      the geometric mean of the token probabilities

No questions, no gate, no Proposer. The reader is the live Solver (`generator.scorer` for another one). Group size,
learning rate and KL weight are published nowhere: they are the preset's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from asgkit.recipes.base import Record
from asgkit.recipes.groups import Group, GroupRecipe, group_fields
from asgkit.runs.schema import FieldTable
from asgkit.stages.judge import prompt_likelihood


class GvU(GroupRecipe):
    """Prompts, drawings, and how well each drawing brings its prompt to mind."""

    name: ClassVar[str] = "gvu"
    fields: ClassVar[FieldTable] = group_fields([
        ("picture/log_likelihood", "float?", "nats", "Mean ln p per token of T given the real picture; null without."),
    ])

    def score(self, group: Group) -> Tensor:
        """R (G, L): the probability per token of the prompt, or (gvu.reward=log_probability) its logarithm."""
        found = self.likelihood([image for images in group.images for image in images], group)
        found = found.reshape(len(group.prompts), -1)
        return found.exp() if self.tools.own.reward == "probability" else found

    def measure(self, group: Group) -> list[Record]:
        """What the same reader makes of the real pictures: a height that drawings may reach."""
        real: list[Any] = [None] * len(group.prompts)
        if group.shard.kind == "pictures":
            real = self.likelihood(group.shard.pictures, group).tolist()
        return [{"picture/log_likelihood": value} for value in real]

    def likelihood(self, images: list[Image.Image], group: Group) -> Tensor:
        """Mean ln p per token (B,) of each image's prompt, nats; images come prompt by prompt, equally many each."""
        reader, role = self.tools.scorer
        each = len(images) // len(group.prompts)
        prompts, requests = ([text for text in texts for _ in range(each)]
                             for texts in (group.prompts, group.requests))
        return prompt_likelihood(reader, images, requests, prompts, role=role)
