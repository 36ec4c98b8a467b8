"""The rpc that resolves all words of a prompt."""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TypeAlias

from pseudoword.names import InvalidName, TenantName, WordRef
from pseudoword.registry.v1 import registry_pb2

from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted
from registry.catalogue.words import Meaning, resolve
from rpc.errors import Error, NotFound, PermissionDenied, to_status
from rpc.identity import Role, current_principal
from rpc.validate import Violations
from storage.ledger.entry import Revision

MAX_WORDS = 64
_MAX_CACHED = 4096  # responses, of some kilobytes each

# The request's parent and words.
_Key: TypeAlias = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A cached response to the tenant `asking`. `revisions`: those of the shards that it was read from."""

    asking: str
    revisions: list[Revision]
    response: registry_pb2.ResolveWordsResponse


class ResolveRpcs(Rpcs):
    """ResolveWords.

    The same prompts are resolved many times. A response is cached with the revision of each shard that it was read
    from, and sent again as long as those views show the same revisions: then its data has not changed.
    """

    @cached_property
    def _answers(self) -> "OrderedDict[_Key, _Answer]":
        return OrderedDict()

    async def ResolveWords(
        self, request: registry_pb2.ResolveWordsRequest, context: Context
    ) -> registry_pb2.ResolveWordsResponse:
        found = Violations()
        key = (request.parent, tuple(request.words))
        kept = self._answers.get(key)
        if kept is None:
            asking = admitted(found, TenantName, request.parent, "parent", Role.READER).tenant
        else:
            asking = kept.asking
            current_principal().require(asking, Role.READER)
        age = validation.staleness(found, request)
        found.raise_if_any()
        if kept is not None:
            if await self._catalogue.still_at(kept.revisions, age):
                if self._answers.get(key) is kept:
                    self._answers.move_to_end(key)
                return kept.response
            age = timedelta.max  # still_at has already made the views new enough
        refs = _refs(found, request.words)
        found.raise_if_any()
        owners = sorted({ref.tenant or asking for ref in refs})
        answers: dict[int, registry_pb2.ResolvedWord] = {}
        read: list[Revision] = []
        for owner in owners:
            places = [index for index, ref in enumerate(refs) if (ref.tenant or asking) == owner]

            def work(db: sqlite3.Connection, places: Iterable[int] = tuple(places)) -> list[Meaning | Error]:
                return [_resolved(db, refs[index], asking) for index in places]

            meanings, revision = await self._catalogue.read(owner, work, age)
            read.append(revision)
            for index, meaning in zip(places, meanings, strict=True):
                answer = registry_pb2.ResolvedWord(word=request.words[index], revision=str(revision))
                if isinstance(meaning, Error):
                    answer.error.CopyFrom(to_status(meaning))
                else:
                    answer.version.CopyFrom(conversions.version(meaning.version, revision))
                    answer.alias = meaning.alias
                answers[index] = answer
        response = registry_pb2.ResolveWordsResponse(words=[answers[index] for index in range(len(refs))])
        self._answers[key] = _Answer(asking=asking, revisions=read, response=response)
        self._answers.move_to_end(key)
        if len(self._answers) > _MAX_CACHED:
            self._answers.popitem(last=False)
        return response


def _refs(found: Violations, words: Sequence[str]) -> list[WordRef]:
    if not 1 <= len(words) <= MAX_WORDS:
        found.add("words", f"has {len(words)} words; 1 to {MAX_WORDS} are allowed")
    refs = []
    for index, word in enumerate(words[:MAX_WORDS]):
        try:
            refs.append(WordRef.parse(word))
        except InvalidName as error:
            found.add(f"words[{index}]", str(error))
    return refs


def _resolved(db: sqlite3.Connection, ref: WordRef, asking: str) -> Meaning | Error:
    try:
        return resolve(db, ref, asking)
    except (NotFound, PermissionDenied) as error:
        return error
