"""Versions: published once, numbered, yanked, and evaluated."""

import asyncio
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res
from safetensors.numpy import save

from storage.objects.base import ObjectStore
from storage.tensors import read_tensors, tensors_digest
from tests.registry.requests import (
    REX,
    SHOP,
    embedding,
    pointing,
    publish,
    publishing,
    refused,
    resolve,
    vectors,
    version,
)
from tests.storage.test_tensors import BAD

JOB = f"{SHOP}/jobs/j1"


def _learned(**provenance: Any) -> res.Version:
    given = {
        "job": JOB,
        "recipe_json": '{"steps": 50}',
        "seed": -7,
        "steps": 50,
        "stop_reason": "steps",
        "loss_curve": [res.LossPoint(step=step, loss=1 / step) for step in range(1, 1001)],
        "picture_digests": ["ab" * 32],
        "parents": [f"{REX}/versions/1"],
        "training_time": Duration(seconds=12),
        "software": {"torch": "2.7"},
    }
    signature = res.Signature(algorithm="ed25519", key_id="k", value=b"\x00\xff")
    made = version(description="a dog", labels={"team": "dogs"}, signatures=[signature])
    made.provenance.CopyFrom(res.Provenance(**{**given, **provenance}))
    return made


async def _get(stub: Any, number: int) -> res.Version:
    found: res.Version = await stub.GetVersion(rpc.GetVersionRequest(name=f"{REX}/versions/{number}"))
    return found


def _blobs(store: ObjectStore) -> int:
    return len(store.list("t/"))


async def test_published_version_is_read_back(stub: Any, store: ObjectStore) -> None:
    given = _learned()
    # Fields that only the registry sets.
    given.number, given.creator, given.yank_reason = 99, "somebody", "because"
    published = await stub.PublishVersion(publishing(version=given))
    assert (published.name, published.number, published.creator) == (f"{REX}/versions/1", 1, "anonymous")
    assert (published.state, published.yank_reason) == (res.Version.STATE_ACTIVE, "")
    assert published.base_model.encoders[0].vectors == 1
    assert published.tensors_digest == tensors_digest({"text_encoder": vectors()})
    assert published.provenance.origin == res.Provenance.ORIGIN_LEARNED
    assert (published.labels, published.signatures) == (given.labels, given.signatures)
    assert len(published.provenance.loss_curve) == 1000
    assert await _get(stub, 1) == published
    # Lists omit long fields.
    listed = (await stub.ListVersions(rpc.ListVersionsRequest(parent=REX))).versions[0]
    assert (len(listed.provenance.loss_curve), listed.provenance.recipe_json) == (0, "")
    listed.provenance.loss_curve.extend(published.provenance.loss_curve)
    listed.provenance.recipe_json = published.provenance.recipe_json
    assert listed == published
    assert _blobs(store) == 2


async def test_float16_is_kept_as_float32_for_each_encoder(stub: Any) -> None:
    tensors = {"text_encoder": vectors(1.5, 2, 8), "text_encoder_2": vectors(-0.5, 3, 12)}
    file = save({name: values.astype(np.float16) for name, values in tensors.items()})
    model = res.BaseModel(
        family="stable-diffusion-xl",
        encoders=[
            res.EncoderSpec(name="text_encoder", dimensions=8, vectors=2),
            res.EncoderSpec(name="text_encoder_2", dimensions=12),
        ],
    )
    published = await stub.PublishVersion(publishing(embedding=file, version=res.Version(base_model=model)))
    assert [encoder.vectors for encoder in published.base_model.encoders] == [2, 3]
    native = await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=published.name, format=rpc.EMBEDDING_FORMAT_NATIVE))
    found = read_tensors(native.data)
    assert tensors_digest(found) == published.tensors_digest == tensors_digest(tensors)


async def test_repeated_request_and_repeated_job_publish_one_version(stub: Any, store: ObjectStore) -> None:
    request = publishing(version=_learned(), request_id="first")
    first = await stub.PublishVersion(request)
    stored = _blobs(store)
    again = await asyncio.gather(*(stub.PublishVersion(request) for _ in range(4)))
    assert all(answer == first for answer in again)
    # A job has one version, under any request id.
    other = publishing(2.0, version=_learned(seed=8), request_id="second")
    assert (await stub.PublishVersion(other)).name == first.name
    assert (await stub.GetConcept(rpc.GetConceptRequest(name=REX))).version_count == 1
    # A superfluous upload is deleted.
    assert _blobs(store) == stored
    request.embedding = embedding(2.0)
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED", request_id="first"):
        await stub.PublishVersion(request)
    assert _blobs(store) == stored
    without_job = await stub.PublishVersion(publishing(2.0))
    assert (without_job.number, without_job.provenance.origin) == (2, res.Provenance.ORIGIN_PUBLISHED)

    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX))
    assert (await stub.PublishVersion(other)).name == first.name
    await stub.PurgeConcept(rpc.PurgeConceptRequest(name=REX, force=True))
    other.request_id = "third"
    with refused("FAILED_PRECONDITION", "VERSION_PURGED", job=JOB, version=first.name):
        await stub.PublishVersion(other)


async def test_concurrent_publishers_get_consecutive_numbers(stub: Any) -> None:
    requests = [publishing(number + 1.0, request_id=f"r{number}") for number in range(24)]
    answers = await asyncio.gather(*(stub.PublishVersion(request) for request in requests))
    assert sorted(answer.number for answer in answers) == list(range(1, 25))
    for number, answer in enumerate(answers):
        file = await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=answer.name))
        assert read_tensors(file.data)["<rex>"][0, 0] == number + 1.0


async def test_missing_concept_is_created_only_on_request(stub: Any) -> None:
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND", concept=REX):
        await stub.PublishVersion(publishing(create_concept=False))
    style = res.Concept(kind=res.CONCEPT_KIND_STYLE, display_name="Rex")
    request = publishing(concept=style, validate_only=True)
    assert (await stub.PublishVersion(request)).number == 1
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND"):
        await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    await stub.PublishVersion(publishing(concept=style))
    concept = await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    assert (concept.kind, concept.display_name, concept.latest_version) == (res.CONCEPT_KIND_STYLE, "Rex", 1)


async def test_invalid_files_are_rejected_and_leave_no_blob(stub: Any, store: ObjectStore) -> None:
    for data, reason in BAD.values():
        with refused("INVALID_ARGUMENT", reason) as refusal:
            await stub.PublishVersion(publishing(embedding=data))
        assert refusal.fields == ["embedding"]
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND"):
        await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    assert _blobs(store) == 0


async def test_all_invalid_fields_are_reported_together(stub: Any) -> None:
    wrong = _learned(
        job="tenants/other/jobs/j1",
        recipe_json="{",
        steps=-1,
        loss_curve=[res.LossPoint(step=1, loss=float("nan"))] * 1001,
        picture_digests=["x"],
        parents=["rex"],
        training_time=Duration(seconds=-1),
    )
    wrong.labels["A"] = "b"
    wrong.base_model.encoders[0].vocabulary_digest = "x"
    wrong.signatures[0].value = b""
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.PublishVersion(publishing(version=wrong))
    assert set(refusal.fields) == {
        "version.provenance.job",
        "version.provenance.recipe_json",
        "version.provenance.steps",
        "version.provenance.loss_curve",
        "version.provenance.picture_digests",
        "version.provenance.parents[0]",
        "version.provenance.training_time",
        "version.labels['A']",
        "version.base_model.encoders[0].vocabulary_digest",
        "version.signatures[0].value",
    }


async def test_encoders_must_match_the_file(stub: Any) -> None:
    cases: list[tuple[list[tuple[str, int, int]], list[str]]] = [
        ([], ["version.base_model.encoders"]),
        ([("text_encoder", 9, 0)], ["version.base_model.encoders[0].dimensions"]),
        ([("text_encoder", 8, 2)], ["version.base_model.encoders[0].vectors"]),
        ([("text_encoder", 8, 0), ("text_encoder_2", 8, 0)], ["version.base_model.encoders"]),
        ([("text_encoder", 8, 0), ("text_encoder", 8, 0)], ["version.base_model.encoders"]),
    ]
    for encoders, fields in cases:
        specs = [res.EncoderSpec(name=name, dimensions=dims, vectors=count) for name, dims, count in encoders]
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
            await stub.PublishVersion(publishing(version=res.Version(base_model=res.BaseModel(encoders=specs))))
        assert refusal.fields == fields
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.PublishVersion(publishing(embedding=embedding(unet=vectors())))
    assert refusal.fields == ["version.base_model.encoders"]


async def test_version_larger_than_a_log_entry_is_rejected(stub: Any, store: ObjectStore) -> None:
    # Each field is within its limit, in characters of four bytes; their sum is not.
    labels = {f"k{number}": "\U0001f415" * 63 for number in range(64)}
    concept = res.Concept(description="\U0001f415" * 2000, labels=labels)
    request = publishing(version=version(description="\U0001f415" * 2000, labels=labels), concept=concept)
    request.version.provenance.picture_digests.extend(["ab" * 32] * 256)
    with refused("INVALID_ARGUMENT", "ENTRY_TOO_LARGE"):
        await stub.PublishVersion(request)
    assert _blobs(store) == 0
    # In two requests they fit.
    await stub.CreateConcept(rpc.CreateConceptRequest(parent=SHOP, concept_id="rex", concept=concept))
    assert (await stub.PublishVersion(request)).labels == labels


async def test_yanked_version_is_no_longer_latest_and_can_be_unyanked(stub: Any) -> None:
    _, second = await publish(stub, 2)
    await stub.SetAlias(pointing("canary", 2))
    yank = rpc.YankVersionRequest(name=second.name, reason="blurry", etag=second.etag)
    with refused("FAILED_PRECONDITION", "VERSION_ALIASED", aliases="canary"):
        await stub.YankVersion(yank)
    await stub.SetAlias(pointing("canary", 1))
    yanked = await stub.YankVersion(yank)
    assert (yanked.state, yanked.yank_reason) == (res.Version.STATE_YANKED, "blurry")
    # It is not latest, no alias moves to it, and its number can be read.
    assert await resolve(stub, "rex", "rex@latest", "rex@2") == [1, 1, 2]
    assert (await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=second.name))).data
    with refused("FAILED_PRECONDITION", "VERSION_YANKED", version=second.name):
        await stub.SetAlias(pointing("canary", 2))
    with refused("ABORTED", "ETAG_MISMATCH"):
        await stub.UnyankVersion(rpc.UnyankVersionRequest(name=second.name, etag=second.etag))
    back = await stub.UnyankVersion(rpc.UnyankVersionRequest(name=second.name, etag=yanked.etag))
    assert (back.state, back.yank_reason) == (res.Version.STATE_ACTIVE, "")
    assert await resolve(stub, "rex") == [2]
    with refused("FAILED_PRECONDITION", "VERSION_NOT_YANKED"):
        await stub.UnyankVersion(rpc.UnyankVersionRequest(name=second.name))
    # A yanked number is not used again.
    await stub.YankVersion(rpc.YankVersionRequest(name=second.name))
    assert (await publish(stub))[0].number == 3


async def test_damaged_and_missing_blobs_are_data_loss(stub: Any, store: ObjectStore) -> None:
    published = await stub.PublishVersion(publishing(version=_learned()))
    for info in store.list("t/"):
        data = store.get(info.name)
        store.put(info.name, data[:-1] + bytes([data[-1] ^ 1]))
    with refused("DATA_LOSS", "DAMAGED"):
        await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=published.name))
    with refused("DATA_LOSS", "DAMAGED"):
        await _get(stub, 1)
    for info in store.list("t/"):
        store.delete(info.name)
    with refused("DATA_LOSS", "OBJECT_MISSING"):
        await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=published.name))


async def test_evaluations_are_created_once_and_listed_newest_first(stub: Any) -> None:
    published = (await publish(stub))[0]
    given = res.Evaluation(evaluator="clip 1", metrics={"clip_i": 0.75}, samples=64, seed=-1, note="well")
    request = rpc.CreateEvaluationRequest(parent=published.name, evaluation_id="one", evaluation=given)
    first = await stub.CreateEvaluation(request)
    assert (first.name, dict(first.metrics), first.seed) == (f"{published.name}/evaluations/one", {"clip_i": 0.75}, -1)
    with refused("ALREADY_EXISTS", "EVALUATION_EXISTS"):
        await stub.CreateEvaluation(request)
    unnamed = rpc.CreateEvaluationRequest(parent=published.name, evaluation=given, request_id="r")
    second = await stub.CreateEvaluation(unnamed)
    assert await stub.CreateEvaluation(unnamed) == second
    assert await stub.GetEvaluation(rpc.GetEvaluationRequest(name=second.name)) == second
    names, token = [], ""
    for _ in range(2):
        page = await stub.ListEvaluations(
            rpc.ListEvaluationsRequest(parent=published.name, page_size=1, page_token=token)
        )
        names += [evaluation.name for evaluation in page.evaluations]
        token = page.next_page_token
    assert (names, token) == ([second.name, first.name], "")
    wrong = res.Evaluation(metrics={"A": float("inf")}, samples=-1)
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.CreateEvaluation(rpc.CreateEvaluationRequest(parent=published.name, evaluation=wrong))
    assert set(refusal.fields) == {"evaluation.evaluator", "evaluation.metrics['A']", "evaluation.samples"}
    with refused("NOT_FOUND", "VERSION_NOT_FOUND"):
        await stub.CreateEvaluation(rpc.CreateEvaluationRequest(parent=f"{REX}/versions/9", evaluation=given))
