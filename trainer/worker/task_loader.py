"""What the engine needs to know of a job, with its pictures read and its vectors fetched."""

from pseudoword.registry.v1 import resources_pb2 as registry_resources
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import FailedPrecondition
from rpc.identity import Principal
from rpc.validate import Violations
from trainer.api.validation import fitting, templates
from trainer.evaluation.measurement import Subject
from trainer.pictures.store import PictureStore
from trainer.registry_reader import RegistryReader
from trainer.training.initializers import BestWord, FromVectors, FromWords, Initializer, LearnedStart
from trainer.training.recipe import fill_in
from trainer.training.run import Task
from trainer.training.templates import EDITS, STARTS, TEMPLATES
from trainer.worker.engine import Engine


class TaskLoader:
    """Makes tasks of jobs for one resident model. While the store or the registry is away this waits."""

    def __init__(
        self, pictures: PictureStore, versions: RegistryReader, engine: Engine, base_model: registry_resources.BaseModel
    ) -> None:
        self._pictures = pictures
        self._versions = versions
        self._engine = engine
        self._base_model = base_model

    async def training(self, job: resources_pb2.Job, principal: Principal) -> Task:
        """Raises whatever makes the job impossible: BASE_MODEL_CHANGED, and what the two stores raise."""
        self._check_base_model(job)
        return Task(
            pictures=[await self._pictures.read(example.picture) for example in job.examples],
            masks=[await self._pictures.read(example.mask) if example.mask else None for example in job.examples],
            templates=templates(job, self._engine),
            start=await self._start(job, principal),
            vectors=job.vectors,
            seed=job.seed,
            recipe=fill_in(job.recipe, job.kind, self._base_model.family, Violations()),
        )

    async def evaluation(self, job: resources_pb2.Job, principal: Principal) -> Subject:
        """As `training`."""
        self._check_base_model(job)
        kind = job.recipe.name
        return Subject(
            vectors=await self._versions.vectors(job.evaluates, principal),
            pictures=[await self._pictures.read(example.picture) for example in job.examples],
            masks=[await self._pictures.read(example.mask) if example.mask else None for example in job.examples],
            templates=templates(job, self._engine),
            plain=(fitting(TEMPLATES[kind], job.vectors, self._engine) or TEMPLATES[kind])[0],
            edits=fitting(EDITS[kind], job.vectors, self._engine),
            usual=self._engine.initializers.first_of(STARTS[kind]),
            recipe=fill_in(job.recipe, job.kind, self._base_model.family, Violations()),
            seed=job.seed,
        )

    def _check_base_model(self, job: resources_pb2.Job) -> None:
        if job.base_model != self._base_model:
            raise FailedPrecondition(
                f"the job was made for the base model {job.base_model.checkpoint}, and the trainer has"
                f" {self._base_model.checkpoint} now: create it again",
                reason="BASE_MODEL_CHANGED",
            )

    async def _start(self, job: resources_pb2.Job, principal: Principal) -> Initializer:
        match job.start.WhichOneof("start"):
            case "version":
                return FromVectors(vectors=await self._versions.vectors(job.start.version, principal))
            case "best_of_vocabulary":
                return BestWord(usual=self._engine.initializers.first_of(STARTS[job.recipe.name]))
            case "learned":
                usual = self._engine.initializers.first_of(STARTS[job.recipe.name])
                return LearnedStart(kind=job.recipe.name, usual=usual)
            case "encoded_words":
                return FromWords(words=job.start.encoded_words, encoded=True)
        return FromWords(words=job.start.words)
