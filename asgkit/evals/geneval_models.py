"""What sees the drawings: transformers' Mask2Former finds objects, transformers' CLIP names their colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asgkit.evals.geneval_scoring import Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
GREY = (153, 153, 153)  # around an object when its colour is asked for
SHORT, LONG, MULTIPLE = 800, 1333, 32  # px: sides of the detector's input, and what its strides divide
# COCO's classes under other names, as checkpoints on the hub spell them -> as the prompts spell them
NAMES = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
         "diningtable": "dining table", "tvmonitor": "tv", "mouse": "computer mouse", "remote": "tv remote",
         "keyboard": "computer keyboard"}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Detector(Protocol):
    """Finds objects of named classes."""

    classes: tuple[str, ...]
    record: dict[str, Any]

    def detect(self, image: Image.Image) -> dict[str, list[Detection]]:
        """Every detection of a picture by class, whatever its confidence."""


class ColorNamer(Protocol):
    """Names the colours of objects."""

    record: dict[str, Any]

    def name(self, image: Image.Image, kind: str, objects: Sequence[Detection]) -> list[str]:
        """One of `COLORS` for each object of a class."""


def weights_hash(folder: Path) -> str:
    """sha256 over config.json and every safetensors file; FileNotFoundError says what to download."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].is_file():
        raise FileNotFoundError(f"{folder} needs config.json and model.safetensors: download the model's folder, for "
                                f"example hf download MODEL --local-dir {folder}")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def normalised(image: Image.Image, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """RGB picture -> (3, H, W) float32, minus mean, over standard deviation."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0).permute(2, 0, 1)
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in statistics)
    return (pixels - mean) / deviation


def detector_input(image: Image.Image, short: int = SHORT, long: int = LONG) -> tuple[Tensor, tuple[int, int]]:
    """A picture scaled to a short side of `short` px (long side at most `long`), padded to multiples of 32.

    Returns (1, 3, H, W) float32 and the scaled (height, width) before padding.
    """
    scale = min(short / min(image.size), long / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = normalised(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), _IMAGENET)
    pad = torch.nn.functional.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
    return pad[None], (height, width)


def instances(class_logits: Tensor, mask_logits: Tensor, names: Sequence[str]) -> dict[str, list[Detection]]:
    """Detections of one picture from queries: class_logits (Q, C + 1), mask_logits (Q, H, W) at the picture's size.

    The Q best (query, class) pairs by class probability; confidence = that probability times the mean mask
    probability inside the mask (logit > 0); box = the mask's extent. Empty masks are left out.
    """
    scores = class_logits.softmax(-1)[:, :-1]
    best = scores.flatten().topk(min(len(scores), scores.numel()))
    found: dict[str, list[Detection]] = {}
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, kind = divmod(index, scores.shape[1])
        mask = mask_logits[query] > 0
        if not mask.any():
            continue
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        confidence = value * float(mask_logits[query].sigmoid()[mask].mean())
        found.setdefault(names[kind], []).append(Detection(box, confidence, mask.cpu().numpy()))
    return found


class Mask2Former:
    """Instance segmentation by a local Mask2Former folder (the kit was written for Swin-S on COCO instances)."""

    def __init__(self, folder: Path, device: str = "cpu", short: int = SHORT) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self.record = {"folder": folder.name, "weights_sha256": weights_hash(folder), "short_side": short}
        self.model = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True).eval().to(device)
        labels = self.model.config.id2label
        self.classes = tuple(NAMES.get(labels[i], labels[i]) for i in range(len(labels)))
        self.device, self.short = device, short

    @torch.no_grad()
    def detect(self, image: Image.Image) -> dict[str, list[Detection]]:
        """Every detection of a picture by class, masks at the picture's own size."""
        pixels, (height, width) = detector_input(image, self.short)
        seen = self.model(pixel_values=pixels.to(self.device))
        resize = torch.nn.functional.interpolate
        masks = resize(seen.masks_queries_logits, pixels.shape[-2:], mode="bilinear")[..., :height, :width]
        masks = resize(masks, image.size[::-1], mode="bilinear")[0]
        return instances(seen.class_queries_logits[0], masks, self.classes)


def crop(image: Image.Image, thing: Detection) -> Image.Image:
    """The object alone: everything outside its mask grey, cut to its box."""
    shown = image.convert("RGB")
    if thing.mask is not None:
        shown = Image.composite(shown, Image.new("RGB", image.size, GREY), Image.fromarray(thing.mask))
    return shown.crop(tuple(round(edge) for edge in thing.box))


def nearest(features: Tensor, prototypes: Tensor) -> list[int]:
    """For each feature (N, D) the prototype (C, D) with the largest cosine."""
    unit = torch.nn.functional.normalize
    return (unit(features, dim=-1) @ unit(prototypes, dim=-1).T).argmax(-1).tolist()


class ClipColors:
    """Zero-shot colours by a local CLIP folder: each colour is the mean of three sentences' embeddings."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.record = {"folder": folder.name, "weights_sha256": weights_hash(folder)}
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.device, self.side = device, self.model.config.vision_config.image_size
        self._prototypes: dict[str, Tensor] = {}

    def sentences(self, color: str, kind: str) -> list[str]:
        """The three sentences of a colour and a class."""
        return [f"a photo of a {color} {kind}", f"a photo of a {color}-colored {kind}", f"a photo of a {color} object"]

    @torch.no_grad()
    def prototypes(self, kind: str) -> Tensor:
        """(10, D): the mean unit embedding of every colour's sentences about a class."""
        if kind not in self._prototypes:
            texts = [text for color in COLORS for text in self.sentences(color, kind)]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
            unit = torch.nn.functional.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
            self._prototypes[kind] = unit.unflatten(0, (len(COLORS), -1)).mean(1)
        return self._prototypes[kind]

    @torch.no_grad()
    def name(self, image: Image.Image, kind: str, objects: Sequence[Detection]) -> list[str]:
        """The nearest colour of each object."""
        pixels = torch.stack([normalised(self._input(crop(image, thing)), _CLIP) for thing in objects])
        features = self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output
        return [COLORS[i] for i in nearest(features, self.prototypes(kind))]

    def _input(self, image: Image.Image) -> Image.Image:
        """Short side to CLIP's side, then its middle square."""
        scale = self.side / min(image.size)
        width, height = (max(self.side, round(side * scale)) for side in image.size)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        return scaled.crop((left, top, left + self.side, top + self.side))
