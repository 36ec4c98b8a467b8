"""Validates a request to create a job and fills in its defaults. One error names all invalid fields."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from pseudoword.names import ConceptName, InvalidName, JobName, PictureName, TenantName
from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from diffusion.conversions import base_model
from diffusion.errors import PromptTooLong
from diffusion.prompt import parse
from diffusion.vocabulary import Vocabulary
from rpc.identity import Principal, to_json
from rpc.validate import Violations
from trainer.api.recipe_validation import validate_recipe
from trainer.errors import InitializerUnknown
from trainer.jobs.commands import CreateJob
from trainer.jobs.follow_up import LAST_PRIORITY
from trainer.training.initializer_words import InitializerWords
from trainer.training.recipe import name_of
from trainer.training.template_fitter import TemplateFitter
from trainer.training.templates import STARTS

MAX_EXAMPLES = 32
MAX_VECTORS = 16
_MAX_CAPTION = 500
_MAX_START = 200
_MAX_DESCRIPTION = 2_000  # the registry's limit
_EVALUATION_PRIORITY = -1  # after training jobs, before the evaluations that the trainer creates
# Fields of a job about training or the published version.
_TRAINING_FIELDS = {"start", "vectors", "recipe", "word_at_once", "description", "labels"}


class JobValidator:
    """Validates jobs for one base model. Needs its vocabulary only, no weights."""

    def __init__(self, vocabulary: Vocabulary, learned_kinds: Sequence[str]) -> None:
        """`learned_kinds` are the kinds of concepts that the checkpoint's learned start supports."""
        self._spec = vocabulary.spec
        self._templates = TemplateFitter(vocabulary.tokenizer)
        self._initializer_words = InitializerWords(vocabulary.tokenizer)
        self._learned_kinds = learned_kinds

    def create(
        self,
        tenant: TenantName,
        job: resources_pb2.Job,
        principal: Principal,
        wrong: Violations,
        *,
        parent: registry_resources.Version | None,
    ) -> CreateJob:
        """The command that creates the training job `job`. `parent` is the version that it starts from, if any.

        Raises InvalidArgument with all violations, including those that `wrong` holds already.
        """
        _check_owned(ConceptName, job.concept, "job.concept", tenant, wrong)
        kind = _kind(job.kind, wrong)
        vectors = job.vectors or (parent.base_model.encoders[0].vectors if parent is not None else 1)
        wrong.number("job.vectors", vectors, 1, MAX_VECTORS)
        _check_seed(job, wrong)
        wrong.number("job.priority", job.priority, LAST_PRIORITY, 9)
        wrong.characters("job.description", job.description, _MAX_DESCRIPTION)
        wrong.labels("job.labels", job.labels)
        recipe = validate_recipe(job.recipe, kind, self._spec.family, wrong)
        self._check_examples(tenant, job.examples, min(max(vectors, 1), MAX_VECTORS), wrong)
        start = self._start(job, recipe.name, parent, wrong)
        if job.word_at_once and start.WhichOneof("start") != "learned":
            wrong.add("job.word_at_once", "needs the learned start, which predicts the word without training")
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
            base_model=base_model(self._spec),
        )
        return _command(tenant, spec, principal)

    def evaluation(
        self,
        tenant: TenantName,
        job: resources_pb2.Job,
        principal: Principal,
        wrong: Violations,
        *,
        subject: tuple[registry_resources.Version, registry_resources.Concept] | None,
    ) -> CreateJob:
        """The command that creates the evaluation of `subject`, a version and its concept. `subject` is None if `wrong`
        has the reason already. Raises InvalidArgument as `create`."""
        for field, value in job.ListFields():
            if field.name in _TRAINING_FIELDS and value:
                wrong.add(f"job.{field.name}", "must be absent: an evaluation trains nothing")
        _check_seed(job, wrong)
        wrong.number("job.priority", job.priority, LAST_PRIORITY, 0)
        version, concept = subject or (registry_resources.Version(), registry_resources.Concept())
        kind = _kind(job.kind or concept.kind, wrong)
        vectors = 1
        if subject is not None:
            self._check_made_for(version, "job.evaluates", "evaluated", wrong)
            vectors = version.base_model.encoders[0].vectors if version.base_model.encoders else 1
            if job.concept not in ("", concept.name):
                wrong.add("job.concept", f"must be the version's concept, {concept.name}, or absent")
        self._check_examples(tenant, job.examples, vectors, wrong)
        wrong.raise_if_any()
        spec = resources_pb2.Job(
            concept=concept.name,
            kind=kind,
            examples=job.examples,
            vectors=vectors,
            seed=job.seed,
            recipe=resources_pb2.Recipe(name=name_of(kind)),
            priority=job.priority or _EVALUATION_PRIORITY,
            base_model=base_model(self._spec),
            evaluates=version.name,
        )
        return _command(tenant, spec, principal)

    def _check_examples(
        self, tenant: TenantName, examples: Sequence[resources_pb2.Example], vectors: int, wrong: Violations
    ) -> None:
        if not 1 <= len(examples) <= MAX_EXAMPLES:
            wrong.add("job.examples", f"has {len(examples)} examples; it must have 1 to {MAX_EXAMPLES}")
        for index, example in enumerate(examples[:MAX_EXAMPLES]):
            at = f"job.examples[{index}]"
            _check_owned(PictureName, example.picture, f"{at}.picture", tenant, wrong)
            if example.mask:
                _check_owned(PictureName, example.mask, f"{at}.mask", tenant, wrong)
            if example.caption:
                self._check_caption(f"{at}.caption", example.caption, vectors, wrong)

    def _check_caption(self, field: str, caption: str, vectors: int, wrong: Violations) -> None:
        wrong.characters(field, caption, _MAX_CAPTION, prose=True)
        if caption.count("{}") != 1:
            wrong.add(field, "must contain {} exactly once, in the word's place")
            return
        if len(caption) > _MAX_CAPTION:
            return
        others = [str(word) for part in caption.split("{}") for word in parse(part).words]
        if others:
            wrong.add(field, f"contains another word, <{others[0]}>; write \\< for an ordinary <")
            return
        try:
            self._templates.check_length(caption, vectors)
        except PromptTooLong as error:
            wrong.add(field, error.message)

    def _start(
        self, job: resources_pb2.Job, recipe: str, parent: registry_resources.Version | None, wrong: Violations
    ) -> resources_pb2.Start:
        """The job's start with its defaults filled in. Adds violations to `wrong`."""
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
        if recipe in self._learned_kinds:
            return resources_pb2.Start(learned=True)
        return resources_pb2.Start(words=self._initializer_words.first_of(STARTS[recipe]))

    def _check_learned(self, job: resources_pb2.Job, recipe: str, wrong: Violations) -> None:
        known = self._learned_kinds
        if not job.start.learned:
            wrong.add("job.start.learned", "is false; leave the start out for the recipe's own")
        elif not known:
            wrong.add(
                "job.start.learned",
                f"does not exist for {self._spec.checkpoint}; its operator can fit one: `python -m trainer fit-start`",
            )
        elif recipe not in known:
            wrong.add("job.start.learned", f"supports {' and '.join(known)} concepts, not the recipe {recipe!r}")

    def _words(self, kind: str, text: str, wrong: Violations) -> str:
        field, words = f"job.start.{kind}", " ".join(text.split())
        if not words:
            wrong.add(field, "is blank; leave the start out for the recipe's own")
        wrong.characters(field, text, _MAX_START)
        if len(words) <= _MAX_START:
            try:
                self._initializer_words.ids(words)
                self._templates.check_length(f"{words} {{}}", 0)
            except (InitializerUnknown, PromptTooLong) as error:
                wrong.add(field, error.message)
        return words

    def _check_parent(self, job: resources_pb2.Job, parent: registry_resources.Version, wrong: Violations) -> None:
        if self._check_made_for(parent, "job.start.version", "trained on", wrong):
            vectors = parent.base_model.encoders[0].vectors
            if job.vectors and job.vectors != vectors:
                wrong.add("job.vectors", f"must be {vectors}, as in the version to start from, or absent")

    def _check_made_for(self, version: registry_resources.Version, field: str, used: str, wrong: Violations) -> bool:
        """Whether a version was made for this base model; adds a violation to `wrong` if not."""
        here = base_model(self._spec)
        made_for = [(one.name, one.dimensions, one.vocabulary_digest) for one in version.base_model.encoders]
        if made_for == [(one.name, one.dimensions, one.vocabulary_digest) for one in here.encoders]:
            return True
        wrong.add(
            field,
            f"was made for another base model ({version.base_model.family} {version.base_model.checkpoint}) than the"
            f" one that is {used} ({here.family} {here.checkpoint})",
        )
        return False


def _kind(kind: int, wrong: Violations) -> "registry_resources.ConceptKind.ValueType":
    """The kind of concept. For an unknown kind adds a violation to `wrong` and returns OBJECT."""
    if kind in registry_resources.ConceptKind.values():
        return registry_resources.ConceptKind.ValueType(kind or registry_resources.CONCEPT_KIND_OBJECT)
    wrong.add("job.kind", f"{kind} is not a kind of concept")
    return registry_resources.CONCEPT_KIND_OBJECT


def _check_seed(job: resources_pb2.Job, wrong: Violations) -> None:
    if job.seed < 0:
        wrong.add("job.seed", "must not be negative")


def _command(tenant: TenantName, spec: resources_pb2.Job, principal: Principal) -> CreateJob:
    return CreateJob(
        # The id begins with a letter, as resource names require.
        name=str(JobName(tenant.tenant, f"j{secrets.token_hex(10)}")),
        tenant=tenant.tenant,
        priority=spec.priority,
        spec=_to_json(spec),
        creator=principal.caller.name,
        principal=to_json(principal.caller),
    )


def _check_owned(
    kind: type[ConceptName] | type[PictureName], name: str, field: str, tenant: TenantName, wrong: Violations
) -> None:
    """Adds a violation unless `name` is a resource of this kind and tenant."""
    try:
        if kind.parse(name).tenant != tenant.tenant:
            wrong.add(field, f"must belong to {tenant}")
    except InvalidName as error:
        wrong.add(field, str(error))


def _to_json(spec: resources_pb2.Job) -> Mapping[str, Any]:
    fields: dict[str, Any] = MessageToDict(spec, preserving_proto_field_name=True)
    return fields
