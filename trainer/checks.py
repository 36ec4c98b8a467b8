"""A request to create a job, checked and filled in. Everything that is wrong with it is told at once."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from pseudoword.names import ConceptName, InvalidName, JobName, PictureName, TenantName
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from diffusion.checkpoint import BaseModel
from diffusion.errors import PromptTooLong
from diffusion.messages import base_model
from diffusion.prompt import parse
from rpc.errors import Error, Unimplemented
from rpc.identity import Principal, to_json
from rpc.validate import Violations
from trainer.book import CreateJob
from trainer.engine import Engine
from trainer.recipe import fill_in
from trainer.templates import OBJECT, STARTS, STYLE

MAX_EXAMPLES = 32
MAX_VECTORS = 16
_MAX_CAPTION = 500
_MAX_START = 200
_MAX_DESCRIPTION = 2_000  # as the registry's
_STYLE = registry_resources.CONCEPT_KIND_STYLE


class JobChecks:
    """Checks jobs for one resident model."""

    def __init__(self, model: BaseModel, engine: Engine) -> None:
        self._model = model
        self._engine = engine

    def create(self, tenant: TenantName, job: resources_pb2.Job, principal: Principal, wrong: Violations) -> CreateJob:
        """The command that creates the job which `job` describes.

        Raises InvalidArgument with all that is wrong, also with what `wrong` holds already, and Unimplemented.
        """
        _refuse_unbuilt(job)
        _check_concept(tenant, job, wrong)
        kind = job.kind or registry_resources.CONCEPT_KIND_OBJECT
        if kind not in registry_resources.ConceptKind.values():
            wrong.add("job.kind", f"{kind} is no kind of concept")
            kind = registry_resources.CONCEPT_KIND_OBJECT
        vectors = job.vectors or 1
        wrong.number("job.vectors", vectors, 1, MAX_VECTORS)
        if job.seed < 0:
            wrong.add("job.seed", "must not be negative")
        wrong.number("job.priority", job.priority, -9, 9)
        wrong.characters("job.description", job.description, _MAX_DESCRIPTION)
        wrong.labels("job.labels", job.labels)
        recipe = fill_in(job.recipe, kind, self._model.spec.family, wrong)
        self._check_examples(tenant, job.examples, min(max(vectors, 1), MAX_VECTORS), wrong)
        start = self._start(job, kind, wrong)
        wrong.raise_if_any()
        spec = resources_pb2.Job(
            concept=job.concept,
            kind=kind,
            examples=job.examples,
            start=resources_pb2.Start(words=start),
            vectors=vectors,
            seed=job.seed,
            recipe=recipe.message(),
            priority=job.priority,
            description=job.description,
            labels=job.labels,
            base_model=base_model(self._model.spec),
        )
        return CreateJob(
            # Of a resource name's form, which begins with a letter.
            name=str(JobName(tenant.tenant, f"j{secrets.token_hex(10)}")),
            tenant=tenant.tenant,
            priority=job.priority,
            spec=_to_json(spec),
            pictures=[example.picture for example in job.examples],
            creator=principal.caller.name,
            principal=to_json(principal.caller),
        )

    def _check_examples(
        self, tenant: TenantName, examples: Sequence[resources_pb2.Example], vectors: int, wrong: Violations
    ) -> None:
        if not 1 <= len(examples) <= MAX_EXAMPLES:
            wrong.add("job.examples", f"has {len(examples)}; it must have 1 to {MAX_EXAMPLES}")
        for index, example in enumerate(examples[:MAX_EXAMPLES]):
            at = f"job.examples[{index}]"
            try:
                if PictureName.parse(example.picture).tenant != tenant.tenant:
                    wrong.add(f"{at}.picture", f"must be a picture of {tenant}")
            except InvalidName as error:
                wrong.add(f"{at}.picture", str(error))
            if example.caption:
                self._check_caption(f"{at}.caption", example.caption, vectors, wrong)

    def _check_caption(self, field: str, caption: str, vectors: int, wrong: Violations) -> None:
        wrong.characters(field, caption, _MAX_CAPTION)
        if caption.count("{}") != 1:
            wrong.add(field, "must hold {} once, in the word's place")
            return
        if len(caption) > _MAX_CAPTION:
            return
        others = [str(word) for part in caption.split("{}") for word in parse(part).words]
        if others:
            wrong.add(field, f"holds another word, <{others[0]}>; write \\< for an ordinary <")
            return
        try:
            self._engine.check_length(caption, vectors)
        except PromptTooLong as error:
            wrong.add(field, error.message)

    def _start(self, job: resources_pb2.Job, kind: int, wrong: Violations) -> str:
        words = " ".join(job.start.words.split())
        if job.start.words and not words:
            wrong.add("job.start.words", "is blank; leave it out for the recipe's own start")
        if not words:
            return self._engine.start_for(STARTS["style" if kind == _STYLE else "object"])
        wrong.characters("job.start.words", job.start.words, _MAX_START)
        if len(words) <= _MAX_START:
            try:
                self._engine.start_ids(words)
            except Error as error:
                wrong.add("job.start.words", error.message)
        return words


def templates(job: resources_pb2.Job, engine: Engine) -> list[Sequence[str]]:
    """The sentences for each of a job's pictures: its caption, or all of its kind's that the encoder has room for."""
    usual = STYLE if job.kind == _STYLE else OBJECT
    fitting = []
    for template in usual:
        try:
            engine.check_length(template, job.vectors)
        except PromptTooLong:
            continue
        fitting.append(template)
    return [[example.caption] if example.caption else fitting or usual[:1] for example in job.examples]


def _check_concept(tenant: TenantName, job: resources_pb2.Job, wrong: Violations) -> None:
    try:
        if ConceptName.parse(job.concept).tenant != tenant.tenant:
            wrong.add("job.concept", f"must be a concept of {tenant}")
    except InvalidName as error:
        wrong.add("job.concept", str(error))


def _refuse_unbuilt(job: resources_pb2.Job) -> None:
    start = job.start.WhichOneof("start")
    unbuilt = {
        "masks": any(example.mask for example in job.examples),
        "start from a version": start == "version",
        "start from the vocabulary's best word": start == "best_of_vocabulary",
        "learned start": start == "learned",
        "word at once": job.word_at_once,
    }
    for part, asked in unbuilt.items():
        if asked:
            raise Unimplemented(f"{part}: not built yet", metadata={"part": part})


def _to_json(spec: resources_pb2.Job) -> Mapping[str, Any]:
    found: dict[str, Any] = MessageToDict(spec, preserving_proto_field_name=True)
    return found
