"""PreviewThrottle: when a preview is due."""

from trainer.jobs.preview_throttle import PreviewThrottle


def test_no_preview_is_due_without_a_watcher() -> None:
    previews = PreviewThrottle()
    assert not previews.due("a", 0.0)
    with previews.wanted("a", 5.0):
        assert previews.due("a", 0.0)
        assert not previews.due("b", 0.0)
    assert not previews.due("a", 0.0)


def test_the_shortest_interval_of_all_watchers_counts() -> None:
    previews = PreviewThrottle()
    with previews.wanted("a", 60.0), previews.wanted("a", 5.0):
        previews.drawn("a", 0.0, 0.0)
        assert [previews.due("a", now) for now in (4.9, 5.0)] == [False, True]
    with previews.wanted("a", 60.0):
        assert previews.due("a", 5.0)  # a new watcher gets a preview without a wait


def test_previews_take_at_most_a_tenth_of_the_time() -> None:
    previews = PreviewThrottle()
    with previews.wanted("a", 1.0), previews.wanted("b", 1.0):
        previews.drawn("a", 10.0, 12.0)
        assert not previews.due("b", 29.9)
        assert previews.due("b", 30.1)
