"""Loads the engine's input for a job: reads its pictures, fetches its vectors."""

from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from diffusion.tokens import PromptTokenizer
from rpc.errors import FailedPrecondition
from rpc.identity import Principal
from trainer.evaluation.measurement import Subject
from trainer.pictures.store import PictureStore
from trainer.registry_reader import RegistryReader
from trainer.training.initializer_words import InitializerWords
from trainer.training.initializers import BestWord, FromVectors, FromWords, Initializer, LearnedStart
from trainer.training.recipe import from_message
from trainer.training.run import Task
from trainer.training.template_fitter import TemplateFitter
from trainer.training.templates import EDITS, STARTS, TEMPLATES


class TaskLoader:
    """Loads tasks for one resident model. Retries while the store or the registry is unavailable."""

    def __init__(
        self,
        pictures: PictureStore,
        registry: RegistryReader,
        tokenizer: PromptTokenizer,
        base_model: registry_resources.BaseModel,
    ) -> None:
        self._pictures = pictures
        self._registry = registry
        self._templates = TemplateFitter(tokenizer)
        self._words = InitializerWords(tokenizer)
        self._base_model = base_model

    async def training(self, job: resources_pb2.Job, principal: Principal) -> Task:
        """The task of a training job. Raises FailedPrecondition (BASE_MODEL_CHANGED) and the errors of the picture
        store and the registry."""
        self._check_base_model(job)
        return Task(
            pictures=[await self._pictures.read(example.picture) for example in job.examples],
            masks=[await self._pictures.read_mask(example.mask) if example.mask else None for example in job.examples],
            templates=self._templates.of_pictures(job.recipe.name, [one.caption for one in job.examples], job.vectors),
            start=await self._initializer(job, principal),
            vectors=job.vectors,
            seed=job.seed,
            recipe=from_message(job.recipe, job.kind, self._base_model.family),
        )

    async def evaluation(self, job: resources_pb2.Job, principal: Principal) -> Subject:
        """The subject of an evaluation job. Raises as `training`."""
        self._check_base_model(job)
        kind = job.recipe.name
        return Subject(
            vectors=await self._registry.vectors(job.evaluates, principal),
            pictures=[await self._pictures.read(example.picture) for example in job.examples],
            masks=[await self._pictures.read_mask(example.mask) if example.mask else None for example in job.examples],
            templates=self._templates.of_pictures(kind, [one.caption for one in job.examples], job.vectors),
            plain=(self._templates.fitting(TEMPLATES[kind], job.vectors) or TEMPLATES[kind])[0],
            edits=self._templates.fitting(EDITS[kind], job.vectors),
            usual=self._words.first_of(STARTS[kind]),
            recipe=from_message(job.recipe, job.kind, self._base_model.family),
            seed=job.seed,
        )

    def _check_base_model(self, job: resources_pb2.Job) -> None:
        if job.base_model != self._base_model:
            raise FailedPrecondition(
                f"the job was created for the base model {job.base_model.checkpoint}, and the trainer now has"
                f" {self._base_model.checkpoint}: create the job again",
                reason="BASE_MODEL_CHANGED",
            )

    async def _initializer(self, job: resources_pb2.Job, principal: Principal) -> Initializer:
        match job.start.WhichOneof("start"):
            case "version":
                return FromVectors(vectors=await self._registry.vectors(job.start.version, principal))
            case "best_of_vocabulary":
                return BestWord(usual=self._words.first_of(STARTS[job.recipe.name]))
            case "learned":
                return LearnedStart(kind=job.recipe.name, usual=self._words.first_of(STARTS[job.recipe.name]))
            case "encoded_words":
                return FromWords(words=job.start.encoded_words, encoded=True)
        return FromWords(words=job.start.words)
