"""A tiny pipeline as reference, and the attacks on its stages: kills, full disks, damaged files, a poisoned remote."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attacks.commands import Ended, Workplace, kill_group
from attacks.verdicts import Outcome, Verdict
from hepar.runtime.artifacts import MANIFEST, sha256_content

STAGE_TIMEOUT_S, RUN_TIMEOUT_S = 600, 1800


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: its command, the folder that it writes, and those that it reads."""

    name: str
    output: str
    inputs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        return (self.name.split(" ")[0], *self.options)


TEACHERS = ("models/liver-ct", "models/liver-mr")
STAGES = (
    Stage("ingest", "cohort"),
    Stage("train-liver CT", "models/liver-ct", ("cohort",), ("--modality", "CT")),
    Stage("train-liver MR", "models/liver-mr", ("cohort",), ("--modality", "MR")),
    Stage("pseudo-label", "pseudo", ("cohort", *TEACHERS)),
    Stage("assemble-pool", "pool", ("cohort", "pseudo")),
    Stage("train-universal", "models/universal", ("pool", *TEACHERS)),
    Stage("evaluate", "report", ("cohort", "models/universal")),
    Stage("register", "registration", ("models/universal", "report")),
)
TRACKING = ("mlflow.db", ".mlflow.db.lock", "mlartifacts")  # of every run, killed or not
NOT_REPEATABLE = {"register"}  # the number of its version depends on the registry
PLACES = tuple(stage.output for stage in STAGES)


@dataclass(frozen=True)
class Reference:
    """The finished pipeline in a folder, and the seconds of each stage."""

    folder: Path
    params: Path
    seconds: dict[str, float]

    @classmethod
    def make(cls, folder: Path, params: Path, stages: Sequence[Stage]) -> Reference:
        """Run the stages one after another in a new folder."""
        place, seconds = Workplace(folder), {}
        for stage in stages:
            ended = place.run(*stage.command, "--params", str(params), timeout_s=STAGE_TIMEOUT_S)
            assert ended.code == 0, f"{stage.name}: {ended.output[-2000:]}"
            seconds[stage.name] = ended.seconds
        return cls(folder, params, seconds)

    def hash(self, place: str) -> str:
        return manifest_hash(self.folder / place)

    def copy_of(self, places: Sequence[str], folder: Path) -> Workplace:
        """A new workplace with copies of these artifacts and of the tracking database."""
        shutil.rmtree(folder, ignore_errors=True)
        place = Workplace(folder)
        for name in places:
            shutil.copytree(self.folder / name, folder / name)
        for name in ("mlflow.db", "mlartifacts"):
            if (found := self.folder / name).is_dir():
                shutil.copytree(found, folder / name)
            elif found.exists():
                shutil.copy2(found, folder / name)
        return place


def manifest_hash(artifact: Path) -> str:
    return str(json.loads((artifact / MANIFEST).read_text())["hash"])


def fault_of(artifact: Path) -> str:
    """Why an artifact is not whole: a file that is missing, added or of another content; empty if it is."""
    if not artifact.exists():
        return ""
    try:
        files = json.loads((artifact / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{artifact.name} has no manifest: {error}"
    found = {str(path.relative_to(artifact)) for path in artifact.rglob("*") if path.is_file()} - {MANIFEST}
    if found != set(files):
        return f"{artifact.name}: {sorted(found ^ set(files))[0]} is missing or not listed"
    changed = [name for name in files if sha256_content(artifact / name) != files[name]]
    return f"{artifact.name}/{changed[0]} is not what its manifest says" if changed else ""


def run_stage(place: Workplace, stage: Stage, params: Path, prepare: Callable[[], None] | None = None) -> Ended:
    return place.run(*stage.command, "--params", str(params), timeout_s=STAGE_TIMEOUT_S, prepare=prepare)


def judged(ended: Ended, artifact: Path, wanted: str) -> tuple[Verdict, str]:
    """What became of a stage: refused with nothing half-written, or finished with the reference's hash (if given)."""
    verdict = ended.verdict()
    if verdict not in (None, Verdict.REFUSED):
        return verdict, ended.seen()
    if fault := fault_of(artifact):
        return Verdict.WRONG, f"{fault}; {ended.seen()}"
    if verdict is None and wanted and manifest_hash(artifact) != wanted:
        return Verdict.WRONG, f"{artifact.name} differs from the reference"
    return (verdict or Verdict.ACCEPTED), ended.seen()


# kills


def kill_stages(reference: Reference, folder: Path, kills: int, seed: int) -> Iterator[Outcome]:
    """SIGKILL to stages, in turn, after a random share of their time; then each runs again and must give the same."""
    stages = [stage for stage in STAGES if stage.name in reference.seconds]
    for number in range(kills):
        rng = random.Random(f"kill/{seed}/{number}")
        stage = stages[number % len(stages)]
        place = reference.copy_of(stage.inputs, folder / "killed")
        after_s = rng.uniform(0.2, 1.0) * reference.seconds[stage.name]
        process = place.start(*stage.command, "--params", str(reference.params))
        time.sleep(after_s)
        kill_group(process)
        process.communicate()
        yield _after_kill(reference, place, stage, f"killed after {after_s:.1f} s")


def _after_kill(reference: Reference, place: Workplace, stage: Stage, attack: str) -> Outcome:
    row, artifact = f"kill {stage.name}", place.folder / stage.output
    if fault := fault_of(artifact):
        return Outcome(row, attack, Verdict.WRONG, f"left half: {fault}")
    wanted = "" if stage.name in NOT_REPEATABLE else reference.hash(stage.output)
    verdict, seen = judged(run_stage(place, stage, reference.params), artifact, wanted)
    if verdict == Verdict.REFUSED:
        return Outcome(row, attack, Verdict.WRONG, f"run again: {seen}")
    known = {Path(name).parts[0] for name in (*PLACES, "tmp", "home", *TRACKING, ".checkpoints")}
    if left := [path.name for path in (*place.temporary.iterdir(), *place.folder.iterdir()) if path.name not in known]:
        return Outcome(row, attack, Verdict.OUTSIDE, f"left {left[0]} after the next run")
    return Outcome(row, attack, verdict, seen)


def kill_runs(reference: Reference, folder: Path, kills: int, seed: int) -> Iterator[Outcome]:
    """SIGKILL to `hepar run`, half of the times as it puts results in place; the next run must give the same.

    That is what an undisturbed run gives: its report names the commit, which stages run by hand do not know.
    """
    place = Workplace(folder / "runs")
    command = ("run", "--params", str(reference.params), "--workdir", "work")
    work = place.folder / "work"
    undisturbed = place.run(*command, timeout_s=RUN_TIMEOUT_S)
    assert undisturbed.code == 0, undisturbed.output[-2000:]
    wanted = {name: manifest_hash(work / name) for name in PLACES if name != "registration"}
    shutil.rmtree(work)
    for number in range(kills):
        rng = random.Random(f"kill run/{seed}/{number}")
        process = place.start(*command)
        late = number % 2 == 1
        _wait(process, work, late, rng)
        kill_group(process)
        process.communicate()
        attack = f"kill {number}, {'as results are put in place' if late else 'at any time'}"
        if fault := next(filter(None, (fault_of(work / name) for name in PLACES)), ""):
            yield Outcome("kill run", attack, Verdict.WRONG, f"left half: {fault}")
            continue
        ended = place.run(*command, timeout_s=RUN_TIMEOUT_S)
        found = [judged(ended, work / name, hash_) for name, hash_ in wanted.items()]
        worst = max(found, key=lambda pair: list(Verdict).index(pair[0]))
        yield Outcome("kill run", attack, Verdict.WRONG if worst[0] == Verdict.REFUSED else worst[0], worst[1])


def _wait(process: subprocess.Popen[str], work: Path, late: bool, rng: random.Random) -> None:
    """Until a random time of the run, or a few milliseconds after the last stage wrote its result."""
    end = time.monotonic() + (RUN_TIMEOUT_S if late else rng.uniform(1, 60))
    while time.monotonic() < end and process.poll() is None:
        # os.walk passes over folders that vanish meanwhile
        if late and any("registration.json" in names for _, _, names in os.walk(work / ".kfp")):
            time.sleep(rng.uniform(0, 3))
            return
        time.sleep(0.005 if late else 0.1)


# full disks


def fill_disks(reference: Reference, folder: Path, seed: int, each: int = 3) -> Iterator[Outcome]:
    """Stages that write to a disk too small for what they write: a tmpfs, or where none may be mounted a file limit."""
    for stage in [stage for stage in STAGES if stage.name in reference.seconds]:
        needed = sum(path.stat().st_size for path in (reference.folder / stage.output).rglob("*") if path.is_file())
        for number in range(each):
            rng = random.Random(f"disk/{seed}/{stage.name}/{number}")
            space = max(4096, int(needed * rng.choice((0.02, 0.3, 0.6, 0.95))))
            place = reference.copy_of(stage.inputs, folder / "disks")
            output = place.folder / stage.output
            with _small_disk(output.parent, space, keep=place.folder) as limit:
                ended = run_stage(place, stage, reference.params, limit)
                attack = f"{space} of {needed} bytes{', by a file limit' if limit else ''}"
                wanted = "" if stage.name in NOT_REPEATABLE else reference.hash(stage.output)
                yield Outcome(f"full disk, {stage.name}", attack, *judged(ended, output, wanted))


@contextmanager
def _small_disk(folder: Path, space: int, keep: Path) -> Iterator[Callable[[], None] | None]:
    """A tmpfs over `folder` with room for what it holds and `space` bytes; else yields a function that limits files."""
    if folder == keep:  # the whole workplace: its content moves in
        aside = keep.with_name(f"{keep.name}-aside")
        keep.rename(aside)
        keep.mkdir()
    else:
        aside = None
        folder.mkdir(exist_ok=True)
    own = sum(path.stat().st_size + 4096 for path in (aside or folder).rglob("*"))
    size = own + space + 2**16
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )  # fmt: skip
    try:
        for path in aside.iterdir() if aside else ():
            shutil.copytree(path, keep / path.name) if path.is_dir() else shutil.copy2(path, keep / path.name)
        yield None if mounted.returncode == 0 else partial(resource.setrlimit, resource.RLIMIT_FSIZE, (space, space))
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        if aside:
            shutil.rmtree(aside)


# damage


def damage_artifacts(reference: Reference, folder: Path, seed: int, each: int = 2) -> Iterator[Outcome]:
    """Every kind of file of every artifact damaged, then the stages that read it: one sentence, or the same result."""
    for stage in [stage for stage in STAGES if stage.name in reference.seconds]:
        readers = (*stage.inputs, stage.output) if stage.name == "ingest" else stage.inputs
        for name in readers:
            kinds: dict[str, list[Path]] = {}
            for path in sorted((reference.folder / name).rglob("*")):
                if path.is_file():
                    kinds.setdefault(path.name, []).append(path.relative_to(reference.folder / name))
            for kind, files in kinds.items():
                for number in range(each):
                    rng = random.Random(f"damage/{seed}/{stage.name}/{name}/{kind}/{number}")
                    place = reference.copy_of(tuple(dict.fromkeys((*stage.inputs, name))), folder / "damaged")
                    victim = place.folder / name / rng.choice(files)
                    attack = f"{name}/{victim.relative_to(place.folder / name)} {_damage(victim, rng)}"
                    wanted = "" if stage.name in NOT_REPEATABLE else reference.hash(stage.output)
                    ended = run_stage(place, stage, reference.params)
                    verdict, seen = judged(ended, place.folder / stage.output, "" if ended.code else wanted)
                    if verdict == Verdict.WRONG and ended.code == 2 and name == stage.output:
                        verdict = Verdict.REFUSED  # of a cohort that was damaged before
                    yield Outcome(f"damage, {stage.name}", attack, verdict, seen)


def _damage(path: Path, rng: random.Random) -> str:
    data, how = bytearray(path.read_bytes()), rng.choice(["bit", "bit", "end", "empty", "missing"])
    path.unlink()  # never through a hard link
    if how == "bit" and data:
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        how = f"bit of byte {place} of {len(data)} flipped"
    if how != "missing":
        path.write_bytes(data[: len(data) // 2] if how == "end" else b"" if how == "empty" else data)
    return how


# a poisoned remote


def poison_remote(reference: Reference, folder: Path, seed: int, tries: int = 24) -> Iterator[Outcome]:
    """A pool's version is pulled from a remote whose objects were changed: exactly that version, or one sentence."""
    place = reference.copy_of(("pool",), folder / "remotes")
    remote = place.folder / "remote"
    pushed = place.run("pool", "push", "--pool", "pool", "--remote", str(remote))
    assert pushed.code == 0, pushed.output
    version = pushed.output.split()[-1]
    wanted = manifest_hash(place.folder / "pool")
    shutil.rmtree(place.folder / "pool")
    clean = remote.with_name("clean")
    remote.rename(clean)
    for number in range(tries):
        rng = random.Random(f"remote/{seed}/{number}")
        shutil.rmtree(remote, ignore_errors=True)
        shutil.copytree(clean, remote)
        attack = _poison(remote, rng) if number else "nothing"
        before = {path.name for path in place.folder.iterdir()}
        ended = place.run("pool", "pull", version, "--pool", "pulled", "--remote", str(remote), timeout_s=120)
        verdict, seen = judged(ended, place.folder / "pulled", wanted)
        new = {path.name for path in (*place.folder.iterdir(), *folder.iterdir())} - before - {"pulled", "remotes"}
        if evil := [name for name in new if "evil" in name]:
            verdict, seen = Verdict.OUTSIDE, f"wrote {evil[0]}"
        yield Outcome("poisoned remote", attack, verdict, seen)
        shutil.rmtree(place.folder / "pulled", ignore_errors=True)


def _poison(remote: Path, rng: random.Random) -> str:
    objects = sorted(path for path in remote.rglob("*") if path.is_file())
    (listed,) = [path for path in objects if path.suffix == ".dir"]
    entries = json.loads(listed.read_text())
    how = rng.choice(
        ["parent", "absolute", "flip object", "flip list", "end", "missing", "link", "text", "swap", "drop"]
    )
    victim = rng.choice(objects)
    for path in objects:
        path.chmod(0o644)
    match how:
        case "parent" | "absolute":
            evil = "../../evil.json" if how == "parent" else f"{remote.parent}/evil.json"
            listed.write_text(json.dumps([*entries, {**entries[0], "relpath": evil}]))
        case "flip object" | "flip list":
            victim = listed if how == "flip list" else victim
            data = bytearray(victim.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            victim.write_bytes(data)
        case "end":
            victim.write_bytes(victim.read_bytes()[:-5])
        case "missing":
            victim.unlink()
        case "link":
            victim.unlink()
            victim.symlink_to("/etc/passwd")
        case "text":
            listed.write_text(rng.choice(["", "{}", "[1]", '[{"md5": 1}]', "null", "[" * 5000]))
        case "swap":
            entries[0]["md5"], entries[-1]["md5"] = entries[-1]["md5"], entries[0]["md5"]
            listed.write_text(json.dumps(entries))
        case "drop":
            listed.write_text(json.dumps(entries[1:]))
    return f"{how} {victim.name if how in ('end', 'missing', 'link', 'flip object') else ''}".strip()
