"""What ``mflux-api generate`` makes of its options, in this process and without a model."""

import argparse
import io
import json
import sys
from pathlib import Path

import attrs
import pytest
from PIL import Image

from mflux_api.cli.exit_status import EXIT_FAILED, EXIT_USAGE
from mflux_api.cli.main import main
from mflux_api.cli.output import Made, MadeImage, Output, add_output_options
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.cli.prompts import MAX_PROMPTS, read_prompts
from mflux_api.cli.request_options import local_loras, remote_loras
from mflux_api.client import Client, Submitted
from mflux_api.config import LoraSettings, Settings
from mflux_api.errors import ConfigError
from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest
from tests.support.command_line import typed
from tests.support.harness import eventually
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Fail, Hold, Script

# --- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_come_from_arguments_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa lake\r\n\n  a tree \n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ein Fluß\n".encode())))
    assert read_prompts(["a house", "-"], file) == ("a house", "ein Fluß", "a lake", "a tree")
    assert read_prompts([], None) == ("",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n \n", "there is no prompt in it; expected one in each line"),
        (b"\xff", "not UTF-8 text"),
        (b"a\n" * (MAX_PROMPTS + 1), f"there are {MAX_PROMPTS + 1} prompts, and {MAX_PROMPTS} are the most"),
        (b" " * (10 * 2**20 + 1), "more than 10 MB are not prompts"),
    ],
)
def test_file_without_prompts_is_told_as_that(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_prompts([], tmp_path / "prompts.txt")


def test_folder_or_nothing_is_not_read_as_prompts(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "is not a file"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=says):
            read_prompts([], path)


# --- where images go -----------------------------------------------------------------------------------------------


def output(*arguments: str, count: int = 1) -> Output:
    parser = argparse.ArgumentParser()
    add_output_options(parser)
    return Output.from_options(parser.parse_args(arguments), count)


MADE = Made(
    job_id="0123456789ab",
    prompt="a lake",
    model="demo",
    images=(MadeImage(seed=5, data=b"one"), MadeImage(seed=6, data=b"two")),
    warnings=("'steps' is 4",),
    seconds=2.54,
)


def test_file_has_the_image_and_several_are_numbered(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = attrs.evolve(MADE, images=MADE.images[:1])
    output("-o", str(tmp_path / "a.JPG")).put(one, 0)
    assert (tmp_path / "a.JPG").read_bytes() == b"one"
    output("-o", str(tmp_path / "b.webp"), count=4).put(MADE, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("b*")} == {"b-2.webp": b"one", "b-3.webp": b"two"}
    said = capfd.readouterr()
    assert said.out.splitlines() == [str(tmp_path / name) for name in ("a.JPG", "b-2.webp", "b-3.webp")]
    assert said.err.splitlines()[-2:] == ["mflux-api: warning: --steps is 4", "seeds 5, 6, 2.5 s"]


def test_format_is_that_of_the_name(tmp_path: Path) -> None:
    for name, expected in (("a.png", "png"), ("a.jpg", "jpeg"), ("a.jpeg", "jpeg"), ("a.WEBP", "webp")):
        assert output("-o", str(tmp_path / name)).format == expected


def test_json_is_a_line_for_each_prompt(capfd: pytest.CaptureFixture[str]) -> None:
    stored = attrs.evolve(MADE, images=(MadeImage(seed=5, path="/images/a.png"),))
    for _ in range(2):
        output("--json").put(stored, 0)
    said = capfd.readouterr()
    first, second = map(json.loads, said.out.splitlines())
    assert first == second
    assert first == {
        "id": "0123456789ab",
        "prompt": "a lake",
        "model": "demo",
        "seconds": 2.54,
        "images": [{"path": "/images/a.png", "seed": 5}],
        "warnings": ["--steps is 4"],
    }
    assert "seed" not in said.err


def test_quiet_says_paths_and_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    output("-q").put(attrs.evolve(MADE, images=(MadeImage(seed=5, path="/images/a.png"),)), 0)
    assert capfd.readouterr() == ("/images/a.png\n", "mflux-api: warning: --steps is 4\n")


@pytest.mark.parametrize(
    ("arguments", "count", "says"),
    [
        (("-o", "-"), 2, "standard output takes one image, and 2 are asked for"),
        (("-o", "-", "--json"), 1, "standard output is the image's"),
        (("-o", "a.gif"), 1, "does not say which format; expected .png, .jpg, .jpeg, .webp at its end"),
        (("-o", "a"), 1, "does not say which format"),
        (("-o", "."), 1, "is a folder; name a file in it, or use --output-dir"),
        (("-o", "nowhere/a.png"), 1, "the folder of nowhere/a.png cannot be written"),
        (("-o", "a.png", "--output-dir", "b"), 1, "give either --output, a file, or --output-dir, a folder"),
    ],
)
def test_output_that_cannot_be_is_refused_before_anything_runs(
    arguments: tuple[str, ...], count: int, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        output(*arguments, count=count)
    assert says in str(refused.value)


def test_terminal_gets_no_bytes_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", _Terminal())
    with pytest.raises(ConfigError, match="standard output is a terminal"):
        output("-o", "-")


# --- progress ------------------------------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(stage: Stage, **fields: float) -> Progress:
    return Progress(id="j", status=Status.GENERATING, stage=stage, progress=0.5, **fields)  # type: ignore[arg-type]


def test_every_stage_is_shown_on_a_terminal() -> None:
    screen = _Terminal()
    with ProgressBar(screen) as bar:
        for stage in Stage:
            bar.update(progress(stage))
        bar.update(progress(Stage.DENOISING, step=2, steps=4, eta_seconds=75.4))
    assert "generating, step 2/4, 1:15 left" in screen.getvalue()
    assert screen.getvalue().count("\r") == len(Stage) + 1


def test_download_is_shown_with_its_speed_and_the_time_left() -> None:
    screen = _Terminal()
    with ProgressBar(screen) as bar:
        bar.transfer("tiny", 1_500_000_000, 4_000_000_000, 4e6)
    assert "38% tiny, 1.50 GB of 4.00 GB, 4.0 MB/s, 10:25 left" in screen.getvalue()


def test_pipe_gets_a_line_every_half_minute_and_no_more() -> None:
    pipe, now = io.StringIO(), 0.0
    with ProgressBar(pipe, clock=lambda: now) as bar:
        for step in range(1, 101):
            now = step * 1.0
            bar.update(progress(Stage.DENOISING, step=step, steps=100))
    lines = pipe.getvalue().splitlines()
    assert [line.partition("step ")[2] for line in lines] == [
        "30/100 (30.0 s)",
        "60/100 (60.0 s)",
        "90/100 (90.0 s)",
    ]


# --- LoRAs ---------------------------------------------------------------------------------------------------------


def test_example_lora_works_everywhere_and_gives_way_to_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(lora=LoraSettings(dirs=(tmp_path / "loras",)))
    named = local_loras(["demo-ink:0.5"], settings)
    assert (Path(named.files[0]).name, named.scales) == ("demo-ink.safetensors", (0.5,))
    assert Path(named.files[0]).parent in named.settings.lora.dirs
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "demo-ink.safetensors").touch()
    assert local_loras(["demo-ink"], settings).files == ("demo-ink",)


def test_lora_of_this_machine_is_not_a_servers(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ConfigError, match="mflux-api loras add"):
        remote_loras([str(tmp_path / "a.safetensors")], Settings())
    assert remote_loras(["styles/ink:0.5", "b"], Settings()).scales == (0.5, 1.0)


# --- on a server ---------------------------------------------------------------------------------------------------


async def test_server_generates_and_the_images_come_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with scripted_api(tmp_path) as api:
        size = ("--width", "64", "--height", "64")
        status = await typed(
            api.port, tmp_path, "generate", "a", "b", "--model", "demo", "--seed", "3", *size, "--json"
        )
        first, second = map(json.loads, capfd.readouterr().out.splitlines())
        assert (status, first["prompt"], second["prompt"]) == (0, "a", "b")
        for made in (first, second):
            path = Path(made["images"][0]["path"])
            assert path.is_relative_to(tmp_path / "made")
            stored = (await api.service.job(made["id"])).images[0]
            assert path.read_bytes() == Path(stored.path).read_bytes()  # noqa: ASYNC240
            assert stored.seed == 3


async def test_server_makes_the_format_and_the_models_own_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with scripted_api(tmp_path) as api:
        file = tmp_path / "a.jpg"
        assert await typed(api.port, tmp_path, "generate", "a", "--model", "demo", "-o", str(file), "-q") == 0
        with Image.open(file) as image:
            assert (image.format, image.size) == ("JPEG", (256, 256))
        assert capfd.readouterr() == (f"{file}\n", "")


async def test_refusal_and_failure_of_a_server_are_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with scripted_api(tmp_path, Script(at={"denoising": Fail()})) as api:
        for arguments, status, says in (
            (("generate", "a", "--model", "dmo"), EXIT_FAILED, "No model is called 'dmo'; did you mean 'demo'?"),
            (("generate", "a", "--model", "demo", "--width", "100"), EXIT_FAILED, "--width is invalid"),
            (("generate", "a", "--model", "demo", "-q"), EXIT_FAILED, "mflux-api: "),
            (("generate", "a", "--model", "demo", "-o", "a.gif"), EXIT_USAGE, "does not say which format"),
        ):
            assert await typed(api.port, tmp_path, *arguments) == status
            assert says in capfd.readouterr().err


def test_upscale_is_a_request_of_an_upscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[GenerateRequest]()
    monkeypatch.setattr("mflux_api.cli.generate.generate_there", lambda *arguments: asked.extend(arguments[2]))
    monkeypatch.chdir(tmp_path)
    Path("-small.png").write_bytes(b"image")
    options = ("--factor", "3", "--softness", "0.5", "--seed", "7", "--url", "h")
    assert main(["upscale", *options, "--", "-small.png"]) == 0
    expected = GenerateRequest(model="seedvr2", init_images=("aW1hZ2U=",), upscale=3.0, softness=0.5, seed=7)
    assert asked == [expected]


async def test_interrupt_cancels_the_job_on_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    hold = Hold()
    monkeypatch.setattr("mflux_api.cli.generating.follow", interrupted)
    async with scripted_api(tmp_path, Script(at={"denoising": hold})) as api:
        assert await typed(api.port, tmp_path, "generate", "a", "--model", "demo") == 130
        [view] = (await api.service._gateway.jobs())[0]

        async def is_cancelled() -> bool:
            return (await api.service.job(view.job.id)).status is Status.CANCELLED

        await eventually(is_cancelled)
        assert await is_cancelled()


def test_id_that_leads_out_of_the_folder_is_no_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    submitted = Submitted(job_id="../../elsewhere", status=Status.QUEUED, position=1)
    monkeypatch.setattr(Client, "submit", lambda *_: submitted)
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a", "--url", "http://h"]) == EXIT_FAILED
    assert "what answers at http://h is not an mflux-api server" in capfd.readouterr().err
    assert [file.name for file in tmp_path.rglob("*.png")] == []


def test_upscale_names_the_upscalers_where_the_model_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["upscale", "--model", "demo", "any.png"]) == EXIT_USAGE
    assert "--model demo generates images and upscales none: name one of seedvr2" in capfd.readouterr().err
