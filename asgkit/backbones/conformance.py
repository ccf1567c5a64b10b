"""The conformance kit: does a model keep the promises of the `Backbone` protocol that the method relies on?

    for check in check_backbone(my_backbone, images):
        print(check)

Each check names one promise. A wrong number here would train on quietly: a policy ratio that is not 1, a gradient
in another role, a drawing that its seed does not repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image

from asgkit.backbones.base import ROLES, Backbone
from asgkit.backbones.conformance_checks import CHECKS, Kit, perturb

# What a model that breaks a promise may raise. A full disk or an interrupt is not the model's fault and passes on.
_FAULTS = (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Check:
    """One promise of the protocol: whether it holds, and the measured difference or what went wrong."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.detail}"


def check_backbone(backbone: Backbone, images: Sequence[Image.Image], captions: Sequence[str] | None = None,
                   questions: Sequence[str] | None = None, *, tolerance: float = 1e-4,
                   only: Collection[str] | None = None) -> list[Check]:
    """Run every check on two images and return one `Check` each; a broken promise is reported, never raised.

    images: at least two different ones of side `spec.image_side`; captions, questions: two each, by default the
    model's own. tolerance: largest difference (nats or logits) between two ways to one number; raise it for bf16.
    only: names of checks, to look at one again (default: all).
    Adapters get noise, so that no role equals the base by accident; weights, gradients and global random state are
    put back. Raises ValueError when the inputs cannot tell a right model from a wrong one.
    Source: spec: backbones 8; defects of the released code: spec: understanding 8.
    """
    if unknown := set(only or ()) - CHECKS.keys():
        raise ValueError(f"no checks named {sorted(unknown)}; there are {sorted(CHECKS)}")
    if len(images) < 2 or images[0].tobytes() == images[1].tobytes():
        raise ValueError("check_backbone needs two different images: with one, a model that ignores images passes")
    if any(given is not None and len(set(given)) < 2 for given in (captions, questions)):
        raise ValueError("give two different captions and two questions, or None for the model's own")
    with _as_found(backbone):
        kit = _make_kit(backbone, list(images[:2]), captions, questions, tolerance)
        return [_run(name, check, kit) for name, check in CHECKS.items() if only is None or name in only]


def assert_conforms(backbone: Backbone, images: Sequence[Image.Image], captions: Sequence[str] | None = None,
                    questions: Sequence[str] | None = None, *, tolerance: float = 1e-4) -> None:
    """Raise AssertionError listing every promise that `check_backbone` found broken."""
    failed = [c for c in check_backbone(backbone, images, captions, questions, tolerance=tolerance) if not c.passed]
    if failed:
        raise AssertionError(f"{backbone.spec.name} breaks the protocol:\n" + "\n".join(map(str, failed)))


def _make_kit(backbone: Backbone, images: list[Image.Image], captions: Sequence[str] | None,
              questions: Sequence[str] | None, tolerance: float) -> Kit:
    words = backbone.spec.prompts
    length = backbone.spec.max_new_tokens
    if questions is None:
        prefix = backbone.prefix(images, role=None)
        questions = backbone.answer(prefix, [words.ask] * 2, max_new_tokens=length, temperature=1.0).texts
    if captions is None:
        prefix = backbone.prefix(images, role=None)
        captions = backbone.answer(prefix, [words.captions[0]] * 2, max_new_tokens=length).texts
    prompts = [words.solve(questions[0]), words.solve(questions[1], 0)]
    return Kit(backbone, images, prompts, [words.draw.format(caption=c) for c in captions[:2]], tolerance)


@contextmanager
def _as_found(backbone: Backbone) -> Iterator[None]:
    """Put weights and gradients of all roles back, and leave the global random state alone."""
    held = [(p, p.detach().clone(), p.grad) for role in ROLES for p in backbone.role_parameters(role)]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for parameter, data, grad in held:
                parameter.data.copy_(data)
                parameter.grad = grad


def _run(name: str, check: Callable[[Kit], str], kit: Kit) -> Check:
    """One check on adapters with noise; what it raises is its finding."""
    with _as_found(kit.backbone):
        try:
            perturb(kit.backbone, ROLES, seed=0)
            return Check(name, True, check(kit))
        except _FAULTS as fault:
            return Check(name, False, f"{type(fault).__name__}: {fault}" if not isinstance(fault, AssertionError)
                         else str(fault))
