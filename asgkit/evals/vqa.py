"""Answer benchmark questions through any backbone, and keep every answer: the part of the plug-in that is ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from asgkit.backbones.base import Backbone
from asgkit.evals.presets import BY_TASK, DEFAULT_MAX_NEW_TOKENS
from asgkit.evals.subject import Subject
from asgkit.evals.vqa_images import Fit, Mode, Shuffle, blank, digest, fit_image, montage
from asgkit.runs.files import append_line, sha256

DIFFERENCES = (
    "several pictures of one item are shown as one grid (published evaluations pass them one by one)",
    "fit=square shows the whole picture on a square of the backbone's side; published evaluations use its native size",
)


class BenchmarkError(ValueError):
    """A task that cannot be answered as its preset or the backbone demands; the message names the fix."""


class VQASettings(BaseModel):
    """How pictures are shown and questions put; all of it is part of the protocol.

    prompt: `verbatim` sends the task's text in the backbone's chat template (as published), `canonical` puts it into
    the Solver's canonical framing (what tiny models read); max_new_tokens overrides preset and task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    images: Mode = "real"
    seed: int = 0
    fit: Fit = "square"
    prompt: Literal["verbatim", "canonical"] = "verbatim"
    max_new_tokens: int | None = Field(None, gt=0)
    batch_size: int = Field(1, gt=0)


@dataclass(frozen=True)
class Decoding:
    """How an answer is sampled and where its text is cut."""

    max_new_tokens: int
    temperature: float
    top_p: float
    until: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One question: `load(doc)` gives the pictures of item `doc` of its task, `count` how many items that has."""

    task: str
    split: str
    doc: int
    text: str
    options: Mapping[str, Any]
    load: Callable[[int], Sequence[Image.Image]]
    count: int


def decoding_of(task: str, options: Mapping[str, Any], settings: VQASettings, longest: int) -> Decoding:
    """The preset's decoding for the paper's tasks (greedy), else the task's own generation options.

    Raises BenchmarkError for beams, and where the answer may be longer than the backbone writes.
    """
    if int(options.get("num_beams") or 1) > 1:
        raise BenchmarkError(f"task {task} asks for beam search; backbones of the kit sample or decode greedily")
    preset = BY_TASK.get(task)
    stated = preset.max_new_tokens if preset else options.get("max_new_tokens")
    length = settings.max_new_tokens or int(stated or options.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS)
    if length > longest:
        raise BenchmarkError(f"task {task} allows {length} answer tokens, the backbone writes at most {longest}: "
                             f"set max_new_tokens={longest} or less; the protocol records it")
    greedy = preset is not None or not options.get("do_sample", float(options.get("temperature") or 0) > 0)
    until = options.get("until") or ()
    return Decoding(length, 0.0 if greedy else float(options.get("temperature") or 1.0),
                    1.0 if greedy else float(options.get("top_p") or 1.0),
                    tuple(filter(None, [until] if isinstance(until, str) else until)))


def prompt_of(item: Item, settings: VQASettings, backbone: Backbone) -> str:
    """The text that the backbone gets; raises BenchmarkError where a preset's task no longer asks as it did."""
    preset = BY_TASK.get(item.task)
    if preset and preset.markers and not any(marker in item.text for marker in preset.markers):
        raise BenchmarkError(f"task {item.task}: its prompt holds none of {preset.markers}, so the installed lmms-eval "
                             f"asks otherwise than the paper's evaluation: {item.text[-120:]!r}")
    text = item.text.replace("<image>", "").strip()
    return text if settings.prompt == "verbatim" else backbone.spec.prompts.solve(text)


def cut(text: str, until: Iterable[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in until:
        text = text.split(stop, 1)[0]
    return text.strip()


class Answerer:
    """Answers items in order and writes one line per item into `folder`, whatever harness asks."""

    def __init__(self, subject: Subject, settings: VQASettings, folder: Path, suffix: str = "") -> None:
        self.subject, self.settings, self.folder, self.suffix = subject, settings, folder, suffix
        self._shuffles: dict[tuple[str, str], Shuffle] = {}

    def decoding(self, item: Item) -> Decoding:
        """How this item is decoded under the settings."""
        return decoding_of(item.task, item.options, self.settings, self.subject.backbone.spec.max_new_tokens)

    def describe(self, items: Sequence[Item]) -> dict[str, Any]:
        """Per task: split, number of items, decoding and a hash over all prompts. Part of the protocol."""
        tasks: dict[str, Any] = {}
        for task in dict.fromkeys(item.task for item in items):
            own = [item for item in items if item.task == task]
            prompts = "\n".join(f"{i.doc}\t{prompt_of(i, self.settings, self.subject.backbone)}" for i in own)
            decodings = {self.decoding(item) for item in own}
            if len(decodings) > 1:
                raise BenchmarkError(f"task {task} decodes its items in {len(decodings)} ways; the protocol has one")
            tasks[task] = {"split": own[0].split, "items": len(own), "prompts_sha256": sha256(prompts.encode()),
                           "decoding": asdict(decodings.pop())}
        return tasks

    def answer(self, items: Sequence[Item]) -> list[str]:
        """Texts in the order of the items; batches hold items of one task."""
        texts: list[str] = []
        for batch in _batches(items, self.settings.batch_size):
            texts += self._answer(batch)
        return texts

    def _answer(self, batch: Sequence[Item]) -> list[str]:
        backbone, decoding = self.subject.backbone, self.decoding(batch[0])
        shown = [self.picture(item) for item in batch]
        prompts = [prompt_of(item, self.settings, backbone) for item in batch]
        keys = [digest(image) for image, _ in shown]
        unique = list(dict.fromkeys(keys))  # questions about one picture share its prefix
        prefix = backbone.prefix([shown[keys.index(key)][0] for key in unique], role=self.subject.role)
        raw = backbone.answer(prefix, prompts, rows=[unique.index(key) for key in keys], seed=self.settings.seed,
                              max_new_tokens=decoding.max_new_tokens, temperature=decoding.temperature,
                              top_p=decoding.top_p).texts
        for item, prompt, text, key, (_, source) in zip(batch, prompts, raw, keys, shown, strict=True):
            append_line(self.folder / f"items-{item.task}{self.suffix}.jsonl", {
                "task": item.task, "split": item.split, "doc": item.doc, "prompt": prompt,
                "answer": cut(text, decoding.until), "raw": text, "images": self.settings.images,
                "image_of": source, "image_sha256": key, **self.subject.record, "decoding": asdict(decoding)})
        return [cut(text, decoding.until) for text in raw]

    def picture(self, item: Item) -> tuple[Image.Image, int | None]:
        """What the backbone sees for an item, and the item whose picture it is (None: nobody's)."""
        own = self._load(item, item.doc)
        if self.settings.images == "blank":
            return blank(own), None
        if self.settings.images == "real":
            return own, item.doc
        key = (item.task, item.split)
        if key not in self._shuffles:
            self._shuffles[key] = Shuffle(item.task, item.count, self.settings.seed)
        source, image = self._shuffles[key].partner(item.doc, own, lambda doc: self._load(item, doc))
        return image, source

    def _load(self, item: Item, doc: int) -> Image.Image:
        images = list(item.load(doc))
        if not images or not all(isinstance(image, Image.Image) for image in images):
            raise BenchmarkError(f"task {item.task}, item {doc}: backbones of the kit answer about pictures, this item "
                                 "has none or holds a video; leave the task out")
        return fit_image(montage(images), self.settings.fit, self.subject.backbone.spec.image_side)


def _batches(items: Sequence[Item], size: int) -> Iterable[list[Item]]:
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == size or batch[0].task != item.task):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
