"""What an experiment costs: held against XLA's own figures, real arrays and the paper's numbers."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_house import closed_formula

from t2t import cost, sharding
from t2t.experiment import Reported, get, override
from t2t.models.transformer import TransformerConfig

QUICKSTART = override(get("quickstart"), {"mesh.data": 1})
BIG = TransformerConfig(d_model=1024, d_ff=4096, num_heads=16, p_drop=0.3)


def count(function, *arguments):
    return cost.flops(jax.make_jaxpr(function)(*arguments).jaxpr)


# ------------------------------------------------------------------------------ Parameters, and the paper's FLOPs


def test_parameters_and_devices():
    """As many devices as are here, where the mesh does not say."""
    found = cost.cost(override(QUICKSTART, {"mesh.data": -1, "mesh.fsdp": 2}), None)
    assert found["parameters"] == closed_formula(QUICKSTART.model) and found["devices"] == jax.device_count() == 8


@pytest.mark.parametrize(("hours", "flops"), [(12, "3.3e+18"), (84, "2.3e+19"), (None, None)])
def test_flops_as_the_paper_counts_them(hours, flops):
    """Table 2's two numbers, from 12 hours and from 3.5 days."""
    found = cost.paper_flops(hours)
    assert flops == (f"{found:.1e}" if hours else found)


def test_hours_and_energy_go_by_rate_power_and_devices():
    one, eight = (cost.cost(override(QUICKSTART, {"mesh.data": n}), 0.5, 700) for n in (1, 8))
    assert one["hours"] == pytest.approx(one["train_flops"] / 0.5e12 / 3600) == 8 * eight["hours"]
    assert one["kilowatt_hours"] == pytest.approx(one["hours"] * 0.7) == eight["kilowatt_hours"]
    assert "at 700 W a device" in cost.table(one)
    assert cost.cost(QUICKSTART, None, 700)["kilowatt_hours"] is None


# ------------------------------------------------------------------------------ FLOPs

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda: A @ B, 2 * 3 * 5 * 7),
        (lambda: jnp.einsum("ab,cb->ac", A, A), 2 * 3 * 3 * 5),
        (lambda: A * A + 1, 2 * 15),
        (lambda: jnp.exp(A).T.reshape(-1), 0),
        (lambda: A.sum(0), 15 - 5),
        (lambda: jnp.zeros((9, 5)).at[jnp.array([0, 0, 8])].add(A, mode="drop", wrap_negative_indices=False), 15),
        (lambda: jax.lax.scan(lambda c, x: (c + x, x @ B), A[0], A), 3 * (5 + 2 * 5 * 7)),
        (lambda: jax.lax.cond(A[0, 0] > 0, lambda: A + 1, lambda: A * A + 1), 2 * 15 + 2),
        (lambda: jax.jit(jax.checkpoint(lambda: A - A))(), 15),
        (lambda: jax.lax.conv(jnp.ones((2, 3, 9)), jnp.ones((4, 3, 5)), (1,), "VALID"), 2 * (2 * 4 * 5) * 3 * 5),
    ],
)
def test_flops_of_small_functions(function, flops):
    assert count(function) == flops


def test_flops_of_base_are_nearly_six_for_each_weight_and_token():
    """Twice forward and four times backward, each weight once a token: the rest is attention and elementwise."""
    base = override(QUICKSTART, {"model": TransformerConfig(), "batching.tokens": 25_000})
    found = cost.cost(dataclasses.replace(base, paper=Reported(hours=12)), None)
    tokens = found["batch"]["rows"] * found["batch"]["length"]
    assert found["flops_per_token"] * tokens == pytest.approx(found["flops_per_step"])
    assert found["train_flops"] == found["flops_per_step"] * 3300
    assert found["train_flops_paper"] == cost.paper_flops(12)
    assert 1 < found["flops_per_token"] / (6 * found["parameters"]) < 1.05


# ------------------------------------------------------------------------------ XLA's own figures

CONFIGS = {
    "three layers, narrow": {
        "model.num_layers": 3,
        "model.d_model": 64,
        "model.d_ff": 512,
        "model.p_drop": 0.1,
        "optimizer.clip_norm": 1,
    },
    "learned positions, no dropout, no smoothing, bfloat16": {
        "model.positions": "learned",
        "model.dtype": "bfloat16",
        "label_smoothing": 0,
    },
    "many words": {"model.num_layers": 1, "model.vocab_size": 20_000, "model.p_drop": 0.3, "batching.tokens": 2048},
    "a tenth elementwise": {
        "model.num_layers": 1,
        "model.vocab_size": 300,
        "model.d_model": 32,
        "model.d_ff": 32,
        "model.num_heads": 8,
        "model.d_k": 8,
        "model.d_v": 4,
        "model.p_drop": 0.1,
    },
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_flops_and_memory_are_those_of_xla(changes):
    """Without a loop over layers, whose body XLA would count once. The rest of the FLOPs is what it computes twice.

    Of the memory it is buffers that are used again: the measured difference is 10 % at most, and in bfloat16, which XLA
    computes in float32 on a CPU, not held.
    """
    experiment = override(QUICKSTART, changes)
    found = cost.cost(experiment, None)
    xla = cost.compiled(override(experiment, {"model.unroll": experiment.model.num_layers}))
    assert found["flops_per_step"] == pytest.approx(xla["xla_flops"], rel=0.05)
    ours, theirs = found["memory_per_device"], xla["xla_memory"]
    arrays = 6 * 4 * found["batch"]["rows"] * found["batch"]["length"]
    assert ours["parameters"] + ours["optimizer_state"] + arrays == pytest.approx(theirs["arguments"], abs=4)
    if experiment.model.dtype == "float32":
        assert ours["total"] == pytest.approx(theirs["total"], rel=0.2)


# ------------------------------------------------------------------------------ Memory


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_memory_of_the_state_is_what_real_arrays_take(sizes):
    experiment = override(QUICKSTART, dict(zip(("mesh.data", "mesh.fsdp", "mesh.model"), sizes, strict=True)))
    mesh = sharding.make_mesh(experiment.mesh)
    layout = sharding.shardings(mesh, cost.abstract_state(experiment))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sharding.unboxed(cost.abstract_state(experiment)))
    state = jax.device_put(state, layout)

    def here(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    found = cost.cost(experiment, None)
    assert found["devices"] == 8
    assert found["memory_per_device"]["parameters"] == found["memory_per_device"]["gradients"] == here(state.params)
    assert found["memory_per_device"]["optimizer_state"] == here(state.optimizer)


WHOLE = {"mesh.tokens_per_device": 8192, "mesh.logits_per_device": 8192}  # in one part, the logits in one slice


@pytest.mark.parametrize(
    ("sizes", "parameters", "activations", "logits"),
    [((8, 1, 1), 1, 8, 8), ((1, 8, 1), 8, 8, 8), ((1, 1, 2), 2, 1, 2), ((16, 4, 1), 4, 64, 64)],
)
def test_memory_is_divided_over_the_mesh(sizes, parameters, activations, logits):
    """Or nearly: the bias of d_ff is whole on every device of fsdp, and norms are on those of model."""
    experiment = override(QUICKSTART, {"batching.tokens": 8192, **WHOLE})
    spread = override(experiment, dict(zip(("mesh.data", "mesh.fsdp", "mesh.model"), sizes, strict=True)))
    whole, part = (cost.cost(each, None)["memory_per_device"] for each in (experiment, spread))
    assert whole["parameters"] / part["parameters"] == pytest.approx(parameters, rel=0.02)
    assert whole["optimizer_state"] / part["optimizer_state"] == pytest.approx(parameters, rel=0.02)
    assert whole["activations"] / part["activations"] == pytest.approx(activations, rel=0.02)
    assert whole["logits"] / part["logits"] == logits
    assert part["total"] == sum(size for name, size in part.items() if name != "total")


def test_a_batch_in_parts_takes_the_memory_of_one():
    experiment = override(QUICKSTART, {"batching.tokens": 8192, "mesh.data": 1, **WHOLE})
    whole, parts = (cost.cost(override(experiment, {"mesh.tokens_per_device": most}), None) for most in (8192, 1024))
    assert (whole["parts"], parts["parts"]) == (1, 8)
    assert whole["flops_per_step"] == parts["flops_per_step"]
    whole, parts = whole["memory_per_device"], parts["memory_per_device"]
    assert whole["activations"] / parts["activations"] == pytest.approx(8, rel=0.02)
    assert whole["logits"] / parts["logits"] == 8
    assert parts["gradients"] == 2 * whole["gradients"]  # their sum, and a part's


# ------------------------------------------------------------------------------ Quick, and nothing compiled

QUIET = """
import json, re, sys
from pathlib import Path
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)
from t2t.__main__ import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")  # not getrusage: that counts what the parent had when it forked
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024 if status.exists() else 0
before = len(compiled)
jax.jit(lambda x: x + 1)(1)
print(json.dumps([code, before, len(compiled) > before, peak]), file=sys.stderr)
"""


def test_nothing_is_compiled_or_allocated():
    """The paper's big model, whose weights and optimizer state alone are 2.6 GB."""
    knobs = [f"--model.{name}={value}" for name, value in dataclasses.asdict(BIG).items()]
    words = ["cost", "quickstart", "--json", "--mesh.data", "1", *knobs]
    done = subprocess.run([sys.executable, "-c", QUIET, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory_per_device"]
    code, compiled, listening, peak = json.loads(done.stderr.splitlines()[-1])
    assert (code, compiled, listening) == (0, 0, True)
    assert peak < 1.2e9 < memory["parameters"] + memory["optimizer_state"]
