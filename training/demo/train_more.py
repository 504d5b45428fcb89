"""The stages after the model can draw: editing, and an example LoRA. In calls of limited time, as ``train``'s.

    python -m training.demo.train_more --stage edit --minutes 22.8 --plan 22.8 --state /tmp/demo-train --out out
    python -m training.demo.train_more --stage lora --minutes 0.8 --plan 0.8 --state /tmp/demo-train --out out

``edit`` begins from the averaged weights in flow.pt and keeps itself in edit.pt; ``lora`` begins from the averaged
weights in edit.pt, or where there is none from flow.pt. ``--parts FOLDER`` begins from exported parts instead where
the state was lost.
"""

import argparse
from typing import Any

import torch

from training.demo.command import DROPOUT, Call, add_arguments, note_metrics, state_from_parts
from training.demo.data import Scenes
from training.demo.edit_data import Edits
from training.demo.export import write_parts
from training.demo.report import report
from training.demo.report_edit import report_edit
from training.demo.state import load
from training.demo.train_edit import FILE as EDIT_FILE
from training.demo.train_edit import shipped, train_edit
from training.demo.train_lora import FILE as LORA_FILE
from training.demo.train_lora import report_lora, train_lora
from training.demo.trainee import Trainee, build, exported, resume

_INSTRUCTION_DROPOUT = 0.08


def main() -> None:
    arguments = _arguments()
    call = Call(arguments)
    device, editing = call.device, arguments.stage == "edit"
    scenes = Scenes(arguments.workers // 2 if editing else 0, call.seed, DROPOUT, device)
    streams = [
        Edits(arguments.workers // 2, call.seed, count, _INSTRUCTION_DROPOUT, device) for count in (1, 2) if editing
    ]
    generator = call.set_up()
    try:
        if call.team.leads:
            state_from_parts(arguments, device)
        call.team.wait()
        trainee = build(call.shape, device, 0.998)
        if not resume(trainee, arguments.state, device):
            raise SystemExit(f"{arguments.state / 'flow.pt'} is missing: train the flow first, or give --parts.")
        if editing:
            metrics = _edit(arguments, call, trainee, scenes, (streams[0], streams[1]), generator)
        else:
            metrics = _lora(arguments, call, trainee, generator)
        if call.team.leads:
            note_metrics(arguments.out, arguments.stage, metrics | {"device": call.device_name})
        call.log("done")
    finally:
        for stream in (scenes, *streams):
            stream.close()


def _edit(
    arguments: argparse.Namespace,
    call: Call,
    trainee: Trainee,
    scenes: Scenes,
    streams: tuple[Edits, Edits],
    generator: torch.Generator,
) -> dict[str, Any]:
    device, tiny = call.device, arguments.tiny
    metrics = train_edit(
        trainee,
        scenes,
        streams,
        generator,
        call.clock,
        call.log,
        device,
        call.team,
        tiny=tiny,
        keep_to=arguments.state,
    )
    call.team.leave()
    if not call.team.leads:
        return metrics
    call.log("exporting")
    write_parts(exported(trainee), arguments.out)
    note_metrics(arguments.out, "edit", metrics)
    metrics |= report_edit(trainee, arguments.out, device, call.log, tiny=tiny)
    return metrics | report(trainee, "edit-text", arguments.out, device, scenes, generator, call.log, tiny=tiny)


def _lora(arguments: argparse.Namespace, call: Call, trainee: Trainee, generator: torch.Generator) -> dict[str, Any]:
    edited = load(arguments.state / EDIT_FILE, call.device)
    if edited is not None:
        trainee.average.restore(edited["average"], 0)
    call.log(f"on the weights of {'edit' if edited else 'flow'}.pt")
    models, tiny = shipped(trainee), arguments.tiny
    lora, metrics = train_lora(models, trainee.vae, call.shape, generator, call.clock, call.log, call.seed, tiny=tiny)
    lora.save(arguments.out / LORA_FILE)
    return metrics | report_lora(lora, models, trainee.vae, arguments.out, tiny=tiny)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teach the demo model to edit, or make its example LoRA.")
    add_arguments(parser, ("edit", "lora"), workers=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
