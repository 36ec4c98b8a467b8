"""What is kept of words, against a registry that changes."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.words.resolution_cache import FOREIGN_LIMIT_S, Key, ResolutionCache

_CONCEPT = st.sampled_from(["rex", "mia"])
_TENANT = st.sampled_from(["a", "b"])


def key(asking: str, owner: str, concept: str) -> Key:
    return Key(asking, f"{owner}/{concept}", owner, concept)


class Listening(RuleBasedStateMachine):
    """A registry whose versions count up, a watch that tells of it late, questions whose answers come late."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.resolutions: ResolutionCache[int] = ResolutionCache(limit=3)
        self.truth: dict[tuple[str, str], int] = {}
        self.untold: list[tuple[str, str]] = []
        self.told_at = 0.0  # everything before is told
        self.changed_at: dict[tuple[str, str], float] = {}
        self.resolutions.reset()
        self.resolutions.mark_fresh(0.0)

    @rule(seconds=st.floats(0.01, 40))
    def time_goes(self, seconds: float) -> None:
        self.now += seconds

    @rule(owner=_TENANT, concept=_CONCEPT)
    def change(self, owner: str, concept: str) -> None:
        self.truth[owner, concept] = self.truth.get((owner, concept), 0) + 1
        self.changed_at[owner, concept] = self.now
        self.untold.append((owner, concept))

    @rule()
    def watch_speaks(self) -> None:
        for owner, concept in self.untold:
            self.resolutions.invalidate(owner, concept)
        self.untold.clear()
        self.resolutions.mark_fresh(self.now)

    @rule()
    def watch_begins_anew(self) -> None:
        self.untold.clear()
        self.resolutions.reset()

    @rule(asking=_TENANT, owner=_TENANT, concept=_CONCEPT, between=st.sampled_from(["", "change", "told", "anew"]))
    def ask(self, asking: str, owner: str, concept: str, between: str) -> None:
        with self.resolutions.query() as answers:
            answer = self.truth.get((owner, concept), 0)
            if between:
                self.change(owner, concept)
            if between == "told":
                self.watch_speaks()
            if between == "anew":
                self.watch_begins_anew()
            answers.keep([(key(asking, owner, concept), answer)])

    @invariant()
    def nothing_older_than_allowed(self) -> None:
        for asking in "ab":
            for owner in "ab":
                for concept in ("rex", "mia"):
                    for limit in (1.0, 100.0):
                        found = self.resolutions.get(key(asking, owner, concept), self.now, limit)
                        if found is None or found == self.truth.get((owner, concept), 0):
                            continue
                        # A stale one: the change came after the watch last spoke, and that is not too long ago.
                        age = self.now - self.changed_at[owner, concept]
                        assert age <= limit
                        assert asking == owner or age <= FOREIGN_LIMIT_S

    @invariant()
    def bounded(self) -> None:
        assert len(self.resolutions) <= 3


Listening.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestListening = Listening.TestCase


def test_what_was_kept_is_used_again() -> None:
    resolutions: ResolutionCache[str] = ResolutionCache(limit=10)
    rex = key("a", "a", "rex")
    with resolutions.query() as answers:
        answers.keep([(rex, "v1")])
    assert resolutions.get(rex, 0.0, 10.0) is None  # the watch has not spoken
    resolutions.mark_fresh(0.0)
    assert resolutions.get(rex, 10.0, 10.0) == "v1"
    assert resolutions.get(rex, 10.1, 10.0) is None
    resolutions.mark_fresh(11.0)
    assert resolutions.get(rex, 12.0, 10.0) == "v1"
    resolutions.invalidate("a", "rex")
    assert resolutions.get(rex, 12.0, 10.0) is None
