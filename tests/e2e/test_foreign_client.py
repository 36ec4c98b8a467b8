"""A client without our code: it learns the API from the servers' reflection."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from pseudoword.channel import Endpoints

from tests.e2e.conftest import REX


class Foreign:
    """Calls methods by name, with messages made from reflection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database: Any = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    @property
    def services(self) -> list[str]:
        return list(self._database.get_services())

    def message(self, full_name: str, /, **fields: Any) -> Any:
        return GetMessageClass(self._pool.FindMessageTypeByName(full_name))(**fields)

    def call(self, service: str, method: str, requests: Any) -> Any:
        found = self._pool.FindServiceByName(service).FindMethodByName(method)
        kinds = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
        }
        make: Callable[..., Any] = kinds[found.client_streaming, found.server_streaming]
        return make(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )(requests)


@contextmanager
def foreign(address: str) -> Iterator[Foreign]:
    with grpc.insecure_channel(address) as channel:
        yield Foreign(channel)


def test_client_made_from_reflection_learns_and_draws(endpoints: Endpoints) -> None:
    package = "pseudoword.trainer.v1"
    service = f"{package}.TrainerService"
    with foreign(endpoints.trainer) as trainer:
        assert service in trainer.services
        names = []
        for path in REX:
            header = trainer.message(f"{package}.UploadPictureRequest", header={"parent": "tenants/foreign"})
            chunk = trainer.message(f"{package}.UploadPictureRequest", chunk=path.read_bytes())
            names.append(trainer.call(service, "UploadPicture", iter([header, chunk])).name)
        job = trainer.message(
            f"{package}.Job",
            concept="tenants/foreign/concepts/thing",
            examples=[{"picture": name} for name in names],
            recipe={"steps": 2},
        )
        request = trainer.message(
            f"{package}.CreateJobRequest", parent="tenants/foreign", job=job, request_id="from-elsewhere"
        )
        created = trainer.call(service, "CreateJob", request)
        assert trainer.call(service, "CreateJob", request).name == created.name
        end = time.monotonic() + 120
        while True:
            now = trainer.call(service, "GetJob", trainer.message(f"{package}.GetJobRequest", name=created.name))
            if now.version:
                break
            assert not now.error.code, now
            assert time.monotonic() < end
            time.sleep(0.1)

    package = "pseudoword.registry.v1"
    with foreign(endpoints.registry) as registry:
        request = registry.message(f"{package}.GetVersionRequest", name=now.version)
        version = registry.call(f"{package}.RegistryService", "GetVersion", request)
        assert (version.number, version.provenance.job, len(version.provenance.loss_curve)) == (1, created.name, 2)

    package = "pseudoword.generation.v1"
    with foreign(endpoints.generation) as generation:
        request = generation.message(
            f"{package}.GenerateRequest",
            parent="tenants/foreign",
            settings={"prompt": "a photo of <thing>", "steps": 2, "seed": 1},
        )
        events = list(generation.call(f"{package}.GenerationService", "Generate", request))
    data = b"".join(event.chunk.data for event in events if event.HasField("chunk"))
    assert data.startswith(b"\x89PNG")
    assert events[-1].HasField("done")


def test_errors_have_google_rpc_details(endpoints: Endpoints) -> None:
    package = "pseudoword.generation.v1"
    with foreign(endpoints.generation) as generation:
        request = generation.message(
            f"{package}.GenerateRequest", parent="tenants/foreign", settings={"prompt": "<no-such-word>"}
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(generation.call(f"{package}.GenerationService", "Generate", request))
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(bad) for detail in status.details)
    assert (info.reason, info.domain) == ("WORD_UNKNOWN", "pseudoword")
    assert bad.field_violations[0].field == "settings.prompt"
