"""Models of a running server: listing, status, downloading there."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from mflux_api.cli.exit_status import EXIT_FAILED
from mflux_api.cli.model_lines import READY, ModelLine, print_models, weights_text
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.cli.running_server import connected
from mflux_api.cli.table import table
from mflux_api.config import Settings

if TYPE_CHECKING:
    from mflux_api.client import Client, ModelStatus

_LOOK_SECONDS = 1.0


def on_server(settings: Settings, options: argparse.Namespace) -> int:
    """Carry out ``list``, ``status`` or ``download`` there.

    Raises:
        ServiceError: the server refuses.
        ConnectionError: no server answers.
    """
    with connected(settings, options.url, retries=3) as client:
        if options.action == "list":
            print_models(_lines(client), long=options.long, as_json=options.json)
            return 0
        results = [
            _show(client, name) if options.action == "status" else _download(client, name) for name in options.models
        ]
    return 0 if all(results) else EXIT_FAILED


def _lines(client: "Client") -> list[ModelLine]:
    return [
        ModelLine(
            model=model.title,
            state=READY if model.downloaded else "not downloaded",
            size_gb=model.size_gb,
            weights=weights_text(model.quantization, model.bits),
            licence=model.licence + (" (gated)" if model.gated else ""),
            origin=model.model_name + (f"@{model.revision[:12]}" if model.revision else ""),
        )
        for model in client.models()
    ]


def _show(client: "Client", name: str) -> bool:
    status = client.model_status(name)
    rows = [
        ("model", status.model),
        ("state", _state(status)),
        ("path", status.path or ""),
        ("commit", status.commit or ""),
        ("size", "" if status.size_gb is None else f"{status.size_gb:.2f} GB"),
        ("error", status.error or ""),
    ]
    print(table(row for row in rows if row[1]))
    return True


def _state(status: "ModelStatus") -> str:
    words = status.status.replace("_", " ")
    return words if status.percent is None else f"{words}, {status.percent:.0f} %"


def _download(client: "Client", name: str) -> bool:
    """Follow a download to its end; Ctrl-C leaves it to the server."""
    status = client.download_model(name)
    with ProgressBar(sys.stderr) as bar:
        while status.status == "downloading":
            if status.bytes_total:
                bar.transfer(status.model, status.bytes_done or 0, status.bytes_total, status.bytes_per_second)
            time.sleep(_LOOK_SECONDS)
            status = client.model_status(name)
    print(f"{status.model}: {status.error or _state(status)}", file=sys.stderr if status.error else sys.stdout)
    return status.downloaded
