"""The Generation service over gRPC: real servers, real pictures."""

import hashlib
import io
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.json_format import MessageToDict
from PIL import Image
from pseudoword.calls import errors
from pseudoword.errors import PseudowordError
from pseudoword.generation.v1 import generation_pb2, resources_pb2
from pseudoword.names import WordRef
from pseudoword.picture import Picture, pictures
from pseudoword.registry.v1 import registry_pb2
from pseudoword.registry.v1 import resources_pb2 as registry_resources

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.prompt import parse
from storage.tensors import read_tensors
from tests.conftest import Eventually
from tests.service.conftest import Publish, System

Settings = resources_pb2.PictureSettings


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)


def png(size_px: int, colour: tuple[int, int, int] = (200, 40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size_px, size_px), colour).save(buffer, "PNG")
    return buffer.getvalue()


def refused(call: Callable[[], object]) -> PseudowordError:
    with pytest.raises(PseudowordError) as caught:
        call()
    return caught.value


def test_stream_has_acceptance_progress_previews_pictures_and_end(system: System, publish: Publish) -> None:
    version = publish("story", seed=1)
    settings = Settings(prompt="a photo of <story>", seed=5, steps=6)
    events = list(system.client.generate(settings, count=2, preview_every=2))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("accepted", "done")

    accepted = events[0].accepted
    assert accepted.calls == 6
    assert [record.settings.seed for record in accepted.records] == [5, 6]
    record = accepted.records[0]
    assert (record.settings.scheduler, record.settings.width, record.settings.guidance_scale) == ("ddim", 64, 4.0)
    assert record.words[0].version == version.name
    assert record.words[0].tensors_digest == version.tensors_digest
    assert record.words[0].match == resources_pb2.MATCH_EXACT
    assert record.base_model.family == "miniature"

    calls = [event.progress.call for event in events if event.WhichOneof("event") == "progress"]
    assert calls == sorted(set(calls))
    assert calls[-1] == 12
    previews = [event.preview for event in events if event.WhichOneof("event") == "preview"]
    assert previews
    assert Image.open(io.BytesIO(previews[0].png)).size == (16, 16)

    drawn = pictures(events)
    assert [picture.index for picture in drawn] == [0, 1]
    assert events[-1].done.count == 2
    assert not np.array_equal(pixels(drawn[0]), pixels(drawn[1]))
    image: Any = Image.open(io.BytesIO(drawn[0].data))
    written = json.loads(image.text["pseudoword"])
    assert written == MessageToDict(record, preserving_proto_field_name=True)


def test_equal_requests_give_equal_files_and_the_librarys_pixels(
    system: System, publish: Publish, model: BaseModel
) -> None:
    version = publish("exact", seed=2, vectors=2)
    how: dict[str, Any] = {"negative_prompt": "a sketch", "seed": 9, "steps": 5, "scheduler": "euler-a"}
    (first,), (again,) = (system.client.draw("<exact> in the snow", **how) for _ in range(2))
    assert first.data == again.data

    tensors = read_tensors(system.client.embedding(version.name, format=registry_pb2.EMBEDDING_FORMAT_NATIVE).data)
    vectors = {WordRef(None, "exact"): torch.from_numpy(tensors["text_encoder"].copy())}
    encoder = PromptEncoder(model)
    with torch.inference_mode():
        denoising = Denoising(
            model,
            embeds=encoder.encode([parse("<exact> in the snow")], vectors),
            negative=encoder.encode([parse("a sketch")], vectors),
            scheduler="euler-a",
            steps=5,
            guidance=4.0,
            seed=9,
            width=64,
            height=64,
        )
        while not denoising.done:
            denoise.step(model, [denoising])
        expected = decode.decode(model, denoising.latents)[0]
    assert np.array_equal(pixels(first), expected)


def test_pictures_of_one_request_equal_single_pictures_of_their_seeds(system: System) -> None:
    together = system.client.draw("a photo of a dog", seed=20, steps=4, count=3)
    alone = [system.client.draw("a photo of a dog", seed=20 + i, steps=4)[0] for i in range(3)]
    assert [picture.data for picture in together] == [picture.data for picture in alone]


def test_shared_calls_change_a_pixel_by_one_level_at_most(system: System, publish: Publish) -> None:
    """Twelve concurrent requests with different words, schedulers, steps, guidance and sizes."""
    for number in range(4):
        publish(f"mix{number}", seed=30 + number, vectors=1 + number % 3)
    asked: list[dict[str, Any]] = [
        {
            "prompt": f"a photo of <mix{number % 4}>",
            "seed": number,
            "steps": 4 + number % 5,
            "guidance_scale": (1.0, 3.0, 7.5)[number % 3],
            "scheduler": ("ddim", "euler", "dpm++-2m-karras", "heun")[number % 4],
            "width": 64 if number % 5 else 72,
            "exact": False,
        }
        for number in range(12)
    ]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda one: system.client.draw(**one)[0], asked))
    for one, mixed in zip(asked, together, strict=True):
        (alone,) = system.client.draw(**(one | {"exact": True}))
        assert np.abs(pixels(alone) - pixels(mixed)).max() <= 1, one


@pytest.mark.parametrize(
    ("kind", "format"), [("JPEG", resources_pb2.PICTURE_FORMAT_JPEG), ("WEBP", resources_pb2.PICTURE_FORMAT_WEBP)]
)
def test_jpeg_and_webp_files_hold_the_record(
    system: System, kind: str, format: "resources_pb2.PictureFormat.ValueType"
) -> None:
    (picture,) = pictures(system.client.generate(Settings(prompt="a dog", seed=1, steps=2), format=format))
    image = Image.open(io.BytesIO(picture.data))
    assert image.format == kind
    assert json.loads(image.getexif()[0x010E])["settings"]["prompt"] == "a dog"
    assert picture.info.media_type == f"image/{kind.lower()}"


def test_get_model_shows_model_schedulers_and_defaults(system: System) -> None:
    with errors():
        model = system.client.generation.GetModel(generation_pb2.GetModelRequest())
    assert (model.base_model.family, model.resolution, model.max_tokens) == ("miniature", 64, 32)
    calls = {scheduler.name: scheduler.calls_for_20_steps for scheduler in model.schedulers}
    assert (calls["ddim"], calls["heun"], calls["pndm"]) == (20, 39, 21)
    assert model.defaults.steps == 20


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": ""}, "settings.prompt"),
        ({"prompt": "a\x00b"}, "settings.prompt"),
        ({"steps": 0}, "settings.steps"),
        ({"steps": 151}, "settings.steps"),
        ({"guidance_scale": 0.5}, "settings.guidance_scale"),
        ({"guidance_scale": math.nan}, "settings.guidance_scale"),
        ({"guidance_scale": math.inf}, "settings.guidance_scale"),
        ({"seed": -1}, "settings.seed"),
        ({"seed": 2**63 - 1}, "settings.seed"),
        ({"width": 63}, "settings.width"),
        ({"height": 100_000}, "settings.height"),
        ({"width": 0}, "settings.width"),
        ({"scheduler": "magic"}, "settings.scheduler"),
        ({"scheduler": "lcm", "steps": 51}, "settings.steps"),
        ({"clip_skip": 3}, "settings.clip_skip"),
        ({"prompt": "(a dog:99)", "prompt_weights": True}, "settings.prompt"),
        ({"prompt": "(a dog:-99)", "prompt_weights": True}, "settings.prompt"),
        ({"negative_prompt": "(a dog:1.2.3)", "prompt_weights": True}, "settings.negative_prompt"),
        ({"strength": 0.5}, "settings.strength"),
        ({"mask": png(64)}, "settings.mask"),
        ({"start_picture": b"no picture"}, "settings.start_picture"),
        ({"start_picture": png(64), "strength": 0.0}, "settings.strength"),
        ({"start_picture": png(64), "strength": 0.01}, "settings.strength"),
        ({"start_picture": png(64), "mask": png(32)}, "settings.mask"),
    ],
)
def test_invalid_setting_is_named(system: System, changes: dict[str, Any], field: str) -> None:
    settings = Settings(**({"prompt": "a dog"} | changes))
    error = refused(lambda: list(system.client.generate(settings)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [name for name, _ in error.violations] == [field]


def test_all_invalid_fields_are_reported_together(system: System) -> None:
    request = generation_pb2.GenerateRequest(
        parent="tenants/default",
        settings=Settings(prompt="", steps=999, width=1),
        count=99,
        quality=101,
        priority=10,
        format=77,  # type: ignore[arg-type]
    )

    def call() -> None:
        with errors():
            list(system.client.generation.Generate(request))

    fields = {field for field, _ in refused(call).violations}
    assert fields == {"settings.prompt", "settings.steps", "settings.width", "count", "quality", "priority", "format"}


def test_unknown_words_are_named(system: System) -> None:
    error = refused(lambda: system.client.draw("a photo of <nobody> and <no-one@3>"))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WORD_UNKNOWN")
    assert "<nobody>" in error.message
    assert "<no-one@3>" in error.message


def test_prompt_longer_than_the_encoder_is_rejected(system: System, publish: Publish) -> None:
    publish("long", vectors=16)
    system.client.draw("a photo of <long>", steps=1)
    error = refused(lambda: system.client.draw("<long> <long>", steps=1))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert error.metadata == {"needed": "34", "limit": "32"}


def test_word_of_another_model_is_rejected_and_of_an_unknown_model_recorded(
    system: System, publish: Publish, model: BaseModel
) -> None:
    other = registry_resources.BaseModel(
        family="stable-diffusion-1",
        encoders=[registry_resources.EncoderSpec(name="text_encoder", dimensions=768, vocabulary_digest="0" * 64)],
    )
    publish("foreign", made_for=other)
    error = refused(lambda: system.client.draw("<foreign>"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORD_MISMATCH")
    assert "stable-diffusion-1" in error.message
    assert "miniature" in error.message

    unknown = registry_resources.BaseModel(
        encoders=[registry_resources.EncoderSpec(name="text_encoder", dimensions=model.spec.encoders[0].dims)]
    )
    publish("stray", made_for=unknown)
    (picture,) = system.client.draw("<stray>", steps=1)
    assert picture.info.record.words[0].match == resources_pb2.MATCH_FAMILY


def test_moved_alias_is_used_and_pinned_version_stays(system: System, publish: Publish, eventually: Eventually) -> None:
    client = system.client
    one, two = publish("moving", seed=1), publish("moving", seed=2)

    def used(word: str, max_staleness: timedelta | None = timedelta(0)) -> str:
        (picture,) = client.draw(f"<{word}>", steps=1, max_staleness=max_staleness)
        return picture.info.record.words[0].version

    assert (used("moving"), used("moving@1")) == (two.name, one.name)
    client.set_alias("moving", "production", 1)
    assert used("moving") == one.name
    client.set_alias("moving", "production", 2)
    assert (used("moving"), used("moving@production"), used("moving@1")) == (two.name, two.name, one.name)
    client.set_alias("moving", "production", 1)
    eventually(lambda: used("moving", None) == one.name)


def test_request_in_flight_keeps_its_version_when_the_alias_moves(
    system: System, publish: Publish, eventually: Eventually
) -> None:
    client = system.client
    one, two = publish("flying", seed=1), publish("flying", seed=2)

    def used() -> str:
        """The version that a request without `max_staleness` uses."""
        (picture,) = client.draw("<flying>", steps=1)
        return picture.info.record.words[0].version

    client.set_alias("flying", "production", 1)
    eventually(lambda: used() == one.name)
    settings = Settings(prompt="<flying>", seed=5, steps=100, guidance_scale=1, exact=True)
    events = client.generate(settings)
    first = [next(events), next(events)]
    client.set_alias("flying", "production", 2)
    eventually(lambda: used() == two.name)
    (picture,) = pictures([*first, *events])
    assert picture.info.record.words[0].version == one.name
    settings.prompt = "<flying@1>"
    (pinned,) = pictures([*client.generate(settings)])
    assert np.array_equal(pixels(picture), pixels(pinned))


def test_another_tenants_word_needs_its_grant(system: System, publish: Publish) -> None:
    with system.client_of("shop") as shop, system.client_of("guest") as guest:
        publish("mascot", client=shop)
        error = refused(lambda: guest.draw("<shop/mascot>"))
        assert error.reason == "WORD_UNKNOWN"
        assert error.metadata["words"] == "shop/mascot"
        request = registry_pb2.UpdateConceptRequest(
            concept=registry_resources.Concept(name=str(shop.concept("mascot")), readers=["tenants/guest"])
        )
        with errors():
            shop.registry.UpdateConcept(request)
        (picture,) = guest.draw("<shop/mascot>", steps=1)
        assert picture.info.record.words[0].version == "tenants/shop/concepts/mascot/versions/1"
        request.concept.readers[:] = []
        request.update_mask.paths.append("readers")
        with errors():
            shop.registry.UpdateConcept(request)
        assert refused(lambda: guest.draw("<shop/mascot>", max_staleness=timedelta(0))).reason == "WORD_UNKNOWN"


def test_cancelled_request_frees_its_places(system: System, eventually: Eventually) -> None:
    events = system.client.generate(Settings(prompt="a dog", steps=150), count=16)
    for event in events:
        if event.WhichOneof("event") == "progress":
            break
    assert system.waiting() == 16
    behind = system.client.generate(Settings(prompt="a cat", steps=2))
    accepted = next(behind).accepted
    assert accepted.queue_position == 16
    assert accepted.predicted_start.ToTimedelta() > timedelta(0)
    behind.close()  # type: ignore[attr-defined]
    events.close()  # type: ignore[attr-defined]
    eventually(lambda: system.waiting() == 0)


def test_deadline_ends_the_request_and_frees_its_places(system: System, eventually: Eventually) -> None:
    settings = Settings(prompt="a dog", steps=150)
    error = refused(lambda: list(system.client.generate(settings, count=16, timeout_s=0.5)))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: system.waiting() == 0)


def test_full_queue_rejects_with_retry_after(system: System) -> None:
    events = system.client.generate(Settings(prompt="a dog", steps=150), count=16)
    next(iter(events))
    error = refused(lambda: system.client.draw("a cat", count=16))
    events.close()  # type: ignore[attr-defined]
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert error.retry_after is not None
    assert error.retry_after.total_seconds() >= 1


def test_start_picture_determines_size_and_colours(system: System) -> None:
    settings = Settings(prompt="a photo of a dog", seed=1, steps=10, start_picture=png(96), strength=0.2, exact=True)
    (first,), (again,) = (pictures(system.client.generate(settings)) for _ in range(2))
    assert first.data == again.data
    assert pixels(first).shape == (96, 96, 3)
    assert np.abs(pixels(first).mean((0, 1)) - (200, 40, 40)).max() < 40
    record = first.info.record
    assert record.start_picture_digest == hashlib.sha256(png(96)).hexdigest()
    assert record.settings.start_picture == b""
    assert record.settings.strength == pytest.approx(0.2)
    calls = [event.progress.calls for event in system.client.generate(settings) if event.HasField("progress")]
    assert calls[0] == 2


def test_black_area_of_the_mask_is_kept(system: System) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    settings = Settings(prompt="a photo of a dog in the snow", steps=10, start_picture=png(64), mask=buffer.getvalue())
    (picture,) = pictures(system.client.generate(settings))
    kept, redrawn = pixels(picture)[:, :24], pixels(picture)[:, 40:]
    assert np.abs(kept.mean((0, 1)) - (200, 40, 40)).max() < 25
    assert np.abs(redrawn.mean((0, 1)) - (200, 40, 40)).max() > 50


def test_weights_and_clip_skip_change_the_picture(system: System) -> None:
    def drawn(prompt: str, **how: Any) -> bytes:
        (picture,) = pictures(system.client.generate(Settings(prompt=prompt, seed=1, steps=3, exact=True, **how)))
        return pixels(picture).tobytes()

    plain = drawn("a red dog")
    assert drawn("a (red:1.0) dog", prompt_weights=True) == plain
    assert drawn("a (red:1.6) dog", prompt_weights=True) != plain
    assert drawn("a (red:-1) dog", prompt_weights=True) not in (plain, drawn("a (red:1.1) dog", prompt_weights=True))
    assert drawn("a (red:1.6) dog") not in (plain, drawn("a (red:1.6) dog", prompt_weights=True))
    assert drawn("a red dog", clip_skip=1) != plain


def test_white_space_and_a_byte_order_mark_do_not_change_the_picture(system: System) -> None:
    def drawn(prompt: str) -> bytes:
        (picture,) = pictures(system.client.generate(Settings(prompt=prompt, seed=1, steps=2, exact=True)))
        return pixels(picture).tobytes()

    plain = drawn("a red dog in the snow")
    for prompt in ("\ufeffa red dog in the snow", "a red dog\r\n\tin the\n\nsnow\n", "a red\vdog in\fthe\x85snow"):
        assert drawn(prompt) == plain


def test_prefetch_resolves_words_and_names_invalid_words(system: System, publish: Publish) -> None:
    version = publish("ahead")
    request = generation_pb2.PrefetchWordsRequest(parent="tenants/default", words=["ahead", "ahead@1"])
    with errors():
        answer = system.client.generation.PrefetchWords(request)
    assert [use.version for use in answer.words] == [version.name] * 2
    request.words.append("Not A Word")

    def call() -> None:
        with errors():
            system.client.generation.PrefetchWords(request)

    assert [field for field, _ in refused(call).violations] == ["words[2]"]


def test_concurrent_requests_of_one_client_get_their_own_pictures(system: System) -> None:
    def one(seed: int) -> bytes:
        return system.client.draw("a photo of a dog", seed=seed, steps=2)[0].data

    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(one, range(16)))
    assert len(set(drawn)) == 16
