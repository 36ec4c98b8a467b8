"""Resume tokens: the position of a watch in each shard."""

from collections.abc import Iterable, Mapping
from typing import Self

from rpc.errors import InvalidArgument
from storage.errors import RevisionAhead
from storage.ledger.entry import Revision

# Larger than any log; SQLite cannot count much further.
_NO_ENTRY = 2**53


class ResumeToken:
    """`after` has, for each watched shard, the revision up to which all events were sent. `str()` is the token: these
    revisions, joined by dots."""

    def __init__(self, after: Mapping[int, Revision]) -> None:
        self.after = dict(after)

    @classmethod
    def parse(cls, token: str, store_id: str, shards: Iterable[int]) -> Self:
        """Parse the token of a response, or a list's revision, for a watch of `shards`; other shards are ignored.

        Raises StoreChanged, BadRevision, RevisionAhead, and InvalidArgument when a shard is missing.
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
            why = f"lacks {len(missing)} of the shards to watch: use it only with the parent that it was issued for"
            raise InvalidArgument(
                f"resume_token {why}", reason="RESUME_TOKEN_INVALID", violations=[("resume_token", why)]
            )
        return cls({shard: after[shard] for shard in shards})

    def moved(self, revision: Revision) -> "ResumeToken":
        """A token with one shard advanced to `revision`."""
        return ResumeToken(self.after | {revision.shard: revision})

    def __str__(self) -> str:
        return ".".join(str(self.after[shard]) for shard in sorted(self.after))
