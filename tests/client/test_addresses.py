"""Which addresses are reached without the environment's proxy."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.addresses import is_local, is_loopback

from tests.processes import Process
from tests.relay import Relay

LOOPBACK = ["127.0.0.1:7361", "127.0.0.2:1", "[::1]:7361", "localhost:7361", "unix:/run/registry.sock"]
PRIVATE = [
    "registry:7361",
    "dns:///registry:7361",
    "registry.words.svc:7361",
    "registry.words.svc.cluster.local:7361",
    "Registry.words.SVC.:7361",
    "ipv4:127.0.0.1:7361",
    "ipv6:[::1]:7361",
]
ELSEWHERE = [
    "me@localhost:1",
    "dns://8.8.8.8/localhost:1",
    "[::1",
    "",
    "words.example.com:443",
    "dns:///words.example.com:443",
    "10.0.0.7:7361",
    "[2001:db8::1]:443",
]


@pytest.mark.parametrize(
    ("address", "loopback", "local"),
    [
        *((address, True, True) for address in LOOPBACK),
        *((address, False, True) for address in PRIVATE),
        *((address, False, False) for address in ELSEWHERE),
    ],
)
def test_addresses_say_who_can_be_reached(address: str, loopback: bool, local: bool) -> None:
    assert (is_loopback(address), is_local(address)) == (loopback, local)


@given(st.text(alphabet="a1.:[]/%@u-", max_size=20))
def test_any_text_is_an_address_or_none(address: str) -> None:
    assert is_local(address) >= is_loopback(address)


class Proxy(Relay):
    """An HTTP proxy: answers CONNECT to any host with a connection to one server, and keeps the hosts of the calls."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.hosts: list[str] = []

    def _greet(self, near: socket.socket) -> None:
        self.hosts.append(near.recv(65536).decode().split()[1])
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, starts_process: None) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("registry")
    with Process("registry", folder, "--store.address", str(folder / "store")) as running:
        yield running


@pytest.fixture
def proxy(registry: Process) -> Iterator[Proxy]:
    with Proxy(registry.address) as running:
        yield running


def words(registry: str, proxy: Proxy) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return subprocess.run(
        [Path(sys.executable).with_name("pseudoword"), "words", "--registry", registry],
        check=False,
        env=clean | dict.fromkeys(("http_proxy", "https_proxy"), f"http://{proxy.address}"),
        capture_output=True,
        text=True,
    )


def test_loopback_is_reached_without_the_proxy(registry: Process, proxy: Proxy) -> None:
    ran = words(registry.address, proxy)
    assert (ran.returncode, proxy.hosts) == (0, []), ran.stderr


def test_a_public_name_is_reached_through_the_proxy(registry: Process, proxy: Proxy) -> None:
    ran = words("words.example.com:7361", proxy)
    assert (ran.returncode, proxy.hosts) == (0, ["words.example.com:7361"]), ran.stderr
