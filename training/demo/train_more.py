"""The stages after the model can generate: editing, and an example LoRA. In runs of limited time, as ``train``'s.

    python -m training.demo.train_more --stage edit --minutes 22.8 --plan 22.8 --state /tmp/demo-train --out out
    python -m training.demo.train_more --stage lora --minutes 0.8 --plan 0.8 --state /tmp/demo-train --out out

``edit`` begins from the averaged weights in flow.pt and keeps its own state in edit.pt; ``lora`` begins from the
averaged weights in edit.pt, or where there is no such file from flow.pt. Where the state was lost, ``--parts FOLDER``
begins from exported parts instead.
"""

import argparse
from typing import Any

import torch

from training.demo.checkpoint import load_checkpoint
from training.demo.data import Scenes
from training.demo.distillation import copy_shipped_models
from training.demo.edit_data import Edits
from training.demo.export import write_parts
from training.demo.report import report
from training.demo.report_edit import report_edit
from training.demo.train_edit import FILE as EDIT_FILE
from training.demo.train_edit import train_edit
from training.demo.train_lora import FILE as LORA_FILE
from training.demo.train_lora import report_lora, train_lora
from training.demo.train_state import TrainState, build_state, export_weights, resume
from training.demo.training_run import DROPOUT, TrainingRun, add_arguments, state_from_parts, write_metrics

_INSTRUCTION_DROPOUT = 0.08


def main() -> None:
    """Run the stage that the command line names, and report on it."""
    arguments = _arguments()
    run = TrainingRun(arguments)
    device, editing = run.device, arguments.stage == "edit"
    scenes = Scenes(arguments.workers // 2 if editing else 0, run.seed, DROPOUT, device)
    streams = [
        Edits(arguments.workers // 2, run.seed, count, _INSTRUCTION_DROPOUT, device) for count in (1, 2) if editing
    ]
    generator = run.set_up()
    try:
        if run.distributed.is_main_process:
            state_from_parts(arguments, device)
        run.distributed.wait_for_everyone()
        state = build_state(run.shape, device, 0.998)
        if not resume(state, arguments.state, device):
            raise SystemExit(f"{arguments.state / 'flow.pt'} is missing: train the flow first, or give --parts.")
        if editing:
            metrics = _edit(arguments, run, state, scenes, (streams[0], streams[1]), generator)
        else:
            metrics = _lora(arguments, run, state, generator)
        if run.distributed.is_main_process:
            write_metrics(arguments.out, arguments.stage, metrics | {"device": run.device_name})
        run.log("done")
    finally:
        scenes.close()
        for stream in streams:
            stream.close()


def _edit(
    arguments: argparse.Namespace,
    run: TrainingRun,
    state: TrainState,
    scenes: Scenes,
    streams: tuple[Edits, Edits],
    generator: torch.Generator,
) -> dict[str, Any]:
    device, tiny = run.device, arguments.tiny
    metrics = train_edit(
        state,
        scenes,
        streams,
        generator,
        run.clock,
        run.log,
        device,
        run.distributed,
        tiny=tiny,
        folder=arguments.state,
    )
    run.distributed.leave()
    if not run.distributed.is_main_process:
        return metrics
    run.log("exporting")
    write_parts(export_weights(state), arguments.out)
    write_metrics(arguments.out, "edit", metrics)
    metrics |= report_edit(state, arguments.out, device, run.log, tiny=tiny)
    return metrics | report(state, "edit-text", arguments.out, device, scenes, generator, run.log, tiny=tiny)


def _lora(
    arguments: argparse.Namespace, run: TrainingRun, state: TrainState, generator: torch.Generator
) -> dict[str, Any]:
    edited = load_checkpoint(arguments.state / EDIT_FILE, run.device)
    if edited is not None:
        state.ema.restore(edited["average"], 0)
    run.log(f"on the weights of {'edit' if edited else 'flow'}.pt")
    models, tiny = copy_shipped_models(state), arguments.tiny
    lora, metrics = train_lora(models, state.vae, run.shape, generator, run.clock, run.log, run.seed, tiny=tiny)
    lora.save(arguments.out / LORA_FILE)
    measures: dict[str, Any] = report_lora(lora, models, state.vae, arguments.out, tiny=tiny)
    return metrics | measures


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teach the demo model to edit, or make its example LoRA.")
    add_arguments(parser, ("edit", "lora"), workers=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
