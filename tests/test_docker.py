"""What stands in docker/, without building it: `docker/verify` builds and runs it where it can.

The schemas are offline: compose's is part of check-jsonschema, Kubernetes' of kubernetes-validate (`make test-docker`).
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
EXAMPLE = ROOT / "examples" / "flask_app"

GRACEFUL_TIMEOUT = 8  # of the example's gunicorn.conf.py, unless it is told otherwise


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / name).read_text()))


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1])


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load("compose.yaml")[0]["services"]
    return found


# The Dockerfile.


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; the last one has none."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = "before the first"
    for word, rest in instructions():
        if word == "FROM":
            name = rest.partition(" AS ")[2]
        found.setdefault(name, []).append((word, rest))
    return found


def in_final(word: str) -> list[str]:
    return [rest for found, rest in stages()[""] if found == word]


def test_every_stage_stands_on_the_python_image_or_on_one_that_does() -> None:
    assert stages()["before the first"] == [("ARG", "PYTHON_IMAGE=docker.io/library/python:3.12-slim")]
    bases = {rest.partition(" AS ")[0] for word, rest in instructions() if word == "FROM"}
    assert bases == {"${PYTHON_IMAGE}", "dependencies"}


def test_it_is_written_in_what_buildkit_and_buildah_both_know() -> None:
    for word, rest in instructions():
        assert "<<" not in rest
        assert not (word in ("COPY", "ADD") and "--link" in rest)
        assert not (word == "RUN" and "--mount" in rest)
        assert "--start-interval" not in rest


def test_new_code_installs_no_dependency_again() -> None:
    assert [rest for word, rest in stages()["dependencies"] if word == "COPY"] == [
        "docker/requirements.txt ./",
        "docker/requirements-build.txt ./",
    ]


def test_nothing_runs_and_nothing_is_installed_in_the_final_stage() -> None:
    assert in_final("RUN") == []
    assert [rest for rest in in_final("COPY") if "--from" not in rest] == [
        "examples/flask_app/gunicorn.conf.py docker/health.py ./"
    ]


def test_the_user_is_a_number_and_not_root() -> None:
    (user,) = in_final("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_it_says_how_it_is_stopped_and_how_it_is_asked_for_its_health() -> None:
    assert in_final("STOPSIGNAL") == ["SIGTERM"]
    (check,) = in_final("HEALTHCHECK")
    assert check.endswith('CMD ["python", "/app/health.py"]')
    assert in_final("CMD") == ['["gunicorn"]']


def test_nothing_enters_the_build_but_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert {source for source in copied if not any(Path(source).is_relative_to(rule) for rule in allowed)} == set()
    assert {rule for rule in allowed if not any(Path(source).is_relative_to(rule) for source in copied)} == set()
    assert [source for source in copied if not (ROOT / source).exists()] == []


# The lock.


def locked(name: str) -> Iterator[tuple[Requirement, str]]:
    """The requirements of a lock, and what follows each."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\w)", text.strip()):
        line, _, rest = entry.partition("\\")
        yield Requirement(line.strip()), rest


@pytest.mark.parametrize("name", ["requirements", "requirements-build"])
def test_every_dependency_is_locked_with_hashes_and_from_no_particular_index(name: str) -> None:
    text = (DOCKER / f"{name}.txt").read_text()
    assert f"uv pip compile --generate-hashes --python-version 3.12 --python-platform linux docker/{name}.in" in text
    assert not re.search(r"index|find-links|https?:|file:", re.sub(r"via.*", "", text))
    for requirement, rest in locked(f"{name}.txt"):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", rest), requirement


@pytest.mark.parametrize("name", ["requirements", "requirements-build"])
def test_the_lock_has_what_its_source_asks_for(name: str) -> None:
    versions = {requirement.name: str(requirement.specifier)[2:] for requirement, _ in locked(f"{name}.txt")}
    for line in (DOCKER / f"{name}.in").read_text().splitlines():
        if not line.startswith("#"):
            asked = Requirement(line)
            assert asked.specifier.contains(versions[asked.name])


def test_the_lock_has_what_ubatch_and_the_example_need() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    versions = {requirement.name: str(requirement.specifier)[2:] for requirement, _ in locked("requirements.txt")}
    for folder in (ROOT, EXAMPLE):
        for line in tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]:
            needed = Requirement(line)
            assert needed.name == "ubatch" or needed.specifier.contains(versions[needed.name]), line


# compose.


def test_compose_has_the_form_that_docker_compose_reads() -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(DOCKER / "compose.yaml")], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_limited_and_may_write_into_memory_only() -> None:
    assert services().keys() == {"app", "titles", "prometheus"}
    for name, service in services().items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"].startswith("on-failure:"), name


def test_every_service_waits_for_those_that_it_needs_to_be_healthy() -> None:
    needs = {name: service.get("depends_on", {}) for name, service in services().items()}
    healthy = {"condition": "service_healthy"}
    assert needs == {"app": {"titles": healthy}, "titles": {}, "prometheus": {"app": healthy}}
    assert "healthcheck" not in services()["app"], "the image's own is the one"
    for name in ("titles", "prometheus"):
        assert services()[name]["healthcheck"]["test"][0] == "CMD"


def test_the_app_has_two_workers_which_share_a_folder_for_their_metrics() -> None:
    app = services()["app"]
    assert app["environment"]["GUNICORN_WORKERS"] == "${GUNICORN_WORKERS:-2}"
    folder = app["environment"]["PROMETHEUS_MULTIPROC_DIR"]
    assert any(mount.startswith(f"{folder}:") for mount in app["tmpfs"])


def test_what_listens_outside_does_so_for_this_machine_only() -> None:
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_prometheus_scrapes_the_app() -> None:
    (configuration,) = load("prometheus.yml")
    (scraped,) = configuration["scrape_configs"]
    assert scraped["metrics_path"] == "/metrics"
    assert scraped["static_configs"] == [{"targets": ["app:8000"]}]
    assert any(volume.startswith("./prometheus.yml:") for volume in services()["prometheus"]["volumes"])


# Kubernetes.


def test_the_manifest_is_valid() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for resource in load("kubernetes.yaml"):
        validate(resource, "1.31", strict=True)


def test_a_pod_that_is_not_ready_or_stuck_is_noticed() -> None:
    container = load("kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


def test_the_service_finds_the_pods() -> None:
    deployment, service = load("kubernetes.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in [p["name"] for p in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]]


# What holds between them.


def test_whoever_kills_waits_longer_than_gunicorn() -> None:
    pod = load("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + GRACEFUL_TIMEOUT + 2
    assert seconds(services()["app"]["stop_grace_period"]) > GRACEFUL_TIMEOUT + 2


def test_gunicorn_waits_as_long_as_said_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("digits_app")
    for name in [name for name in os.environ if name.startswith(("UBATCH_", "GUNICORN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DIGITS_MODEL_DIR", "models")
    assert runpy.run_path(str(EXAMPLE / "gunicorn.conf.py"))["graceful_timeout"] == GRACEFUL_TIMEOUT


@pytest.mark.parametrize("name", ["verify", "measure", "build_and_check", "lab.sh"])
def test_a_script_can_be_read_by_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(DOCKER / name)], timeout=30, check=True)
    assert os.access(DOCKER / name, os.X_OK) == (name != "lab.sh")


def test_verify_says_plainly_why_it_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(DOCKER / "verify")],
        env={**os.environ, "PYENV_ROOT": str(tmp_path / "nothing")},  # no Python to make a base image of
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"docker: skipped, because .+\n", done.stdout)
