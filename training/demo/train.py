"""Train the demo model, in runs of limited time that continue each other.

    python -m training.demo.train --stage vae --minutes 3.4 --plan 3.4 --state /tmp/demo-train --out out
    python -m training.demo.train --stage flow --minutes 5 --plan 8 --state /tmp/demo-train --out out
    python -m training.demo.train --stage flow --minutes 3 --plan 8 --state /tmp/demo-train --out out

Each run ends with the averaged weights in bfloat16 parts, a contact sheet and the measures in ``--out``. Where the
state was lost, ``--parts FOLDER`` begins from such parts with a fresh optimizer; ``--spent`` then says how many minutes
of the plan they had.
"""

import argparse
from typing import Any

from training.demo.data import Scenes
from training.demo.export import write_parts
from training.demo.report import report
from training.demo.train_flow import train_flow
from training.demo.train_state import TrainState, build_state, export_weights, resume
from training.demo.train_vae import train_vae
from training.demo.training_run import DROPOUT, TrainingRun, add_arguments, state_from_parts, write_metrics


def main() -> None:
    """Run the stage that the command line names, and report on it."""
    arguments = _arguments()
    run = TrainingRun(arguments)
    device = run.device
    scenes = Scenes(arguments.workers, run.seed, DROPOUT, device)
    generator = run.set_up()
    metrics: dict[str, Any] = {}
    try:
        if arguments.stage == "vae":
            metrics = train_vae(
                run.shape,
                scenes,
                generator,
                run.clock,
                run.log,
                device,
                tiny=arguments.tiny,
                graphed=not arguments.eager,
                folder=arguments.state,
            )
            state = build_state(run.shape, device, 0.999)
            resume(state, arguments.state, device)
        else:
            state_from_parts(arguments, device)
            state = build_state(run.shape, device, 0.999)
            resumed = resume(state, arguments.state, device)
            how = "continuing" if resumed else "beginning"
            run.log(f"{how} at step {state.step}, {_millions(state)} parameters")
            metrics = train_flow(
                state,
                scenes,
                generator,
                run.clock,
                run.log,
                device,
                tiny=arguments.tiny,
                folder=arguments.state,
            )
        run.log("exporting")
        write_parts(export_weights(state), arguments.out)
        metrics |= {"device": run.device_name}
        write_metrics(arguments.out, arguments.stage, metrics)
        metrics |= report(
            state, arguments.stage, arguments.out, device, scenes, generator, run.log, tiny=arguments.tiny
        )
        write_metrics(arguments.out, arguments.stage, metrics)
        run.log("done")
    finally:
        scenes.close()


def _millions(state: TrainState) -> str:
    counts = [
        sum(p.numel() for p in module.parameters()) / 1e6 for module in (state.transformer, state.text, state.vae)
    ]
    return " + ".join(f"{count:.2f} M" for count in counts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    add_arguments(parser, ("vae", "flow"), workers=6)
    parser.add_argument("--eager", action="store_true", help="record no CUDA graphs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
