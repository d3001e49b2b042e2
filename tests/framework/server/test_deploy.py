"""The files in framework/server/deploy, and the Dockerfile: valid in themselves, and about the server as it is."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import framework.server
from framework.cli import main
from framework.server.config import ServerConfig

from .servers import HTTPServer

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "framework" / "server" / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "kernelswap.json").read_text())
VLLM_DASHBOARD_METRICS = (
    *(f"{name}_bucket" for name in ("e2e_request_latency_seconds", "inter_token_latency_seconds", "time_to_first_token_seconds")),
    *(f"{name}_bucket" for name in ("request_time_per_output_token_seconds", "request_prompt_tokens", "request_generation_tokens")),
    *("prompt_tokens_total", "generation_tokens_total", "request_success_total", "iteration_tokens_total_count"),
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "request_max_num_generation_tokens_sum"),
    *(f"request_{part}_time_seconds_sum" for part in ("queue", "prefill", "decode")),
)
"""What the dashboards that come with vLLM ask for."""
METRIC = r"(?:vllm|kernelswap|process)[:_]\w+"
EMPTY_WHEN_IDLE = {f"vllm:{name}" for name in ("num_requests_running", "num_requests_waiting_by_reason", "kv_cache_usage_perc")}
EMPTY_WHEN_IDLE |= {"vllm:num_preemptions_total"}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(kind: str) -> Any:
    return next(found for found in documents("kubernetes.yaml") if found["kind"] == kind)


def container() -> Any:
    return of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]


def server_config(words: list[str], monkeypatch: pytest.MonkeyPatch) -> ServerConfig:
    """What ``kernelswap serve`` makes of its words."""
    found: list[ServerConfig] = []
    monkeypatch.setattr(framework.server, "run", lambda engine, server: found.append(server))
    assert main(["serve", *words]) == 0
    return found[0]


@pytest.mark.parametrize("document", documents("kubernetes.yaml"), ids=lambda document: document["kind"])
def test_the_manifest_fits_the_published_schema(document: Any) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    wrong = copy.deepcopy(document)
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_probes_and_service_reach_the_server(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found, pod = container(), of_kind("Deployment")["spec"]["template"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = found[probe]["httpGet"]
        assert server.request("GET", asked["path"])[0] == 200 and asked["port"] == found["ports"][0]["name"]
    service = of_kind("Service")["spec"]
    assert service["ports"][0]["targetPort"] == found["ports"][0]["name"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    annotations = pod["metadata"]["annotations"]
    assert server.request("GET", annotations["prometheus.io/path"])[0] == 200
    config = server_config(found["args"], monkeypatch)
    assert str(config.port) == annotations["prometheus.io/port"] == str(found["ports"][0]["containerPort"])
    assert config.drain_timeout_s < pod["spec"]["terminationGracePeriodSeconds"]


def test_volumes_are_there() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]} == {"cache": "/cache", "shm": "/dev/shm"}
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == of_kind("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


def expressions() -> list[str]:
    """Of all panels and variables, with the variables of Grafana replaced."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    found += [
        re.sub(r"label_values\((.*), (\w+)\)", r"count by (\2) (\1)", variable["query"]["query"])
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ]
    return found


def test_what_dashboards_ask_for_is_in_a_scrape(server: HTTPServer) -> None:
    for _ in range(2):  # the second time the prefix is known
        assert server.post("/v1/completions", model="tiny", prompt="import os\n" * 40, max_tokens=8, ignore_eos=True)[0] == 200
    text = server.request("GET", "/metrics")[1]
    labels: dict[str, set[str]] = {}
    values: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
            values[sample.name] += sample.value
    assert len(expressions()) > 30
    for expression in expressions():
        names = re.findall(METRIC, expression)
        assert names and set(names) <= set(labels), expression
        used = re.findall(r"(\w+)=~?\"", expression)
        used += [label for by in re.findall(r"by \(([\w, ]+)\)", expression) for label in by.split(", ")]
        assert all(set(used) <= labels[name] for name in names), expression
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert all(set(shown) <= labels[name] for name in re.findall(r"(?:vllm|process)[:_]\w+", target["expr"]))
    assert {f"vllm:{name}" for name in VLLM_DASHBOARD_METRICS} <= set(labels)
    empty = {name for expression in expressions() for name in re.findall(METRIC, expression) if not values[name]}
    assert empty <= EMPTY_WHEN_IDLE, "a panel would stay empty"


def test_panels_do_not_overlap_and_have_their_own_ids() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken) and max(x for x, _ in taken) < 24


def test_compose_mounts_files_that_exist_and_services_that_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    [compose], [prometheus] = documents("compose.yaml"), documents("prometheus.yaml")
    services = compose["services"]
    for service in services.values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("depends_on", [])) <= set(services)
    build = services["kernelswap"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT and f"AS {build['target']}" in (ROOT / "Dockerfile").read_text()
    [target] = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"kernelswap:{server_config(['tiny'], monkeypatch).port}"
    assert documents("grafana/datasources.yaml")[0]["datasources"][0]["url"] == "http://prometheus:9090"
    boards = documents("grafana/dashboards.yaml")[0]["providers"][0]["options"]["path"]
    assert any(mount.split(":")[1] == f"{boards}/kernelswap.json" for mount in services["grafana"]["volumes"])
    assert set(documents("compose.gpu.yaml")[0]["services"]) <= set(services)


def test_the_dockerfile_copies_what_there_is_and_starts_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"][0].startswith("torch>"), "the Dockerfile installs the first one by itself"
    python = tuple(map(int, re.findall(r"ARG PYTHON=(\d+)\.(\d+)", text)[0]))
    assert (3, 11) <= python < (3, 14) and project["requires-python"] == ">=3.11,<3.14"
    *_, entry = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    command, [port] = json.loads(entry), re.findall(r"http://127.0.0.1:(\d+)/health", text)
    assert command[:2] == ["kernelswap", "serve"] and project["scripts"]["kernelswap"] == "framework.cli:main"
    config = server_config(command[2:], monkeypatch)
    assert (config.host, config.port) == ("0.0.0.0", int(port))
    sagemaker = next(line for line in text.splitlines() if "exec kernelswap serve" in line)
    words = re.findall(r"exec kernelswap serve (.*) \$", sagemaker)[0].split()
    assert server_config(words, monkeypatch).port == 8080
    for word in ("arm64", "Podman", "--shm-size"):
        assert word in text
