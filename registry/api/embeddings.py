"""The rpc that exports vectors as files, for their owner and for tenants with a grant."""

import asyncio
import sqlite3

from pseudoword.names import TenantName, VersionName
from pseudoword.registry.v1 import registry_pb2

from registry import files
from registry.api import conversions, validation
from registry.api.base import Context, Rpcs
from registry.catalogue import concepts, versions
from registry.catalogue.words import not_granted
from rpc.identity import Role, current_principal
from rpc.validate import Violations
from storage.errors import Damaged, TensorsInvalid
from storage.tensors import read_tensors, tensors_digest


class EmbeddingRpcs(Rpcs):
    """GetEmbedding."""

    async def GetEmbedding(
        self, request: registry_pb2.GetEmbeddingRequest, context: Context
    ) -> registry_pb2.GetEmbeddingResponse:
        found = Violations()
        name = found.name(VersionName, request.name, "name")
        reader = found.name(TenantName, request.reader, "reader").tenant if request.reader else name.tenant
        current_principal().require(reader, Role.READER)
        age = validation.staleness(found, request)
        files.check_format(found, request.format)
        found.raise_if_any()

        def work(db: sqlite3.Connection) -> conversions.Row:
            if reader != name.tenant:
                concept = concepts.find(db, name.parent)
                if concept is None or not concepts.is_granted(concept, reader):
                    raise not_granted(name.parent, reader)
            return versions.get(db, name)

        row, revision = await self._catalogue.read(name.tenant, work, age)
        data = await self._catalogue.get_blob(row["blob"])
        version = conversions.version(row, revision)
        answer = await asyncio.to_thread(_exported, data, row, version, request.format)
        return registry_pb2.GetEmbeddingResponse(
            data=answer.data, format=answer.format, filename=answer.filename, version=version
        )


def _exported(data: bytes, row: conversions.Row, version: "files.Version", layout: "files.Format") -> files.File:
    try:
        tensors = read_tensors(data)
    except TensorsInvalid as error:
        raise Damaged(row["blob"], error.message) from error
    if tensors_digest(tensors) != row["tensors_digest"]:
        raise Damaged(row["blob"], "its tensors do not match the version's tensors digest")
    return files.export(data, tensors, version, layout)
