"""A command line against a server in this process."""

from pathlib import Path

import trio

from mflux_api.cli.main import main


async def typed(api_port: int, folder: Path, *arguments: str) -> int:
    """Run a command line in a thread, as a process of its own would, and return its exit status."""
    config = folder / "client.toml"
    await trio.Path(config).write_text('[generation]\noutput_dir = "made"\n[lora]\ndirs = ["mine"]\n', "utf-8")
    rest = ["--url", f"http://127.0.0.1:{api_port}", "--config", str(config)]
    return await trio.to_thread.run_sync(main, [*arguments, *rest])
