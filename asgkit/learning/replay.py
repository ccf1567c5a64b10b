"""The replay buffer: best drawings that passed the quality gate and may return as images to ask about."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


class ReplayBuffer:
    """First in, first out, at most `capacity` square RGB images of side `side`. Source: paper (generation step 6)."""

    def __init__(self, capacity: int, side: int) -> None:
        self.capacity, self.side = capacity, side
        self.images: list[Image.Image] = []
        self.pushed = 0

    def __len__(self) -> int:
        return len(self.images)

    def push(self, image: Image.Image) -> bool:
        """Append an image, dropping the oldest when full; False when the buffer has no capacity."""
        if self.capacity == 0:
            return False
        self.images = [*self.images, image][-self.capacity :]
        self.pushed += 1
        return True

    def draw(self, rng: np.random.Generator) -> Image.Image:
        """One image at random; raises IndexError when empty."""
        if not self.images:
            raise IndexError("the replay buffer is empty; nothing has passed the quality gate yet")
        return self.images[int(rng.integers(len(self.images)))]

    def state_dict(self) -> dict[str, Any]:
        """The count, and the images as one uint8 tensor (n, side, side, 3)."""
        arrays = [np.asarray(image, dtype=np.uint8) for image in self.images]
        stacked = np.stack(arrays) if arrays else np.zeros((0, self.side, self.side, 3), np.uint8)
        return {"pushed": self.pushed, "images": torch.from_numpy(stacked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.pushed = state["pushed"]
        self.images = [Image.fromarray(array) for array in state["images"].numpy()]
