"""Converts rows of Generation's tables to messages of the API."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from google.protobuf.json_format import MessageToDict, ParseDict
from pseudoword.generation.v1 import resources_pb2
from pseudoword.names import BatchName

from rpc.errors import read_error_text
from service.batches.output import folder, manifest_name
from service.batches.state_machine import Row


def summary(batch: resources_pb2.Batch) -> dict[str, Any]:
    """The fields of a batch that lists return, as protobuf's JSON; small enough for the log."""
    short = without_pictures(batch)
    del short.prompts[:], short.blanks[:], short.words[:]
    fields: dict[str, Any] = MessageToDict(short, preserving_proto_field_name=True)
    return fields


def without_pictures(batch: resources_pb2.Batch) -> resources_pb2.Batch:
    """A copy without start picture and mask, which may have megabytes."""
    copy = resources_pb2.Batch()
    copy.CopyFrom(batch)
    copy.settings.ClearField("start_picture")
    copy.settings.ClearField("mask")
    return copy


def batch_of(row: Row, done: int, place: str, spec: resources_pb2.Batch | None = None) -> resources_pb2.Batch:
    """A batch's row as a Batch. `spec` is the whole Batch, with the fields that the row leaves out; `place` is the URI
    of the store, with a trailing slash."""
    batch = ParseDict(row["spec"], resources_pb2.Batch()) if spec is None else without_pictures(spec)
    batch.name = row["name"]
    batch.state = resources_pb2.Batch.State.Value(f"STATE_{row['state']}")
    batch.done = done
    batch.total = row["total"]
    batch.creator = row["creator"]
    batch.etag = row["revision"]
    if row["state"] == "SUCCEEDED":
        webdataset = batch.layout == resources_pb2.Batch.LAYOUT_WEBDATASET
        where = folder(BatchName.parse(row["name"]))
        batch.manifest_uri = f"{place}{where}/{manifest_name(webdataset=webdataset)}"
    if "error" in row["detail"]:
        read_error_text(row["detail"]["error"], batch.error)
    batch.create_time.FromMicroseconds(row["created_us"])
    if row["ended_us"] is not None:
        batch.end_time.FromMicroseconds(row["ended_us"])
    return batch


def store_uri(address: str) -> str:
    """The URI of the store at `address`, with a trailing slash."""
    if address.startswith("s3://"):
        return address.rstrip("/") + "/"
    path = Path(unquote(urlsplit(address).path)) if address.startswith("file:") else Path(address).expanduser()
    return path.absolute().as_uri() + "/"
