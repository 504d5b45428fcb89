"""Write the weights as parts small enough to carry, and as a folder in diffusers' layout.

python -m training.demo.export PARTS FOLDER            # the checkpoint that diffusers and the engine load
python -m training.demo.export PARTS FOLDER --base     # the same weights under the base model's rules
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor

from mflux_api.engine.demo import layout
from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.shape import SHAPE, TINY, VOCABULARY_SIZE, configs
from training.demo.tokenizer import FOLDER as TOKENIZER

PART_BYTES = 15_000_000
_FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def write_parts(values: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Write all components in bfloat16, cut into ``demo.safetensors.0``, ``.1``, ... of at most 15 MB."""
    tensors = {
        f"{component}/{name}": tensor.to(torch.bfloat16).contiguous().cpu()
        for component, state in values.items()
        for name, tensor in state.items()
    }
    data = save_bytes(tensors, {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        (folder / f"demo.safetensors.{number}").write_bytes(data[start : start + PART_BYTES])


def read_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read the components back, in bfloat16.

    Raises:
        SystemExit: There are no parts in the folder.
    """
    files = sorted(folder.glob("demo.safetensors.*"), key=lambda file: int(file.suffix[1:]))
    if not files:
        raise SystemExit(f"There are no demo.safetensors.* files in {folder}.")
    values: dict[str, dict[str, Tensor]] = {component: {} for component in _FILES}
    for name, tensor in load_bytes(b"".join(file.read_bytes() for file in files)).items():
        component, _, rest = name.partition("/")
        values[component][rest] = tensor
    return values


def shape_of(values: dict[str, dict[str, Tensor]]) -> CheckpointShape:
    """Find out which of the two shapes the weights have."""
    width = values["vae"]["encoder.conv_in.weight"].shape[0]
    return SHAPE if width == SHAPE.vae_widths[0] else TINY


def check(values: dict[str, dict[str, Tensor]], shape: CheckpointShape) -> None:
    """Compare every name and shape with the layout that the package knows.

    Raises:
        SystemExit: A tensor is missing, is not in the layout, or has another shape.
    """
    expected = {
        "transformer": layout.transformer_tensors(shape),
        "vae": layout.vae_tensors(shape),
        "text_encoder": layout.text_encoder_tensors(shape),
    }
    for component, tensors in expected.items():
        wanted = {name: dims for name, dims, _ in tensors}
        if component == "text_encoder":
            wanted["model.embed_tokens.weight"] = (VOCABULARY_SIZE, shape.text_width)
        found = {name: tuple(tensor.shape) for name, tensor in values[component].items()}
        if found != wanted:
            different = sorted(set(found.items()) ^ set(wanted.items()))
            raise SystemExit(f"{component} does not have the layout's tensors; these differ: {different[:4]}")


def write_folder(values: dict[str, dict[str, Tensor]], folder: Path, *, base: bool = False) -> None:
    """Write a checkpoint in diffusers' layout, in bfloat16; ``base`` marks it as not distilled."""
    shape = shape_of(values)
    check(values, shape)
    for name, config in configs(shape, distilled=not base).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for component, file in _FILES.items():
        tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in values[component].items()}
        save_file(tensors, folder / component / file, {"format": "pt"})
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file_name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / file_name, folder / "tokenizer" / file_name)


def main() -> None:
    """Turn the parts that the command line names into a folder."""
    parser = argparse.ArgumentParser(description="Turn exported parts into a checkpoint folder.")
    parser.add_argument("parts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", action="store_true", help="mark the model as not distilled")
    arguments = parser.parse_args()
    write_folder(read_parts(arguments.parts), arguments.folder, base=arguments.base)


if __name__ == "__main__":
    main()
