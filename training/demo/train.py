"""Train the demo model, in calls of limited time that continue each other.

    python -m training.demo.train --stage vae --minutes 2.5 --plan 2.5 --state /tmp/demo-train --out out
    python -m training.demo.train --stage flow --minutes 6 --plan 9 --state /tmp/demo-train --out out
    python -m training.demo.train --stage flow --minutes 3 --plan 9 --state /tmp/demo-train --out out
    python -m training.demo.train --stage distill --minutes 1.5 --plan 1.5 --state /tmp/demo-train --out out

Each call ends with the averaged weights in bfloat16 parts, a contact sheet and the measures in ``--out``. Where the
state was lost, ``--parts FOLDER`` begins from such parts with a fresh optimizer; ``--spent`` then says how many minutes
of the plan they had.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from training.demo.data import Scenes
from training.demo.export import read_parts, write_parts
from training.demo.report import report
from training.demo.shape import SHAPE, TINY
from training.demo.state import Clock, save
from training.demo.train_flow import train_flow
from training.demo.train_vae import train_vae
from training.demo.trainee import Trainee, build, exported, resume

DROPOUT = 0.12
SEED = 20_240_607


def main() -> None:
    arguments = _arguments()
    begun = time.perf_counter()

    def log(line: str) -> None:
        print(f"[{time.perf_counter() - begun:5.0f}] {line}", flush=True)

    seed = arguments.seed or SEED + int(time.time()) % 100_000
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    scenes = Scenes(arguments.workers, seed, DROPOUT, device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    shape = TINY if arguments.tiny else SHAPE
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    log(f"torch {torch.__version__}, {name}, stage {arguments.stage}")

    def clock(spent: float) -> Clock:
        return Clock(spent, arguments.plan, arguments.minutes, arguments.stop_at)

    arguments.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    try:
        if arguments.stage == "vae":
            metrics = train_vae(
                shape,
                scenes,
                generator,
                clock,
                log,
                device,
                tiny=arguments.tiny,
                graphed=not arguments.eager,
                keep_to=arguments.state,
            )
            trainee = build(shape, device, 0.999)
            resume(trainee, arguments.state, device)
        else:
            if arguments.parts and not (arguments.state / "flow.pt").is_file():
                _from_parts(arguments, device)
            distill = arguments.stage == "distill"
            trainee = build(shape, device, 0.9985 if distill else 0.999)
            resumed = resume(trainee, arguments.state, device)
            log(f"{'continuing' if resumed else 'beginning'} at step {trainee.step}, {_millions(trainee)} parameters")
            metrics = train_flow(
                trainee,
                scenes,
                generator,
                clock,
                log,
                device,
                distill=distill,
                tiny=arguments.tiny,
                keep_to=arguments.state,
            )
        log("exporting")
        write_parts(exported(trainee), arguments.out)
        metrics |= {"device": name}
        _note(arguments.out, arguments.stage, metrics)
        metrics |= report(trainee, arguments.stage, arguments.out, device, scenes, generator, log, tiny=arguments.tiny)
        _note(arguments.out, arguments.stage, metrics)
        log("done")
    finally:
        scenes.close()


def _note(out: Path, stage: str, metrics: dict[str, Any]) -> None:
    """Put a stage's figures into metrics.json."""
    file = out / "metrics.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | {stage: metrics}, indent=2) + "\n")


def _millions(trainee: Trainee) -> str:
    counts = [
        sum(p.numel() for p in module.parameters()) / 1e6 for module in (trainee.transformer, trainee.text, trainee.vae)
    ]
    return " + ".join(f"{count:.2f} M" for count in counts)


def _from_parts(arguments: argparse.Namespace, device: torch.device) -> None:
    """Turn exported parts into a state to continue from."""
    values = {
        component: {name: tensor.float().to(device) for name, tensor in state.items()}
        for component, state in read_parts(arguments.parts).items()
    }
    save(
        arguments.state / "vae.pt",
        {"average": values["vae"], "vae": values["vae"], "optimizer": None, "step": 0, "spent": 0.0},
    )
    average = {name: values[name] for name in ("text_encoder", "transformer")}
    save(
        arguments.state / "flow.pt",
        {
            "text": average["text_encoder"],
            "transformer": average["transformer"],
            "average": average,
            "optimizer": None,
            "step": 5000,
            "spent": arguments.spent * 60,
            "distill_spent": 0.0,
        },
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--stage", choices=["vae", "flow", "distill"], required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time of this call")
    parser.add_argument("--plan", type=float, required=True, help="training time of the stage over all calls")
    parser.add_argument("--state", type=Path, default=Path("/tmp/demo-train"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=Path, help="begin from exported parts where the state was lost")
    parser.add_argument("--spent", type=float, default=0.0, help="minutes of the plan that the parts had")
    parser.add_argument(
        "--stop-at", type=float, default=0.0, help="end the training at this time (seconds of the epoch)"
    )
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--eager", action="store_true", help="record no CUDA graphs")
    parser.add_argument("--tiny", action="store_true", help="tiny models and batches, to try everything out on a CPU")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
