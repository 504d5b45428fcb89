"""The models of a run with everything that changes, and how they are saved."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.models import TextEncoder, Transformer, rope_of
from training.demo.optimizer import Optimizer
from training.demo.state import Average, load, save
from training.demo.vae import Autoencoder


@dataclass(frozen=True)
class Size:
    """An image size with its images a step, its pool, and its share of the steps early, in the middle and late."""

    height: int
    width: int
    batch: int
    capacity: int
    shares: tuple[float, float, float]

    @property
    def drawn_at_once(self) -> int:
        """Drawing has a high cost a call and a low one an image, so it is done for many images together."""
        return min(self.capacity, max(self.batch, 2048 * 256 * 256 // (self.height * self.width)), 4096)


@dataclass
class Trainee:
    """The models of the run and everything that changes."""

    vae: Autoencoder
    text: TextEncoder
    transformer: Transformer
    average: Average
    optimizer: Optimizer
    step: int = 0
    spent: float = 0.0

    @property
    def models(self) -> tuple[TextEncoder, Transformer]:
        """What predicts a velocity."""
        return self.text, self.transformer


def build(shape: CheckpointShape, device: torch.device, decay: float) -> Trainee:
    """Fresh models."""
    vae = Autoencoder(shape).to(device).eval().requires_grad_(False)
    text, transformer = TextEncoder(shape).to(device), Transformer(shape).to(device)
    optimizer = Optimizer([text, transformer], fused=device.type == "cuda")
    average = Average({"text_encoder": text, "transformer": transformer}, decay)
    return Trainee(vae, text, transformer, average, optimizer)


def resume(trainee: Trainee, state: Path, device: torch.device) -> bool:
    """Load the autoencoder and, where one was saved, the run; whether there was a run."""
    saved_vae = load(state / "vae.pt", device)
    if saved_vae is None:
        raise SystemExit(f"{state / 'vae.pt'} is missing: train the autoencoder first.")
    # What is exported is bfloat16, so the latents are those of the rounded weights.
    trainee.vae.load_state_dict(
        {name: value.to(torch.bfloat16).float() for name, value in saved_vae["average"].items()}
    )
    saved = load(state / "flow.pt", device)
    if saved is None:
        return False
    trainee.text.load_state_dict(saved["text"])
    trainee.transformer.load_state_dict(saved["transformer"])
    trainee.average.restore(saved["average"], saved["step"])
    if saved["optimizer"] is not None:
        trainee.optimizer.load_state_dict(saved["optimizer"])
    trainee.step, trainee.spent = saved["step"], saved["spent"]
    return True


def keep(trainee: Trainee, state: Path) -> None:
    """Save the run."""
    save(
        state / "flow.pt",
        {
            "text": trainee.text.state_dict(),
            "transformer": trainee.transformer.state_dict(),
            "average": trainee.average.values,
            "optimizer": trainee.optimizer.state_dict(),
            "step": trainee.step,
            "spent": trainee.spent,
        },
    )


def exported(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    """The components' weights as they are shipped."""
    return {"vae": trainee.vae.state_dict(), **trainee.average.values}


def velocity(
    models: tuple[TextEncoder, Transformer], size: Size, latents: Tensor, tokens: Tensor, sigma: Tensor
) -> Tensor:
    """The velocity that the model finds at ``latents``."""
    rope = rope_of(size.height // 16, size.width // 16, tokens.shape[1], models[1].axes, latents.device)
    return models[1](latents, models[0](tokens), sigma, rope).float()
