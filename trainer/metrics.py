"""What the trainer counts, in Prometheus' terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEP_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_JOB_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class TrainerMetrics:
    """Counters of jobs, pictures and the engine, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge(
            "pseudoword_trainer_jobs",
            "Jobs that train and have not ended, by state, whoever has them.",
            ("state",),
            registry=registry,
        )
        self.evaluations = Gauge(
            "pseudoword_trainer_evaluations",
            "Evaluations that have not ended, by state, whoever has them.",
            ("state",),
            registry=registry,
        )
        self.held = Gauge("pseudoword_trainer_held", "Jobs that this process trains or evaluates.", registry=registry)
        self.ended = Counter(
            "pseudoword_trainer_jobs_ended_total",
            "Attempts that ended, by how: published, failed, cancelled, handed_back, lost to another worker.",
            ("how",),
            registry=registry,
        )
        self.dispatches = Gauge(
            "pseudoword_trainer_dispatches",
            "1 on the server that hands out the jobs to workers, else 0.",
            registry=registry,
        )
        self.steps = Histogram(
            "pseudoword_trainer_step_seconds",
            "Time from one optimiser step of a job to its next.",
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
        self.rows = Counter("pseudoword_trainer_rows_total", "Rows that were trained.", registry=registry)
        self.training = Histogram(
            "pseudoword_trainer_training_seconds",
            "Time from a job's first step to its vectors.",
            buckets=_JOB_S,
            registry=registry,
        )
        self.pictures = Counter(
            "pseudoword_trainer_pictures_total",
            "Pictures uploaded, by outcome: taken, refused.",
            ("outcome",),
            registry=registry,
        )
