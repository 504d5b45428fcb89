"""The stages after the model can paint: editing, and an example LoRA. In calls of limited time, as ``train``'s.

    python -m training.demo.train_more --stage edit --minutes 4.5 --plan 4.5 --state /tmp/demo-train --out out
    python -m training.demo.train_more --stage lora --minutes 1.5 --plan 1.5 --state /tmp/demo-train --out out

``edit`` begins from the averaged weights in flow.pt and keeps itself in edit.pt; ``lora`` begins from the averaged
weights in edit.pt, or where there is none from flow.pt. ``--parts FOLDER`` begins from exported parts instead where
the state was lost.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.data import Scenes
from training.demo.edit_data import Edits
from training.demo.export import write_parts
from training.demo.report import report
from training.demo.report_edit import report_edit
from training.demo.shape import SHAPE, TINY
from training.demo.state import Clock, load
from training.demo.train import DROPOUT, SEED, _from_parts
from training.demo.train_edit import FILE as EDIT_FILE
from training.demo.train_edit import shipped, train_edit
from training.demo.train_lora import FILE as LORA_FILE
from training.demo.train_lora import report_lora, train_lora
from training.demo.trainee import Trainee, build, exported, resume

_INSTRUCTION_DROPOUT = 0.08


def main() -> None:
    arguments = _arguments()
    begun = time.perf_counter()

    def log(line: str) -> None:
        print(f"[{time.perf_counter() - begun:5.0f}] {line}", flush=True)

    seed = arguments.seed or SEED + int(time.time()) % 100_000
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    editing = arguments.stage == "edit"
    # Workers are forked before the first use of a GPU.
    scenes = Scenes(arguments.workers // 2 if editing else 0, seed, DROPOUT, device)
    streams = [Edits(arguments.workers // 2, seed, count, _INSTRUCTION_DROPOUT, device) for count in (1, 2) if editing]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    log(f"torch {torch.__version__}, {name}, stage {arguments.stage}")

    def clock(spent: float) -> Clock:
        return Clock(spent, arguments.plan, arguments.minutes, arguments.stop_at)

    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        if arguments.parts and not (arguments.state / "flow.pt").is_file():
            _from_parts(arguments, device)
        trainee = build(_shape(arguments), device, 0.998)
        if not resume(trainee, arguments.state, device):
            raise SystemExit(f"{arguments.state / 'flow.pt'} is missing: train the flow first, or give --parts.")
        if editing:
            metrics = _edit(arguments, trainee, scenes, (streams[0], streams[1]), generator, clock, log)
        else:
            metrics = _lora(arguments, trainee, generator, clock, log, seed)
        _note(arguments.out, arguments.stage, metrics | {"device": name})
        log("done")
    finally:
        for stream in (scenes, *streams):
            stream.close()


def _edit(
    arguments: argparse.Namespace,
    trainee: Trainee,
    scenes: Scenes,
    streams: tuple[Edits, Edits],
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
) -> dict[str, Any]:
    device, tiny = generator.device, arguments.tiny
    metrics = train_edit(
        trainee,
        scenes,
        streams,
        generator,
        clock,
        log,
        device,
        tiny=tiny,
        keep_to=arguments.state,
    )
    log("exporting")
    write_parts(exported(trainee), arguments.out)
    _note(arguments.out, "edit", metrics)
    metrics |= report_edit(trainee, arguments.out, device, log, tiny=tiny)
    return metrics | report(trainee, "edit-text", arguments.out, device, scenes, generator, log, tiny=tiny)


def _lora(
    arguments: argparse.Namespace,
    trainee: Trainee,
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    seed: int,
) -> dict[str, Any]:
    edited = load(arguments.state / EDIT_FILE, generator.device)
    if edited is not None:
        trainee.average.restore(edited["average"], 0)
    log(f"on the weights of {'edit' if edited else 'flow'}.pt")
    models = shipped(trainee)
    lora, metrics = train_lora(models, trainee.vae, _shape(arguments), generator, clock, log, seed, tiny=arguments.tiny)
    lora.save(arguments.out / LORA_FILE)
    return metrics | report_lora(lora, models, trainee.vae, arguments.out, tiny=arguments.tiny)


def _shape(arguments: argparse.Namespace) -> CheckpointShape:
    return TINY if arguments.tiny else SHAPE


def _note(out: Path, stage: str, metrics: dict[str, Any]) -> None:
    """Put a stage's figures into metrics.json."""
    file = out / "metrics.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | {stage: metrics}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teach the demo model to edit, or make its example LoRA.")
    parser.add_argument("--stage", choices=["edit", "lora"], required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time of this call")
    parser.add_argument("--plan", type=float, required=True, help="training time of the stage over all calls")
    parser.add_argument("--state", type=Path, default=Path("/tmp/demo-train"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=Path, help="begin from exported parts where the state was lost")
    parser.add_argument("--spent", type=float, default=0.0, help="minutes of the flow's plan that the parts had")
    parser.add_argument(
        "--stop-at", type=float, default=0.0, help="end the training at this time (seconds of the epoch)"
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="tiny models and batches, to try everything out on a CPU")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
