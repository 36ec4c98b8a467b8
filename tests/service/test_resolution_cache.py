"""ResolutionCache against a registry that changes."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.words.resolution_cache import FOREIGN_LIMIT_S, Key, ResolutionCache

_CONCEPT = st.sampled_from(["rex", "mia"])
_TENANT = st.sampled_from(["a", "b"])


def key(asking: str, owner: str, concept: str) -> Key:
    return Key(asking, f"{owner}/{concept}", owner, concept)


class ChangingRegistry(RuleBasedStateMachine):
    """A registry whose versions count up, a watch that reports changes late, and queries whose responses come late."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.resolutions: ResolutionCache[int] = ResolutionCache(limit=3)
        self.truth: dict[tuple[str, str], int] = {}
        self.unreported: list[tuple[str, str]] = []
        self.changed_at: dict[tuple[str, str], float] = {}
        self.resolutions.reset()
        self.resolutions.mark_fresh(0.0)

    @rule(seconds=st.floats(0.01, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(owner=_TENANT, concept=_CONCEPT)
    def change(self, owner: str, concept: str) -> None:
        self.truth[owner, concept] = self.truth.get((owner, concept), 0) + 1
        self.changed_at[owner, concept] = self.now
        self.unreported.append((owner, concept))

    @rule()
    def watch_reports(self) -> None:
        for owner, concept in self.unreported:
            self.resolutions.invalidate(owner, concept)
        self.unreported.clear()
        self.resolutions.mark_fresh(self.now)

    @rule()
    def watch_restarts(self) -> None:
        self.unreported.clear()
        self.resolutions.reset()

    @rule(asking=_TENANT, owner=_TENANT, concept=_CONCEPT, between=st.sampled_from(["", "change", "report", "restart"]))
    def resolve(self, asking: str, owner: str, concept: str, between: str) -> None:
        with self.resolutions.query() as answers:
            answer = self.truth.get((owner, concept), 0)
            if between:
                self.change(owner, concept)
            if between == "report":
                self.watch_reports()
            if between == "restart":
                self.watch_restarts()
            answers.keep([(key(asking, owner, concept), answer)])

    @invariant()
    def no_answer_is_older_than_allowed(self) -> None:
        for asking in "ab":
            for owner in "ab":
                for concept in ("rex", "mia"):
                    for limit in (1.0, 100.0):
                        found = self.resolutions.get(key(asking, owner, concept), self.now, limit)
                        if found is None or found == self.truth.get((owner, concept), 0):
                            continue
                        # A stale answer: the change is later than the last report, which is recent enough.
                        age = self.now - self.changed_at[owner, concept]
                        assert age <= limit
                        assert asking == owner or age <= FOREIGN_LIMIT_S

    @invariant()
    def size_is_bounded(self) -> None:
        assert len(self.resolutions) <= 3


ChangingRegistry.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestChangingRegistry = ChangingRegistry.TestCase


def test_answer_is_used_while_the_watch_is_fresh_and_until_it_is_invalidated() -> None:
    resolutions: ResolutionCache[str] = ResolutionCache(limit=10)
    rex = key("a", "a", "rex")
    with resolutions.query() as answers:
        answers.keep([(rex, "v1")])
    assert resolutions.get(rex, 0.0, 10.0) is None  # the watch has not reported yet
    resolutions.mark_fresh(0.0)
    assert resolutions.get(rex, 10.0, 10.0) == "v1"
    assert resolutions.get(rex, 10.1, 10.0) is None
    resolutions.mark_fresh(11.0)
    assert resolutions.get(rex, 12.0, 10.0) == "v1"
    resolutions.invalidate("a", "rex")
    assert resolutions.get(rex, 12.0, 10.0) is None
