"""Pictures on loan in the trainer's ledger: who needs them, how many bytes they may have, and when they go."""

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from trainer.jobs.life_cycle import UNFINISHED, State

Row = dict[str, Any]

# The states of jobs that have not ended, as SQL has them in parentheses.
UNFINISHED_SQL = ", ".join(f"'{state}'" for state in sorted(UNFINISHED))
# What a client is told to wait before it asks for a place again.
ROOM_AFTER = timedelta(seconds=15)


def picture(db: sqlite3.Connection, name: str) -> Row:
    """A picture's row. Raises NotFound."""
    row = db.execute("SELECT * FROM pictures WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFound(f"there is no {name}: upload it", reason="PICTURE_NOT_FOUND", metadata={"picture": name})
    return dict(row)


def expired_pictures(db: sqlite3.Connection, now_us: int, limit: int) -> list[str]:
    """Names of up to `limit` pictures whose time is over and that no unfinished job needs."""
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
            f"{needed['name']} still needs {name}", reason="PICTURE_IN_USE", metadata={"job": needed["name"]}
        )


def check_needed(db: sqlite3.Connection, spec: Mapping[str, Any], now_us: int) -> list[str]:
    """The pictures and masks that a job needs, all there and of the same shapes. Raises InvalidArgument."""
    missing, misshaped, needed = [], [], []
    for index, example in enumerate(spec["examples"]):
        shapes = []
        for part in ("picture", "mask"):
            if not (name := example.get(part)):
                continue
            needed.append(name)
            row = db.execute("SELECT * FROM pictures WHERE name = ?", (name,)).fetchone()
            if row is None or row["expires_us"] <= now_us:
                what = "is not here" if row is None else "has expired"
                missing.append((f"job.examples[{index}].{part}", f"{name} {what}: upload it, then create the job"))
            else:
                shapes.append(f"{row['width']} x {row['height']}")
        if len(set(shapes)) > 1:
            misshaped.append((f"job.examples[{index}].mask", f"is {shapes[1]}, its picture {shapes[0]} pixels"))
    if missing or misshaped:
        wrong = missing + misshaped
        raise InvalidArgument(wrong[0][1], reason="PICTURE_NOT_FOUND" if missing else "MASK_SHAPE", violations=wrong)
    return needed


def check_bytes(db: sqlite3.Connection, name: str, size_bytes: int, limit: int) -> None:
    """Raises ResourceExhausted when a tenant's pictures would have too many bytes with this one."""
    folder = name.rpartition("/")[0]
    kept = db.execute(
        "SELECT coalesce(sum(size_bytes), 0) AS n FROM pictures WHERE name > ? AND name < ? AND name != ?",
        (f"{folder}/", f"{folder}0", name),
    ).fetchone()["n"]
    if kept + size_bytes > limit:
        raise ResourceExhausted(
            f"the pictures have {kept} bytes and would have {size_bytes} more; {limit}"
            " are kept: delete some, or wait until their jobs have ended",
            reason="PICTURE_BYTES",
            metadata={"bytes": str(kept), "limit": str(limit)},
            retry_after=ROOM_AFTER,
        )


def lend(db: sqlite3.Connection, job: str, names: Sequence[str]) -> None:
    """A job needs pictures, as they were uploaded last."""
    db.executemany(
        "INSERT OR IGNORE INTO job_pictures SELECT ?, name, uploaded_us FROM pictures WHERE name = ?",
        [(job, name) for name in names],
    )


def lend_on(db: sqlite3.Connection, job: str, other: str) -> None:
    """Another job needs the pictures that `job` needs."""
    db.execute("INSERT INTO job_pictures SELECT ?, picture, uploaded_us FROM job_pictures WHERE job = ?", (other, job))


def release(db: sqlite3.Connection, name: str, state: State, expire_us: int, failures_since_us: int) -> None:
    """A job that ends in `state` lets its pictures go at `expire_us`: one that has succeeded not later, unless another
    one needs them that is unfinished or has failed after `failures_since_us`, or they were uploaded again for one that
    is still to be created; any other not earlier, whatever their time was."""
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
