"""What an address of a server says about the way to it."""

import ipaddress
import re

_SOCKETS = ("unix:", "unix-abstract:")
_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^\[\]:/@?#]+))(?::\d+)?")
_PRIVATE_ENDINGS = (".svc", ".local", ".localhost", ".internal")


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `address`: HOST:PORT, or a socket as gRPC writes it (`unix:/path`)."""
    host = _host(address)
    try:
        return address.startswith(_SOCKETS) or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(address: str) -> bool:
    """Whether no proxy leads to `address`: loopback, a socket, and names of a cluster or a private network, which are
    names without a dot or with an ending that no public name has."""
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    host = _host(address).rstrip(".")
    return is_loopback(address) or (host != "" and not {".", ":"} & set(host)) or host.endswith(_PRIVATE_ENDINGS)


def proxy_options(address: str) -> list[tuple[str, int]]:
    """gRPC's channel options for `address`. The environment's proxy (`https_proxy`, `http_proxy`, without the hosts of
    `no_proxy`) is used, but not for local addresses, which gRPC on its own would look for behind the proxy as well."""
    return [("grpc.enable_http_proxy", 0)] if is_local(address) else []


def _host(address: str) -> str:
    found = _HOST_PORT.fullmatch(address)
    return (found["ipv6"] or found["name"]).lower() if found else ""
