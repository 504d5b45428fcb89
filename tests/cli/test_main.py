"""The command line as a person uses it."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image

from tests.support.lora_files import write_lora
from tests.support.server import ROOT, clean_environment

pytestmark = pytest.mark.slow


def run(
    folder: Path,
    *arguments: str,
    program: tuple[str, ...] = ("-m", "mflux_api"),
    environ: Mapping[str, str] = MappingProxyType({}),
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env={**clean_environment(), **environ},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_generate_prints_the_path_of_an_image_and_its_seed(tmp_path: Path) -> None:
    prompt = ("a beautiful sunset over mountains", "--negative-prompt", "fog")
    done = run(tmp_path, "generate", *prompt, "--model", "demo", "--seed", "1")
    assert done.returncode == 0, done.stderr
    (path,) = done.stdout.splitlines()
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("mflux-api: warning: ")]
    assert "negative" in warning
    assert warning.endswith(" has no effect: 'demo' is distilled, and runs without guidance")
    with Image.open(path) as image:
        assert image.size == (256, 256)
        assert "a beautiful sunset over mountains" in image.info["parameters"]
    # No terminal, no bar.
    assert re.fullmatch(r"seed 1, \d+\.\d s", done.stderr.splitlines()[-1])
    assert len(done.stderr.splitlines()) == 2


def test_generate_takes_its_options(tmp_path: Path) -> None:
    options = [
        "--model",
        "demo-base",
        "--seed",
        "3",
        "--steps",
        "2",
        "--width",
        "96",
        "--height",
        "64",
        "--num-images",
        "2",
        "--guidance",
        "2.5",
    ]
    done = run(tmp_path, "generate", "a", *options, "--negative-prompt", "fog", "--output-dir", "images")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert len(paths) == 2
    for index, path in enumerate(paths):
        assert path.is_relative_to(tmp_path / "images")
        with Image.open(path) as image:
            text = image.info["parameters"]
            assert image.size == (96, 64)
            assert "Negative prompt: fog" in text
            assert f"Steps: 2, Sampler: Euler, Schedule type: Simple, CFG scale: 2.5, Seed: {3 + index}," in text


def test_generate_upscales_an_image_without_a_prompt(tmp_path: Path) -> None:
    from tests.support.upscaler_checkpoint import write_upscaler

    write_upscaler(tmp_path / "weights")
    config = '[[models.custom]]\nname = "seedvr2"\nbase = "seedvr2"\npath = "weights"\n'
    (tmp_path / "config.toml").write_text(config, "utf-8")
    Image.linear_gradient("L").resize((48, 32)).save(tmp_path / "small.png")
    done = run(
        tmp_path, "generate", "--model", "seedvr2", "--init-image", "small.png", "--upscale", "3", "--softness", "0.5"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(done.stdout.strip()) as image:
        assert image.size == (144, 96)
        assert "Softness: 0.5" in image.info["parameters"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "a", "--model", "nonsense"), "No model is called 'nonsense'; `mflux-api models list` shows"),
        (("generate", "a", "--model", "demo", "--width", "100"), "--width is invalid"),
        (("generate", "  ", "--model", "demo"), "The prompt is required"),
        (("generate", "--model", "seedvr2"), "--init-image is required"),
        (("generate", "a"), "the next try goes on from there"),
        (
            ("generate", "a"),
            "flux2-klein-4b, the default (models.default), is not on disk: 15.96 GB will be downloaded",
        ),
        (
            ("generate", "a", "--model", "demo", "--output-dir", "/dev/null/x"),
            "output_dir cannot be written (a folder above it is a file)",
        ),
        (("generate", "a", "--config", "nothing.toml"), "nothing.toml: no such file"),
        (("generate", "a", "--extend", "left=x"), "expected SIDE=PIXELS[,…] with the sides left, top, right, bottom"),
        (("serve", "--port", "70000"), "--port"),
        (("serve", "--host", "no.such.host.invalid", "--port", "0"), "cannot listen on"),
    ],
)
def test_mistake_is_one_line_on_standard_error(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_server_whose_webhooks_have_no_secret_ends_before_it_makes_anything(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[webhooks]\nenabled = true\n")
    done = run(tmp_path, "serve", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("mflux-api: webhooks.enabled needs webhooks.secret or webhooks.secret_file")
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_engine_that_cannot_start_ends_a_command_with_its_last_line_and_what_to_do(tmp_path: Path) -> None:
    """MLX's CUDA build on a machine without a driver: it cannot even be imported."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    environ = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    # In front of what is installed, and still behind the package itself.
    done = run(tmp_path, "generate", "a", "--model", "demo", environ=environ)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "mflux-api: The engine does not start (exited with status 1: ImportError: libcuda.so.1: cannot"
    )
    assert "install the driver, or MLX's CPU build" in last
    assert "`mflux-api doctor`" in last
    doctor = run(tmp_path, "doctor", environ=environ)
    assert doctor.returncode == 1
    assert re.search(
        r"^✗ engine +does not start: exited with status 1: ImportError: libcuda", doctor.stdout, re.MULTILINE
    )


def test_doctor_reports_what_will_be_used(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for subject in ("mflux-api", "python", "mlx", "mflux", "engine", "backend", "device", "memory", "output directory"):
        assert re.search(rf"^. {subject} ", done.stdout, re.MULTILINE), subject
    assert "mflux-api models download flux2-klein-4b, or set models.default to demo" in done.stdout


def test_doctor_reports_problems_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "config.toml").write_text(
        '[generation]\noutput_dir = "file/output"\n[[models.custom]]\nname = "mine"\nbase = "demo"\npath = "nowhere"\n'
        '[jobs]\nstate_dir = "state"\n'
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "mflux-api.sqlite3").write_bytes(b"junk" * 999)
    done = run(tmp_path, "doctor")
    assert done.returncode == 1
    assert "output directory: choose another in config.toml" in done.stdout
    assert "models.custom 'mine': path must be a folder in diffusers' layout" in done.stdout
    assert re.search(r"^✗ job database +damaged, or not a job store$", done.stdout, re.MULTILINE)
    assert "job database: move it away to start with an empty one" in done.stdout


def test_api_main_is_serve_and_runs_from_anywhere(tmp_path: Path) -> None:
    done = run(tmp_path, "--help", program=(str(ROOT / "api_main.py"),))
    assert done.returncode == 0
    assert "--host" in done.stdout
    assert "--port" in done.stdout


def test_help_names_every_command(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert all(name in done.stdout for name in ("serve", "generate", "doctor"))


@pytest.mark.parametrize("side", ["width", "height"])
def test_side_of_0_is_refused_and_not_taken_for_the_default(tmp_path: Path, side: str) -> None:
    done = run(tmp_path, "generate", "a", "--model", "demo", f"--{side}", "0")
    assert done.returncode == 1
    assert f"--{side} is invalid" in done.stderr


def test_generate_edits_images_with_masks_and_loras_wherever_they_lie(tmp_path: Path) -> None:
    write_lora(tmp_path / "elsewhere" / "style.safetensors", seed=1)
    Image.new("RGB", (80, 64), (90, 160, 230)).save(tmp_path / "day.jpg")
    Image.new("L", (40, 32)).save(tmp_path / "black.png")
    options = ["--model", "demo", "--seed", "3", "--init-image", "day.jpg", "--image-strength", "0.5"]
    masks = ["--mask", "black.png", "--extend", "left=16", "--mask-blur", "0"]
    done = run(tmp_path, "generate", "make it night", *options, *masks, "--lora", "elsewhere/style.safetensors:0.5")
    assert done.returncode == 0, done.stderr
    (path,) = done.stdout.splitlines()
    with Image.open(path) as image, Image.open(tmp_path / "day.jpg") as day:
        assert image.crop((16, 0, 96, 64)).tobytes() == day.convert("RGB").tobytes()
        assert image.crop((0, 0, 16, 64)).getcolors(1) is None
        assert "style:0.5>" in image.info["parameters"].splitlines()[0]
        assert "Denoising strength: 0.5, Mask blur: 0, Extended: 16 0 0 0" in image.info["parameters"]
    missing = run(tmp_path, "generate", "a", *options, "--lora", "nothing")
    assert (missing.returncode, "lora.dirs" in missing.stderr) == (1, True)
    gone = run(tmp_path, "generate", "a", "--init-image", "gone.png")
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert "The init image gone.png cannot be read: No such file or directory" in gone.stderr
