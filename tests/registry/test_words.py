"""Resolution of words, for their owner and for tenants with a grant."""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from tests.registry.conftest import Start
from tests.registry.requests import REX, SHOP, pointing, publish, refused, resolve

ZOO = "tenants/zoo"
DENIED = ("PERMISSION_DENIED", "WORD_NOT_GRANTED")


async def _grant(stub: Any, *readers: str) -> None:
    mask = FieldMask(paths=["readers"])
    await stub.UpdateConcept(rpc.UpdateConceptRequest(concept=res.Concept(name=REX, readers=readers), update_mask=mask))


async def test_word_resolves_to_production_or_latest_or_an_error(stub: Any) -> None:
    await stub.CreateConcept(rpc.CreateConceptRequest(parent=SHOP, concept_id="rex"))
    assert await resolve(stub, "rex", "none") == [("NOT_FOUND", "VERSION_NOT_FOUND"), ("NOT_FOUND", "WORD_NOT_FOUND")]
    await publish(stub, 3)
    await stub.SetAlias(pointing("canary", 3))
    assert await resolve(stub, "rex", "rex@canary", "rex@latest", "rex@2", "shop/rex@1") == [3, 3, 3, 2, 1]
    await stub.SetAlias(pointing("production", 2))
    answer = await stub.ResolveWords(
        rpc.ResolveWordsRequest(parent=SHOP, words=["rex", "rex@latest", "rex@canary", "rex@1", "rex"])
    )
    assert [word.version.number for word in answer.words] == [2, 3, 3, 1, 2]
    assert [word.alias for word in answer.words] == ["production", "latest", "canary", "", "production"]
    assert answer.words[0].version.aliases == ["production"]
    assert answer.words[0].version.base_model.encoders[0].vocabulary_digest == "ab" * 32
    wrong = await resolve(stub, "rex@none", "rex@9")
    assert wrong == [("NOT_FOUND", "ALIAS_NOT_FOUND"), ("NOT_FOUND", "VERSION_NOT_FOUND")]


async def test_malformed_words_are_named(stub: Any) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await resolve(stub, "rex", "Rex", "rex@", "<rex>", "a/b/c", "x" * 64)
    assert refusal.fields == ["words[1]", "words[2]", "words[3]", "words[4]", "words[5]"]
    for words in ([], ["rex"] * 65):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
            await resolve(stub, *words)
        assert refusal.fields == ["words"]


async def test_word_of_another_tenant_needs_a_grant(stub: Any) -> None:
    name = (await publish(stub))[0].name
    get = rpc.GetEmbeddingRequest(name=name, format=rpc.EMBEDDING_FORMAT_NATIVE, reader=ZOO)
    # An existing and a missing word get the same error.
    assert await resolve(stub, "shop/rex", "shop/none", parent=ZOO) == [DENIED, DENIED]
    with refused(*DENIED):
        await stub.GetEmbedding(get)
    with refused(*DENIED):
        await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=name.replace("rex", "none"), reader=ZOO))
    await _grant(stub, ZOO)
    assert await resolve(stub, "shop/rex", "rex", parent=ZOO) == [1, ("NOT_FOUND", "WORD_NOT_FOUND")]
    assert (await stub.GetEmbedding(get)).version.name == name
    # One call resolves words of several tenants, in the order of the request.
    await publish(stub, 2, parent=f"{ZOO}/concepts/leo")
    assert await resolve(stub, "leo@1", "shop/rex", "zoo/leo", parent=ZOO) == [1, 1, 2]
    await _grant(stub, "tenants/other")
    assert await resolve(stub, "shop/rex", parent=ZOO) == [DENIED]
    with refused(*DENIED):
        await stub.GetEmbedding(get)
    await _grant(stub, ZOO)
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX))
    assert await resolve(stub, "shop/rex", parent=ZOO) == [DENIED]
    with refused(*DENIED):
        await stub.GetEmbedding(get)
    # Its owner can read the deleted concept.
    get.reader = SHOP
    assert (await stub.GetEmbedding(get)).data


async def test_max_staleness_must_not_be_negative(stub: Any) -> None:
    await publish(stub)
    request = rpc.ResolveWordsRequest(parent=SHOP, words=["rex"], max_staleness=Duration(seconds=60))
    assert (await stub.ResolveWords(request)).words[0].version.number == 1
    request.max_staleness.seconds = -1
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.ResolveWords(request)
    assert refusal.fields == ["max_staleness"]


async def test_responses_of_two_replicas_show_the_last_change(start: Start) -> None:
    """Also if the change was made through the other replica."""
    stubs = [await (await start()).call() for _ in range(2)]
    await publish(stubs[0], 2)
    for step in range(6):
        number = step % 2 + 1
        await stubs[step % 2].SetAlias(pointing("production", number))
        for stub in (*stubs, *stubs):
            assert await resolve(stub, "rex", "rex@2", "mara") == [number, 2, ("NOT_FOUND", "WORD_NOT_FOUND")]
    # The word of another tenant, and its grant.
    grants: list[tuple[list[str], Any]] = [([ZOO], 2), ([], DENIED)]
    for readers, answer in grants * 2:
        await _grant(stubs[0], *readers)
        for stub in stubs:
            assert await resolve(stub, "shop/rex@2", parent=ZOO) == [answer]
