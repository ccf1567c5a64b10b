"""The paper's seven understanding benchmarks: task, split, decoding and score of each, and who grades it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings of one benchmark as the paper's evaluation used them (spec: generation 7.1).

    task: its name in lmms-eval; markers: phrases of which the task's prompt holds at least one (the check that an
    installed lmms-eval still asks as the paper's did; empty: the question alone); max_new_tokens: longest answer, None
    where the evaluation left the wrapper's default; metrics: the task's scores that the paper prints, and in what unit;
    grader: what else is needed to score the answers, empty when lmms-eval does it alone; note: what to know.
    """

    name: str
    task: str
    split: str
    markers: tuple[str, ...]
    max_new_tokens: int | None
    metrics: tuple[str, ...]
    unit: str
    grader: str = ""
    note: str = ""


LETTER, SHORT = "option's letter", "single word or phrase"
DEFAULT_MAX_NEW_TOKENS = 128  # where neither preset nor task says; the paper does not state its wrapper's default

PRESETS: tuple[Preset, ...] = (
    Preset("MMMU", "mmmu_val", "validation", (LETTER, SHORT), 16, ("mmmu_acc",), "percent",
           note="an answer without a readable option is scored as a random choice, so weak models vary by chance"),
    Preset("MMBench", "mmbench_en_dev", "dev", (LETTER,), 1024, ("gpt_eval_score",), "percent",
           grader="an OpenAI model (gpt-3.5-turbo-0613) matches answers to options; needs OPENAI_API_KEY"),
    Preset("TextVQA", "textvqa_val", "validation", (SHORT,), None, ("exact_match",), "percent",
           note="ten references per question, no OCR tokens in the prompt"),
    Preset("SEED", "seedbench", "test", (LETTER,), None, ("seed_image", "seed_video", "seed_all"), "percent",
           note="the paper does not say which of the three it prints; its range suggests seed_image"),
    Preset("RealWorldQA", "realworldqa", "test", (), 16, ("exact_match",), "percent",
           note="exact match after flexible extraction"),
    Preset("MM-Vet", "mmvet", "test", ("step by step",), 1024, ("gpt_eval_score",), "percent",
           grader="an OpenAI model (gpt-4-0613) grades every answer from 0 to 1; needs OPENAI_API_KEY"),
    Preset("MME", "mme", "test", (SHORT,), 16, ("mme_perception_score", "mme_cognition_score"), "points",
           note="raw points: MME-P sums 10 sub-tasks, MME-C 4, of accuracy and accuracy on pairs of questions"),
)
BY_TASK: dict[str, Preset] = {preset.task: preset for preset in PRESETS}
UNGRADED: tuple[str, ...] = tuple(preset.task for preset in PRESETS if not preset.grader)


def graded_outside(tasks: tuple[str, ...] | list[str]) -> list[str]:
    """Those of the tasks whose answers go to an external grader."""
    return [task for task in tasks if task in BY_TASK and BY_TASK[task].grader]
