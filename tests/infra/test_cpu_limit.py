"""`--cpus` of a real container is the number of cores that a stage uses.

The image must have been built (`make images`), so only `.ci/run`, which does that, sets HEPAR_ENGINE; else this is
skipped. Docker refuses a limit above the cores of its machine, so one of 1.5 needs two.
"""

from __future__ import annotations

import os
import subprocess

import pytest

HAS_ENGINE = bool(os.environ.get("HEPAR_ENGINE"))  # read here, because tests run without variables of hepar
IMAGE = "hepar:latest"
SCRIPT = (
    "import os; from hepar.runtime.cpu_quota import cpu_quota; from hepar.runtime.device import available_cores;"
    " print(cpu_quota(), available_cores(), len(os.sched_getaffinity(0)))"
)

pytestmark = pytest.mark.skipif(not HAS_ENGINE, reason="HEPAR_ENGINE is not set: no Docker Engine with the images")


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("cpus", "most"), [("1", 1), ("1.5", 2), ("0.5", 1), ("", 1024)])
def test_a_container_uses_as_many_cores_as_it_has_time_for(cpus: str, most: int) -> None:
    if cpus and float(cpus) > int(docker("info", "--format", "{{.NCPU}}")):
        pytest.skip(f"Docker has less than {cpus} cores")
    limit = [f"--cpus={cpus}"] if cpus else []
    ran = docker("run", "--rm", "--network", "host", *limit, IMAGE, "python", "-c", SCRIPT)
    quota, cores, present = ran.split()
    assert quota == (str(float(cpus)) if cpus else "None")
    assert int(cores) == min(most, int(present))
