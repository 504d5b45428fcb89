"""LoRA files that were made to do harm: each is one job's error, said in a short printable sentence."""

import io
import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mflux_api.catalog.lora_layers import describe
from mflux_api.catalog.safetensors_rules import LORA, SafetensorsRuleError, header_bytes, read_file, read_header
from mflux_api.engine.lora.adapter_files import read_adapter
from mflux_api.engine.lora.applying import Lora, LoraError, LoraStack
from mflux_api.engine.lora.open_lora import OpenLora
from mflux_api.engine.weights.components import Components
from mflux_api.ipc.printable import MAX_NAME, MAX_SENTENCE
from tests.support.adapter_files import peft
from tests.support.checkpoint_shapes import TINY

pytestmark = pytest.mark.slow

KEY = "transformer.transformer_blocks.{}.attn.to_q"
WIDTH = TINY.width


def file_bytes(header: object, data: bytes = b"") -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensors(
    shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "F32", metadata: object = None, value: bytes = b"\0\0\x80?"
) -> bytes:
    """A whole file of tensors, each number the same."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = bytearray()
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        begin = len(data)
        data += value * count
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(data)]}
    return file_bytes(header, bytes(data))


def pair(key: str = KEY.format(0), rank: int = 2, suffix: str = ".weight") -> dict[str, tuple[int, ...]]:
    return {f"{key}.lora_A{suffix}": (rank, WIDTH), f"{key}.lora_B{suffix}": (WIDTH, rank)}


def peft_config(**config: object) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(config)}


ONE = KEY.format(0)
ALPHA = f"{ONE}.alpha"
BFL = "diffusion_model.double_blocks.0.img_attn.qkv"
NESTED = b"[" * 200_000 + b"]" * 200_000
LOKR = f"{ONE}.lokr_"
LOHA = f"{ONE}.hada_"

HOSTILE: dict[str, bytes] = {
    "a name of 2 MB": tensors({f"{KEY.format('0' * 2_000_000)}.lora_A.weight": (2, WIDTH)}),
    "a name of 2 MB and a type that is not taken": tensors(
        {f"{KEY.format('0' * 1_100_000)}.lora_A.weight": (1,)}, dtype="I32"
    ),
    "a block number of 5,000 digits": tensors(pair(KEY.format("1" * 5_000))),
    "a block number of 150 digits": tensors(pair(KEY.format("1" * 150))),
    "a block number in other digits": tensors(pair(KEY.format("٣"))),
    "a block that is not there": tensors(pair(KEY.format(9_999))),
    "a lone surrogate": file_bytes(rb'{"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "names that spoil a terminal": tensors({"\x00\n\x1b[31m\u202e": (1,)}, dtype="U64", value=bytes(8)),
    "a type that spoils a terminal": tensors({"a": (1,)}, dtype="\x1b[31m" * 1000),
    "100,000 tensors": tensors({str(number): (1,) for number in range(100_000)}),
    "no tensors": tensors({}),
    "a rank of 0": tensors(pair(rank=0)),
    "sides whose product overflows": file_bytes(
        {"a": {"dtype": "F32", "shape": [2**31 - 1] * 8, "data_offsets": [0, 4]}}, bytes(4)
    ),
    "a side that overflows": file_bytes({"a": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 4]}}, bytes(4)),
    "a huge side of an empty tensor": file_bytes({"a": {"dtype": "F32", "shape": [0, 2**30], "data_offsets": [0, 0]}}),
    "negative offsets": file_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
    "huge offsets": file_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**80]}}, bytes(4)),
    "offsets the wrong way": file_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "a number of 5,000 digits": file_bytes(
        b'{"a": {"dtype": "F32", "shape": [' + b"1" * 5000 + b'], "data_offsets": [0, 4]}}', bytes(4)
    ),
    "metadata that is nested": file_bytes(b'{"__metadata__": ' + NESTED + b"}"),
    "metadata of numbers": tensors(pair(), metadata={"a": 1}),
    "nesting": file_bytes(NESTED),
    "a nested tensor": file_bytes(b'{"a": ' + NESTED + b"}"),
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "an alpha of text": tensors(pair(), metadata=peft_config(lora_alpha="much")),
    "an alpha that is too large for a float": tensors(pair(), metadata=peft_config(lora_alpha=10**400)),
    "an alpha of 1e300": tensors(pair(), metadata=peft_config(lora_alpha=1e300)),
    "an alpha that is not a number": tensors(pair(), metadata=peft_config(lora_alpha=float("nan"))),
    "an alpha of 5,000 digits": tensors(
        pair(), metadata={"lora_adapter_metadata": '{"lora_alpha": ' + "1" * 5000 + "}"}
    ),
    "nested configuration": tensors(pair(), metadata={"lora_adapter_metadata": "[" * 100_000}),
    "10,000 alpha patterns": tensors(
        pair(), metadata=peft_config(lora_alpha=1, alpha_pattern={f"a{n}": 1 for n in range(10_000)})
    ),
    "an alpha of many numbers": tensors({**pair(), ALPHA: (5,)}),
    "an infinite alpha": tensors(pair() | {ALPHA: ()}, value=b"\0\0\x80\x7f"),
    "weights that are not numbers": tensors(pair(), value=b"\0\0\xc0\x7f"),
    "a factor of one axis": tensors({f"{ONE}.lora_A.weight": (WIDTH,), f"{ONE}.lora_B.weight": (2,)}),
    "a LoKr whose product is huge": tensors(
        {f"{LOKR}w1": (1, 1), f"{LOKR}w2_a": (60_000, 1), f"{LOKR}w2_b": (1, 60_000)}
    ),
    "a LoKr of eight axes": tensors({f"{LOKR}w1": (1,) * 8, f"{LOKR}w2": (1,) * 8}),
    "a LoHa whose product is huge": tensors(
        {f"{LOHA}w{n}_a": (60_000, 1) for n in (1, 2)} | {f"{LOHA}w{n}_b": (1, 60_000) for n in (1, 2)}
    ),
    "a LoHa whose halves differ": tensors(
        {f"{LOHA}w1_a": (WIDTH, 2), f"{LOHA}w1_b": (2, WIDTH), f"{LOHA}w2_a": (2, 2), f"{LOHA}w2_b": (2, 2)}
    ),
    "a LoHa of three ranks": tensors(
        {f"{LOHA}w1_a": (WIDTH, 2), f"{LOHA}w1_b": (3, WIDTH), f"{LOHA}w2_a": (WIDTH, 2), f"{LOHA}w2_b": (2, WIDTH)}
    ),
    "a LoHa of one axis": tensors({f"{LOHA}w{n}_{side}": (4,) for n in (1, 2) for side in "ab"}),
    "a LoHa for convolutions": tensors({f"{LOHA}{name}": (2, 2, 2, 2) for name in ("w1_a", "w1_b", "t1", "t2")}),
    "a difference of three axes": tensors({f"{ONE}.diff": (2, 2, 2)}),
    "a difference of another shape": tensors({f"{ONE}.diff": (1, WIDTH)}),
    "a bias of another length": tensors({f"{ONE}.diff_b": (7,)}),
    "a bias that is a number": tensors({f"{ONE}.diff_b": ()}),
    "a bias that is infinite": tensors({f"{ONE}.diff_b": (WIDTH,)}, value=b"\0\0\x80\x7f"),
    "magnitudes that do not fit": tensors({**pair(), f"{ONE}.dora_scale": (3, 3)}),
    "magnitudes of four axes": tensors({**pair(), f"{ONE}.dora_scale": (2, 2, 2, 2)}),
    "magnitudes of the inputs of three layers in one": tensors(
        {
            f"{BFL}.lora_A.weight": (2, WIDTH),
            f"{BFL}.lora_B.weight": (3 * WIDTH, 2),
            f"{BFL}.dora_scale": (1, WIDTH - 1),
        }
    ),
    "rows that cannot be three layers": tensors({f"{BFL}.lora_A": (2, WIDTH), f"{BFL}.lora_B": (3 * WIDTH + 1, 2)}),
    "10,000 names that begin like a layer": tensors(
        {f"{'transformer_' * 15}blocks_{number}_": (2,) for number in range(10_000)}
    ),
    "10,000 names that end like a part": tensors({f"{n}{'.lora_A' * 27}.": (2,) for n in range(10_000)}),
    "a number that is too large for the engine": tensors(pair(), dtype="F64", value=struct.pack("<d", 1e300)),
    "a LoKr with a tensor that does not fit": tensors(
        {f"{LOKR}w1": (1, 1), f"{LOKR}t2": (2, 2), f"{LOKR}w2_a": (2, 2), f"{LOKR}w2_b": (2, 2)}
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_one_short_error(tiny: Components, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(LoraError) as caught:
        LoraStack(tiny.transformer, [Lora(path)])
    assert time.process_time() - began < 5
    message = str(caught.value)
    assert "a.safetensors" in message
    assert len(message) <= MAX_SENTENCE
    assert message.isprintable()


@pytest.mark.parametrize("dtype", ["F8_E8M0", "C64", "X", ""])
def test_type_that_is_not_computed_with_is_named(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tensors(pair(), dtype=dtype, value=bytes(8 if dtype == "C64" else 1)))
    with pytest.raises(LoraError, match=f"as {dtype}: save it as one of"):
        read_adapter(path)


def test_rank_larger_than_the_layer_is_computed(tiny: Components, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tensors(pair(rank=3 * WIDTH)))
    assert len(LoraStack(tiny.transformer, [Lora(path)])) == 1


def test_names_and_tensors_up_to_the_limits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    others = {f"{number:0{MAX_NAME}}": (1,) for number in range(LORA.tensors - 2)}
    path.write_bytes(tensors(pair() | others))
    assert list(read_adapter(path).updates) == ["transformer_blocks.0.attn.to_q"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "a.safetensors"
    make(path)
    with pytest.raises(LoraError, match="not a file"):
        read_adapter(path)


def test_link_to_a_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.symlink_to("/dev/zero")
    with pytest.raises(LoraError, match="not a file"):
        read_adapter(path)


def test_file_that_shrinks_while_it_is_read_is_an_error_and_no_bus_error(tmp_path: Path) -> None:
    path = peft(tmp_path / "a.safetensors", TINY)
    with OpenLora(path) as file:
        os.truncate(path, path.stat().st_size // 2)
        last = max(file.tensors, key=lambda name: file.tensors[name].begin)
        with pytest.raises(LoraError, match="changed while it was read"):
            file.read(last)


def test_file_whose_bytes_change_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = peft(tmp_path / "a.safetensors", TINY)
    with OpenLora(path) as file:
        with path.open("r+b") as other:
            other.seek(-4, os.SEEK_END)
            other.write(b"\xff" * 4)
        os.utime(path, ns=(1, 1))
        with pytest.raises(LoraError, match="changed while it was read"):
            file.check_unchanged()


def test_file_that_is_replaced_while_it_is_read_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    path = peft(tmp_path / "a.safetensors", TINY)
    with OpenLora(path) as file:
        (tmp_path / "b").write_bytes(b"other")
        os.replace(tmp_path / "b", path)
        assert all(file.read(name).size for name in file.tensors)
        file.check_unchanged()


# --- what the upload accepts, the engine loads ---

SIDES = st.lists(st.integers(-1, 5) | st.sampled_from([2**31 - 1, 2**64]), max_size=4)
DTYPES = st.sampled_from(["F32", "F16", "BF16"]) | st.sampled_from(["F64", "I64", "BOOL", "F8_E4M3", "F4", "X", ""])
PARTS = ["lora_A.weight", "lora_B.weight", "alpha", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"]
PARTS += ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "diff", "diff_b", "lora_B.bias", "lora_magnitude_vector"]
NAMES = (
    st.tuples(st.sampled_from(["0", "1", "99", "1" * 30]), st.sampled_from([*PARTS, "dora_scale"])).map(
        lambda each: f"{KEY.format(each[0])}.{each[1]}"
    )
    | st.tuples(st.sampled_from(["0"]), st.sampled_from(PARTS)).map(
        lambda each: f"diffusion_model.double_blocks.{each[0]}.img_attn.qkv.{each[1]}"
    )
    | st.sampled_from(PARTS).map(lambda part: f"final_layer.adaLN_modulation.1.{part}")
    | st.text(max_size=8)
)


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """Files of which many are whole, and the others nearly."""
    header: dict[str, Any] = {}
    if draw(st.booleans()):
        values = st.text(max_size=5) | st.sampled_from(['{"lora_alpha": 1e400}', '{"lora_alpha": [1]}', "[[]]"])
        names = st.sampled_from(["lora_adapter_metadata", "a"])
        header["__metadata__"] = draw(st.dictionaries(names, values, max_size=2) | st.integers())
    data = b""
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        dtype, shape = draw(DTYPES), draw(SIDES)
        count = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
        for side in shape:
            count *= side
        size = count if 0 <= count < 4096 and draw(st.integers(0, 9)) else draw(st.integers(0, 8))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += draw(st.binary(min_size=size, max_size=size)) if size < 64 else bytes(size)
    whole = file_bytes(header, data)
    return whole[: draw(st.integers(0, len(whole)))] if not draw(st.integers(0, 9)) else whole


def accepted(path: Path) -> bool:
    """Whether the rules of the upload let a file in."""
    data = path.read_bytes()
    try:
        length = header_bytes(data[:8], len(data))
        read_header(data[8 : 8 + length], len(data))
    except SafetensorsRuleError:
        return False
    return True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(content=safetensors_files())
def test_what_the_upload_accepts_the_engine_loads_or_says_what_does_not_fit(
    tiny: Components, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    try:
        LoraStack(tiny.transformer, [Lora(path)])
        refused = ""
    except LoraError as error:
        refused = str(error)
    assert accepted(path) == ("cannot be used: " not in refused)
    if accepted(path):
        contents = describe(read_file(io.BytesIO(content), len(content)))
        assert refused or 0 < contents.understood <= contents.layers <= 2 * contents.understood
        # The rules are never looser than the format's own library.
        with safe_open(str(path), framework="numpy") as file:
            assert list(file.keys())


@pytest.mark.parametrize("cut", [1, 10, 1000])
def test_file_without_its_end_is_accepted_by_neither(tmp_path: Path, cut: int) -> None:
    path = peft(tmp_path / "a.safetensors", TINY)
    path.write_bytes(path.read_bytes()[:-cut])
    assert not accepted(path)
    with pytest.raises(LoraError, match="a part of it is missing"):
        read_adapter(path)
