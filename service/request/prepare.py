"""From a checked drawing to a request that the engine can take: its words, its start picture, its records."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from service.words.resolver import Word, WordResolver, by_ref


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request, and the record of each of its pictures."""

    request: Request
    records: list[resources_pb2.PictureRecord]


class RequestPreparer:
    """One resident model's. Lives on the event loop."""

    def __init__(self, model: BaseModel, words: WordResolver) -> None:
        self._words = words
        self._encoder = PromptEncoder(model)
        self._recorder = Recorder(model)

    async def take(
        self,
        drawing: GenerationParams,
        settings: resources_pb2.PictureSettings,
        principal: Principal,
        *,
        arrived: float,
        deadline: float = inf,
        max_staleness: timedelta | None = None,
        versions: Mapping[str, VersionName] | None = None,
    ) -> Prepared:
        """Finds the words of `drawing` on behalf of `principal`, and checks that its prompts fit the encoder.

        `settings` are the request's, for the prompts as they were written; `arrived` and `deadline` are seconds on the
        monotonic clock. With `versions` (word to version) words mean those, whatever their aliases mean now. Raises
        what WordResolver.attach raises, PromptTooLong, and InvalidArgument for a start picture that cannot be decoded.
        """
        refs = tuple(dict.fromkeys((*drawing.prompt.words, *drawing.negative_prompt.words)))
        asked = refs if versions is None else [pinned(versions[str(ref)]) for ref in refs]
        words = await self._words.attach(
            drawing.tenant,
            asked,
            principal,
            field="settings.prompt",
            allow_family=drawing.allow_family,
            max_staleness=max_staleness,
        )
        words = [_called(word, ref) for word, ref in zip(words, refs, strict=True)]
        vectors = by_ref(words)
        counts = {ref: len(tensor) for ref, tensor in vectors.items()}
        for prompt in (drawing.prompt, drawing.negative_prompt):
            self._encoder.tokenize(prompt, counts)  # raises PromptTooLong before anything is promised
        beginning = None
        if drawing.start is not None:
            beginning = await asyncio.to_thread(drawing.start.decoded, drawing.width, drawing.height)
        request = Request(
            drawing=drawing,
            vectors=vectors,
            digests={word.ref: word.use.tensors_digest for word in words},
            mailbox=Mailbox(asyncio.get_running_loop()),
            beginning=beginning,
            arrived=arrived,
            deadline=deadline,
        )
        return Prepared(
            request=request, records=self._recorder.records(drawing, settings, [word.use for word in words])
        )


def pinned(version: VersionName) -> WordRef:
    """The word that means this version for ever."""
    return WordRef(version.tenant, version.concept, version=version.version)


def _called(word: Word, ref: WordRef) -> Word:
    """`word` under the name that the prompt has for it."""
    if word.ref == ref:
        return word
    use = resources_pb2.WordUse()
    use.CopyFrom(word.use)
    use.word = str(ref)
    return replace(word, ref=ref, use=use)
