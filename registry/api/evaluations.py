"""The rpcs of evaluations: figures about versions."""

import secrets

from pseudoword.names import EvaluationName, VersionName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted, check_write, child
from registry.catalogue import versions
from registry.catalogue.commands import CreateEvaluation
from registry.catalogue.versioned_rows import NOW
from rpc.identity import Role
from rpc.validate import Violations


class EvaluationRpcs(Rpcs):
    """The rpcs of evaluations."""

    async def CreateEvaluation(
        self, request: registry_pb2.CreateEvaluationRequest, context: Context
    ) -> resources_pb2.Evaluation:
        found = Violations()
        parent = admitted(found, VersionName, request.parent, "parent", Role.WRITER)
        # If a request without evaluation_id is repeated, its command differs; its request id still finds the first
        # answer.
        segment = request.evaluation_id or f"e{secrets.token_hex(8)}"
        name = child(found, EvaluationName, str(parent), "evaluations", segment, "evaluation_id")
        given = request.evaluation
        validation.evaluation(found, "evaluation", given)
        check_write(found, request)
        kept = resources_pb2.Evaluation(
            evaluator=given.evaluator, metrics=given.metrics, samples=given.samples, seed=given.seed, note=given.note
        )
        command = CreateEvaluation(peer=context.peer(), name=name, evaluation=conversions.to_json(kept))
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.evaluation(result.value, result.revision)

    async def GetEvaluation(
        self, request: registry_pb2.GetEvaluationRequest, context: Context
    ) -> resources_pb2.Evaluation:
        name = admitted(Violations(), EvaluationName, request.name, "name", Role.READER)
        row, revision = await self._catalogue.read(name.tenant, lambda db: versions.get_evaluation(db, name))
        return conversions.evaluation(row, revision)

    async def ListEvaluations(
        self, request: registry_pb2.ListEvaluationsRequest, context: Context
    ) -> registry_pb2.ListEvaluationsResponse:
        parent = admitted(Violations(), VersionName, request.parent, "parent", Role.READER)
        page = await self._catalogue.page(
            parent.tenant,
            request,
            lambda db, at, before, limit: versions.evaluations(db, parent, at, before, limit),
            exists=lambda db: versions.get(db, parent),
            message=conversions.evaluation,
            key=lambda row: row["since"],
            first=NOW,
        )
        return registry_pb2.ListEvaluationsResponse(
            evaluations=page.items, next_page_token=page.token, revision=str(page.revision)
        )
