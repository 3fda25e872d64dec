"""What must hold of the image without building it; `make image-test` builds it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# One instruction a line, whatever it was broken into, and no comments.
LINES = re.sub(r"^#.*\n", "", (ROOT / "docker/Dockerfile").read_text(), flags=re.M).replace("\\\n", "").splitlines()


def arguments(instruction):
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{instruction} ")]


def test_the_only_outside_image_is_pinned_to_a_patch_version():
    (base,) = [value for value in arguments("ARG") if value.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-bookworm", base)
    stages = {"${BASE}"}
    for parent, _, name in (stage.split() for stage in arguments("FROM")):
        assert parent in stages
        stages.add(name)


PARENTS = {"cpu": "runtime", "cuda": "runtime-cuda"}


def test_targets_descend_from_the_user_and_health_check():
    for child, parent in {**PARENTS, "runtime-cuda": "runtime"}.items():
        assert f"{parent} AS {child}" in arguments("FROM")
    runtime = LINES[LINES.index("FROM ${BASE} AS runtime") : LINES.index("FROM runtime AS cpu")]
    assert any(line.startswith("HEALTHCHECK ") for line in runtime)
    assert arguments("USER") == ["1000:100", "0:0", "1000:100"]  # and no target stays root


def test_what_runs_on_gpus_can_build_kernels():
    start = LINES.index("FROM runtime AS runtime-cuda")
    installed = next(line for line in LINES[start:] if line.startswith("RUN "))
    assert " gcc libc6-dev " in installed


def test_code_comes_after_dependencies():
    for target, parent in PARENTS.items():
        start = LINES.index(f"FROM {parent} AS {target}")
        assert [line.split()[1] for line in LINES[start + 1 : start + 4]] == [
            f"--from=dependencies-{target}",
            "--from=package",
            "jobs",
        ]


def test_no_secret_is_asked_for_or_can_be_copied():
    named = " ".join(arguments("ARG") + arguments("ENV"))
    assert not re.search(r"secret|token|passw|credential|api_?key|access_?key", named, flags=re.I)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word for value in arguments("COPY") if "--from" not in value for word in value.split()[:-1]}
    assert copied == allowed
