"""Frames: what goes in comes out, and nothing but ProtocolError comes of anything else."""

import struct
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.engine import protocol as p
from mflux_api.hub import protocol as h
from mflux_api.images.sizes import MAX_PIXELS
from mflux_api.ipc import frames
from mflux_api.ipc.printable import MAX_NAME, printable

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
INT = st.integers(-(2**63), 2**63 - 1)
NATURAL = st.integers(0, 2**63 - 1)
FLOAT = st.floats(allow_nan=False)
SIDE = st.integers(1, 2**31)
STAGE = st.sampled_from(["encoding", "denoising", "decoding"])
FRAMES = st.one_of(
    st.builds(p.LoadModel, model=TEXT, path=TEXT, component_offload=st.booleans()),
    st.builds(p.UnloadModel, model=TEXT),
    st.builds(
        p.Run,
        run_id=INT,
        model=TEXT,
        prompt=TEXT,
        negative_prompt=st.none() | TEXT,
        seeds=st.lists(INT, max_size=5).map(tuple),
        width=INT,
        height=INT,
        steps=INT,
        guidance=FLOAT,
        low_ram=st.booleans(),
        references=st.lists(st.tuples(SIDE, SIDE), max_size=4).map(tuple),
        start=st.booleans(),
        image_strength=FLOAT,
        previews=st.booleans(),
        lora_paths=st.lists(TEXT, max_size=3).map(tuple),
        lora_scales=st.lists(FLOAT, max_size=3).map(tuple),
        inpainting=st.none()
        | st.builds(
            p.Inpainting,
            fill=st.sampled_from(["original", "noise", "nothing"]),
            result=st.tuples(st.integers(70, 9000), st.integers(70, 9000)),
            box=st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 64), st.integers(1, 64)),
        ),
    ),
    st.builds(p.Cancel, run_id=INT),
    st.just(p.Shutdown()),
    st.builds(
        p.Ready,
        pid=INT,
        device=TEXT,
        device_name=TEXT,
        precision=TEXT,
        blas=TEXT,
        blas_fast=st.booleans(),
        versions=st.dictionaries(TEXT, TEXT, max_size=3),
    ),
    st.builds(p.Heartbeat, active_bytes=INT, peak_bytes=INT),
    st.builds(p.Loaded, model=TEXT, seconds=FLOAT, active_bytes=INT),
    st.builds(p.LoadFailed, model=TEXT, code=TEXT, message=TEXT),
    st.just(p.Unloaded()),
    st.builds(p.StageChanged, run_id=INT, stage=STAGE),
    st.builds(p.StepDone, run_id=INT, image=NATURAL, step=NATURAL, steps=SIDE, images=SIDE),
    st.builds(p.RunWarning, run_id=INT, message=TEXT),
    st.builds(p.PreviewMade, run_id=INT, index=NATURAL, step=NATURAL, width=SIDE, height=SIDE),
    st.builds(
        p.ImageDone,
        run_id=INT,
        index=NATURAL,
        seed=NATURAL,
        width=st.integers(1, 2**31),
        height=st.integers(1, 2**31),
    ),
    st.builds(p.RunDone, run_id=INT, encode_seconds=FLOAT, denoise_seconds=FLOAT, decode_seconds=FLOAT),
    st.builds(p.RunStopped, run_id=INT),
    st.builds(p.RunFailed, run_id=INT, code=TEXT, message=TEXT, details=st.dictionaries(TEXT, TEXT, max_size=2)),
)
CANCEL = frames.encode(p.Cancel(run_id=3))


def decode(data: bytes) -> tuple[p.Frame, list[bytes]]:
    """A frame as a receiver takes it apart."""
    end = frames.PREFIX_LENGTH + frames.header_length(data[: frames.PREFIX_LENGTH])
    header = frames.decode_header(data[frames.PREFIX_LENGTH : end], p.ENGINE_TYPES)
    blobs = []
    for length in header.blob_lengths:
        blobs.append(data[end : end + length])
        end += length
    assert end == len(data)
    return header.frame, blobs


def framed(*header: object) -> bytes:
    return msgspec.msgpack.encode(list(header))


RUN = attrs.asdict(
    p.Run(
        run_id=1, model="demo", prompt="x", negative_prompt=None, seeds=(1,), width=64, height=64, steps=1, guidance=1.0
    )
)


@given(frame=FRAMES, blobs=st.lists(st.binary(max_size=64), max_size=frames.MAX_BLOBS))
def test_every_frame_comes_out_as_it_went_in(frame: p.Frame, blobs: list[bytes]) -> None:
    assert decode(frames.encode(frame, blobs)) == (frame, blobs)


@given(frame=FRAMES, data=st.data())
def test_truncated_header_is_a_protocol_error(frame: p.Frame, data: st.DataObject) -> None:
    header = frames.encode(frame)[frames.PREFIX_LENGTH :]
    cut = data.draw(st.integers(0, len(header) - 1))
    with pytest.raises(frames.ProtocolError):
        frames.decode_header(header[:cut], p.ENGINE_TYPES)


@given(st.binary(max_size=200))
def test_junk_is_a_frame_or_a_protocol_error(junk: bytes) -> None:
    try:
        header = frames.decode_header(junk, p.ENGINE_TYPES)
    except frames.ProtocolError:
        return
    assert attrs.has(type(header.frame))


@given(frame=FRAMES, data=st.data())
def test_flipped_byte_is_a_frame_or_a_protocol_error(frame: p.Frame, data: st.DataObject) -> None:
    header = bytearray(frames.encode(frame)[frames.PREFIX_LENGTH :])
    header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = frames.decode_header(bytes(header), p.ENGINE_TYPES)
    except frames.ProtocolError:
        return
    assert all(0 <= length <= frames.MAX_BLOB for length in decoded.blob_lengths)


@given(st.binary(min_size=4, max_size=4))
def test_only_lengths_within_the_cap_pass(prefix: bytes) -> None:
    (length,) = struct.unpack(">I", prefix)
    if 0 < length <= frames.MAX_HEADER:
        assert frames.header_length(prefix) == length
    else:
        with pytest.raises(frames.ProtocolError):
            frames.header_length(prefix)


@pytest.mark.parametrize(
    "header",
    [
        framed("Nonsense", {}, []),
        framed("Cancel", {}, []),
        framed("Cancel", {"attempt": "3"}, []),
        framed("Cancel", {"attempt": 3}, [-1]),
        framed("Cancel", {"attempt": 3}, [frames.MAX_BLOB + 1]),
        framed("Cancel", {"attempt": 3}, [1] * (frames.MAX_BLOBS + 1)),
        framed("Cancel", {"attempt": 3}),
        framed("StageChanged", {"attempt": 3, "stage": "napping"}, []),
        framed("StepDone", {"attempt": 3, "image": 0, "step": 1, "steps": 0}, []),
        framed("Run", RUN | {"inpainting": {"result": [64, 64], "box": [1, 0, 64, 64]}}, []),
        framed("Run", RUN | {"inpainting": {"result": [64, 0], "box": [0, 0, 1, 1]}}, []),
        framed("Run", RUN | {"inpainting": {"fill": "latent", "result": [64, 64], "box": [0, 0, 64, 64]}}, []),
        framed("ImageDone", {"attempt": 3, "index": -1, "seed": 1, "width": 64, "height": 64}, []),
        b"\x91" * 100_000,
        b"",
    ],
    ids=lambda header: repr(header[:24]),
)
def test_unknown_header_is_a_protocol_error(header: bytes) -> None:
    with pytest.raises(frames.ProtocolError):
        frames.decode_header(header, p.ENGINE_TYPES)


def test_run_that_the_broken_ones_above_are_made_of_is_whole() -> None:
    header = framed("Run", RUN | {"inpainting": {"result": [64, 64], "box": [1, 0, 63, 64]}}, [])
    run = frames.decode_header(header, p.ENGINE_TYPES).frame
    assert run.inpainting == p.Inpainting(result=(64, 64), box=(1, 0, 63, 64))


def test_sender_keeps_to_the_receivers_caps() -> None:
    with pytest.raises(frames.ProtocolError, match="too large"):
        frames.encode(p.LoadModel(model="x", path="x" * frames.MAX_HEADER))
    with pytest.raises(frames.ProtocolError, match="too large"):
        frames.encode(p.Unloaded(), [b""] * (frames.MAX_BLOBS + 1))
    with pytest.raises(frames.ProtocolError, match="too large"):
        frames.encode(p.Unloaded(), [bytes(frames.MAX_BLOB + 1)])


def test_blob_holds_the_largest_image_that_a_client_may_send() -> None:
    assert 3 * MAX_PIXELS == frames.MAX_BLOB


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "frame",
    [
        p.LoadModel(model="\ud800", path=""),
        p.Cancel(run_id=2**64),
        p.StepDone(run_id=1, image=0, step=1, steps=0),
        p.LoadProgress(component="vae", bytes_done=-1, bytes_total=1),
        p.LoadModel(model="x", path="", bits=5),  # type: ignore[arg-type]
        p.LoadModel(model="x", path=nested(100_000)),
        p.LoadModel(model="x", path=object()),  # type: ignore[arg-type]
    ],
    ids=["surrogate", "int", "zero", "negative", "no such bits", "nested", "object"],
)
def test_what_the_receiver_could_not_take_is_a_protocol_error_of_the_sender(frame: p.Frame) -> None:
    with pytest.raises(frames.ProtocolError, match="cannot be encoded"):
        frames.encode(frame)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(max_size=8),
    st.lists(st.integers() | st.text() | st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.none() | st.text() | st.integers(), max_size=3),
)


@given(kind=st.sampled_from([p.Run, p.Upscale, p.LoadModel, p.StepDone, p.ImageDone]), data=st.data())
def test_what_can_be_sent_can_be_received_whatever_a_frame_holds(kind: type[p.Frame], data: st.DataObject) -> None:
    values = {field.name: data.draw(HOSTILE, label=field.name) for field in attrs.fields(kind)}
    frame = kind(**values)
    try:
        encoded = frames.encode(frame)
    except frames.ProtocolError:
        return
    assert type(decode(encoded)[0]) is kind


LONG = "\x1b[31m" + "x" * 2_000_000
SPOILED = "a\x00b\nc\u202ed\ud800e"


@pytest.mark.parametrize("text", [LONG, SPOILED], ids=["long", "unprintable"])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: p.RunFailed(run_id=1, code=text, message=text, details={text: text}),
        lambda text: p.LoadFailed(model="m", code="c", message=text),
        lambda text: p.Loaded(model="m", seconds=1.0, active_bytes=1, warning=text),
        lambda text: p.NotReady(message=text),
        lambda text: p.LoadProgress(component=text, bytes_done=0, bytes_total=1),
        lambda text: h.DownloadFailure(code="c", message=text),
    ],
)
def test_text_out_of_a_file_is_cut_and_printable_in_every_frame(make: Callable[[str], Any], text: str) -> None:
    frame = make(text)
    assert len(frames.encode(frame)) < 4096
    texts = [value for value in attrs.astuple(frame, recurse=False) if isinstance(value, str)]
    assert all(each.isprintable() for each in texts)


def test_sentence_of_a_frame_that_is_longer_than_ours_is_a_protocol_error() -> None:
    with pytest.raises(frames.ProtocolError):
        frames.decode_header(framed("NotReady", {"message": LONG}, []), p.ENGINE_TYPES)


def test_error_text_holds_nothing_of_the_frame() -> None:
    with pytest.raises(frames.ProtocolError) as caught:
        frames.decode_header(framed("Cancel", {"attempt": "a secret prompt"}, []), p.ENGINE_TYPES)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(text=st.text() | st.text(alphabet="\x1b\u202e\ud800\n\x00é", max_size=300), most=st.integers(1, 300))
def test_printable_text_is_short_and_can_be_shown_and_plain_text_stays(text: str, most: int) -> None:
    shown = printable(text, most)
    assert len(shown) <= most
    assert shown.isprintable()
    shown.encode()
    if text.isprintable() and len(text) <= most:
        assert shown == text
    assert printable(shown, most) == shown


def test_long_name_says_that_it_was_cut() -> None:
    assert printable("x" * 1000) == "x" * (MAX_NAME - 1) + "…"
