"""Requests of clients, and the recorded form of their responses: one entry for each kind of operation."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pseudoword.errors import PseudowordError
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from tests.registry.requests import pointing, publishing
from tests.robustness.history import OK

ALIAS = "production"
READS = ("get", "alias", "resolve")
# Reasons with which a registry may refuse; any other error is no response.
REFUSALS = {
    "ALIAS_EXISTS",
    "ALIAS_NOT_FOUND",
    "CONCEPT_ACTIVE",
    "CONCEPT_DELETED",
    "CONCEPT_NOT_FOUND",
    "ETAG_MISMATCH",
    "VERSION_NOT_FOUND",
}


@dataclass(kw_only=True)
class Known:
    """What a client knows of a concept from the last response."""

    count: int = 0
    etag: str = ""
    deleted: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`result` is OK or the reason of a refusal."""

    result: str
    output: dict[str, Any]
    revision: str


def choose(chance: random.Random, known: Known) -> tuple[str, dict[str, Any]]:
    """The kind of the next operation, and its input."""
    weights = {"publish": 14, "set": 26, "unset": 5, "delete": 4, "undelete": 1, "get": 18, "alias": 18, "resolve": 14}
    if known.deleted:
        weights |= {"undelete": 60}
    kind = chance.choices(list(weights), list(weights.values()))[0]
    conditional = {"etag": known.etag if chance.random() < 0.6 else ""}
    if kind == "set":
        version = chance.randint(1, known.count + 1)
        return kind, {"version": version, "create_only": chance.random() < 0.15, **conditional}
    return kind, conditional if kind == "unset" else {}


def method(kind: str) -> str:
    """The name of the rpc."""
    return {
        "publish": "PublishVersion",
        "set": "SetAlias",
        "unset": "DeleteAlias",
        "delete": "DeleteConcept",
        "undelete": "UndeleteConcept",
        "get": "GetConcept",
        "alias": "GetAlias",
        "resolve": "ResolveWords",
    }[kind]


def request(kind: str, concept: str, given: Mapping[str, Any], request_id: str) -> Any:
    """The message to send."""
    alias = f"{concept}/aliases/{ALIAS}"
    match kind:
        case "publish":
            return publishing(1.0, concept, request_id=request_id)
        case "set":
            more = {"create_only": given["create_only"], "request_id": request_id}
            return pointing(ALIAS, given["version"], concept, given["etag"], **more)
        case "unset":
            return rpc.DeleteAliasRequest(name=alias, etag=given["etag"], request_id=request_id)
        case "delete":
            return rpc.DeleteConceptRequest(name=concept, request_id=request_id)
        case "undelete":
            return rpc.UndeleteConceptRequest(name=concept, request_id=request_id)
        case "get":
            return rpc.GetConceptRequest(name=concept)
        case "alias":
            return rpc.GetAliasRequest(name=alias)
        case "resolve":
            tenant, _, word = concept.partition("/concepts/")
            return rpc.ResolveWordsRequest(parent=tenant, words=[word])
    raise AssertionError(kind)


def answer(kind: str, message: Any) -> Answer:
    """The recorded form of a response."""
    return _READ[kind](message)


def learn(known: Known, kind: str, found: Answer) -> None:
    """Updates `known` from a response."""
    known.count = max(known.count, found.output.get("count", 0))
    if kind == "publish" and found.result == OK:
        known.count = max(known.count, found.output["version"])
    if "etag" in found.output:
        known.etag = found.output["etag"]
    if found.result == "CONCEPT_DELETED" or found.output.get("state") == "deleted":
        known.deleted = True
    elif found.result in (OK, "CONCEPT_ACTIVE") and kind != "alias":
        known.deleted = False


def _concept(message: res.Concept) -> Answer:
    state = "deleted" if message.state == res.Concept.STATE_DELETED else "active"
    output = {"state": state, "count": message.version_count, "version": message.aliases.get(ALIAS, 0)}
    return Answer(result=OK, output=output, revision=message.revision)


def _alias(message: res.Alias) -> Answer:
    output = {"version": _number(message.version), "etag": message.etag}
    return Answer(result=OK, output=output, revision=message.revision)


def _published(message: res.Version) -> Answer:
    return Answer(result=OK, output={"version": message.number}, revision=message.revision)


def _unset(message: rpc.DeleteAliasResponse) -> Answer:
    return Answer(result=OK, output={}, revision=message.revision)


def _resolved(message: rpc.ResolveWordsResponse) -> Answer:
    (word,) = message.words
    if word.WhichOneof("result") == "error":
        reason = PseudowordError.from_status(word.error).reason
        return Answer(result=reason, output={}, revision=word.revision)
    output = {"version": word.version.number, "by": word.alias}
    return Answer(result=OK, output=output, revision=word.revision)


def _number(version: str) -> int:
    return int(version.rsplit("/", 1)[1])


_READ: Mapping[str, Callable[[Any], Answer]] = {
    "publish": _published,
    "set": _alias,
    "unset": _unset,
    "delete": _concept,
    "undelete": _concept,
    "get": _concept,
    "alias": _alias,
    "resolve": _resolved,
}
