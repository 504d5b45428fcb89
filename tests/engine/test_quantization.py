"""Quantized weights: mflux's own, kept once, the same bits at each load, and made again where they are damaged."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.weights.saving.model_saver import ModelSaver
from mflux.models.flux2.variants import Flux2Klein
from mflux.models.flux2.weights.flux2_weight_definition import Flux2KleinWeightDefinition
from mlx import nn

from mflux_api.catalog.files import COMPONENTS
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.weights import lazy_modules, quantized_cache
from mflux_api.engine.weights.components import CheckpointError, Components, load_components
from mflux_api.engine.weights.parameters import named_arrays
from mflux_api.engine.weights.quantization import (
    DequantizedLinear,
    UnpackedLinear,
    quantize_layers,
    replace_quantized_layers,
    unpack_layers,
)
from mflux_api.engine.weights.quantized_cache import MARKER, load_quantized
from mflux_api.engine.weights.reading import Report, no_report
from mflux_api.storage.footprint import measure
from tests.support.pipeline_runs import REQUEST, generate
from tests.support.stock_mflux import generate_stock, klein_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]

WEIGHTS = "transformer/0.safetensors"


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def arrays(components: Components) -> dict[str, mx.array]:
    return {f"{name}.{key}": array for name in COMPONENTS for key, array in named_arrays(getattr(components, name))}


def same(one: Components, other: Components) -> bool:
    left, right = arrays(one), arrays(other)
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and mx.array_equal(left[name], right[name]).item() for name in left
    )


def inode(entry: Path) -> int:
    return (entry / MARKER).stat().st_ino


@pytest.fixture(scope="module")
def stock_entry(stock_folder: Path, tmp_path_factory: pytest.TempPathFactory, device: Device) -> Path:
    """The stock checkpoint, kept in 4 bits."""
    entry = tmp_path_factory.mktemp("kept") / "q"
    load_quantized(stock_folder, 4, entry)
    return entry


def test_pixels_are_those_of_mflux_at_the_same_bits(stock_folder: Path, stock_entry: Path, device: Device) -> None:
    """Both where mflux quantizes the checkpoint itself and where it loads what is kept."""
    (pixels,) = generate(Pipeline(load_components(stock_entry), device), REQUEST)
    for stock in (
        Flux2Klein(model_path=str(stock_folder), model_config=klein_config(), quantize=4),
        Flux2Klein(model_path=str(stock_entry), model_config=klein_config()),
    ):
        assert (pixels == generate_stock(stock, REQUEST, device)).all()


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_weights_are_quantized_as_mlx_does_it(tiny_folder: Path, bits: int) -> None:
    whole, quantized = load_components(tiny_folder), load_components(tiny_folder, bits=bits)
    for name in ("transformer", "text_encoder"):
        nn.quantize(getattr(whole, name), bits=bits)
    nn.quantize(whole.vae, bits=bits, class_predicate=lambda _, layer: False)
    assert same(whole, quantized)


@pytest.mark.parametrize("bits", [3, 8])
def test_kept_weights_are_the_same_bits_and_are_not_made_again(source: Path, tmp_path: Path, bits: int) -> None:
    entry = tmp_path / "kept" / "q"
    first = load_quantized(source, bits, entry)
    made = inode(entry)
    again = load_quantized(source, bits, entry)
    assert inode(entry) == made
    assert same(first, again)
    assert same(first, load_components(source, bits=bits))
    assert not [path for path in entry.parent.iterdir() if path.name.endswith(".partial")]
    # An entry is a checkpoint of its own: it needs neither the source nor this module.
    shutil.rmtree(source)
    assert same(first, load_quantized(source, bits, entry))
    assert same(first, load_components(entry))


def truncate(entry: Path) -> None:
    os.truncate(entry / WEIGHTS, (entry / WEIGHTS).stat().st_size - 7)


def flip(entry: Path) -> None:
    """Flip one bit in the middle of the numbers; the file's times stay."""
    stat = (entry / WEIGHTS).stat()
    data = bytearray((entry / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (entry / WEIGHTS).write_bytes(data)
    os.utime(entry / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def remove(entry: Path) -> None:
    (entry / "tokenizer" / "tokenizer.json").unlink()


def unmark(entry: Path) -> None:
    (entry / MARKER).unlink()


def scribble(entry: Path) -> None:
    (entry / MARKER).write_text('{"files": []}')


def replace_by_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, remove, unmark, scribble, replace_by_file, shutil.rmtree])
def test_a_damaged_entry_is_made_anew(source: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    entry = tmp_path / "q"
    first = load_quantized(source, 4, entry)
    damage(entry)
    assert same(load_quantized(source, 4, entry), first)
    made = inode(entry)
    assert same(load_quantized(source, 4, entry), first)
    assert inode(entry) == made


def test_other_weights_in_the_same_place_are_quantized_anew(source: Path, tmp_path: Path) -> None:
    entry = tmp_path / "q"
    first = load_quantized(source, 4, entry)
    file = source / "transformer" / "diffusion_pytorch_model.safetensors"
    loaded: Any = mx.load(str(file))
    loaded["proj_out.weight"] = loaded["proj_out.weight"] * 2
    mx.eval(loaded)
    mx.save_safetensors(str(file), loaded, metadata={"format": "pt"})
    second = load_quantized(source, 4, entry)
    assert not same(first, second)
    assert same(second, load_components(source, bits=4))


def test_leftovers_of_a_killed_process_are_removed(source: Path, tmp_path: Path) -> None:
    leftover = tmp_path / ".q.0123.partial"
    leftover.mkdir()
    (leftover / "junk").write_bytes(b"x")
    load_quantized(source, 4, tmp_path / "q")
    assert not leftover.exists()


def test_weights_that_cannot_be_kept_are_used_all_the_same(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    warnings: list[str] = []
    components = load_quantized(source, 4, tmp_path / "file" / "q", warn=warnings.append)
    (warning,) = warnings
    assert "cannot be kept" in warning
    assert str(tmp_path) not in warning
    assert same(components, load_components(source, bits=4))


def test_a_disk_that_fills_up_leaves_nothing_and_costs_no_image(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized_cache, "sync_file", full)
    entry = tmp_path / "kept" / "q"
    assert same(load_quantized(source, 4, entry), load_components(source, bits=4))
    assert [path.name for path in entry.parent.iterdir()] == [".q.lock"]


def test_an_entry_is_on_disk_before_it_is_renamed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, a power failure could leave a folder of the right name with empty files."""
    synced: set[int] = set()
    synced_before_rename: list[set[int]] = []
    fsync, rename = os.fsync, os.rename

    def watch_fsync(handle: int) -> None:
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def watch_rename(old: Path, new: Path) -> None:
        synced_before_rename.append(set(synced))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", watch_rename)
    entry = tmp_path / "kept" / "q"
    load_quantized(source, 4, entry)
    (before,) = synced_before_rename
    made = {path.relative_to(entry).as_posix(): path.stat().st_ino for path in (entry, *entry.rglob("*"))}
    assert MARKER in made
    assert [name for name, number in made.items() if number not in before] == []
    # The new name is in the folder above.
    assert entry.parent.stat().st_ino in synced - before


def test_a_disk_with_too_little_space_is_not_filled_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    warnings: list[str] = []
    entry = tmp_path / "kept" / "q"
    assert same(load_quantized(source, 4, entry, warn=warnings.append), load_components(source, bits=4))
    assert [path.name for path in entry.parent.iterdir()] == [".q.lock"]
    assert "No space left" in warnings[0]


def test_process_that_waited_for_another_uses_its_entry(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "q"
    real = quantized_cache._single_writer

    @contextmanager
    def after_another(path: Path, report: Report) -> Iterator[None]:
        monkeypatch.setattr(quantized_cache, "_single_writer", real)
        load_quantized(source, 4, path)
        made.append(inode(path))
        with real(path, report):
            yield

    made: list[int] = []
    monkeypatch.setattr(quantized_cache, "_single_writer", after_another)
    load_quantized(source, 4, entry)
    assert made == [inode(entry)]


def test_one_process_quantizes_at_a_time(tmp_path: Path) -> None:
    with quantized_cache._single_writer(tmp_path / "q", no_report):
        handle = os.open(tmp_path / ".q.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)


def test_rows_that_are_not_whole_groups_stay_as_they_are(tiny_folder: Path, tmp_path: Path) -> None:
    """The tiny VAE's attention is 48 wide."""
    components = load_quantized(tiny_folder, 4, tmp_path / "q")
    assert "scales" not in components.vae.decoder.mid_block.attentions[0].to_q
    assert "scales" in components.transformer.proj_out
    assert components.info == load_components(tiny_folder).info


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_product_by_dequantized_weights_is_that_of_quantized_ones(bits: int, bias: bool) -> None:
    """On CUDA one takes the place of the other, which is wrong there for 64 inputs; on a CPU both are right."""
    module = nn.Sequential(nn.Linear(64, 96, bias=bias), nn.Linear(96, 128), nn.Linear(128, 32, bias=bias))
    quantize_layers(module, bits)
    arrays = dict(named_arrays(module))
    inputs = {0: mx.random.normal((5, 64)), 2: mx.random.normal((3, 128))}
    before = {place: module.layers[place](x) for place, x in inputs.items()}
    replace_quantized_layers(module)
    assert [type(layer) for layer in module.layers] == [DequantizedLinear, nn.Linear, DequantizedLinear]
    assert arrays.keys() == dict(named_arrays(module)).keys()
    assert all(mx.array_equal(array, arrays[name]).item() for name, array in named_arrays(module))
    for place, x in inputs.items():
        assert mx.allclose(module.layers[place](x), before[place], rtol=1e-4, atol=1e-5).item()


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("precision", [mx.float32, mx.bfloat16])
def test_weights_unpacked_once_give_the_bits_of_those_unpacked_each_time(bits: int, precision: mx.Dtype) -> None:
    module = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 128), nn.Sequential(nn.Linear(128, 32, bias=False)))
    module.set_dtype(precision)
    quantize_layers(module, bits)
    replace_quantized_layers(module)
    inputs = mx.random.normal((5, 64)).astype(precision)
    before = module(inputs)
    unpack_layers(module, mx.dequantize)
    assert [type(layer) for layer in module.layers[:2]] == [UnpackedLinear, nn.Linear]
    assert type(module.layers[2].layers[0]) is UnpackedLinear
    assert {name.rpartition(".")[2] for name, _ in named_arrays(module)} == {"weight", "bias"}
    assert all(array.dtype == precision for _, array in named_arrays(module))
    assert mx.array_equal(module(inputs), before).item()


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacked_transformer_makes_the_same_image_and_is_packed_again_after_a_run_with_little_memory(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    cuda = Device(kind="cuda", name="computed on a CPU")
    monkeypatch.setattr(lazy_modules, "detect_device", lambda: cuda)
    components = load_quantized(source, bits, tmp_path / "q")
    pipeline = Pipeline(components, cuda)
    before, packed_bytes = generate(pipeline, REQUEST), components.resident_bytes
    expected = measure(tmp_path / "q", float_bytes=4)
    assert expected is not None
    assert packed_bytes == expected.whole
    pipeline.unpack_weights()
    assert components.resident_bytes == expected.unpacked
    assert expected.unpacked > packed_bytes
    low_ram = attrs.evolve(REQUEST, low_ram=True)
    for request in (REQUEST, low_ram, low_ram, REQUEST):
        assert np.array_equal(generate(pipeline, request), before)
    assert isinstance(components.transformer.proj_out, DequantizedLinear)
    components.load_all()
    assert components.resident_bytes == packed_bytes


def test_quantized_weights_cannot_be_quantized_again(source: Path, tmp_path: Path) -> None:
    load_quantized(source, 8, tmp_path / "q8")
    with pytest.raises(CheckpointError, match="quantized already"):
        load_quantized(tmp_path / "q8", 4, tmp_path / "q4")


# --- checkpoints that mflux saved ---


def mflux_saved(source: Path, target: Path, bits: int | None) -> Path:
    model: Any = Flux2Klein(model_path=str(source), model_config=klein_config(), quantize=bits)
    ModelSaver.save_model(model, bits or 0, str(target), Flux2KleinWeightDefinition)
    return target


def test_checkpoint_that_mflux_saved_loads_without_any_configuration(stock_folder: Path, tmp_path: Path) -> None:
    saved = mflux_saved(stock_folder, tmp_path / "saved", 4)
    assert not list(saved.rglob("config.json"))
    ours = load_components(saved)
    assert same(ours, load_components(stock_folder, bits=4))
    assert attrs.evolve(ours.info, is_distilled=True) == load_components(stock_folder).info


def test_saved_without_quantization(stock_folder: Path, tmp_path: Path) -> None:
    saved = mflux_saved(stock_folder, tmp_path / "saved", None)
    assert same(load_components(saved), load_components(stock_folder))
    assert same(load_quantized(saved, 4, tmp_path / "q"), load_components(stock_folder, bits=4))


def test_marks_in_the_index_alone_are_enough(source: Path, tmp_path: Path) -> None:
    """Some tools drop the metadata of safetensors files."""
    first = load_quantized(source, 4, tmp_path / "q")
    for file in (tmp_path / "q").glob("*/*.safetensors"):
        loaded: Any = mx.load(str(file))
        mx.eval(loaded)
        mx.save_safetensors(str(file), loaded)
    assert same(load_components(tmp_path / "q"), first)


def test_scales_of_another_precision_are_converted(source: Path, tmp_path: Path) -> None:
    entry = tmp_path / "q"
    load_quantized(source, 4, entry)
    loaded: Any = mx.load(str(entry / WEIGHTS))
    halves = {name: array if array.dtype == mx.uint32 else array.astype(mx.bfloat16) for name, array in loaded.items()}
    mx.eval(halves)
    mx.save_safetensors(str(entry / WEIGHTS), halves, {"quantization_level": "4"})
    assert load_components(entry).transformer.proj_out.scales.dtype == ModelConfig.precision


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.pop("proj_out.biases"), "transformer: proj_out.biases of shape (128, 2) is missing."),
        (
            lambda tensors: tensors.update({"proj_out.weight": tensors["proj_out.weight"].astype(mx.float32)}),
            "transformer: proj_out.weight must hold packed 32-bit integers.",
        ),
        (
            lambda tensors: tensors.update({"proj_out.scales": mx.zeros((128, 3))}),
            "transformer: proj_out is quantized in a way that its shapes do not explain",
        ),
        (lambda tensors: tensors.update(extra=mx.zeros(3)), "transformer: extra of shape (3,) is unexpected"),
    ],
)
def test_saved_weights_that_do_not_fit_are_named(
    source: Path, tmp_path: Path, change: Callable[[dict[str, mx.array]], object], expected: str
) -> None:
    entry = tmp_path / "q"
    load_quantized(source, 4, entry)
    loaded: Any = mx.load(str(entry / WEIGHTS))
    mx.eval(loaded)
    change(loaded)
    mx.save_safetensors(str(entry / WEIGHTS), loaded, {"quantization_level": "4"})
    index = entry / "transformer" / "model.safetensors.index.json"
    index.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_components(entry)
    assert str(caught.value).startswith(expected)


def test_saved_weights_without_configuration_and_without_a_layer_are_named(source: Path, tmp_path: Path) -> None:
    entry = tmp_path / "q"
    load_quantized(source, 4, entry)
    for name in ("config.json", "model.safetensors.index.json"):
        (entry / "transformer" / name).unlink()
    loaded: Any = mx.load(str(entry / WEIGHTS))
    mx.eval(loaded)
    del loaded["x_embedder.weight"]
    mx.save_safetensors(str(entry / WEIGHTS), loaded, {"quantization_level": "4"})
    with pytest.raises(CheckpointError, match=r"x_embedder\.weight is missing, and there is no configuration"):
        load_components(entry)


def test_the_marker_says_what_the_entry_was_made_from(source: Path, tmp_path: Path) -> None:
    load_quantized(source, 4, tmp_path / "q")
    marker = json.loads((tmp_path / "q" / MARKER).read_text())
    assert marker["made_from"]["bits"] == 4
    assert WEIGHTS in marker["files"]
    assert not any(Path(name).is_absolute() for name in marker["files"])
