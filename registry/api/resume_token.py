"""Resume tokens: how far a watch has come in each shard."""

from collections.abc import Iterable, Mapping
from typing import Self

from rpc.errors import InvalidArgument
from storage.errors import RevisionAhead
from storage.ledger.entry import Revision

# No log grows so long, and the database cannot count further.
_NO_ENTRY = 2**53


class ResumeToken:
    """`after` has for each watched shard the revision up to which everything was told. `str()` is the token: those
    revisions, with dots between."""

    def __init__(self, after: Mapping[int, Revision]) -> None:
        self.after = dict(after)

    @classmethod
    def parse(cls, token: str, store_id: str, shards: Iterable[int]) -> Self:
        """The token of a response, or a list's revision, for a watch of `shards`; what it says of others is left out.

        Raises StoreChanged, BadRevision, and InvalidArgument when a shard is missing.
        """
        after: dict[int, Revision] = {}
        for part in token.split("."):
            revision = Revision.parse(part)
            revision.check(store_id, revision.shard)
            if revision.entry >= _NO_ENTRY:
                raise RevisionAhead(f"revision {part} is ahead of every log", revision=part)
            after[revision.shard] = revision
        missing = sorted(set(shards) - after.keys())
        if missing:
            why = f"says nothing of {len(missing)} of the shards to watch: it is another parent's"
            raise InvalidArgument(
                f"resume_token {why}", reason="RESUME_TOKEN_INVALID", violations=[("resume_token", why)]
            )
        return cls({shard: after[shard] for shard in shards})

    def moved(self, revision: Revision) -> "ResumeToken":
        """With one shard further."""
        return ResumeToken(self.after | {revision.shard: revision})

    def __str__(self) -> str:
        return ".".join(str(self.after[shard]) for shard in sorted(self.after))
