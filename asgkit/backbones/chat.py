"""How models that speak English are asked: the three roles' prompts, and a tokenizer behind the reader's interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from asgkit.backbones.prompts import Prompts

RULES = "Use only what the image shows. Give the final answer alone, in as few words as possible.\nQuestion: {question}"

# N = 7 preambles (paper, table S7, in our own words): the rules and the verbatim question below them never change.
PREAMBLES = (
    "Answer the question about this image.",
    "Look at the whole image first, then answer the question.",
    "You are a careful examiner. Answer from visible evidence only.",
    "Find the region that the question is about, inspect it, and answer.",
    "Consider what could easily be misread here, then answer.",
    "Describe the relevant detail to yourself, then answer the question.",
    "Answer the question as a second, independent observer would.",
)

# Seven perceptual categories, one for each call of a vote (the paper's appendix; off by default).
HINTS = (
    "Pay attention to the layout.",
    "Pay attention to text and symbols.",
    "Pay attention to what is partly hidden.",
    "Pay attention to left and right.",
    "Pay attention to how many there are.",
    "Pay attention to colours and textures.",
    "Pay attention to what acts on what.",
)

PROMPTS = Prompts(
    ask="Write one question about this image that takes close looking to answer. It must have one short, objective "
        "answer that the image alone settles. Put the question between <question> and </question>.",
    diagnose="Here is a caption of this image: {caption}\nWrite one question about the image that checks whether a new "
             "picture drawn from this caption shows the same content. It must have one short, objective answer. Put "
             "the question between <question> and </question>.",
    canonical=f"{PREAMBLES[0]} {RULES}",
    framings=tuple(f"{preamble} {RULES}" for preamble in PREAMBLES),
    captions=("Describe this image in one sentence: its objects, their number, colours and places.",
              "Write a caption of this image that is exact enough to draw it again."),
    draw="{caption}",
    spec="Write a prompt for a new picture that shows what this image shows, in one declarative sentence: its objects, "
         "their number, colours and places.",
    hints=HINTS,
    expect=f"Write the answer that you expect to this question about the image, in at most six words. {RULES}",
)


class ChatTokenizer:
    """A Hugging Face tokenizer as `asgkit.backbones.reader.Tokenizer`.

    Prompts get `after`, the text that closes the user's turn and opens the model's. What stands before them (system
    text, image) belongs to the prefix. Text is tokenised without added special tokens, and completions as they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, after: str, end: int, pad: int) -> None:
        self.tokenizer, self.after, self.end, self.pad = tokenizer, after, end, pad

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it is."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end or padding token, without special tokens or outer space."""
        stops = [i for i, token in enumerate(ids) if token in (self.end, self.pad)]
        kept = list(ids)[: stops[0]] if stops else list(ids)
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def batch(self, texts: Sequence[str], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Padded ids (B, T) of prompts closed by `after`, and their mask (B, T) bool."""
        return pad_rows([self.encode(text + self.after) for text in texts], self.pad, left=left)


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids as one padded tensor (B, T) int64, and its mask (B, T) bool."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.int64)
        mask[i, where] = True
    return ids, mask


PHRASES = (
    *(f"<question>{text}</question>" for text in (
        "What is in the middle?", "How many objects are there?", "What color is the ball?", "Is there a tree?",
        "Where is the cat?", "Which shape is on the left?", "Is the door open?", "What is behind the car?")),
    *(" yes", " no", " red", " blue", " two", " three", " left", " a cat", " a tree", " nothing"),
)


def phrase_tokenizer(special: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for tiny random models: 256 bytes, the model's special tokens, and whole phrases as tokens.

    A network with random weights writes random tokens; since some of them are whole questions and answers, every
    stage of the loop has something to work on, and any prompt can still be read byte by byte. Ids: bytes 0..255, then
    the special tokens in their order, then the phrases.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in PHRASES])
    return PreTrainedTokenizerFast(tokenizer_object=fast)
