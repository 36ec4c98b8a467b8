"""Resolves the words of a request to versions, and loads their vectors onto the device."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
import torch
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import WordRef
from pseudoword.registry.v1 import registry_pb2, registry_pb2_grpc
from pseudoword.registry.v1 import resources_pb2 as registry_resources

from diffusion.checkpoint import BaseModel
from diffusion.compatibility import Match, match
from rpc.clients import as_caller, forwarded
from rpc.errors import DataLoss, FailedPrecondition, InvalidArgument, Unavailable, from_status
from rpc.identity import Principal
from rpc.settings import SettingsError
from service.metrics import EngineMetrics
from service.settings import WordSettings
from service.words.resolution_cache import Key, ResolutionCache
from service.words.tensor_cache import TensorCache
from storage.signatures import Keys, KeysInvalid
from storage.tensors import read_tensors, tensors_digest

ENCODER = "text_encoder"
_MATCHES = {Match.EXACT: resources_pb2.MATCH_EXACT, Match.FAMILY: resources_pb2.MATCH_FAMILY}
_REGISTRY_TIMEOUT_S = 10.0

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResolvedWord:
    """A resolved word: its version, and its vectors, fp32 [n, dims] on the device."""

    ref: WordRef
    use: resources_pb2.WordUse
    vectors: torch.Tensor


class WordResolver:
    """Resolves words through the registry on the caller's behalf. Caches resolutions until the watch reports a change,
    and vectors until the cache is full."""

    def __init__(
        self,
        registry: "registry_pb2_grpc.RegistryServiceAsyncStub",
        model: BaseModel,
        resolutions: ResolutionCache[registry_resources.Version],
        vectors: TensorCache[str],
        metrics: EngineMetrics,
        settings: WordSettings,
    ) -> None:
        """`vectors` caches vectors by digest. Raises SettingsError for an unusable key file."""
        self._registry = registry
        self._model = model
        self._resolutions = resolutions
        self._vectors = vectors
        self._metrics = metrics
        self._settings = settings
        try:
            self._keys = None if settings.keys is None else Keys.read(settings.keys)
        except KeysInvalid as error:
            raise SettingsError(f"words.keys: {error}") from None

    async def resolve(
        self,
        tenant: str,
        refs: Sequence[WordRef],
        principal: Principal,
        *,
        field: str,
        allow_family: bool = False,
        max_staleness: timedelta | None = None,
    ) -> list[ResolvedWord]:
        """The resolved words of a request, in the order of `refs`; a word without a tenant belongs to `tenant`.

        Resolutions are at most `max_staleness` old. With None the settings have the limit, and a larger one for times
        when the registry is unavailable. Raises InvalidArgument (WORD_UNKNOWN, naming `field`) if a word is unknown or
        not granted, FailedPrecondition if it was made for another model (WORD_MISMATCH) or no trusted key has signed it
        (WORD_UNSIGNED), DataLoss if its vectors are damaged, and the registry's own errors.
        """
        if not refs:
            return []
        keys = [Key(tenant, str(ref), ref.tenant or tenant, ref.concept) for ref in refs]
        offline = self._settings.offline if max_staleness is None else timedelta(0)
        limit = self._settings.max_staleness if max_staleness is None else max_staleness
        if self._resolutions.disconnected and offline > limit:
            limit = offline
            self._metrics.word_offline.inc()
        versions = self._cached_versions(keys, limit.total_seconds()) if limit else None
        if versions is None:
            versions = await self._resolved_versions(tenant, keys, principal, field, offline)
        words = []
        for ref, version in zip(refs, versions, strict=True):
            self._check_signed(ref, version)
            fit = self._fit(ref, version, allow_family=allow_family or self._settings.allow_family)
            vectors = await self._load_vectors(tenant, version, principal)
            use = resources_pb2.WordUse(
                word=str(ref), version=version.name, tensors_digest=version.tensors_digest, match=_MATCHES[fit]
            )
            words.append(ResolvedWord(ref=ref, use=use, vectors=vectors))
        return words

    def _cached_versions(self, keys: Sequence[Key], limit_s: float) -> list[registry_resources.Version] | None:
        """The cached versions of all `keys`; None if one is not cached or too old."""
        now = time.monotonic()
        cached = [self._resolutions.get(key, now, limit_s) for key in keys]
        known = [version for version in cached if version is not None]
        return known if len(known) == len(keys) else None

    async def _resolved_versions(
        self, tenant: str, keys: Sequence[Key], principal: Principal, field: str, offline: timedelta
    ) -> list[registry_resources.Version]:
        request = registry_pb2.ResolveWordsRequest(parent=f"tenants/{tenant}", words=[key.word for key in keys])
        try:
            with self._resolutions.query() as answers, forwarded("registry"):
                resolved = await self._registry.ResolveWords(
                    request, metadata=as_caller(principal), timeout=_REGISTRY_TIMEOUT_S
                )
                known = [word for word in resolved.words if word.WhichOneof("result") == "version"]
                if len(known) == len(keys):
                    answers.keep((key, word.version) for key, word in zip(keys, known, strict=True))
        except Unavailable:
            versions = self._cached_versions(keys, offline.total_seconds()) if offline else None
            if versions is None:
                raise
            self._metrics.word_offline.inc()
            _logger.warning("the registry is unavailable: cached resolutions are used", words=len(keys))
            return versions
        _refuse_unknown(resolved.words, field)
        return [word.version for word in resolved.words]

    def _check_signed(self, ref: WordRef, version: registry_resources.Version) -> None:
        """Checks the signature of the digest; the vectors are compared with the digest when they are fetched."""
        if self._keys is not None and self._keys.signer(version.tensors_digest, version.signatures) is None:
            raise FailedPrecondition(
                f"<{ref}> is {version.name}, which none of the server's trusted keys has signed: sign it with one",
                reason="WORD_UNSIGNED",
                metadata={"word": str(ref), "version": version.name, "tensors_digest": version.tensors_digest},
            )

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
        why = (
            "was not made for exactly this model; set allow_family to use it" if fit is Match.FAMILY else "does not fit"
        )
        raise FailedPrecondition(
            f"<{ref}> {why}: it was made for {made_for.family or 'an unknown family'} ({theirs}), the resident "
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

    async def _load_vectors(
        self, tenant: str, version: registry_resources.Version, principal: Principal
    ) -> torch.Tensor:
        digest = version.tensors_digest
        vectors = self._vectors.get(digest)
        if vectors is not None:
            self._metrics.word_hits.inc()
            return vectors
        self._metrics.word_misses.inc()
        request = registry_pb2.GetEmbeddingRequest(
            name=version.name, format=registry_pb2.EMBEDDING_FORMAT_NATIVE, reader=f"tenants/{tenant}"
        )
        with forwarded("registry"):
            answer = await self._registry.GetEmbedding(
                request, metadata=as_caller(principal), timeout=_REGISTRY_TIMEOUT_S
            )
        tensors = read_tensors(answer.data)
        if tensors_digest(tensors) != digest:
            raise DataLoss(
                f"the vectors of {version.name} do not match its digest",
                reason="DIGEST_MISMATCH",
                metadata={"version": version.name, "tensors_digest": digest},
            )
        vectors = torch.from_numpy(tensors[ENCODER].copy()).to(self._model.device)
        self._vectors.put(digest, vectors)
        return vectors


def by_ref(words: Iterable[ResolvedWord]) -> Mapping[WordRef, torch.Tensor]:
    """The vectors of words by reference, as the encoder needs them."""
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
