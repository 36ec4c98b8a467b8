"""The parameters of a request: its settings, validated, with every default filled in."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import TenantName

from diffusion.errors import WeightInvalid
from diffusion.prompt import Prompt, parse
from diffusion.schedulers import SCHEDULERS
from diffusion.spec import ModelSpec
from rpc.validate import Violations
from service.request.init_image import InitImage, validate_init_image
from service.settings import Defaults, Limits

_GREATEST_SEED = 2**63 - 1
_MAX_PROMPT_BYTES = 8192
_MAX_WEIGHT = 10.0
FORMATS: Mapping[int, str] = {
    resources_pb2.PICTURE_FORMAT_UNSPECIFIED: "PNG",
    resources_pb2.PICTURE_FORMAT_PNG: "PNG",
    resources_pb2.PICTURE_FORMAT_JPEG: "JPEG",
    resources_pb2.PICTURE_FORMAT_WEBP: "WEBP",
}


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """A request's parameters, validated, with every default filled in. `prompt` is `prompt_text`, parsed. Sizes are in
    pixels; picture i has the seed `seed` + i."""

    tenant: str
    prompt_text: str
    negative_prompt_text: str
    prompt: Prompt
    negative_prompt: Prompt
    seed: int
    steps: int
    guidance: float
    scheduler: str
    width: int
    height: int
    count: int
    format: str
    quality: int
    preview_every: int
    priority: int
    exact: bool
    allow_family: bool
    clip_skip: int
    prompt_weights: bool
    init_image: InitImage | None

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is used: at a guidance of 1 it cancels out."""
        return self.guidance > 1

    @property
    def calls(self) -> int:
        """Denoiser calls for one picture."""
        return SCHEDULERS[self.scheduler].model_calls(self.steps, self.init_image.strength if self.init_image else 1.0)

    def settings(self, index: int) -> resources_pb2.PictureSettings:
        """The complete settings of picture `index`, for its record."""
        settings = resources_pb2.PictureSettings(
            prompt=self.prompt_text,
            negative_prompt=self.negative_prompt_text,
            seed=self.seed + index,
            steps=self.steps,
            guidance_scale=self.guidance,
            scheduler=self.scheduler,
            width=self.width,
            height=self.height,
            exact=self.exact,
            allow_family=self.allow_family,
            clip_skip=self.clip_skip,
            prompt_weights=self.prompt_weights,
        )
        if self.init_image is not None:
            settings.strength = self.init_image.strength
        return settings


def validate(
    request: generation_pb2.GenerateRequest, spec: ModelSpec, defaults: Defaults, limits: Limits
) -> GenerationParams:
    """Validates a request at the edge. Raises InvalidArgument with every violation."""
    settings = request.settings
    wrong = Violations()
    tenant = wrong.name(TenantName, request.parent, "parent")
    wrong.text("settings.prompt", settings.prompt, _MAX_PROMPT_BYTES, required=True, prose=True)
    wrong.text("settings.negative_prompt", settings.negative_prompt, _MAX_PROMPT_BYTES, prose=True)
    count = request.count or 1
    wrong.number("count", count, 1, limits.max_count)
    seed = settings.seed if settings.HasField("seed") else secrets.randbelow(2**31)
    wrong.number("settings.seed", seed, 0, _GREATEST_SEED - count)
    steps = settings.steps if settings.HasField("steps") else defaults.steps
    wrong.number("settings.steps", steps, 1, limits.max_steps)
    # Kept at the 32-bit precision of the wire, so that the same number gives the same picture.
    guidance = settings.guidance_scale if settings.HasField("guidance_scale") else defaults.guidance
    if not math.isfinite(guidance) or not 1 <= guidance <= limits.max_guidance:
        wrong.add("settings.guidance_scale", f"is {guidance:g}; it must be from 1 to {limits.max_guidance:g}")
    scheduler = settings.scheduler or defaults.scheduler
    if scheduler not in SCHEDULERS:
        wrong.add("settings.scheduler", f"{scheduler[:64]!r} is not one of {', '.join(sorted(SCHEDULERS))}")
    elif steps > SCHEDULERS[scheduler].max_steps:
        wrong.add("settings.steps", f"is {steps}; {scheduler} allows at most {SCHEDULERS[scheduler].max_steps}")
    wrong.number("settings.clip_skip", settings.clip_skip, 0, spec.encoders[0].layers - 1)
    prompts = {}
    for field in ("prompt", "negative_prompt"):
        try:
            prompts[field] = parse(getattr(settings, field), weights=settings.prompt_weights)
        except WeightInvalid as error:
            wrong.add(f"settings.{field}", error.message)
            continue
        if not all(abs(weight) <= _MAX_WEIGHT for weight in prompts[field].weights):  # NaN is not within limits
            wrong.add(f"settings.{field}", f"contains a weight outside of -{_MAX_WEIGHT:g} to {_MAX_WEIGHT:g}")
    init_image, info = validate_init_image(settings, defaults.strength, wrong)
    if init_image is not None and 0 < init_image.strength <= 1 <= steps and not int(steps * init_image.strength):
        wrong.add(
            "settings.strength", f"is {init_image.strength:g}, which leaves no step of {steps}: raise strength or steps"
        )
    sizes = {}
    for side in ("width", "height"):
        # The default is the start picture's size, rounded down to a multiple that the model can draw.
        default = (
            spec.sample_size_px
            if info is None
            else getattr(info, side) // spec.size_multiple_px * spec.size_multiple_px
        )
        px = getattr(settings, side) if settings.HasField(side) else default
        wrong.number(f"settings.{side}", px, spec.size_multiple_px, limits.max_size_px)
        if px % spec.size_multiple_px:
            wrong.add(f"settings.{side}", f"is {px}; it must be a multiple of {spec.size_multiple_px}")
        sizes[side] = px
    if request.format not in FORMATS:
        wrong.add("format", f"{request.format} is not a picture format; use PNG, JPEG or WEBP")
    quality = request.quality or 90
    wrong.number("quality", quality, 1, 100)
    wrong.number("preview_every", request.preview_every, 0, limits.max_steps)
    wrong.number("priority", request.priority, -9, 9)
    wrong.raise_if_any()
    return GenerationParams(
        tenant=tenant.tenant,
        prompt_text=settings.prompt,
        negative_prompt_text=settings.negative_prompt,
        prompt=prompts["prompt"],
        negative_prompt=prompts["negative_prompt"],
        seed=seed,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        width=sizes["width"],
        height=sizes["height"],
        count=count,
        format=FORMATS[request.format],
        quality=quality,
        preview_every=request.preview_every,
        priority=request.priority,
        exact=settings.exact,
        allow_family=settings.allow_family,
        clip_skip=settings.clip_skip,
        prompt_weights=settings.prompt_weights,
        init_image=init_image,
    )
