"""Validates a client's batch and fills in its defaults."""

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
_MAX_REPORTED = 20  # invalid prompts that an error names
_PRIORITY = -9  # the lowest; waiting raises it, like every other priority


@dataclass(frozen=True, kw_only=True)
class Order:
    """A valid batch and its plan. `batch` has its seed and every default set."""

    batch: resources_pb2.Batch
    plan: Plan

    def request(self, parent: str, item: Item) -> generation_pb2.GenerateRequest:
        """The request that would draw one picture of the batch alone."""
        request = generation_pb2.GenerateRequest(
            parent=parent, settings=self.batch.settings, format=self.batch.format, priority=_PRIORITY
        )
        request.settings.prompt = item.prompt
        request.settings.seed = item.seed
        return request


def order(batch: resources_pb2.Batch, shard_pictures: int) -> Order:
    """The order of a valid batch."""
    blanks = {blank.name: blank.texts for blank in batch.blanks}
    prompts = batch.prompts or fill(batch.settings.prompt, blanks)
    plan = Plan(prompts=prompts, seeds=batch.seeds, seed=batch.settings.seed, shard_pictures=shard_pictures)
    return Order(batch=batch, plan=plan)


def validate_batch(
    parent: str, given: resources_pb2.Batch, spec: ModelSpec, settings: GenerationSettings, wrong: Violations
) -> tuple[Order, Sequence[GenerationParams]]:
    """The order, and the parameters of each of its prompts. May take seconds for many prompts.

    Raises InvalidArgument with all violations, including those that `wrong` holds already.
    """
    batch = resources_pb2.Batch(
        settings=given.settings,
        prompts=given.prompts,
        blanks=given.blanks,
        seeds=given.seeds or 1,
        format=given.format or resources_pb2.PICTURE_FORMAT_PNG,
        layout=given.layout or resources_pb2.Batch.LAYOUT_FOLDER,
    )
    if not batch.settings.HasField("seed"):
        batch.settings.seed = secrets.randbelow(2**31)
    if batch.format not in FORMATS:
        wrong.add("batch.format", f"{batch.format} is not a picture format; use PNG, JPEG or WEBP")
    if batch.layout not in _LAYOUTS:
        wrong.add("batch.layout", f"{batch.layout} is not a layout; use FOLDER or WEBDATASET")
    limit = settings.batches.max_pictures
    wrong.number("batch.seeds", batch.seeds, 1, limit)
    combinations = _check_prompts(batch, wrong)
    if combinations * batch.seeds > limit:
        wrong.add("batch", f"would have {combinations * batch.seeds} pictures; the limit is {limit}")
    wrong.raise_if_any()
    checked = order(batch, settings.batches.shard_pictures)
    return checked, _all_params(parent, checked, spec, settings, wrong)


def _check_prompts(batch: resources_pb2.Batch, wrong: Violations) -> int:
    """The number of prompts."""
    if not batch.prompts:
        return _check_blanks(batch, wrong)
    if batch.settings.prompt:
        wrong.add("batch.settings.prompt", "must be empty if prompts are given")
    if batch.blanks:
        wrong.add("batch.blanks", "must be empty if prompts are given: blanks are filled in settings.prompt only")
    return len(batch.prompts)


def _check_blanks(batch: resources_pb2.Batch, wrong: Violations) -> int:
    in_prompt = set(BLANK.findall(batch.settings.prompt))
    if len(batch.blanks) > _MAX_BLANKS:
        wrong.add("batch.blanks", f"has {len(batch.blanks)} blanks; the limit is {_MAX_BLANKS}")
    combinations = 1
    names = set()
    for index, blank in enumerate(batch.blanks[:_MAX_BLANKS]):
        at = f"batch.blanks[{index}]"
        if blank.name not in in_prompt or blank.name in names:
            wrong.add(
                f"{at}.name", f"{blank.name[:64]!r} must be in settings.prompt as {{name}}, and must be given once"
            )
        names.add(blank.name)
        if not blank.texts:
            wrong.add(f"{at}.texts", "is empty")
        combinations *= len(blank.texts)
    if batch.blanks and (left := in_prompt - names):
        wrong.add("batch.blanks", f"lacks {', '.join(sorted(left))}, which settings.prompt names")
    return combinations


def _all_params(
    parent: str, checked: Order, spec: ModelSpec, settings: GenerationSettings, wrong: Violations
) -> Sequence[GenerationParams]:
    plan = checked.plan
    all_params, invalid = [], 0
    for number, prompt in enumerate(plan.prompts):
        last_seed = plan.seed + plan.seeds - 1
        request = checked.request(parent, Item(index=number, prompt=prompt, seed=last_seed))
        if number:  # start picture and mask are the same for all prompts: checked once
            for field in ("start_picture", "mask", "strength"):
                request.settings.ClearField(field)
        try:
            all_params.append(validate(request, spec, settings.defaults, settings.limits))
        except InvalidArgument as error:
            invalid += 1
            for field, text in error.violations:
                of_prompt = field == "settings.prompt" and checked.batch.prompts
                wrong.add(f"batch.prompts[{number}]" if of_prompt else f"batch.{field}", text)
            if not checked.batch.prompts or invalid == _MAX_REPORTED:
                break
    wrong.raise_if_any()
    return all_params
