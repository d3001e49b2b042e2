"""The Dockerfile's steps, run as they stand in a fresh environment and a folder that takes the place of /, and the server that
they install. Slow, and it installs torch: ``pytest -m slow tests/framework/server/test_dockerfile.py --run-installs``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import venv
from pathlib import Path

import pytest

from .servers import HTTPServer, free_port, started

ROOT = Path(__file__).parents[3]
OF_THE_SYSTEM = ("apt-get", "chown", "useradd")
"""Commands that would change the machine: they do nothing here, where a compiler has to be installed already."""

Step = tuple[str, str]


def steps(text: str, stage: str) -> list[Step]:
    """Instructions and their arguments of a stage, after those of the stages it is built from."""
    stages: dict[str, list[Step]] = {}
    found: list[Step] = []
    for line in re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            found = stages[name] = list(stages.get(source, ()))
        elif word:
            found.append((word, rest.strip()))
    return stages[stage]


def below(root: Path, text: str) -> str:
    """``text`` with its absolute paths below ``root``; an URL has none."""
    return re.sub(r"(?<![\w/:.])/(?=\w)", f"{root}/", text)


def copy(words: list[str], root: Path) -> None:
    """COPY, of what .dockerignore lets through: a folder's content, or files into a folder."""
    *sources, target = words
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, below(root, target), ignore=shutil.ignore_patterns("__pycache__"))
        else:
            Path(below(root, target)).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, below(root, target))


def environment_of(root: Path) -> dict[str, str]:
    """That of a fresh Python, in which commands of the system do nothing."""
    venv.create(root / "python", with_pip=True)
    idle = root / "idle"
    idle.mkdir()
    for name in OF_THE_SYSTEM:
        (idle / name).write_text("#!/bin/sh\n")
        (idle / name).chmod(0o755)
    path = os.pathsep.join([str(root / "python" / "bin"), str(idle), os.environ["PATH"]])
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}


def test_steps_are_read_as_docker_reads_them() -> None:
    text = "# a\nARG A=1\nFROM x AS base\nARG B=2\nRUN one \\\n    # no part of it\n    && two\n\nFROM base AS other\nUSER me\n"
    text += 'FROM base AS last\nCMD ["/a"]\n'
    assert steps(text, "last") == [("ARG", "B=2"), ("RUN", "one     && two"), ("CMD", '["/a"]')]
    assert below(Path("/new"), "cp /a/b '/c' d/e /f/* X=/g && get https://h/i") == (
        "cp /new/a/b '/new/c' d/e /new/f/* X=/new/g && get https://h/i"
    )


@pytest.mark.slow
def test_the_steps_install_a_server_that_serves(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--run-installs"):
        pytest.skip("installs torch, a gigabyte: --run-installs")
    environment, folder = environment_of(tmp_path), tmp_path
    said: dict[str, list[str]] = {}
    for word, rest in steps((ROOT / "Dockerfile").read_text(), "server"):
        print(word, rest, flush=True)
        match word:
            case "ARG" | "ENV":
                environment |= dict(pair.split("=", 1) for pair in below(tmp_path, rest).split())
            case "COPY":
                copy(rest.split(), tmp_path)
            case "RUN":
                subprocess.run(["sh", "-c", below(tmp_path, rest)], cwd=folder, env=environment, check=True)
            case "WORKDIR":
                folder = Path(below(tmp_path, rest))
                folder.mkdir(parents=True)
            case "ENTRYPOINT" | "CMD":
                said[word] = json.loads(rest)
            case "HEALTHCHECK":
                said[word] = json.loads(rest.partition("CMD ")[2])
            case _:
                assert word in ("USER", "VOLUME", "EXPOSE"), f"{word}: nothing here does what it does"
    assert not (tmp_path / "build").exists()
    port = free_port()
    serve, check = [word for name in ("ENTRYPOINT", "CMD") for word in said[name]], said["HEALTHCHECK"]
    program = shutil.which(serve[0], path=environment["PATH"])
    assert program == str(tmp_path / "python" / "bin" / "kernelswap")
    with started([program, *serve[1:], "--port", str(port)], port, environment, folder) as running:
        subprocess.run([word.replace(":8000/", f":{port}/") for word in check], env=environment, check=True)
        status, answer = HTTPServer(port).post("/v1/completions", model="tiny", prompt="import os", max_tokens=8)
        assert status == 200 and answer["usage"]["completion_tokens"] == 8
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    assert any((tmp_path / "cache").rglob("native_*.so")), "what is compiled is kept in the volume"
