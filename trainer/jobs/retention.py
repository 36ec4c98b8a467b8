"""Retention of uploaded pictures: which jobs need them, how many bytes a tenant may have, and when they expire."""

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from trainer.jobs.life_cycle import UNFINISHED, State

Row = dict[str, Any]

# The states of unfinished jobs, as a list for SQL's IN.
UNFINISHED_SQL = ", ".join(f"'{state}'" for state in sorted(UNFINISHED))
# Retry delay that is suggested to a client when a limit is reached.
RETRY_AFTER = timedelta(seconds=15)


def picture(db: sqlite3.Connection, name: str) -> Row:
    """A picture's row. Raises NotFound."""
    row = db.execute("SELECT * FROM pictures WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFound(f"there is no {name}: upload it", reason="PICTURE_NOT_FOUND", metadata={"picture": name})
    return dict(row)


def expired_pictures(db: sqlite3.Connection, now_us: int, limit: int) -> list[str]:
    """Names of up to `limit` pictures that have expired and that no unfinished job needs."""
    rows = db.execute(
        "SELECT name FROM pictures WHERE expires_us <= ? AND NOT EXISTS (SELECT 1 FROM job_pictures JOIN jobs"
        f" ON jobs.name = job WHERE picture = pictures.name AND state IN ({UNFINISHED_SQL})) LIMIT ?",
        (now_us, limit),
    )
    return [row["name"] for row in rows]


def refuse_needed(db: sqlite3.Connection, name: str) -> None:
    """Raises FailedPrecondition while an unfinished job needs the picture."""
    needed = db.execute(
        "SELECT name FROM jobs JOIN job_pictures ON job = name"
        f" WHERE picture = ? AND state IN ({UNFINISHED_SQL}) LIMIT 1",
        (name,),
    ).fetchone()
    if needed is not None:
        raise FailedPrecondition(
            f"{needed['name']} still needs {name}: wait until the job has ended, or cancel it",
            reason="PICTURE_IN_USE",
            metadata={"job": needed["name"]},
        )


def check_needed(db: sqlite3.Connection, spec: Mapping[str, Any], now_us: int) -> list[str]:
    """Names of the pictures and masks that a job needs. Raises InvalidArgument if one is absent or has expired, or a
    mask has another shape than its picture."""
    missing, misshaped, needed = [], [], []
    for index, example in enumerate(spec["examples"]):
        shapes = []
        for part in ("picture", "mask"):
            if not (name := example.get(part)):
                continue
            needed.append(name)
            row = db.execute("SELECT * FROM pictures WHERE name = ?", (name,)).fetchone()
            if row is None or row["expires_us"] <= now_us:
                what = "is not uploaded" if row is None else "has expired"
                missing.append((f"job.examples[{index}].{part}", f"{name} {what}: upload it, then create the job"))
            else:
                shapes.append(f"{row['width']} x {row['height']}")
        if len(set(shapes)) > 1:
            misshaped.append((f"job.examples[{index}].mask", f"is {shapes[1]} pixels, its picture {shapes[0]}"))
    if missing or misshaped:
        violations = missing + misshaped
        reason = "PICTURE_NOT_FOUND" if missing else "MASK_SHAPE"
        raise InvalidArgument(violations[0][1], reason=reason, violations=violations)
    return needed


def check_bytes(db: sqlite3.Connection, name: str, size_bytes: int, limit: int) -> None:
    """Raises ResourceExhausted if this picture would bring its tenant's pictures above `limit` bytes."""
    folder = name.rpartition("/")[0]
    kept = db.execute(
        "SELECT coalesce(sum(size_bytes), 0) AS n FROM pictures WHERE name > ? AND name < ? AND name != ?",
        (f"{folder}/", f"{folder}0", name),
    ).fetchone()["n"]
    if kept + size_bytes > limit:
        raise ResourceExhausted(
            f"the tenant's pictures have {kept} bytes, and this one {size_bytes} more; the limit is {limit}:"
            " delete some, or wait until their jobs have ended",
            reason="PICTURE_BYTES",
            metadata={"bytes": str(kept), "limit": str(limit)},
            retry_after=RETRY_AFTER,
        )


def add_references(db: sqlite3.Connection, job: str, names: Sequence[str]) -> None:
    """Records that a job needs pictures, as of their last upload."""
    db.executemany(
        "INSERT OR IGNORE INTO job_pictures SELECT ?, name, uploaded_us FROM pictures WHERE name = ?",
        [(job, name) for name in names],
    )


def copy_references(db: sqlite3.Connection, job: str, other: str) -> None:
    """Records that the job `other` needs the pictures that `job` needs."""
    db.execute("INSERT INTO job_pictures SELECT ?, picture, uploaded_us FROM job_pictures WHERE job = ?", (other, job))


def release(db: sqlite3.Connection, name: str, state: State, expire_us: int, failures_since_us: int) -> None:
    """Sets the expiry of the pictures of a job that has ended in `state`.

    After a success they expire at `expire_us` at the latest, with two exceptions: pictures that another job needs, if
    that job is unfinished or has failed or was cancelled after `failures_since_us`; and pictures whose last upload no
    job has used, since it may be for a job that is still to be created. After any other end they expire at `expire_us`
    at the earliest.
    """
    needed = (
        "SELECT picture FROM job_pictures JOIN jobs ON jobs.name = job WHERE job != :job AND"
        f" (state IN ({UNFINISHED_SQL}) OR state IN ('FAILED', 'CANCELLED') AND ended_us > :since)"
    )
    used = (
        "SELECT 1 FROM job_pictures AS lent WHERE picture = pictures.name AND lent.uploaded_us = pictures.uploaded_us"
    )
    sooner = f"min(expires_us, :at) WHERE name NOT IN ({needed}) AND EXISTS ({used}) AND"
    db.execute(
        f"UPDATE pictures SET expires_us = {sooner if state is State.SUCCEEDED else 'max(expires_us, :at) WHERE'}"
        " name IN (SELECT picture FROM job_pictures WHERE job = :job)",
        {"job": name, "at": expire_us, "since": failures_since_us},
    )
