"""All words of a prompt in one call."""

import sqlite3
from collections.abc import Iterable, Sequence

from pseudoword.names import InvalidName, TenantName, WordRef
from pseudoword.registry.v1 import registry_pb2

from registry import checks, messages
from registry.catalogue.words import Meaning, resolve
from registry.rpcs.base import Context, Rpcs, admitted
from rpc.errors import Error, NotFound, PermissionDenied, to_status
from rpc.identity import Role
from rpc.validate import Violations

MAX_WORDS = 64


class ResolveRpcs(Rpcs):
    """ResolveWords."""

    async def ResolveWords(
        self, request: registry_pb2.ResolveWordsRequest, context: Context
    ) -> registry_pb2.ResolveWordsResponse:
        found = Violations()
        asking = admitted(found, TenantName, request.parent, "parent", Role.READER).tenant
        age = checks.staleness(found, request)
        refs = _refs(found, request.words)
        found.raise_if_any()
        answers: dict[int, registry_pb2.ResolvedWord] = {}
        owners = sorted({ref.tenant or asking for ref in refs})
        for owner in owners:
            places = [index for index, ref in enumerate(refs) if (ref.tenant or asking) == owner]

            def work(db: sqlite3.Connection, places: Iterable[int] = tuple(places)) -> list[Meaning | Error]:
                return [_resolved(db, refs[index], asking) for index in places]

            meanings, revision = await self._desk.read(owner, work, age)
            for index, meaning in zip(places, meanings, strict=True):
                answer = registry_pb2.ResolvedWord(word=request.words[index], revision=str(revision))
                if isinstance(meaning, Error):
                    answer.error.CopyFrom(to_status(meaning))
                else:
                    answer.version.CopyFrom(messages.version(meaning.version, revision))
                    answer.alias = meaning.alias
                answers[index] = answer
        return registry_pb2.ResolveWordsResponse(words=[answers[index] for index in range(len(refs))])


def _refs(found: Violations, words: Sequence[str]) -> list[WordRef]:
    if not 1 <= len(words) <= MAX_WORDS:
        found.add("words", f"{len(words)} words are not 1 to {MAX_WORDS}")
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
