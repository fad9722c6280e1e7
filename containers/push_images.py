"""Push the images of the stages to one repository, and write their digests for compiling; run by `make images PUSH=…`.

`python containers/push_images.py --to HOST/NAME --out FILE data=IMAGE compute=IMAGE` tags each image as TARGET-COMMIT
in the repository. FILE is what HEPAR_IMAGES names. Docker's own login is used.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

COMMIT_LABEL = "org.opencontainers.image.revision"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--to", required=True, metavar="HOST/NAME")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("images", nargs="+", metavar="TARGET=IMAGE")
    given = parser.parse_args()
    if "@" in given.to or ":" in given.to.rpartition("/")[2]:
        parser.error(f"--to is {given.to}, must be HOST/NAME without a tag: the tags are TARGET-COMMIT")
    digests = dict(push(given.to, *image.split("=", 1)) for image in given.images)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_name(f".{given.out.name}")
    partial.write_text(json.dumps(digests, indent=1) + "\n")
    partial.replace(given.out)
    for target, digest in digests.items():
        print(f"{target}: {digest}")
    return 0


def push(repository: str, target: str, image: str) -> tuple[str, str]:
    """Push an image; returns its target and its name by digest."""
    asked = ["docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{COMMIT_LABEL}"}}}}', image]
    commit = run(asked).strip()
    tagged = f"{repository}:{target}-{commit or 'unknown'}"
    run(["docker", "tag", image, tagged])
    print(f"pushing {tagged}", flush=True)
    pushed = re.search(r"digest: (sha256:[0-9a-f]{64})", run(["docker", "push", tagged]))
    if pushed is None:
        sys.exit(f"docker push {tagged} does not name the digest")
    return target, f"{repository}@{pushed[1]}"


def run(command: list[str]) -> str:
    """The output of a command; exit with what it says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} fails: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
