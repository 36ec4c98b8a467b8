"""The trainer's Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEP_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_JOB_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class TrainerMetrics:
    """Metrics of jobs, pictures and the engine, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge(
            "pseudoword_trainer_jobs",
            "Unfinished training jobs in the store, by state.",
            ("state",),
            registry=registry,
        )
        self.evaluations = Gauge(
            "pseudoword_trainer_evaluations",
            "Unfinished evaluations in the store, by state.",
            ("state",),
            registry=registry,
        )
        self.held = Gauge("pseudoword_trainer_held", "Jobs that this process trains or evaluates.", registry=registry)
        self.ended = Counter(
            "pseudoword_trainer_jobs_ended_total",
            "Ended attempts, by how: published, failed, cancelled, handed_back, lost to another worker.",
            ("how",),
            registry=registry,
        )
        self.dispatches = Gauge(
            "pseudoword_trainer_dispatches",
            "1 on the server that dispatches jobs to workers, else 0.",
            registry=registry,
        )
        self.steps = Histogram(
            "pseudoword_trainer_step_seconds",
            "Time between two optimiser steps of a job.",
            buckets=_STEP_S,
            registry=registry,
        )
        self.slices = Histogram(
            "pseudoword_trainer_slice_seconds",
            "Time of one slice of an evaluation.",
            buckets=_STEP_S,
            registry=registry,
        )
        self.ticks = Histogram(
            "pseudoword_trainer_tick_seconds",
            "Time of one forward and backward pass for all jobs in it.",
            buckets=_STEP_S,
            registry=registry,
        )
        self.rows = Counter("pseudoword_trainer_rows_total", "Rows trained.", registry=registry)
        self.training = Histogram(
            "pseudoword_trainer_training_seconds",
            "Time from a job's first step to its final vectors.",
            buckets=_JOB_S,
            registry=registry,
        )
        self.pictures = Counter(
            "pseudoword_trainer_pictures_total",
            "Uploaded pictures, by outcome: taken, refused.",
            ("outcome",),
            registry=registry,
        )
