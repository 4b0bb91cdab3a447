"""The files in `deploy/` agree with the server: its flags, options and metrics."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import neuroglot as ng
from neuroglot.cli import main
from neuroglot_server.command import serve
from neuroglot_server.config.config_file import read
from neuroglot_server.config.options import OPTIONS
from neuroglot_server.config.tenants import Tenants
from neuroglot_server.core import BatchRun, MemoryUse
from neuroglot_server.telemetry.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "neuroglot.json"
FLAGS = {flag for parameter in serve.params for flag in (*parameter.opts, *parameter.secondary_opts)}


def commands() -> Iterator[tuple[str, list[str]]]:
    """The server's command line in each file of `deploy/`."""
    unit = (DEPLOY / "neuroglot.service").read_text()
    yield "neuroglot.service", shlex.split(re.search(r"^ExecStart=\S+ serve (.*)$", unit, re.MULTILINE)[1])
    for file in sorted(DEPLOY.glob("*.Dockerfile")):
        yield file.name, json.loads(re.search(r"^CMD (\[.*\])$", file.read_text(), re.MULTILINE)[1])
    yield "compose.yaml", composed()["services"]["neuroglot"]["command"]


def composed() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize(("where", "command"), list(commands()))
def test_the_server_is_started_with_flags_that_it_has(where: str, command: list[str]) -> None:
    given = {word.split("=")[0] for word in command if word.startswith("--")}
    assert given
    assert given <= FLAGS
    if "--insecure" not in given:
        assert command[command.index("--address") + 1].startswith("127.0.0.1:")


def test_stop_timeouts_are_longer_than_the_grace_period() -> None:
    """Otherwise running requests would be killed within the grace period."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)  # keys may be repeated
    unit.optionxform = str
    unit.read(DEPLOY / "neuroglot.service")
    service = composed()["services"]["neuroglot"]
    for patience, command in (
        (unit["Service"]["TimeoutStopSec"], shlex.split(unit["Service"]["ExecStart"])),
        (service["stop_grace_period"].removesuffix("s"), service["command"]),
    ):
        grace = float(re.search(r"--grace[ =](\S+)", " ".join(command))[1])
        assert grace < float(patience)


def test_the_unit_provides_the_files_that_its_configuration_needs() -> None:
    unit = (DEPLOY / "neuroglot.service").read_text()
    credentials = dict(re.findall(r"^LoadCredential=([^:]+):(\S+)$", unit, re.MULTILINE))
    (configuration,) = re.findall(r"--config \$\{CREDENTIALS_DIRECTORY\}/(\S+)", unit)
    assert {Path(source).name for source in credentials.values()} == credentials.keys()
    assert all((DEPLOY / name).exists() for name in credentials)
    tokens_file = Path(read(DEPLOY / configuration).values["tokens_file"])
    assert tokens_file.relative_to(DEPLOY).name in credentials, "a relative path is so to the configuration's folder"


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.Dockerfile")), ids=lambda file: file.name)
def test_images_copy_what_there_is_and_set_variables_that_mean_something(file: Path) -> None:
    text = file.read_text()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parent / name).exists() for name in line.split())
    variables = {option.variable for option in OPTIONS}
    assert set(re.findall(r"NEUROGLOT_[A-Z_]+", text)) <= variables
    assert re.search(r"^USER \d+$", text, re.MULTILINE)


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    """As it is, and with the commented-out model enabled."""
    assert read(DEPLOY / "neuroglot.toml").values["bundles_folder"] == "/bundles"
    whole = re.sub(r"^# (\[models|bundle =|batch_|shared_)", r"\1", (DEPLOY / "neuroglot.toml").read_text(), flags=re.M)
    (tmp_path / "neuroglot.toml").write_text(whole)
    assert read(tmp_path / "neuroglot.toml").models["bloomz-560m"].values == {
        "batch_tokens": 8192,
        "shared_cache": True,
    }
    printed = CliRunner().invoke(main, ["serve", "--config", str(DEPLOY / "neuroglot.toml"), "--print-config"])
    assert printed.exit_code == 0, printed.output
    assert Tenants(DEPLOY / "tokens.toml").of_token("any") is None


def test_what_compose_mounts_is_there_and_what_prometheus_asks_is_where_the_server_is() -> None:
    services, volumes = composed()["services"], composed()["volumes"]
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source in volumes or source == "../bundles" or (DEPLOY / source).exists(), mount
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    build = services["neuroglot"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]
    name, port = scraped["targets"][0].split(":")
    assert name in services
    assert f"--metrics-address=0.0.0.0:{port}" in services["neuroglot"]["command"]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_compose_starts_a_server_that_answers(bloom_bundle: Path) -> None:
    """With compose's command line, on loopback ports and the bundle that is mounted; and its health check says so."""
    service = composed()["services"]["neuroglot"]
    (mount,) = service["volumes"]
    address, metrics_address = free_address(), free_address()
    here = {
        "0.0.0.0:50051": address,
        "0.0.0.0:9464": metrics_address,
        "/bundles/${BUNDLE:-bloom}": str(bloom_bundle),
        "=/bundles": f"={bloom_bundle.parent}",
    }
    assert mount == "../bundles:/bundles:ro"
    command = service["command"]
    for there, replacement in here.items():
        assert any(word.endswith(there) for word in command), there
        command = [word.replace(there, replacement) for word in command]
    image = (DEPLOY / "cpu.Dockerfile").read_text()
    program, *prefix = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", image, re.MULTILINE)[1])
    assert Path(program).name == "neuroglot"
    kind, python, *check = service["healthcheck"]["test"]
    assert (kind, Path(python).parent) == ("CMD", Path(program).parent)
    check = [sys.executable, *(word.replace("127.0.0.1:9464", metrics_address) for word in check)]
    assert check[-1].count(metrics_address) == 1
    assert subprocess.run(check, capture_output=True).returncode != 0, "nothing runs yet"
    process = subprocess.Popen(
        [sys.executable, "-m", "neuroglot", *prefix, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[-1] == f"listening on {address}\n", process.stderr.read()
        assert subprocess.run(check, capture_output=True).returncode == 0
        with ng.connect(address) as client:
            answer = client.model().analyze(ng.Group({"en": "The capital of France is", "es": "La capital es"}))
        assert answer.types.counts().shape == (3, 4)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_unit_lets_the_server_see_gpus() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "neuroglot.service")
    assert unit["Service"]["PrivateDevices"] == "no"
    assert unit["Service"]["DevicePolicy"] == "closed"
    assert unit["Service"]["DeviceAllow"] == "char-nvidia* rw"


def exported() -> dict[str, set[str]]:
    """The labels of all metrics of a server after some calls, by metric name."""
    metrics = Metrics()
    metrics.started("AnalyzeGroup")
    metrics.handled("AnalyzeGroup", "OK", 0.1)
    metrics.models({"m": True})
    model = metrics.of_model("m")
    model.queued(3)
    model.admitted("alice", 3)
    model.batch(BatchRun("decoder", 1, 3, 3, 0.1, (0.1,)))
    model.cached("prefix", 1, 2)
    metrics.refused("alice", "QueueFull")
    metrics.memory(lambda: {"m": {"queue": MemoryUse(1, 2)}}, 3)
    metrics.certificate_expires(datetime.now(UTC))
    # Metrics of Prometheus itself, and of the process.
    labels = {"up": {"job", "instance"}, "process_resident_memory_bytes": {"job", "instance"}}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels[sample.name] = {*sample.labels, "job", "instance"}
    return labels


def expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_dashboard_and_alerts_use_metrics_that_the_server_has() -> None:
    known = exported()
    asked = set()
    for expression in expressions():
        series = set(re.findall(r"\b(?:neuroglot_[a-z_]+|grpc_server_[a-z_]+|process_[a-z_]+|up\b)", expression))
        assert series
        assert series <= known.keys()
        by = {label for found in re.findall(r"\bby \(([^)]*)\)", expression) for label in found.split(", ")}
        matched = set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
        assert by | matched <= set.intersection(*(known[name] for name in series)), expression
        asked |= series
    assert {name for name in asked if name.startswith("neuroglot")} >= {
        "neuroglot_queue_depth_tokens",
        "neuroglot_tokens_total",
        "neuroglot_model_up",
        "neuroglot_refusals_total",
        "neuroglot_memory_limit_bytes",
        "neuroglot_certificate_expiry_timestamp_seconds",
    }


def test_files_of_grafana_point_at_each_other() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "neuroglot.yml").read_text())["providers"]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    mounts = composed()["services"]["grafana"]["volumes"]
    assert any(mount.startswith("./grafana/dashboards:" + provider["options"]["path"]) for mount in mounts)
