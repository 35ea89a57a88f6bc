"""What deployments are made of: compose files, the Kubernetes manifest and the image agree with the profiles they run.

Rule: pure and fast; what a manifest sets is read by the very code that reads it in production, so that a variable that
was renamed, a port that moved or a grace time that grew fails here and not on somebody's cluster.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tidegate.config import Settings, load
from tidegate.config.sources import environment_names
from tidegate.profile import ProfileSpec
from tidegate.profiles import find as find_profile

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
MANIFEST = DEPLOY / "im-gateway" / "kubernetes.yaml"
COMPOSES = sorted(DEPLOY.glob("*/compose.yaml"))
# What compose and Kubernetes put in place of what only they know
GIVEN = {"REDIS_PASSWORD": "p", "POD_IP": "10.1.2.3"}


class Asked(dict[str, str]):
    """An environment that remembers for which of its variables somebody asked."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def filled(text: str) -> str:
    """`${NAME:-default}` as compose does it; what its reader must give becomes an address or a secret."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return re.sub(r"\$\{\w*(URL)\w*:\?[^}]*\}", "http://backend:8000", re.sub(r"\$\{\w*ADDR\w*:\?[^}]*\}", "a:1", text))


def gateways(path: Path) -> Iterator[Mapping[str, Any]]:
    """The services of a compose file that run tidegate."""
    for service in yaml.safe_load(path.read_text())["services"].values():
        if service["image"].startswith("tidegate"):
            yield service


def compose_environment(service: Mapping[str, Any]) -> dict[str, str]:
    found = {name: filled(str(value)) for name, value in service["environment"].items()}
    return {name: "s" * 40 if ":?" in value else value for name, value in found.items()}


def profile_of(words: list[str]) -> ProfileSpec:
    return find_profile(words[words.index("--profile") + 1])


def settings_of(spec: ProfileSpec, environ: Mapping[str, str]) -> Settings:
    return load(spec, environ=environ, search=()).settings


def unread(spec: ProfileSpec, environ: Mapping[str, str]) -> set[str]:
    asked = Asked(environ)
    if spec.read_environment is not None:
        spec.read_environment(asked)
    return set(environ) - asked.names - set(environment_names(spec))


def documents(kind: str) -> list[Any]:
    return [each for each in yaml.safe_load_all(MANIFEST.read_text()) if each["kind"] == kind]


def pod() -> Any:
    (deployment,) = documents("Deployment")
    return deployment["spec"]["template"]["spec"]


def container() -> Any:
    (found,) = pod()["containers"]
    return found


def pod_environment() -> dict[str, str]:
    return {each["name"]: each.get("value") or GIVEN[each["name"]] for each in container()["env"]}


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMPOSES, ids=lambda path: path.parent.name)
def test_a_compose_file_sets_only_what_its_profile_reads(path: Path) -> None:
    for service in gateways(path):
        spec = profile_of(service.get("command", ["--profile", path.parent.name]))
        assert spec.name == path.parent.name
        environ = compose_environment(service)
        assert not unread(spec, environ), f"{path}: the profile {spec.name} does not read these variables"
        settings_of(spec, environ)


@pytest.mark.parametrize("path", COMPOSES, ids=lambda path: path.parent.name)
def test_a_compose_file_opens_the_profiles_own_port_and_waits_for_its_drain(path: Path) -> None:
    for service in gateways(path):
        spec = profile_of(service.get("command", ["--profile", path.parent.name]))
        settings = settings_of(spec, compose_environment(service))
        assert [port.rpartition(":")[2] for port in service["ports"]] == [str(settings.server.port)]
        assert int(service["stop_grace_period"].removesuffix("s")) > settings.ws.shutdown_grace
        assert service["read_only"]


@pytest.mark.parametrize("path", COMPOSES, ids=lambda path: path.parent.name)
def test_every_service_of_a_compose_file_has_an_image(path: Path) -> None:
    for name, service in yaml.safe_load(path.read_text())["services"].items():
        assert re.fullmatch(r"tidegate|[a-z0-9/._-]+:[a-z0-9._-]+", service["image"]), f"{name}: {service['image']}"


def test_nodes_that_share_an_etcd_have_addresses_of_their_own() -> None:
    path = DEPLOY / "im-gateway" / "compose.yaml"
    services = yaml.safe_load(path.read_text())["services"]
    nodes = {name: service for name, service in services.items() if service["image"].startswith("tidegate")}
    for name, service in nodes.items():
        settings = settings_of(find_profile("im-gateway"), compose_environment(service))
        assert settings.registry.node == f"{name}:{settings.grpc.port}"
    assert len(nodes) == 2


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_the_manifest_sets_only_what_the_profile_reads() -> None:
    spec = profile_of(container()["args"])
    assert spec.name == "im-gateway"
    assert not unread(spec, pod_environment())
    assert not load(spec, environ=pod_environment(), search=()).warnings


def test_a_pod_is_known_by_its_address_and_the_port_of_grpc() -> None:
    settings = settings_of(find_profile("im-gateway"), pod_environment())
    assert settings.registry.node == f"10.1.2.3:{settings.grpc.port}"
    assert not pod()["enableServiceLinks"], "a Service named grpc would set GRPC_PORT"


def test_the_manifests_ports_are_those_that_the_profile_listens_on() -> None:
    settings = settings_of(find_profile("im-gateway"), pod_environment())
    listens = {"websocket": settings.server.port, "grpc": settings.grpc.port, "metrics": settings.metrics.port}
    assert {port["name"]: port["containerPort"] for port in container()["ports"]} == listens
    for service in documents("Service"):
        for port in service["spec"]["ports"]:
            assert port["port"] == listens[port["targetPort"]]
    for policy in documents("NetworkPolicy"):
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == set(listens)


def test_probes_ask_pages_that_are_there() -> None:
    pages = find_profile("im-gateway").pages
    assert pages is not None
    liveness, readiness = container()["livenessProbe"]["httpGet"], container()["readinessProbe"]["httpGet"]
    assert liveness["path"] in pages
    # of every profile, beside its pages
    assert readiness["path"] == "/ready"
    assert liveness["port"] == readiness["port"] == "websocket"


def test_a_pod_may_live_longer_than_its_drain_and_only_one_ends_at_a_time() -> None:
    settings = settings_of(find_profile("im-gateway"), pod_environment())
    assert pod()["terminationGracePeriodSeconds"] > settings.ws.shutdown_grace
    (budget,) = documents("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1


def test_all_parts_of_the_manifest_mean_the_same_pods() -> None:
    (deployment,) = documents("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in documents("Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in documents("PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in documents("NetworkPolicy")]
    assert selectors == [labels] * 5


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_and_the_manifest_agree_on_who_runs_it() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    uid = pod()["securityContext"]["runAsUser"]
    assert f"--uid {uid} " in dockerfile
    assert f"\nUSER {uid}\n" in dockerfile


def test_the_image_names_every_port_that_a_profile_listens_on() -> None:
    (line,) = re.findall(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    exposed = {int(port) for port in line.split()}
    for name in ("attchat-gateway", "gogate", "im-gateway"):
        spec = find_profile(name)
        ports = {spec.defaults.get("server.port", 8086), 9090} | ({9093} if spec.services else set())
        assert ports <= exposed, name


def test_the_images_health_check_is_a_program_that_asks_each_profiles_port() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (command,) = re.findall(r"^  CMD (\[\"python\".*\])$", dockerfile, re.M)
    program = json.loads(command)[2]
    compile(program, "HEALTHCHECK", "exec")
    for name in ("attchat-gateway", "gogate", "im-gateway"):
        assert f"'{find_profile(name).defaults.get('server.port', 8086)}'" in program


def test_the_image_compiles_its_protos_and_takes_no_build_of_this_machine() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert dockerfile.index("tools/protos.py &&") < dockerfile.index("maturin build")
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"**/*.so", "python/tidegate/protos/*_pb2.py*", ".venv", "target"} <= set(ignored)
