"""Words: what they mean now, and their vectors on the device."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import WordRef
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc
from pseudoword.registry.v1 import resources_pb2 as registry_resources

from diffusion.checkpoint import BaseModel
from diffusion.match import Match, match
from rpc.clients import as_caller, forwarded
from rpc.errors import DataLoss, FailedPrecondition, InvalidArgument, from_status
from rpc.identity import Principal
from service.metrics import EngineMetrics
from storage.tensors import read_tensors, tensors_digest

ENCODER = "text_encoder"
_MATCHES = {Match.EXACT: resources_pb2.MATCH_EXACT, Match.FAMILY: resources_pb2.MATCH_FAMILY}


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word as a request uses it: which version it means, and its vectors [n, dims] in fp32 on the device."""

    ref: WordRef
    use: resources_pb2.WordUse
    vectors: torch.Tensor


class VectorCache:
    """Vectors by their digest, at most `limit_bytes` of them; the one not used for longest goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._vectors: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, digest: str) -> torch.Tensor | None:
        vectors = self._vectors.get(digest)
        if vectors is not None:
            self._vectors.move_to_end(digest)
        return vectors

    def put(self, digest: str, vectors: torch.Tensor) -> None:
        if digest in self._vectors:
            return
        self._vectors[digest] = vectors
        self._held_bytes += vectors.nbytes
        while self._held_bytes > self._limit_bytes and len(self._vectors) > 1:
            _, evicted = self._vectors.popitem(last=False)
            self._held_bytes -= evicted.nbytes


class Words:
    """Asks the registry what words mean, on the caller's behalf, and keeps vectors that were fetched."""

    def __init__(
        self,
        registry: "registry_pb2_grpc.RegistryServiceAsyncStub",
        model: BaseModel,
        cache: VectorCache,
        metrics: EngineMetrics,
        *,
        allow_family: bool,
    ) -> None:
        self._registry = registry
        self._model = model
        self._cache = cache
        self._metrics = metrics
        self._allow_family = allow_family

    async def attach(
        self,
        tenant: str,
        refs: Sequence[WordRef],
        principal: Principal,
        *,
        field: str,
        allow_family: bool = False,
        max_staleness: timedelta | None = None,
    ) -> list[Word]:
        """The words of a request, in the order of `refs`; a bare word is `tenant`'s.

        Raises InvalidArgument (WORD_UNKNOWN, naming `field`) when one is unknown or not granted, FailedPrecondition
        (WORD_MISMATCH) when one was made for another model, DataLoss when its vectors are damaged, and what the
        registry itself fails with.
        """
        if not refs:
            return []
        request = registry_pb2.ResolveWordsRequest(parent=f"tenants/{tenant}", words=[str(ref) for ref in refs])
        if max_staleness is not None:
            request.max_staleness.FromTimedelta(max_staleness)
        with forwarded("registry"):
            resolved = await self._registry.ResolveWords(request, metadata=as_caller(principal))
        _refuse_unknown(resolved.words, field)
        words = []
        for ref, answer in zip(refs, resolved.words, strict=True):
            fit = self._fit(ref, answer.version, allow_family=allow_family or self._allow_family)
            vectors = await self._vectors(tenant, answer.version, principal)
            use = resources_pb2.WordUse(
                word=str(ref),
                version=answer.version.name,
                tensors_digest=answer.version.tensors_digest,
                match=_MATCHES[fit],
            )
            words.append(Word(ref=ref, use=use, vectors=vectors))
        return words

    def _fit(self, ref: WordRef, version: registry_resources.Version, *, allow_family: bool) -> Match:
        made_for = version.base_model
        spec = next((spec for spec in made_for.encoders if spec.name == ENCODER), None)
        ours = self._model.spec.encoders[0]
        fit = Match.MISMATCH
        if spec is not None and len(made_for.encoders) == len(self._model.spec.encoders):
            fit = match(
                self._model.spec,
                family=made_for.family or None,
                dims=spec.dimensions,
                vocabulary_digest=spec.vocabulary_digest or None,
            )
        if fit is Match.EXACT or (fit is Match.FAMILY and allow_family):
            return fit
        theirs = ", ".join(f"{e.name} of {e.dimensions} dimensions" for e in made_for.encoders)
        why = "is not made for this very model; allow_family lets it be used" if fit is Match.FAMILY else "does not fit"
        raise FailedPrecondition(
            f"<{ref}> {why}: it was made for {made_for.family or 'an unknown family'} ({theirs}), and the resident "
            f"model is {self._model.spec.family} ({ours.name} of {ours.dims} dimensions)",
            reason="WORD_MISMATCH",
            metadata={
                "word": str(ref),
                "version": version.name,
                "word_family": made_for.family,
                "model_family": self._model.spec.family,
                "model_vocabulary_digest": ours.vocabulary_digest,
                "word_vocabulary_digest": spec.vocabulary_digest if spec is not None else "",
            },
        )

    async def _vectors(self, tenant: str, version: registry_resources.Version, principal: Principal) -> torch.Tensor:
        digest = version.tensors_digest
        vectors = self._cache.get(digest)
        if vectors is not None:
            self._metrics.word_hits.inc()
            return vectors
        self._metrics.word_misses.inc()
        request = registry_pb2.GetEmbeddingRequest(
            name=version.name, format=registry_pb2.EMBEDDING_FORMAT_NATIVE, reader=f"tenants/{tenant}"
        )
        with forwarded("registry"):
            answer = await self._registry.GetEmbedding(request, metadata=as_caller(principal))
        tensors = read_tensors(answer.data)
        if tensors_digest(tensors) != digest:
            raise DataLoss(
                f"the vectors of {version.name} are not those that its digest names",
                reason="DIGEST_MISMATCH",
                metadata={"version": version.name, "tensors_digest": digest},
            )
        vectors = torch.from_numpy(tensors[ENCODER].copy()).to(self._model.device)
        self._cache.put(digest, vectors)
        return vectors


def by_ref(words: Iterable[Word]) -> Mapping[WordRef, torch.Tensor]:
    """The vectors of words, as the encoder takes them."""
    return {word.ref: word.vectors for word in words}


def _refuse_unknown(words: Iterable[registry_pb2.ResolvedWord], field: str) -> None:
    failed = [(answer.word, from_status(answer.error)) for answer in words if answer.WhichOneof("result") == "error"]
    if not failed:
        return
    unknown = ", ".join(f"<{word}>" for word, _ in failed)
    raise InvalidArgument(
        f"no such word: {unknown}" if len(failed) == 1 else f"no such words: {unknown}",
        reason="WORD_UNKNOWN",
        metadata={"words": ",".join(word for word, _ in failed), "why": failed[0][1].reason},
        violations=[(field, f"<{word}>: {error.message}") for word, error in failed],
    )
