"""Tokens, roles and tenants, over real calls."""

import os
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pseudoword.errors import PseudowordError
from pseudoword.trainer.v1 import trainer_pb2

from rpc.clients import Peer, as_caller, channel
from rpc.identity import ANONYMOUS, Principal, Role, Tokens
from rpc.server import Server
from rpc.settings import ServerSettings, SettingsError
from rpc.storage_errors import STORAGE
from tests.rpc.conftest import SERVICE, Serve, health, token_entry

SHOP = Principal(name="customer", tenants=frozenset({"shop"}), roles=frozenset({Role.WRITER}))


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {name}-token"),)


async def outcome(stub: Any, tenant: str, metadata: Any) -> str:
    """OK, or the reason of the error."""
    try:
        await stub.GetPicture(trainer_pb2.GetPictureRequest(name=f"tenants/{tenant}/pictures/x"), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return PseudowordError.from_call(error).reason
    return "OK"


@pytest.mark.parametrize(
    ("metadata", "tenant", "expected"),
    [
        ((), "shop", "TOKEN_MISSING"),
        ((("authorization", "Basic abc"),), "shop", "TOKEN_MALFORMED"),
        (bearer("stranger"), "shop", "TOKEN_UNKNOWN"),
        (bearer("shop"), "shop", "OK"),
        (bearer("shop"), "other", "TENANT_DENIED"),
        (bearer("viewer"), "shop", "ROLE_DENIED"),
        (bearer("root"), "other", "OK"),
        ((*bearer("generation"), *as_caller(SHOP)), "shop", "OK"),
        ((*bearer("generation"), *as_caller(SHOP)), "other", "TENANT_DENIED"),
        ((*bearer("root"), *as_caller(SHOP)), "shop", "ROLE_DENIED"),  # an admin is no delegate
        ((*bearer("shop"), *as_caller(ANONYMOUS)), "shop", "ROLE_DENIED"),
        ((*bearer("generation"), ("x-pseudoword-on-behalf-of", "{}")), "shop", "BAD_DELEGATION"),
    ],
)
async def test_access_by_token_tenant_role_and_delegation(
    serve: Serve, token_file: Path, metadata: Any, tenant: str, expected: str
) -> None:
    running = await serve(token_file=token_file)
    assert await outcome(await running.stub(), tenant, metadata) == expected


async def test_server_without_tokens_serves_anonymous_callers(serve: Serve) -> None:
    assert await outcome(await (await serve()).stub(), "any", ()) == "OK"


async def test_channel_to_a_peer_sends_the_token(serve: Serve, token_file: Path, tmp_path: Path) -> None:
    running = await serve(token_file=token_file)
    secret = tmp_path / "token"
    secret.write_text("generation-token\n")
    stub = await running.stub(channel(Peer(address=running.server.address, token_file=secret)))
    assert await outcome(stub, "shop", as_caller(SHOP)) == "OK"
    requests = [trainer_pb2.UploadPictureRequest() for _ in range(3)]
    answer = await stub.UploadPicture(iter(requests), metadata=as_caller(SHOP))
    assert answer.name == "3 parts for customer"


async def test_token_is_not_sent_to_another_machine_without_tls() -> None:
    with pytest.raises(SettingsError, match="without TLS"):
        channel(Peer.model_validate({"address": "registry.example:7361", "token": "t"}))


async def test_token_is_sent_over_tls(serve: Serve, token_file: Path) -> None:
    files = Path(__file__).parent / "tls"
    running = await serve(token_file=token_file, tls_cert=files / "cert.pem", tls_key=files / "key.pem")
    peer = Peer.model_validate({"address": running.server.address, "token": "shop-token", "ca": files / "cert.pem"})
    assert await outcome(await running.stub(channel(peer)), "shop", ()) == "OK"


async def test_health_and_reflection_need_no_token(serve: Serve, token_file: Path) -> None:
    running = await serve(token_file=token_file)
    opened = await running.channel()
    assert await health(opened, "liveness") == [health_pb2.HealthCheckResponse.SERVING]
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(opened)  # type: ignore[arg-type]
    listed = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = [service.name async for response in listed for service in response.list_services_response.service]
    assert SERVICE in names


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.org:7361"])
async def test_server_without_tokens_listens_on_loopback_only(listen: str) -> None:
    with pytest.raises(SettingsError, match="only loopback"):
        Server(ServerSettings(listen=listen), name="toy", table=STORAGE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token = 3", "token: Input should be a valid list"),
        ("[[token]\n", "not TOML"),
        (token_entry("a", '["shop"]', '["king"]'), r"token\.0\.roles"),
        (token_entry("a", '["Shop"]', '["writer"]'), r"token\.0\.tenants"),
        (token_entry("a", '["*"]', "[]").replace("sha256", "md5"), "sha256: Field required"),
        (token_entry("a", '["*"]', "[]") * 2, "the same sha256"),
    ],
)
def test_invalid_token_file_is_a_settings_error(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        Tokens(path)


def test_missing_token_file_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Tokens(tmp_path / "none.toml")


async def test_changed_token_file_is_read_again_unless_it_is_invalid(serve: Serve, token_file: Path) -> None:
    stub = await (await serve(token_file=token_file)).stub()

    def write(text: str) -> None:
        fresh = token_file.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, token_file)  # noqa: PTH105

    write("nonsense")
    assert await outcome(stub, "shop", bearer("shop")) == "OK"
    write(token_entry("newcomer", '["shop"]', '["writer"]'))
    assert await outcome(stub, "shop", bearer("shop")) == "TOKEN_UNKNOWN"
    assert await outcome(stub, "shop", bearer("newcomer")) == "OK"
    token_file.unlink()  # noqa: ASYNC240
    assert await outcome(stub, "shop", bearer("newcomer")) == "OK"
