"""Reports of benchmarks: JSON and Markdown, with the machine."""

import json
from pathlib import Path

import pytest

from benchmarks.report import Report, Table, describe_machine, machine_line, options_parser

TABLE = Table(("", "seconds"), [("idle", 0.5), ("busy", "1.5 ×")], "Two rows:")


def test_json_has_the_figures_and_the_machine(tmp_path: Path) -> None:
    options = options_parser("Measure.").parse_args(["--json", str(tmp_path / "found.json")])
    Report("example", options, blas="a fast one").save({"seconds": 0.5})
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert (found["benchmark"], found["seconds"]) == ("example", 0.5)
    assert found["machine"]["blas"] == "a fast one"
    assert found["machine"].keys() == describe_machine().keys() | {"blas"}


def test_markdown_goes_to_standard_output_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("example", options_parser(None).parse_args([]))
    report.publish({}, TABLE, notes=["A note."])
    table = "|  | seconds |\n| --- | --- |\n| idle | 0.5 |\n| busy | 1.5 × |"
    assert capsys.readouterr().out == f"{machine_line(report.machine)}\n\nTwo rows:\n\n{table}\n\nA note.\n"


def test_markdown_goes_to_its_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_parser(None).parse_args(["--markdown", str(tmp_path / "found.md")])
    report = Report("example", options)
    report.publish({}, TABLE)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "found.md").read_text("utf-8") == f"{machine_line(report.machine)}\n\n{TABLE.markdown()}\n"


def test_machine_is_described_as_far_as_it_is_known() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["memory_gb"] > 0.1
    assert machine["mlx"]
    line = machine_line(machine | {"gpu": "NVIDIA H200", "processor": "A processor", "cores": 3})
    assert line.startswith("A processor, 3 cores, ")
    assert "; NVIDIA H200; " in line
    assert "None" not in machine_line(machine | {"gpu": None, "commit": None})
