"""A batch as its client asks for it: checked, every default filled in."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pseudoword.generation.v1 import generation_pb2, resources_pb2

from diffusion.spec import ModelSpec
from rpc.errors import InvalidArgument
from rpc.validate import Violations
from service.batches.plan import BLANK, Item, Plan, fill
from service.request.params import FORMATS, GenerationParams, validate
from service.settings import GenerationSettings

_LAYOUTS = (resources_pb2.Batch.LAYOUT_FOLDER, resources_pb2.Batch.LAYOUT_WEBDATASET)
_MAX_BLANKS = 8
_MAX_TOLD = 20  # wrong prompts that are named
_PRIORITY = -9  # behind everybody; waiting raises it, as it does others


@dataclass(frozen=True, kw_only=True)
class Order:
    """A checked batch: all that it takes to draw it. `batch` has its seed set and no default left open."""

    batch: resources_pb2.Batch
    plan: Plan

    def request(self, parent: str, item: Item) -> generation_pb2.GenerateRequest:
        """One picture as a client would ask for it alone."""
        request = generation_pb2.GenerateRequest(
            parent=parent, settings=self.batch.settings, format=self.batch.format, priority=_PRIORITY
        )
        request.settings.prompt = item.prompt
        request.settings.seed = item.seed
        return request


def order(batch: resources_pb2.Batch, shard_pictures: int) -> Order:
    """What a checked batch draws."""
    blanks = {blank.name: blank.texts for blank in batch.blanks}
    prompts = batch.prompts or fill(batch.settings.prompt, blanks)
    plan = Plan(prompts=prompts, seeds=batch.seeds, seed=batch.settings.seed, shard_pictures=shard_pictures)
    return Order(batch=batch, plan=plan)


def validate_batch(
    parent: str, asked: resources_pb2.Batch, spec: ModelSpec, settings: GenerationSettings, wrong: Violations
) -> tuple[Order, Sequence[GenerationParams]]:
    """The order, and the drawing of each of its prompts. Takes up to seconds for many prompts.

    Raises InvalidArgument with all that is wrong, also with what `wrong` holds already.
    """
    batch = resources_pb2.Batch(
        settings=asked.settings,
        prompts=asked.prompts,
        blanks=asked.blanks,
        seeds=asked.seeds or 1,
        format=asked.format or resources_pb2.PICTURE_FORMAT_PNG,
        layout=asked.layout or resources_pb2.Batch.LAYOUT_FOLDER,
    )
    if not batch.settings.HasField("seed"):
        batch.settings.seed = secrets.randbelow(2**31)
    if batch.format not in FORMATS:
        wrong.add("batch.format", f"{batch.format} is no picture format: PNG, JPEG or WEBP")
    if batch.layout not in _LAYOUTS:
        wrong.add("batch.layout", f"{batch.layout} is no layout: FOLDER or WEBDATASET")
    limit = settings.batches.max_pictures
    wrong.number("batch.seeds", batch.seeds, 1, limit)
    combinations = _check_prompts(batch, wrong)
    if combinations * batch.seeds > limit:
        wrong.add("batch", f"would be {combinations * batch.seeds} pictures; {limit} are allowed")
    wrong.raise_if_any()
    made = order(batch, settings.batches.shard_pictures)
    return made, _all_params(parent, made, spec, settings, wrong)


def _check_prompts(batch: resources_pb2.Batch, wrong: Violations) -> int:
    """How many prompts there are."""
    if not batch.prompts:
        return _check_blanks(batch, wrong)
    if batch.settings.prompt:
        wrong.add("batch.settings.prompt", "must be empty where there are prompts")
    if batch.blanks:
        wrong.add("batch.blanks", "are of settings.prompt; prompts are drawn as they are")
    return len(batch.prompts)


def _check_blanks(batch: resources_pb2.Batch, wrong: Violations) -> int:
    in_prompt = set(BLANK.findall(batch.settings.prompt))
    if len(batch.blanks) > _MAX_BLANKS:
        wrong.add("batch.blanks", f"has {len(batch.blanks)}; {_MAX_BLANKS} are allowed")
    combinations = 1
    names = set()
    for index, blank in enumerate(batch.blanks[:_MAX_BLANKS]):
        at = f"batch.blanks[{index}]"
        if blank.name not in in_prompt or blank.name in names:
            wrong.add(f"{at}.name", f"{blank.name[:64]!r} must be in settings.prompt as {{name}}, and be given once")
        names.add(blank.name)
        if not blank.texts:
            wrong.add(f"{at}.texts", "is empty")
        combinations *= len(blank.texts)
    if batch.blanks and (left := in_prompt - names):
        wrong.add("batch.blanks", f"has no {', '.join(sorted(left))}, which settings.prompt names")
    return combinations


def _all_params(
    parent: str, made: Order, spec: ModelSpec, settings: GenerationSettings, wrong: Violations
) -> Sequence[GenerationParams]:
    plan = made.plan
    all_params, faults = [], 0
    for number, prompt in enumerate(plan.prompts):
        last_seed = plan.seed + plan.seeds - 1
        request = made.request(parent, Item(index=number, prompt=prompt, seed=last_seed))
        if number:  # the pictures are the same for all
            for field in ("start_picture", "mask", "strength"):
                request.settings.ClearField(field)
        try:
            all_params.append(validate(request, spec, settings.defaults, settings.limits))
        except InvalidArgument as error:
            faults += 1
            for field, text in error.violations:
                of_prompt = field == "settings.prompt" and made.batch.prompts
                wrong.add(f"batch.prompts[{number}]" if of_prompt else f"batch.{field}", text)
            if not made.batch.prompts or faults == _MAX_TOLD:
                break
    wrong.raise_if_any()
    return all_params
