"""The models of the flow and everything that changes while they are trained, and how that is saved."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.checkpoint import load_checkpoint, save_checkpoint
from training.demo.ema import EMA
from training.demo.models import Models, TextEncoder, Transformer
from training.demo.optimizer import Optimizer
from training.demo.vae import Autoencoder

FLOW_FILE = "flow.pt"
VAE_FILE = "vae.pt"


@dataclass
class TrainState:
    """The models, the average of their weights, the optimizer, and how far the training got."""

    vae: Autoencoder
    """Frozen: it only encodes and decodes."""
    text: TextEncoder
    transformer: Transformer
    ema: EMA
    optimizer: Optimizer
    step: int = 0
    spent: float = 0.0
    """Seconds of the flow's plan."""

    @property
    def models(self) -> Models:
        """The two models that together predict a velocity."""
        return self.text, self.transformer


def build_state(shape: CheckpointShape, device: torch.device, decay: float) -> TrainState:
    """Build untrained models of a shape, whose average keeps the share ``decay`` at each step."""
    vae = Autoencoder(shape).to(device).eval().requires_grad_(False)
    text, transformer = TextEncoder(shape).to(device), Transformer(shape).to(device)
    optimizer = Optimizer([text, transformer], fused=device.type == "cuda")
    ema = EMA({"text_encoder": text, "transformer": transformer}, decay)
    return TrainState(vae, text, transformer, ema, optimizer)


def resume(state: TrainState, folder: Path, device: torch.device) -> bool:
    """Load the autoencoder and, where the flow was begun, its models.

    Returns:
        Whether the flow was begun.

    Raises:
        SystemExit: There is no autoencoder yet.
    """
    saved_vae = load_checkpoint(folder / VAE_FILE, device)
    if saved_vae is None:
        raise SystemExit(f"{folder / VAE_FILE} is missing: train the autoencoder first.")
    # What is exported is bfloat16, so the latents are those of the rounded weights.
    state.vae.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in saved_vae["average"].items()})
    saved = load_checkpoint(folder / FLOW_FILE, device)
    if saved is None:
        return False
    state.text.load_state_dict(saved["text"])
    state.transformer.load_state_dict(saved["transformer"])
    state.ema.restore(saved["average"], saved["step"])
    if saved["optimizer"] is not None:
        state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.spent = saved["step"], saved["spent"]
    return True


def save_state(state: TrainState, folder: Path) -> None:
    """Write what ``resume`` continues from."""
    save_checkpoint(
        folder / FLOW_FILE,
        {
            "text": state.text.state_dict(),
            "transformer": state.transformer.state_dict(),
            "average": state.ema.values,
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "spent": state.spent,
        },
    )


def export_weights(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Return the weights that are shipped, by component."""
    return {"vae": state.vae.state_dict(), **state.ema.values}
