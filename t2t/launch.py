"""Job scripts: a template of the folder launch/, filled in for an experiment; printed, or handed to what runs it.

Each ends in the same `t2t train NAME` and goes by its exit codes: 0 done; 75 stopped after saving, to be repeated;
2 something that the user can mend, not to be repeated.
"""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t2t import cost, storage
from t2t.data.corpora import SPLITS, Text
from t2t.data.prepare import cache_folder
from t2t.data.tfds import Tfds
from t2t.data.treebank import Trees
from t2t.errors import UserError, unknown
from t2t.experiment import Experiment, override

TEMPLATES = Path(__file__).parent.parent / "launch"
PLACE = re.compile(r"@\{([a-z_]+)\}")  # of a value in a template; a shell's own $ and @ stay as they are
IMAGE, CLUSTER = "T2T_IMAGE", "XPK_CLUSTER"
NEEDS = {IMAGE: "the container image that the cluster pulls", CLUSTER: "the cluster's name"}


class Devices(NamedTuple):
    """What --devices asks for, and how the template says so."""

    number: int | None  # GPUs or TPU chips in all; None: whatever is there
    processes: int  # that train together
    values: Mapping[str, object]


class Job(NamedTuple):
    """What the command line says of a job beside the experiment."""

    devices: str | None = None
    run: str | None = None  # the run folder; None: runs/NAME
    rate: float | None = None  # TFLOP/s that one device sustains, for the hours


# ------------------------------------------------------------------------------ Devices


COUNT, NODES = "([1-9][0-9]{0,2})", "(?:([1-9][0-9]{0,3})x)?"


def _read(given: str | None, pattern: str, allowed: str) -> re.Match[str]:
    if found := re.fullmatch(pattern, given or ""):
        return found
    raise UserError(f"--devices {given or 'is missing'}: here it is {allowed}")


def _local(given: str | None) -> Devices:
    if given is None:
        return Devices(None, 1, {"devices": "# all devices that JAX finds"})
    count = int(_read(given, COUNT, "a number of GPUs, such as 8")[1])
    return Devices(count, 1, {"devices": f"export CUDA_VISIBLE_DEVICES={','.join(map(str, range(count)))}"})


def _docker(given: str | None) -> Devices:
    if given is None:
        return Devices(None, 1, {"platform": "cpu", "flags": ""})
    if given == "tpu":
        return Devices(None, 1, {"platform": "tpu", "flags": "--privileged --network=host "})
    count = int(_read(given, COUNT, "a number of GPUs, such as 8, or tpu")[1])
    return Devices(count, 1, {"platform": "cuda12", "flags": f"--gpus={count} "})


def _slurm(given: str | None) -> Devices:
    """JAX takes a SLURM job of several processes to have one for each GPU; a single one has all GPUs of its node."""
    if given is None:
        return Devices(None, 1, {"nodes": 1, "tasks": 1, "devices": "# no GPUs"})
    found = _read(given, NODES + COUNT, "GPUs of one node, such as 8, or nodes x GPUs of each, such as 2x8")
    nodes, gpus = int(found[1] or 1), int(found[2])
    tasks = gpus if nodes > 1 else 1
    values = {"nodes": nodes, "tasks": tasks, "devices": f"#SBATCH --gpus-per-node={gpus}"}
    return Devices(nodes * gpus, nodes * tasks, values)


def _sky(given: str | None) -> Devices:
    allowed = "GPUs of one node by SkyPilot's names, such as H100:8, or with the number of nodes, 2xH100:8"
    found = _read(given, f"{NODES}([A-Za-z][A-Za-z0-9-]*):{COUNT}", allowed)
    nodes, gpus = int(found[1] or 1), int(found[3])
    return Devices(nodes * gpus, nodes, {"nodes": nodes, "devices": f"{found[2]}:{gpus}"})


class Generation(NamedTuple):
    """A generation of TPUs: what Google calls it in different places."""

    accelerator: str  # in GKE
    runtime: str  # of a TPU VM
    cores: int  # of a chip, as the type's number counts them
    topologies: Mapping[int, str]  # by number of chips


FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
TPUS = {
    "v4": Generation("tpu-v4-podslice", "tpu-ubuntu2204-base", 2, CUBES),
    "v5litepod": Generation("tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", 1, FLAT),
    "v5p": Generation("tpu-v5p-slice", "v2-alpha-tpuv5", 2, CUBES),
    "v6e": Generation("tpu-v6e-slice", "v2-alpha-tpuv6e", 1, FLAT),
}
TYPES = {f"{name}-{chips * each.cores}": (each, chips) for name, each in TPUS.items() for chips in each.topologies}


def _tpu(given: str | None) -> Devices:
    """A slice by its type. A host has 4 chips, but one has all of a flat slice of 8."""
    if given is None:
        raise UserError("--devices is missing: here it is a TPU type, such as v5litepod-16")
    if given not in TYPES:
        raise unknown("TPU type (--devices)", given, TYPES)
    tpu, chips = TYPES[given]
    hosts = 1 if tpu.topologies is FLAT and chips <= 8 else chips // 4
    values = {"runtime": tpu.runtime, "accelerator": tpu.accelerator, "topology": tpu.topologies[chips]}
    return Devices(chips, hosts, {**values, "devices": given, "hosts": hosts, "chips": chips // hosts})


def _xpk(given: str | None) -> Devices:
    """As GKE, but xpk has pods of 4 chips in every slice."""
    found = _tpu(given)
    return found._replace(processes=max(1, (found.number or 1) // 4))


# ------------------------------------------------------------------------------ Kinds


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to run a job."""

    template: str  # a file of launch/
    devices: Callable[[str | None], Devices]  # reads --devices
    submit: tuple[str, ...]  # the command that takes a script; its file comes behind
    program: str  # what has to be here for that
    needs: tuple[str, ...] = ()  # environment variables that have to be set for that, of NEEDS
    clone: bool = False  # sends the folder that it runs in, which has to be a clone of t2t
    bucket: bool = False  # the machines' disks go when they go: --run has to lie elsewhere


BASH = ("bash", "-c")
KINDS = {
    "local": Kind("local.sh", _local, BASH, "bash"),
    "slurm": Kind("slurm.sh", _slurm, ("sbatch",), "sbatch"),
    "tpu-vm": Kind("tpu-vm.sh", _tpu, BASH, "gcloud", clone=True, bucket=True),
    "gke": Kind("gke.yaml", _tpu, ("kubectl", "apply", "--filename"), "kubectl", (IMAGE,), bucket=True),
    "xpk": Kind("xpk.sh", _xpk, BASH, "xpk", (CLUSTER, IMAGE), bucket=True),
    "skypilot": Kind(
        "skypilot.yaml", _sky, ("sky", "jobs", "launch", "--yes", "--detach-run"), "sky", clone=True, bucket=True
    ),
    "docker": Kind("Dockerfile", _docker, ("docker", "build", "--tag", "t2t", ".", "--file"), "docker", clone=True),
}


def script(experiment: Experiment, overrides: Mapping[str, str], kind: Kind, wanted: Job) -> str:
    """The job script that trains `experiment`, which has the user's `overrides` already.

    Raises:
        UserError: devices that this kind does not have, a folder that would go with the machine, or text that a script
            has no place for.
    """
    run = wanted.run or f"runs/{experiment.name}"
    asked = kind.devices(wanted.devices)
    _check_folder(kind, run)
    if kind.bucket:
        _check_files(experiment)
    knobs = [word for path, value in overrides.items() for word in (f"--{path}", value)]
    train = ["t2t", "train", experiment.name, "--run", run, *["--distributed"] * (asked.processes > 1), *knobs]
    for word in (*train, _data(), _image()):
        if not word.isprintable():
            raise UserError(f"{word!r} has a character that cannot be printed: a job script has no place for it")
    values = {**_values(train, run), **asked.values, "cost": cost_line(experiment, asked.number, wanted.rate)}
    template = (TEMPLATES / kind.template).read_text(encoding="utf-8")
    return PLACE.sub(lambda place: str(values[place[1]]), template)


def _check_folder(kind: Kind, run: str) -> None:
    storage.check_address(run)
    if kind.bucket and "://" not in run and not Path(run).is_absolute():
        allowed = "gs://BUCKET/DIR, or an absolute path that all its machines mount"
        raise UserError(f"--run {run}: here it is {allowed}, because their own disks go when they go")
    outside = Path(run).is_absolute() or os.path.normpath(run).split(os.sep)[0] == os.pardir
    if kind is KINDS["docker"] and outside and "://" not in run:
        raise UserError(f"--run {run}: the container sees only the folder that you stand in; give a path below it")


def _check_files(experiment: Experiment) -> None:
    """Raises UserError for a file of this machine, or data that lie there: those that the job runs on have neither."""
    allowed = "an absolute path that all its machines mount"
    for path, value in _files(experiment).items():
        if value and not _everywhere(path, value):
            raise UserError(f"--{path} {value}: here it is {allowed}")
    for path, part in _parts(experiment.task, "task"):
        if isinstance(part, Tfds) and not (part.mirror or part.data_dir):
            raise UserError(
                f"--{path}.mirror is missing: its machines do not have {part.dataset}; here it is the address "
                f"(gs://, https://) of a folder with it prepared as ArrayRecord; or --{path}.data_dir, {allowed}"
            )


def _everywhere(path: str, value: str) -> bool:
    address = "://" in value and path.endswith(("init_from", "mirror"))
    return address or os.path.isabs(os.path.expanduser(value))


def _files(experiment: Experiment) -> dict[str, str]:
    """The files and folders that an experiment names, by knob; of what lies in a folder the folder alone."""
    found = {"init_from": experiment.init_from}
    for path, part in _parts(experiment.task, "task"):
        names = ["vocabulary", "folder", "data_dir", "mirror", "automatic"]
        if isinstance(part, Text | Trees) and not part.folder:
            names += SPLITS
        found |= {f"{path}.{name}": getattr(part, name, "") for name in names}
    return found


def _parts(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A dataclass with the prefix of its knobs, and those within it."""
    if dataclasses.is_dataclass(part):
        yield path, part
        for field in dataclasses.fields(part):
            yield from _parts(getattr(part, field.name), f"{path}.{field.name}")


def _values(train: Sequence[str], run: str) -> dict[str, object]:
    """What templates of every kind may say: whole words or scalars where they stand, whatever is in them."""
    joined = shlex.join(train)
    return {
        "experiment": shlex.quote(train[2]),
        "job": job_name(run),
        "run": shlex.quote(run),
        "data": shlex.quote(_data()),
        "image": json.dumps(_image(), ensure_ascii=False),  # JSON is YAML
        "train": joined,
        "quoted": shlex.quote(joined),
        # In a pod's command Kubernetes takes $$ for $, and $(NAME) for a variable.
        "pod_words": json.dumps([word.replace("$", "$$") for word in train], ensure_ascii=False),
        "pod_shell": shlex.quote(f"exec {joined}".replace("$", "$$")),
        "arguments": shlex.join(train[1:]),
    }


def _data() -> str:
    return str(cache_folder().absolute())


def _image() -> str:
    return os.environ.get(IMAGE) or f"${IMAGE}"


def job_name(run: str) -> str:
    """What a cluster may call the job of a run folder, at most 40 characters of a-z, 0-9 and -.

    The last part of its path or address, and digits that stand for all of it: two runs have no name in common.
    """
    last = run.rstrip("/").rpartition("/")[2].lower()
    name = re.sub("[^a-z0-9]+", "-", last)[:29].strip("-")
    return "-".join(filter(None, ("t2t", name, hashlib.sha256(run.rstrip("/").encode()).hexdigest()[:6])))


def cost_line(experiment: Experiment, devices: int | None, rate: float | None) -> str:
    """Parameters and FLOPs of training, and its hours where somebody gives the rate; see t2t.cost.

    Raises:
        UserError: the mesh is not one of so many devices.
    """
    mesh, inner = experiment.mesh, experiment.mesh.fsdp * experiment.mesh.model
    if devices and mesh.data == -1:
        if devices % inner:
            raise UserError(f"--mesh.fsdp {mesh.fsdp} x --mesh.model {mesh.model} does not divide {devices} devices")
        experiment = override(experiment, {"mesh.data": devices // inner})
    elif devices and mesh.data * inner != devices:
        asked = f"--mesh.data {mesh.data} x --mesh.fsdp {mesh.fsdp} x --mesh.model {mesh.model}"
        raise UserError(f"{asked} is {mesh.data * inner} devices, and --devices asks for {devices}")
    found = cost.cost(experiment, rate)
    hours = "hours are not known without a measured --rate"
    if rate:
        hours = f"{found['hours']:,.2f} hours if each of {found['devices']:,} device(s) sustains {rate:g} TFLOP/s"
    flops = f"{cost.short(found['train_flops'])} FLOPs in {found['train_steps']:,} steps"
    return f"{found['parameters']:,} parameters, {flops}; {hours}"


# ------------------------------------------------------------------------------ Submitting


def check_submit(on: str, kind: Kind) -> None:
    """Whether a job can be handed over here.

    Raises:
        UserError: a program or a setting is missing, or this folder is no clone of t2t where that is what is sent.
    """
    instead = "; --dry-run prints the script"
    if shutil.which(kind.program) is None:
        raise UserError(f"--on {on} runs {kind.program!r}, which is not here{instead}")
    if missing := [name for name in kind.needs if not os.environ.get(name)]:
        raise UserError(f"--on {on} needs the environment variable {missing[0]}, {NEEDS[missing[0]]}{instead}")
    if kind.clone and not Path("t2t/launch.py").is_file():
        raise UserError(f"--on {on} sends the folder it runs in: run it in a clone of t2t{instead}")


def submit(kind: Kind, text: str) -> int:
    """Hands a script to what runs it, and returns its exit code. A shell script takes this process's place."""
    if kind.submit == BASH:
        os.execvp(BASH[0], [*BASH, text])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / kind.template
        file.write_text(text, encoding="utf-8")
        return subprocess.run([*kind.submit, str(file)]).returncode
