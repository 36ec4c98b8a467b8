"""Turns validated parameters into a request for the engine: resolves words, decodes the init image, makes records."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from math import inf

from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import VersionName, WordRef

from diffusion.checkpoint import BaseModel
from diffusion.encoder import PromptEncoder
from rpc.identity import Principal
from service.request.mailbox import Mailbox
from service.request.params import GenerationParams
from service.request.records import Recorder
from service.request.request import Request
from service.words.resolver import ResolvedWord, WordResolver, by_ref


class RequestPreparer:
    """Prepares requests for one resident model. Lives on the event loop."""

    def __init__(self, model: BaseModel, resolver: WordResolver) -> None:
        self._resolver = resolver
        self._encoder = PromptEncoder(model)
        self._recorder = Recorder(model)

    async def prepare(
        self,
        params: GenerationParams,
        principal: Principal,
        *,
        arrived: float,
        deadline: float = inf,
        max_staleness: timedelta | None = None,
        versions: Mapping[str, VersionName] | None = None,
    ) -> Request:
        """Resolves the words of `params` on behalf of `principal`, and checks that its prompts fit the encoder.

        `arrived` and `deadline` are seconds on the monotonic clock. With `versions` (word to version) each word means
        that version, and aliases are ignored. Raises the errors of WordResolver.resolve, PromptTooLong, and
        InvalidArgument for an init image that cannot be decoded.
        """
        refs = tuple(dict.fromkeys((*params.prompt.words, *params.negative_prompt.words)))
        pinned_refs = refs if versions is None else [pinned(versions[str(ref)]) for ref in refs]
        words = await self._resolver.resolve(
            params.tenant,
            pinned_refs,
            principal,
            field="settings.prompt",
            allow_family=params.allow_family,
            max_staleness=max_staleness,
        )
        words = [_renamed(word, ref) for word, ref in zip(words, refs, strict=True)]
        vectors = by_ref(words)
        counts = {ref: len(tensor) for ref, tensor in vectors.items()}
        for prompt in (params.prompt, params.negative_prompt):
            self._encoder.tokenizer.tokenize(prompt, counts)  # raises PromptTooLong before the request is accepted
        init_image = None
        if params.init_image is not None:
            init_image = await asyncio.to_thread(params.init_image.decoded, params.width, params.height)
        return Request(
            params=params,
            vectors=vectors,
            digests={word.ref: word.use.tensors_digest for word in words},
            mailbox=Mailbox(asyncio.get_running_loop()),
            init_image=init_image,
            arrived=arrived,
            deadline=deadline,
            records=self._recorder.records(params, [word.use for word in words]),
        )


def pinned(version: VersionName) -> WordRef:
    """The reference that always means this version."""
    return WordRef(version.tenant, version.concept, version=version.version)


def _renamed(word: ResolvedWord, ref: WordRef) -> ResolvedWord:
    """`word` under the name that the prompt uses for it."""
    if word.ref == ref:
        return word
    use = resources_pb2.WordUse()
    use.CopyFrom(word.use)
    use.word = str(ref)
    return replace(word, ref=ref, use=use)
