"""`geneval_hf`: GenEval's protocol (553 prompts x 4 drawings) with detectors from transformers. It is not GenEval.

Known differences from GenEval, also written beside every result:
see `DIFFERENCES`. A score of geneval_hf may be compared with another one of geneval_hf measured alike, never with a
published GenEval number. The drawings lie as GenEval's own scorer expects them, so that it can be run on them too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from asgkit.evals.geneval_models import ColorNamer, Detector
from asgkit.evals.geneval_scoring import TAGS, Clause, Detection, Rules, judge, keep, parse_clause, tag_scores
from asgkit.evals.protocol import Protocol, claim_folder
from asgkit.evals.subject import Subject
from asgkit.evals.vqa_images import digest
from asgkit.runs.files import append_line, read_lines, sha256, write_json

NAME = "geneval_hf"
WHOLE = (553, 4)  # prompts and drawings of each in the published protocol
DIFFERENCES = (
    "the detector is transformers' Mask2Former; GenEval's, of mmdet 2.x, comes from another training run",
    "the thresholds (0.3, counting 0.9) are GenEval's and were chosen for its own detector",
    "its input is scaled by Pillow to a short side of 800 px and its masks come back bilinearly; mmdet uses OpenCV",
    "a confidence is the class probability times the mean mask probability, over the best 100 pairs of query and class",
    "colours come from transformers' CLIP with Pillow's bicubic scaling; GenEval uses OpenCLIP's ViT-L-14 (openai)",
    "classes are matched by name (a remote is a tv remote); the rules of counts, colours and places are own code",
    "every drawing has a seed of its own, seed + 1000 x prompt + sample; published runs seeded in several ways",
    "agreement with GenEval on the same drawings has not been measured",
)


class GenevalSettings(BaseModel):
    """How prompts are drawn; all of it is part of the protocol. The number of sampling steps is fixed by the backbone.

    guidance, temperature: None is the backbone's own; per_tag: only the first so many prompts of every tag.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    samples: int = Field(4, gt=0, lt=1000)
    seed: int = 42
    guidance: float | None = None
    temperature: float | None = None
    batch_size: int = Field(4, gt=0)
    per_tag: int | None = Field(None, gt=0)


@dataclass(frozen=True)
class GenevalPrompt:
    """One line of evaluation_metadata.jsonl: its number in the file, tag, text, clauses, and the line itself."""

    index: int
    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    line: str


def read_prompts(path: Path, per_tag: int | None = None) -> list[GenevalPrompt]:
    """Prompts of a metadata file; raises ValueError naming the line that cannot be scored, or a tag that is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"no prompts in {path}: give prompts/evaluation_metadata.jsonl of GenEval")
    found: list[GenevalPrompt] = []
    for number, line in enumerate(filter(str.strip, path.read_text(encoding="utf-8").splitlines())):
        try:
            found.append(_parse(number, line))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path.name}, line {number + 1}: {error}") from error
    missing = [tag for tag in TAGS if not any(prompt.tag == tag for prompt in found)]
    if missing:
        raise ValueError(f"{path.name} has no prompt of {', '.join(missing)}; the overall score needs all six tags")
    if per_tag is None:
        return found
    return sorted((p for tag in TAGS for p in [q for q in found if q.tag == tag][:per_tag]), key=lambda p: p.index)


def _parse(index: int, line: str) -> GenevalPrompt:
    content = json.loads(line)
    if content["tag"] not in TAGS:
        raise ValueError(f"unknown tag {content['tag']!r}; the six are {', '.join(TAGS)}")
    include = tuple(parse_clause(clause, i) for i, clause in enumerate(content["include"]))
    exclude = tuple(parse_clause(clause, 0) for clause in content.get("exclude", ()))
    return GenevalPrompt(index, content["tag"], content["prompt"], include, exclude, line)


def seed_of(settings: GenevalSettings, prompt: GenevalPrompt, sample: int) -> int:
    """Seed of one drawing, the same for every model: seed + 1000 x prompt + sample."""
    return settings.seed + 1000 * prompt.index + sample


def drawn_text(subject: Subject, prompt: GenevalPrompt) -> str:
    """What the Generator is asked: the prompt inside the backbone's own drawing request."""
    return subject.backbone.spec.prompts.draw.format(caption=prompt.text)


def protocol_of(subject: Subject, prompts: Sequence[GenevalPrompt], settings: GenevalSettings, detector: Detector,
                namer: ColorNamer, rules: Rules) -> Protocol:
    """What a second result must share with this one to have a delta, and what may differ."""
    texts = "\n".join(f"{p.index}\t{p.line}\t{drawn_text(subject, p)}" for p in prompts)
    recorded = {"model": subject.model, "drawing": settings.model_dump(), "steps": "the backbone's own",
                "side": subject.backbone.spec.image_side, "prompts": len(prompts),
                "prompts_sha256": sha256(texts.encode()), "detector": detector.record, "colors": namer.record,
                "rules": asdict(rules)}
    return Protocol(NAME, recorded, subject.record, DIFFERENCES)


def draw(subject: Subject, prompts: Sequence[GenevalPrompt], settings: GenevalSettings, folder: Path,
         progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Draw every prompt into `folder`/NNNNN/samples/SSSSS.png, with its metadata.jsonl beside it.

    Drawings that are there already are kept, so that an interrupted call goes on.
    """
    todo = [(p, s) for p in prompts for s in range(settings.samples) if not _file(folder, p, s).is_file()]
    for prompt in {p.index: p for p, _ in todo}.values():
        _file(folder, prompt, 0).parent.mkdir(parents=True, exist_ok=True)
        (_file(folder, prompt, 0).parents[1] / "metadata.jsonl").write_text(prompt.line + "\n", encoding="utf-8")
    for start in range(0, len(todo), settings.batch_size):
        batch = todo[start : start + settings.batch_size]
        drawn = subject.backbone.generate_images(
            [drawn_text(subject, p) for p, _ in batch], seeds=[seed_of(settings, p, s) for p, s in batch],
            role=subject.role, guidance=settings.guidance, temperature=settings.temperature)
        for (prompt, sample), image in zip(batch, drawn.images, strict=True):
            aside = _file(folder, prompt, sample).with_suffix(".tmp.png")
            image.save(aside)
            os.replace(aside, _file(folder, prompt, sample))
        progress(start + len(batch), len(todo))


def _file(folder: Path, prompt: GenevalPrompt, sample: int) -> Path:
    return folder / f"{prompt.index:05d}" / "samples" / f"{sample:05d}.png"


def require_classes(prompts: Sequence[GenevalPrompt], detector: Detector) -> None:
    """Raise ValueError when the detector does not know a class that a prompt names: it would always be wrong."""
    wanted = {clause.name for prompt in prompts for clause in (*prompt.include, *prompt.exclude)}
    missing = sorted(wanted - set(detector.classes))
    if missing:
        raise ValueError(f"the detector knows no {', '.join(missing)}: give a model trained on COCO's 80 instance "
                         "classes, as mask2former-swin-small-coco-instance")


def judge_image(image: Image.Image, prompt: GenevalPrompt, detector: Detector, namer: ColorNamer, rules: Rules
                ) -> dict[str, Any]:
    """Verdict on one drawing: correct, reasons, and the boxes with their confidence that counted."""
    every: dict[str, list[Detection]] = detector.detect(image)
    found = {name: kept for name, things in every.items() if (kept := keep(things, prompt.tag, rules))}
    verdict = judge(prompt.include, prompt.exclude, found, lambda kind, things: namer.name(image, kind, things), rules)
    return {"correct": verdict.correct, "reasons": list(verdict.reasons),
            "objects": {name: [[*d.box, round(d.score, 6)] for d in things] for name, things in found.items()}}


def score(subject: Subject, prompts: Sequence[GenevalPrompt], settings: GenevalSettings, folder: Path,
          detector: Detector, namer: ColorNamer, rules: Rules,
          progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Judge every drawing; writes items.jsonl (one line per drawing) and scores.json, and returns the latter."""
    correct: dict[str, list[bool]] = {}
    (folder / "items.jsonl").unlink(missing_ok=True)
    pairs = [(p, s) for p in prompts for s in range(settings.samples)]
    for done, (prompt, sample) in enumerate(pairs, 1):
        with Image.open(_file(folder / "images", prompt, sample)) as opened:
            image = opened.convert("RGB")
        found = judge_image(image, prompt, detector, namer, rules)
        correct.setdefault(prompt.tag, []).append(found["correct"])
        append_line(folder / "items.jsonl", {
            "prompt": prompt.index, "sample": sample, "tag": prompt.tag, "text": drawn_text(subject, prompt),
            "seed": seed_of(settings, prompt, sample), "image_sha256": digest(image), **subject.record, **found})
        progress(done, len(pairs))
    result = {"benchmark": NAME, "scores": tag_scores(correct), "prompts": len(prompts), "samples": settings.samples,
              "whole": (len(prompts), settings.samples) == WHOLE, "known_differences": list(DIFFERENCES)}
    write_json(folder / "scores.json", result)
    return result


def evaluate(subject: Subject, prompts: Sequence[GenevalPrompt], settings: GenevalSettings, folder: Path,
             detector: Detector, namer: ColorNamer, rules: Rules | None = None,
             progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Draw and judge one subject; an interrupted call with the same settings goes on where it stopped.

    Raises FileExistsError when `folder` holds a finished result, ProtocolMismatch when it holds another's drawings.
    """
    rules = rules or Rules()
    require_classes(prompts, detector)
    protocol = protocol_of(subject, prompts, settings, detector, namer, rules)
    claim_folder(folder, protocol, resume=not (folder / "scores.json").is_file())
    draw(subject, prompts, settings, folder / "images", progress)
    return score(subject, prompts, settings, folder, detector, namer, rules, progress)


def per_prompt(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a result: prompt numbers (P,), tags (P,), and the share (P,) of each prompt's drawings that are right."""
    rows = [record for _, record in read_lines(folder / "items.jsonl")]
    numbers = sorted({row["prompt"] for row in rows})
    tags = {row["prompt"]: row["tag"] for row in rows}
    shares = [np.mean([row["correct"] for row in rows if row["prompt"] == number]) for number in numbers]
    return np.array(numbers), np.array([tags[number] for number in numbers]), np.array(shares, dtype=np.float64)
