"""Base class and helpers of the rpcs of all resources."""

import asyncio
from datetime import timedelta
from typing import Any

from pseudoword.names import InvalidName

from registry.catalogue_store import CatalogueStore, Context
from registry.pickles import Pickles
from registry.signatures import SignaturePolicy
from rpc.identity import Principal
from rpc.validate import Violations, admitted

__all__ = ["Context", "Rpcs", "admitted", "check_write", "child", "tenants_of"]


class Rpcs:
    """Base of each resource's rpcs; together they form one servicer.

    `keep_deleted`: time after which a soft-deleted concept may be purged. Watches end when `draining` is set.
    """

    def __init__(
        self,
        catalogue: CatalogueStore,
        *,
        pickles: Pickles,
        signatures: SignaturePolicy,
        keep_deleted: timedelta,
        draining: asyncio.Event,
    ) -> None:
        self._catalogue = catalogue
        self._signatures = signatures
        self._pickles = pickles
        self._keep_deleted = keep_deleted
        self._draining = draining


def check_write(found: Violations, request: Any) -> None:
    """Check the request id, which every writing request has. Raises InvalidArgument for all faults so far."""
    found.request_id(request)
    found.raise_if_any()


def tenants_of(principal: Principal) -> frozenset[str] | None:
    """The tenants that a caller, and every caller that it acts for, may use; None: all."""
    allowed: frozenset[str] | None = None
    link: Principal | None = principal
    while link is not None:
        if link.tenants is not None:
            allowed = link.tenants if allowed is None else allowed & link.tenants
        link = link.on_behalf_of
    return allowed


def child(found: Violations, kind: Any, parent: str, collection: str, segment: str, field: str) -> Any:
    """The name `parent/collection/segment`. Raises InvalidArgument."""
    try:
        return kind.parse(f"{parent}/{collection}/{segment}" if parent else f"{collection}/{segment}")
    except InvalidName as error:
        found.add(field, str(error))
    found.raise_if_any()
    raise AssertionError("unreachable: a violation was added")
