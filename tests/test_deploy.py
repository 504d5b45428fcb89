"""What `deploy/` says is true: paths that are there, options and variables that exist, ports and versions."""

import json
import plistlib
import re
import tomllib
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mflux_api.actors.messages import Counters, EngineCondition, EngineState, EngineStatus, SchedulerStatus
from mflux_api.actors.messages.metrics import METRICS, Distribution, MetricValues
from mflux_api.cli.exit_status import EXIT_USAGE
from mflux_api.cli.main import _parse
from mflux_api.config import _ENVIRONMENT, Settings, load_settings
from mflux_api.gateway.measurements import Measurements
from mflux_api.gateway.models import EngineView
from mflux_api.http.body import MAX_BODY_BYTES
from mflux_api.http.metrics import Reading, write
from mflux_api.http.openapi import OPERATIONS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PORT = Settings().server.port
DRAIN = Settings().server.drain_timeout_seconds


def text(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def container() -> dict[str, list[str]]:
    """The instructions of the image, each with what follows it, continued lines joined."""
    found = dict[str, list[str]]()
    for line in re.sub(r"\\\n\s*", " ", text("Containerfile")).splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found.setdefault(name, []).append(rest.strip())
    return found


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text("mflux-api.service"))
    return parser


def compose() -> Any:
    return yaml.safe_load(text("compose.yaml"))


def check_command(words: list[str]) -> None:
    """The words behind the command's name are ones that it takes."""
    options = _parse(words)
    assert options.command == "serve"
    assert getattr(options, "port", None) in (None, PORT)


def test_every_file_is_in_the_table_and_named_by_the_page_about_installing() -> None:
    names = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    rows = "".join(line for line in text("README.md").splitlines() if line.startswith("| ["))
    assert names == set(re.findall(r"\[([^\]]+)\]\(", rows))
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert [name for name in names if f"deploy/{name}" not in page + operations] == []


def test_image_is_built_of_what_is_there_and_runs_as_a_user_without_rights() -> None:
    image = container()
    sources = [word for copy in image["COPY"] if not copy.startswith("--from") for word in copy.split()[:-1]]
    kept = (ROOT / ".dockerignore").read_text("utf-8")
    assert all((ROOT / source).exists() and f"!{source}\n" in kept for source in sources)
    assert image["USER"] == ["10001:10001"]
    assert image["EXPOSE"] == [str(PORT)]
    assert image["ENTRYPOINT"] == ['["mflux-api"]']
    check_command(yaml.safe_load(image["CMD"][0]))


def test_image_is_built_with_the_files_that_the_wheel_has_from_outside_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    copied = {word for copy in container()["COPY"] for word in copy.split()[:-1]}
    assert set(included) <= copied


def test_image_keeps_all_that_it_writes_in_its_volume() -> None:
    image = container()
    assert image["VOLUME"] == image["WORKDIR"][1:] == ["/data"]
    variables = dict(word.split("=", 1) for word in image["ENV"][1].split())
    assert {name for name in variables if name.startswith("MFLUX_")} <= set(_ENVIRONMENT)
    assert [value for name, value in variables.items() if name != "PATH" and not value.startswith("/data")] == []


def test_health_is_asked_at_a_route_that_needs_no_key() -> None:
    (check,) = container()["HEALTHCHECK"]
    path = re.findall(rf"http://127\.0\.0\.1:{PORT}(/\w+)", check)
    assert [operation.scope for operation in OPERATIONS if operation.path in path] == [None]


@pytest.mark.parametrize("group", ["cpu", "cuda13"])
def test_image_has_a_group_for_each_of_mlxs_builds(group: str) -> None:
    assert re.search(rf"^{group} = ", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert group in text("Containerfile")


def test_services_find_each_other_and_the_data_of_both_stay() -> None:
    described = compose()
    own, chat = described["services"]["mflux-api"], described["services"]["open-webui"]
    assert own["build"] == {"context": "..", "dockerfile": "deploy/Containerfile", "args": {"MLX": "cpu"}}
    assert own["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert chat["environment"]["AUTOMATIC1111_BASE_URL"] == f"http://mflux-api:{PORT}"
    assert own["read_only"] is True
    assert own["volumes"] == ["mflux-data:/data"]
    assert {volume.partition(":")[0] for each in (own, chat) for volume in each["volumes"]} == set(described["volumes"])
    assert set(own["environment"]) <= set(_ENVIRONMENT)
    assert int(own["stop_grace_period"].removesuffix("s")) > DRAIN


def test_unit_runs_a_command_that_exists_and_leaves_it_time_to_drain() -> None:
    service = unit()["Service"]
    path, *words = service["ExecStart"].split()
    assert Path(path).name == "mflux-api"
    check_command(words)
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert int(service["TimeoutStopSec"]) > DRAIN
    assert service["RestartPreventExitStatus"] == str(EXIT_USAGE)
    assert service["ExecReload"].split()[1] == "-USR1"


def test_agent_and_formula_run_a_command_that_exists() -> None:
    agent = plistlib.loads(text("mflux-api.plist").encode())
    path, *words = agent["ProgramArguments"]
    assert Path(path).name == agent["Label"] == "mflux-api"
    check_command(words)
    assert agent["ExitTimeOut"] > DRAIN
    (run,) = re.findall(r"run \[opt_bin/\"mflux-api\", (.*)\]", text("mflux-api.rb"))
    check_command([word.strip(' "') for word in run.split(",")])


@pytest.mark.parametrize("name", ["nginx.conf", "nginx-below-a-path.conf", "Caddyfile"])
def test_proxies_ask_this_server_and_pass_events_on_as_they_come(name: str) -> None:
    said = text(name)
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", said)) == {str(PORT)}
    assert "proxy_buffering off;" in said or "flush_interval -1" in said
    # As large as a body of this server may be.
    assert set(re.findall(r"(?:client_max_body_size|max_size) (\d+)", said)) == {str(MAX_BODY_BYTES // 2**20)}


def test_settings_that_a_proxy_needs_are_ones_that_there_are(tmp_path: Path) -> None:
    lines = [line.removeprefix("#").strip() for line in text("nginx.conf").partition("\nserver {")[0].splitlines()]
    config = tmp_path / "config.toml"
    config.write_text("\n".join(lines[lines.index("[server]") :]), "utf-8")
    read = load_settings(config, environ={})
    assert (read.server.trusted_proxies, read.security.allowed_hosts) == (("127.0.0.1",), ("images.example.com",))


def series() -> dict[str, set[str]]:
    """The labels of every metric that `/metrics` can have, by the names of its samples."""
    engine = EngineView(
        status=EngineStatus(id="0", condition=EngineCondition.READY, models=("demo",)),
        state=EngineState(engine="0", incarnation=1, info=None, degraded=False, active_bytes=1, peak_bytes=1),
        residency=None,
    )
    counted = tuple(
        MetricValues(
            metric=metric,
            counters={tuple(metric.labels): 1.0},
            distributions={tuple(metric.labels): Distribution((1,) * (len(metric.buckets) + 1), 1.0)},
        )
        for metric in METRICS
    )
    measured = Measurements(
        counters=Counters(uptime_seconds=1.0, metrics=counted),
        status=SchedulerStatus(active=1, queued=1, draining=False, degraded=False),
        engines=(engine,),
        followers=1,
        webhooks=1,
    )
    text, _ = write(Reading(measured=measured, bytes_in_flight=1, max_queue=1), "")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> dict[str, str]:
    """Every expression of the dashboard and of the alert rules, by its title."""
    (group,) = yaml.safe_load(text("prometheus-alerts.yml"))["groups"]
    panels = json.loads(text("grafana-dashboard.json"))["panels"]
    drawn = {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel.get("targets", ())
    }
    return drawn | {rule["alert"]: rule["expr"] for rule in group["rules"]}


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are() -> None:
    known, from_outside = series(), {"up", "process_resident_memory_bytes"}
    for title, expression in expressions().items():
        names = set(re.findall(r"\b(mflux_api_\w+|process_\w+|up)\b", expression))
        assert names, title
        assert names - from_outside <= set(known), title
        labels = set[str]().union(*(known.get(name, set()) for name in names), {"instance", "job"})
        # In selectors, and in what is grouped by.
        used = set(re.findall(r"[{,] ?(\w+) ?(?:=~|!~|!=|=)", expression))
        for grouped in re.findall(r"(?:by|ignoring|on) \(([^)]*)\)", expression):
            used |= set(re.split(r",\s*", grouped))
        assert used <= labels, title


def test_panels_have_places_of_their_own_and_alerts_a_summary() -> None:
    panels = json.loads(text("grafana-dashboard.json"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    (group,) = yaml.safe_load(text("prometheus-alerts.yml"))["groups"]
    assert [rule["alert"] for rule in group["rules"] if not rule["annotations"]["summary"]] == []


def test_versions_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (mlx,) = re.findall(r'^    "mlx==([\d.]+)",$', project, re.MULTILINE)
    (own,) = re.findall(r'^version = "([\d.]+)"$', project, re.MULTILINE)
    formula, page = text("mflux-api.rb"), (ROOT / "docs" / "install.md").read_text("utf-8")
    assert set(re.findall(r"mlx(?:-cpu)?==([\d.]+)", formula + page)) == {mlx}
    assert f"mflux_api-{own}-" in formula
