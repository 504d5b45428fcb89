"""Train the demo model, in calls of limited time that continue each other.

    python -m training.demo.train --stage vae --minutes 3.4 --plan 3.4 --state /tmp/demo-train --out out
    python -m training.demo.train --stage flow --minutes 5 --plan 8 --state /tmp/demo-train --out out
    python -m training.demo.train --stage flow --minutes 3 --plan 8 --state /tmp/demo-train --out out

Each call ends with the averaged weights in bfloat16 parts, a contact sheet and the measures in ``--out``. Where the
state was lost, ``--parts FOLDER`` begins from such parts with a fresh optimizer; ``--spent`` then says how many minutes
of the plan they had.
"""

import argparse
from typing import Any

from training.demo.command import DROPOUT, Call, add_arguments, note_metrics, state_from_parts
from training.demo.data import Scenes
from training.demo.export import write_parts
from training.demo.report import report
from training.demo.train_flow import train_flow
from training.demo.train_vae import train_vae
from training.demo.trainee import Trainee, build, exported, resume


def main() -> None:
    arguments = _arguments()
    call = Call(arguments)
    device = call.device
    scenes = Scenes(arguments.workers, call.seed, DROPOUT, device)
    generator = call.set_up()
    metrics: dict[str, Any] = {}
    try:
        if arguments.stage == "vae":
            metrics = train_vae(
                call.shape,
                scenes,
                generator,
                call.clock,
                call.log,
                device,
                tiny=arguments.tiny,
                graphed=not arguments.eager,
                keep_to=arguments.state,
            )
            trainee = build(call.shape, device, 0.999)
            resume(trainee, arguments.state, device)
        else:
            state_from_parts(arguments, device)
            trainee = build(call.shape, device, 0.999)
            resumed = resume(trainee, arguments.state, device)
            how = "continuing" if resumed else "beginning"
            call.log(f"{how} at step {trainee.step}, {_millions(trainee)} parameters")
            metrics = train_flow(
                trainee,
                scenes,
                generator,
                call.clock,
                call.log,
                device,
                tiny=arguments.tiny,
                keep_to=arguments.state,
            )
        call.log("exporting")
        write_parts(exported(trainee), arguments.out)
        metrics |= {"device": call.device_name}
        note_metrics(arguments.out, arguments.stage, metrics)
        metrics |= report(
            trainee, arguments.stage, arguments.out, device, scenes, generator, call.log, tiny=arguments.tiny
        )
        note_metrics(arguments.out, arguments.stage, metrics)
        call.log("done")
    finally:
        scenes.close()


def _millions(trainee: Trainee) -> str:
    counts = [
        sum(p.numel() for p in module.parameters()) / 1e6 for module in (trainee.transformer, trainee.text, trainee.vae)
    ]
    return " + ".join(f"{count:.2f} M" for count in counts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    add_arguments(parser, ("vae", "flow"), workers=6)
    parser.add_argument("--eager", action="store_true", help="record no CUDA graphs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
