"""The promises of the `Backbone` protocol, one function each; `asgkit.backbones.conformance` runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asgkit.backbones.base import ROLES, Answers, Backbone, GenStats, NoiseSpec, Role, TextStats

_READERS: tuple[Role, ...] = ("proposer", "solver")
_LENGTH = 6  # tokens per sampled text
STRENGTH = 0.02  # standard deviation of the noise put on adapters: seen in every output, and no head saturates


@dataclass(frozen=True)
class Kit:
    """The backbone and the inputs that every check uses; two images, two questions, two captions."""

    backbone: Backbone
    images: list[Image.Image]
    prompts: list[str]  # Solver prompts, row i about image i
    draw: list[str]  # Generator prompts
    tolerance: float

    def sample(self, role: Role | None, rows: Sequence[int] = (0, 1), **settings) -> Answers:
        """Continue prompt `rows[i]` about image `rows[i]`."""
        prefix = self.backbone.prefix(self.images, role=role)
        return self.backbone.answer(prefix, [self.prompts[r] for r in rows], rows=list(rows),
                                    max_new_tokens=min(_LENGTH, self.backbone.spec.max_new_tokens), **settings)

    def read(self, role: Role | None, answers: Answers, rows: Sequence[int] = (0, 1), **settings) -> TextStats:
        """Score the answers that `sample` gave for the same rows."""
        return self.backbone.text_stats(self.images, [self.prompts[r] for r in rows], answers, rows=list(rows),
                                        role=role, **settings)

    def draw_stats(self, role: Role | None, codes: Tensor, rows: Sequence[int] = (0, 1), **settings) -> GenStats:
        """Statistics of codes under the prompts `rows`; regression models get fixed noise."""
        noise = None
        if self.backbone.spec.paradigm != "autoregressive":
            noise = NoiseSpec(torch.tensor([[0.3, 0.7]]).repeat(len(rows), 1), [10 + row for row in rows])
        return self.backbone.generation_stats([self.draw[r] for r in rows], codes, role=role, noise=noise, **settings)

    def probe(self, role: Role | None) -> Tensor:
        """One number per image that depends on the role's weights: text for readers, drawing for the Generator."""
        codes = self.backbone.encode_images(self.images)
        drawn = self.draw_stats(role, codes).loss
        return drawn if role == "generator" else torch.cat([self.read(role, _fixed(self)).logp.sum(1), drawn])


def _fixed(kit: Kit) -> Answers:
    """Answers of the frozen base, so that a probe scores the same ids whatever the adapters hold."""
    return kit.sample(None, temperature=0.0)


@torch.no_grad()
def perturb(backbone: Backbone, roles: Sequence[Role], seed: int) -> None:
    """Add seeded noise to every tensor of some roles."""
    generator = torch.Generator().manual_seed(seed)
    for role in roles:
        for p in backbone.role_parameters(role):
            p.add_(STRENGTH * torch.randn(p.shape, generator=generator).to(p))


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _near(kit: Kit, a: Tensor, b: Tensor, what: str) -> float:
    """Largest difference of two tensors; shapes, infinities and NaN must agree too."""
    _expect(a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    gap = torch.where(a == b, 0.0, (a.float() - b.float()).abs())  # equal infinities have no distance
    worst = gap.max().item()
    _expect(worst <= kit.tolerance, f"{what} differ by {worst:.2e}, tolerance {kit.tolerance:.0e}")
    return worst


def _answer_logp(kit: Kit) -> str:
    worst = 0.0
    for role in _READERS:
        for settings in ({"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}):
            answers = kit.sample(role, (0, 1, 0), seed=1, **settings)
            scored = kit.read(role, answers, (0, 1, 0))
            _expect(torch.equal(answers.mask, scored.mask), "masks of answer and text_stats differ")
            worst = max(worst, _near(kit, answers.logp, scored.logp, f"{role}: sampled and teacher-forced logp"))
    return f"sampled and teacher-forced log-probabilities differ by {worst:.1e} nats at most"


def _prefix_path(kit: Kit) -> str:
    rows = (1, 0, 1)
    answers = kit.sample("solver", rows, keep_logits=_LENGTH)
    full = kit.read("solver", answers, rows, keep_logits=True).logits
    shown = answers.mask[:, : answers.logits.shape[1]]
    worst = _near(kit, answers.logits[shown], full[:, : shown.shape[1]][shown], "logits by prefix and by full pass")
    return f"logits through the shared prefix and the full pass differ by {worst:.1e}"


def _raw_logits(kit: Kit) -> str:
    answers = kit.sample("solver", temperature=0.5, top_p=0.8, seed=3, keep_logits=_LENGTH)
    width = answers.logits.shape[1]
    picked = answers.logits.log_softmax(-1).gather(-1, answers.ids[:, :width, None])[..., 0]
    mask = answers.mask[:, :width]
    _near(kit, picked[mask], answers.logp[:, :width][mask], "answer: log_softmax(logits)[ids] and logp")
    stats = kit.read("solver", answers, keep_logits=True)
    logp = stats.logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.masked_fill(logp == float("-inf"), 0.0)).sum(-1)
    _near(kit, entropy[stats.mask], stats.entropy[stats.mask], "text_stats: entropy of logits and entropy")
    codes = kit.backbone.encode_images(kit.images)
    drawn = kit.draw_stats("generator", codes, keep_logits=True)
    if drawn.logits is not None:
        picked = drawn.logits.log_softmax(-1).gather(-1, codes.reshape(*drawn.logp.shape, 1))[..., 0]
        _near(kit, picked, drawn.logp, "generation_stats: log_softmax(logits)[codes] and logp")
    return "logits are raw: their softmax gives the log-probabilities at any temperature"


def _role_none(kit: Kit) -> str:
    before = kit.probe(None)
    perturb(kit.backbone, ROLES, seed=1)
    _expect(torch.equal(kit.probe(None), before), "role None changes with the adapters: it is not the frozen base")
    size = len(kit.images)
    for role in ROLES:
        same = torch.equal(kit.probe(role)[-size:], before[-size:])
        _expect(not same, f"role {role} draws exactly like the base although its adapter is not zero")
    return "role None is the base whatever the adapters hold, and every role differs from it"


def _leaves(loss: Tensor) -> set[int]:
    """Identities of the parameters that a loss is differentiable in."""
    found, seen, stack = set(), set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            found.add(id(node.variable))
        stack += [following for following, _ in node.next_functions]
    return found


def _gradients(kit: Kit) -> str:
    codes = kit.backbone.encode_images(kit.images)
    for role in ROLES:
        loss = (kit.draw_stats(role, codes, grad=True).loss.sum() if role == "generator"
                else kit.read(role, _fixed(kit), grad=True).logp.sum())
        for p in (p for r in ROLES for p in kit.backbone.role_parameters(r)):
            p.grad = None
        _expect(loss.requires_grad, f"the loss of {role} carries no gradient")
        mine = kit.backbone.role_parameters(role)
        foreign = len(_leaves(loss) - {id(p) for p in mine})
        _expect(not foreign, f"the loss of {role} reaches {foreign} parameters outside the role")
        loss.backward()
        _expect(any(p.grad is not None and p.grad.any() for p in mine), f"no parameter of {role} gets a gradient")
        others = [p for r in ROLES if r != role for p in kit.backbone.role_parameters(r)]
        _expect(all(p.grad is None for p in others), f"the loss of {role} leaves gradients in another role")
    return "each role's loss reaches that role's parameters and no other"


def _isolation(kit: Kit) -> str:
    for role in ROLES:
        others = [other for other in (*ROLES, None) if other != role]
        before, own = [kit.probe(other) for other in others], kit.probe(role)
        perturb(kit.backbone, [role], seed=2)
        for other, value in zip(others, before, strict=True):
            _expect(torch.equal(kit.probe(other), value), f"an update of {role} changes the output of {other}")
        _expect(not torch.equal(kit.probe(role), own), f"an update of {role} does not change its own output")
    return "an update of one role changes its own output only"


def _round_trip(kit: Kit) -> str:
    for role in ROLES:
        want = [p.detach().clone() for r in ROLES for p in kit.backbone.role_parameters(r)]
        with tempfile.TemporaryDirectory() as folder:
            kit.backbone.save_role(role, Path(folder) / role)
            perturb(kit.backbone, [role], seed=3)
            kit.backbone.load_role(role, Path(folder) / role)
        have = [p for r in ROLES for p in kit.backbone.role_parameters(r)]
        same = all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
        _expect(same, f"{role}: save and load do not give the same weights back")
    return "saved and loaded roles are equal bit for bit"


def _strict_load(kit: Kit) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "solver"
        kit.backbone.save_role("solver", path)
        files = sorted(path.rglob("*.safetensors"))
        _expect(bool(files), "save_role writes no .safetensors file")
        tensors = load_file(files[0])
        first, *rest = sorted(tensors)
        damaged = {"renamed": {"renamed.tensor": tensors[first]}, "missing": {}}
        for how, extra in damaged.items():
            save_file({name: tensors[name] for name in rest} | extra, files[0])
            try:
                kit.backbone.load_role("solver", path)
            except (LookupError, RuntimeError, TypeError, ValueError):
                continue
            raise AssertionError(f"load_role takes a file with a {how} tensor without a word")
    return "a renamed and a missing tensor both raise"


def _batches(kit: Kit) -> str:
    answers, codes = kit.sample("solver", temperature=0.0), kit.backbone.encode_images(kit.images)
    both, drawn = kit.read("solver", answers), kit.draw_stats("generator", codes)
    worst = 0.0
    for i in range(2):
        prefix = kit.backbone.prefix([kit.images[i]], role="solver")
        alone = kit.backbone.answer(prefix, [kit.prompts[i]], max_new_tokens=answers.ids.shape[1])
        _expect(alone.texts[0] == answers.texts[i], f"image {i} is answered differently alone and in a batch")
        row = Answers(alone.texts, answers.ids[i : i + 1], answers.mask[i : i + 1], answers.logp[i : i + 1])
        single = kit.backbone.text_stats([kit.images[i]], [kit.prompts[i]], row, role="solver")
        worst = max(worst, _near(kit, single.logp[0], both.logp[i], f"image {i}: logp alone and in a batch"))
        one = kit.draw_stats("generator", codes[i : i + 1], rows=[i]).loss[0]
        worst = max(worst, _near(kit, one, drawn.loss[i], f"drawing {i}: loss alone and in a batch"))
    return f"a row alone and in a batch differ by {worst:.1e} nats at most"


def _drawing_logp(kit: Kit) -> str:
    drawn = kit.backbone.generate_images(kit.draw, seeds=[5, 6], role="generator")
    if drawn.logp is None:
        _expect(kit.backbone.spec.paradigm != "autoregressive", "generate_images gives tokens without their logp")
        return "no token log-probabilities: the model draws by regression"
    stats = kit.draw_stats("generator", drawn.codes)
    _expect(stats.logp is not None, "generate_images gives log-probabilities, generation_stats none")
    worst = _near(kit, drawn.logp, stats.logp, "logp of drawn codes, when drawn and teacher-forced")
    return f"drawn and teacher-forced log-probabilities differ by {worst:.1e} nats at most"


def _drawing_noise(kit: Kit) -> str:
    codes = kit.backbone.encode_images(kit.images)
    once, again = (kit.draw_stats("generator", codes) for _ in range(2))
    if kit.backbone.spec.paradigm == "autoregressive":
        return "no noise: the model's likelihood is exact"
    _expect(once.pred is not None, "generation_stats of a regression gives no prediction")
    _expect(once.target is not None and once.pred.shape == once.target.shape, "pred needs a target of its shape")
    _near(kit, once.pred, again.pred, "predictions under the same noise")
    base = kit.draw_stats(None, codes)
    _near(kit, base.target, once.target, "targets of the base and of a role under the same noise")
    error = (once.pred - once.target).square().flatten(1).mean(1)
    worst = _near(kit, error, once.loss, "loss and mean squared error of pred and target")
    _expect(not torch.equal(once.target[0, 0], once.target[0, 1]), "two draws of one drawing share their noise")
    return f"policy and base see the same noise; the loss is the mean squared error within {worst:.1e}"


def _drawing_seeds(kit: Kit) -> str:
    a, b = kit.draw
    draw = lambda prompts, seeds: kit.backbone.generate_images(prompts, seeds=seeds, role="generator").codes
    torch.manual_seed(1)
    together = draw([a, b, a, a, a], [1, 2, 1, 3, 4])
    torch.manual_seed(2)
    alone = torch.cat([draw([a], [1]), draw([b], [2])])
    _near(kit, together[0], together[2], "codes of one seed and prompt in one batch")
    _near(kit, together[:2], alone, "codes of one seed and prompt in two batches")
    _expect(not (torch.equal(together[0], together[3]) and torch.equal(together[0], together[4])),
            "three seeds give one drawing: the seed has no effect")
    return "the same seed and prompt give the same drawing in any batch; other seeds give others"


def _image_matters(kit: Kit) -> str:
    # raw logits, since a sure answer has ln p = 0 about both images
    answers, prompts = kit.sample("solver", (0, 0), temperature=0.0), [kit.prompts[0]] * 2
    scored = kit.backbone.text_stats(kit.images, prompts, answers, role="solver", keep_logits=True).logits
    prefix = kit.backbone.prefix(kit.images, role="solver")
    told = kit.backbone.answer(prefix, prompts, max_new_tokens=1, keep_logits=1).logits
    gaps = [(logits[0, 0] - logits[1, 0]).abs().max().item() for logits in (scored, told)]
    for gap, path in zip(gaps, ("text_stats", "answer"), strict=True):
        _expect(gap > kit.tolerance, f"{path}: p(text | image) is the same for two different images")
    return f"another image changes the logits by {min(gaps):.2g}"


def _adapters(kit: Kit) -> str:
    groups = {role: kit.backbone.role_parameters(role) for role in ROLES}
    for role, parameters in groups.items():
        _expect(len(parameters) > 0, f"role {role} has no parameters")
        kinds = {str(p.dtype) for p in parameters}
        _expect(kinds == {"torch.float32"}, f"{role} adapters are {sorted(kinds)}: small steps vanish below fp32")
        _expect(all(p.requires_grad for p in parameters), f"{role} has frozen adapter tensors")
        again = [id(p) for p in kit.backbone.role_parameters(role)]
        _expect(again == [id(p) for p in parameters], f"the order of {role}'s parameters changes between calls")
    every = [id(p) for parameters in groups.values() for p in parameters]
    _expect(len(set(every)) == len(every), "two roles share a parameter")
    return f"{len(every)} adapter tensors in fp32, none shared"


CHECKS: dict[str, Callable[[Kit], str]] = {
    "answer_logp": _answer_logp, "prefix_path": _prefix_path, "raw_logits": _raw_logits, "role_none": _role_none,
    "gradients": _gradients, "isolation": _isolation, "round_trip": _round_trip, "strict_load": _strict_load,
    "batches": _batches, "drawing_logp": _drawing_logp, "drawing_noise": _drawing_noise,
    "drawing_seeds": _drawing_seeds,
    "image_matters": _image_matters, "adapters": _adapters,
}
