"""The servicer of RegistryService, assembled from the classes of the resources."""

from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceServicer

from registry.api.aliases import AliasRpcs
from registry.api.concepts import ConceptRpcs
from registry.api.embeddings import EmbeddingRpcs
from registry.api.evaluations import EvaluationRpcs
from registry.api.resolve import ResolveRpcs
from registry.api.tenants import TenantRpcs
from registry.api.versions import VersionRpcs
from registry.api.watch import WatchRpcs


class RegistryServicer(
    TenantRpcs,
    ConceptRpcs,
    VersionRpcs,
    EmbeddingRpcs,
    EvaluationRpcs,
    AliasRpcs,
    ResolveRpcs,
    WatchRpcs,
    RegistryServiceServicer,
):
    """All rpcs of the registry."""
