"""What ``train`` and ``train_more`` share: their options, how a run begins, and where it writes its figures."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from training.demo.checkpoint import save_checkpoint
from training.demo.clock import Clock
from training.demo.distributed import DistributedContext
from training.demo.export import read_parts
from training.demo.shape import SHAPE, TINY
from training.demo.train_state import FLOW_FILE, VAE_FILE

DROPOUT = 0.12
"""The share of captions that are dropped, so that guidance has something to lead away from."""
_SEED = 20_240_607


def add_arguments(parser: argparse.ArgumentParser, stages: tuple[str, ...], workers: int) -> None:
    """Add the options of every stage; ``workers`` is the default number of caption workers."""
    parser.add_argument("--stage", choices=stages, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time of this run")
    parser.add_argument("--plan", type=float, required=True, help="training time of the stage over all its runs")
    parser.add_argument("--state", type=Path, default=Path("/tmp/demo-train"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=Path, help="begin from exported parts where the state was lost")
    parser.add_argument("--spent", type=float, default=0.0, help="minutes of the flow's plan that the parts had")
    parser.add_argument(
        "--stop-at", type=float, default=0.0, help="end the training at this time (seconds of the epoch)"
    )
    parser.add_argument("--workers", type=int, default=workers)
    parser.add_argument("--tiny", action="store_true", help="tiny models and batches, to try everything out on a CPU")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)


class TrainingRun:
    """One run of a stage, of limited time: its device, seed, shape, clock and log."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._begun = arguments, time.perf_counter()
        self.distributed = DistributedContext()
        base_seed = arguments.seed or _SEED + int(time.time()) % 100_000
        self.seed: int = base_seed + 1_000_003 * self.distributed.rank
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(f"cuda:{self.distributed.rank}" if device == "cuda" else device)
        self.device_name = "cpu"
        self.shape = TINY if arguments.tiny else SHAPE

    def set_up(self) -> torch.Generator:
        """Prepare torch and ``--out``.

        It uses the GPU, so workers have to be forked before.

        Returns:
            A seeded generator on the run's device.
        """
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.manual_seed(self.seed)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self.device_name = torch.cuda.get_device_name()
        self.distributed.join(self.device)
        self.log(f"torch {torch.__version__}, {self.device_name}, stage {self._arguments.stage}")
        self._arguments.out.mkdir(parents=True, exist_ok=True)
        return generator

    def log(self, line: str) -> None:
        """Print ``line`` behind the seconds since the run began, in the main process only."""
        if self.distributed.is_main_process:
            print(f"[{time.perf_counter() - self._begun:5.0f}] {line}", flush=True)

    def clock(self, spent: float) -> Clock:
        """Start the clock of a stage that has had ``spent`` seconds of its plan."""
        return Clock(spent, self._arguments.plan, self._arguments.minutes, self._arguments.stop_at)


def write_metrics(out: Path, stage: str, metrics: dict[str, Any]) -> None:
    """Put a stage's figures into metrics.json, beside those of other stages."""
    file = out / "metrics.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | {stage: metrics}, indent=2) + "\n")


def state_from_parts(arguments: argparse.Namespace, device: torch.device) -> None:
    """Turn the parts that ``--parts`` names, if it does, into a state to continue from.

    Raises:
        SystemExit: There is such a state already.
    """
    if not arguments.parts:
        return
    if (arguments.state / FLOW_FILE).is_file():
        raise SystemExit(f"{arguments.state / FLOW_FILE} is there already: leave --parts out, or name another --state.")
    values = {
        component: {name: tensor.float().to(device) for name, tensor in state.items()}
        for component, state in read_parts(arguments.parts).items()
    }
    save_checkpoint(
        arguments.state / VAE_FILE,
        {"average": values["vae"], "vae": values["vae"], "optimizer": None, "step": 0, "spent": 0.0},
    )
    average = {name: values[name] for name in ("text_encoder", "transformer")}
    save_checkpoint(
        arguments.state / FLOW_FILE,
        {
            "text": average["text_encoder"],
            "transformer": average["transformer"],
            "average": average,
            "optimizer": None,
            "step": 5000,
            "spent": arguments.spent * 60,
        },
    )
