"""Converts rows of the trainer's tables to messages of the API."""

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from pseudoword.trainer.v1 import resources_pb2

from rpc.errors import read_error_text
from trainer.jobs.tables import Row


def job_of(row: Row, revision: str) -> resources_pb2.Job:
    """A job's row as a Job. The progress of a running job is not in its row: JobStore.message adds it."""
    job: resources_pb2.Job = ParseDict(row["spec"], resources_pb2.Job())
    detail = row["detail"]
    job.name = row["name"]
    job.state = resources_pb2.Job.State.Value(f"STATE_{row['state']}")
    job.attempt = row["attempt"] - row["handed_back"]
    job.creator = row["creator"]
    job.etag = row["revision"]
    job.revision = revision
    job.version = detail.get("version", "")
    job.first_version = detail.get("first_version", "")
    job.evaluation = detail.get("evaluation", "")
    job.evaluation_job = detail.get("evaluation_job", "")
    if "error" in detail:
        read_error_text(detail["error"], job.error)
    if "progress" in detail:
        ParseDict(detail["progress"], job.progress)
    _set_time(job.create_time, row["created_us"])
    _set_time(job.start_time, row["started_us"])
    _set_time(job.end_time, row["ended_us"])
    return job


def picture_of(row: Row) -> resources_pb2.Picture:
    """A picture's row as a Picture."""
    fields = {key: row[key] for key in ("name", "media_type", "size_bytes", "width", "height")}
    picture = resources_pb2.Picture(**fields)
    _set_time(picture.create_time, row["created_us"])
    _set_time(picture.expire_time, row["expires_us"])
    return picture


def _set_time(timestamp: Timestamp, microseconds: int | None) -> None:
    if microseconds is not None:
        timestamp.FromMicroseconds(microseconds)
