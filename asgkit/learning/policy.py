"""Is what a run samples drawn from the policy that its update scores? If not, the run does not start.

Log-probabilities are those of the policy itself: temperature 1, without guidance and without top-p. A sampler with
other settings is another, sharper policy. The ratio of policy to sampler is then not 1 where the update takes it to be,
by orders of magnitude in a drawing of many tokens, and neither the clip nor the log would show it. A regression has no
such ratio, nor has a text that is taught as a label.
"""

from __future__ import annotations

from asgkit.backbones.base import BackboneSpec, NativeSampling
from asgkit.config import Config
from asgkit.config.reads import reads
from asgkit.errors import ConfigError


def drawing_sampler(config: Config, spec: BackboneSpec) -> NativeSampling:
    """How a run draws: its settings, and the backbone's own where they are None; a temperature that is set goes
    without top-p."""
    g, native = config.generator, spec.native
    guidance = native.guidance if g.guidance is None else g.guidance
    if g.temperature is None:
        return native._replace(guidance=guidance)
    return NativeSampling(guidance, g.temperature, 1.0)


def refuse_unfit(config: Config, spec: BackboneSpec) -> None:
    """Raise ConfigError for settings under which a backbone cannot learn what they say."""
    refuse_off_policy(config, spec)
    hinted = reads(config.recipe, "solver.focus_hints") and config.solver.focus_hints
    if hinted and not spec.prompts.hints:
        raise ConfigError(f"solver.focus_hints=true needs hints, and the prompts of {spec.name} have none: leave it "
                          "off")
    if config.generator.regression_space == "velocity" and not spec.has_velocity:
        raise ConfigError(f"generator.regression_space=velocity needs a model that draws along velocities, and "
                          f"{spec.name} does not: leave it at native")


def refuse_off_policy(config: Config, spec: BackboneSpec) -> None:
    """Raise ConfigError, which names the setting to change, when an update would score other than what was sampled."""
    for role in ("proposer", "solver"):
        settings = getattr(config, role)
        if not reads(config.recipe, f"{role}.temperature") or not settings.train or config.schedule.understanding == 0:
            continue
        # labels of `sft` are no samples of the policy, but where a control teaches each framing its own
        if role == "solver" and settings.update == "sft" and config.control not in ("random", "format"):
            continue
        for name in ("temperature", "top_p"):
            if getattr(settings, name) != 1.0:
                raise _refusal(f"{role}.{name}", getattr(settings, name), "texts", f"{role}.{name}=1")
    if _draws_tokens(config, spec):
        sampler = drawing_sampler(config, spec)
        for name, value in zip(NativeSampling._fields, sampler, strict=True):
            if value != 1.0:
                key = f"generator.{'guidance' if name == 'guidance' else 'temperature'}"
                own = f"generator.{name}" if name != "top_p" else f"top_p of {spec.name}'s own sampling"
                raise _refusal(own, value, "drawings", f"{key}=1")


def _draws_tokens(config: Config, spec: BackboneSpec) -> bool:
    """Whether the Generator learns from the log-probabilities of tokens that it drew."""
    g = config.generator
    scheduled = not reads(config.recipe, "schedule.generation") or config.schedule.generation > 0
    real = reads(config.recipe, "generator.target") and g.target == "source_image"  # pictures that nobody sampled
    return spec.draws_tokens and g.train and scheduled and not real


def _refusal(name: str, value: float, what: str, change: str) -> ConfigError:
    return ConfigError(f"{name} is {value:g}, but the update scores {what} as the policy itself samples them "
                       f"(temperature 1, without guidance and top-p): set {change}")
