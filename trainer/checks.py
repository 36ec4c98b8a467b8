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
from rpc.errors import Error
from rpc.identity import Principal, to_json
from rpc.validate import Violations
from trainer.book import CreateJob
from trainer.engine import Engine
from trainer.recipe import fill_in
from trainer.templates import STARTS, TEMPLATES

MAX_EXAMPLES = 32
MAX_VECTORS = 16
_MAX_CAPTION = 500
_MAX_START = 200
_MAX_DESCRIPTION = 2_000  # as the registry's


class JobChecks:
    """Checks jobs for one resident model."""

    def __init__(self, model: BaseModel, engine: Engine) -> None:
        self._model = model
        self._engine = engine

    def create(
        self,
        tenant: TenantName,
        job: resources_pb2.Job,
        principal: Principal,
        wrong: Violations,
        *,
        parent: registry_resources.Version | None,
    ) -> CreateJob:
        """The command that creates the job which `job` describes; `parent` is the version that it starts from, if it
        does.

        Raises InvalidArgument with all that is wrong, also with what `wrong` holds already, and Unimplemented.
        """
        _check_owned(ConceptName, job.concept, "job.concept", tenant, wrong)
        kind = job.kind or registry_resources.CONCEPT_KIND_OBJECT
        if kind not in registry_resources.ConceptKind.values():
            wrong.add("job.kind", f"{kind} is no kind of concept")
            kind = registry_resources.CONCEPT_KIND_OBJECT
        vectors = job.vectors or (parent.base_model.encoders[0].vectors if parent is not None else 1)
        wrong.number("job.vectors", vectors, 1, MAX_VECTORS)
        if job.seed < 0:
            wrong.add("job.seed", "must not be negative")
        wrong.number("job.priority", job.priority, -9, 9)
        wrong.characters("job.description", job.description, _MAX_DESCRIPTION)
        wrong.labels("job.labels", job.labels)
        recipe = fill_in(job.recipe, kind, self._model.spec.family, wrong)
        self._check_examples(tenant, job.examples, min(max(vectors, 1), MAX_VECTORS), wrong)
        start = self._start(job, recipe.name, parent, wrong)
        if job.word_at_once and start.WhichOneof("start") != "learned":
            wrong.add("job.word_at_once", "needs the learned start, which says a word without training")
        wrong.raise_if_any()
        spec = resources_pb2.Job(
            concept=job.concept,
            kind=kind,
            examples=job.examples,
            start=start,
            vectors=vectors,
            seed=job.seed,
            recipe=recipe.message(),
            priority=job.priority,
            word_at_once=job.word_at_once,
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
            _check_owned(PictureName, example.picture, f"{at}.picture", tenant, wrong)
            if example.mask:
                _check_owned(PictureName, example.mask, f"{at}.mask", tenant, wrong)
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

    def _start(
        self, job: resources_pb2.Job, recipe: str, parent: registry_resources.Version | None, wrong: Violations
    ) -> resources_pb2.Start:
        """The start with everything filled in."""
        match job.start.WhichOneof("start"):
            case "best_of_vocabulary":
                if not job.start.best_of_vocabulary:
                    wrong.add("job.start.best_of_vocabulary", "is false; leave the start out for the recipe's own")
                return job.start
            case "version":
                if parent is not None:
                    self._check_parent(job, parent, wrong)
                return job.start
            case "encoded_words":
                return resources_pb2.Start(encoded_words=self._words("encoded_words", job.start.encoded_words, wrong))
            case "words":
                return resources_pb2.Start(words=self._words("words", job.start.words, wrong))
            case "learned":
                self._check_learned(job, recipe, wrong)
                return job.start
        if recipe in self._engine.starts.learned_kinds:
            return resources_pb2.Start(learned=True)
        return resources_pb2.Start(words=self._engine.starts.first_of(STARTS[recipe]))

    def _check_learned(self, job: resources_pb2.Job, recipe: str, wrong: Violations) -> None:
        known = self._engine.starts.learned_kinds
        if not job.start.learned:
            wrong.add("job.start.learned", "is false; leave the start out for the recipe's own")
        elif not known:
            wrong.add(
                "job.start.learned",
                f"there is none for {self._model.spec.checkpoint}; its operator makes one with"
                " `python -m trainer fit-start`",
            )
        elif recipe not in known:
            wrong.add("job.start.learned", f"knows {' and '.join(known)} concepts, not the recipe {recipe!r}")

    def _words(self, kind: str, text: str, wrong: Violations) -> str:
        field, words = f"job.start.{kind}", " ".join(text.split())
        if not words:
            wrong.add(field, "is blank; leave the start out for the recipe's own")
        wrong.characters(field, text, _MAX_START)
        if len(words) <= _MAX_START:
            try:
                self._engine.starts.ids(words)
                self._engine.check_length(f"{words} {{}}", 0)
            except (Error, PromptTooLong) as error:
                wrong.add(field, error.message)
        return words

    def _check_parent(self, job: resources_pb2.Job, parent: registry_resources.Version, wrong: Violations) -> None:
        here = base_model(self._model.spec)
        made_for = [(one.name, one.dimensions, one.vocabulary_digest) for one in parent.base_model.encoders]
        if made_for != [(one.name, one.dimensions, one.vocabulary_digest) for one in here.encoders]:
            wrong.add(
                "job.start.version",
                f"was made for another base model ({parent.base_model.family} {parent.base_model.checkpoint}) than the"
                f" one that is trained on ({here.family} {here.checkpoint})",
            )
        elif job.vectors and job.vectors != parent.base_model.encoders[0].vectors:
            wrong.add("job.vectors", f"the version to start from has {parent.base_model.encoders[0].vectors}")


def templates(job: resources_pb2.Job, engine: Engine) -> list[Sequence[str]]:
    """The sentences for each of a job's pictures: its caption, or all of its recipe's that the encoder has room for."""
    usual = TEMPLATES[job.recipe.name]
    fitting = []
    for template in usual:
        try:
            engine.check_length(template, job.vectors)
        except PromptTooLong:
            continue
        fitting.append(template)
    return [[example.caption] if example.caption else fitting or usual[:1] for example in job.examples]


def _check_owned(
    kind: type[ConceptName] | type[PictureName], name: str, field: str, tenant: TenantName, wrong: Violations
) -> None:
    """`name` must be a resource of this kind and of this tenant."""
    try:
        if kind.parse(name).tenant != tenant.tenant:
            wrong.add(field, f"must be of {tenant}")
    except InvalidName as error:
        wrong.add(field, str(error))


def _to_json(spec: resources_pb2.Job) -> Mapping[str, Any]:
    found: dict[str, Any] = MessageToDict(spec, preserving_proto_field_name=True)
    return found
