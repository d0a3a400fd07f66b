"""Layouts over devices: each array where its letters say, less memory on each device, and the same step under pmap."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t2t import checkpoint, cost, run, train
from t2t.data.pipeline import TrainingBatches
from t2t.data.prepare import Sizes, prepare
from t2t.experiment import override
from t2t.sharding import MeshConfig, make_mesh, on, row_shares, side_by_side, unboxed

EIGHT_HEADS = {"model.num_heads": 8, "model.d_k": 4, "model.d_v": 4}
# By the end of a parameter's path: V vocabulary, D d_model, H heads, F d_ff; N layers, k and v are never split.
LAYOUT = {
    "embedding/table": P("model", "fsdp"),
    "query/weight": P(None, "fsdp", "model", None),
    "key/weight": P(None, "fsdp", "model", None),
    "value/weight": P(None, "fsdp", "model", None),
    "output/weight": P(None, "model", None, "fsdp"),
    "inner/weight": P(None, "fsdp", "model"),
    "inner/bias": P(None, "model"),
    "outer/weight": P(None, "model", "fsdp"),
    "outer/bias": P(None, "fsdp"),
    "scale": P(None, "fsdp"),
    "bias": P(None, "fsdp"),
}


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def spread(toy, data, fsdp, model):
    return override(toy, {**EIGHT_HEADS, "mesh.data": data, "mesh.fsdp": fsdp, "mesh.model": model})


def test_parameters_and_optimizer_are_born_where_their_letters_say(toy, tmp_path):
    experiment = spread(toy, 2, 2, 2)
    mesh = make_mesh(experiment.mesh)
    with checkpoint.writer(tmp_path, 1) as checkpoints:
        state, _ = train._begin(experiment, mesh, checkpoints)
    parameters, found = by_path(state.params), 0
    for path, leaf in by_path(state).items():
        ending = next((e for e in LAYOUT if path.endswith(e)), None)
        if path.split("/")[-1] in ("step", "count"):
            assert leaf.sharding.is_fully_replicated
            continue
        assert ending, path
        assert leaf.sharding.is_equivalent_to(jax.NamedSharding(mesh, LAYOUT[ending]), leaf.ndim), path
        found += 1
    assert found == 3 * len(parameters)  # the parameters, and both of Adam's moments of each


def test_memory_of_a_device_falls(toy):
    """By XLA's own analysis: parameters and moments with fsdp and model, activations with data."""
    grids = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (1, 8, 1), "model": (1, 1, 8)}
    larger = override(toy, {"batching.tokens": 4096, "batching.max_length": 64})
    found = {name: cost.compiled(spread(larger, *grid))["xla_memory"] for name, grid in grids.items()}
    state = 3 * 4 * sum(x.size for x in jax.tree.leaves(unboxed(train.abstract_state(spread(toy, 1, 1, 1)).params)))
    batch = 2 * 3 * 4 * 4096  # two sides of tokens, segments and positions
    held = {name: found[name]["arguments"] - batch // (data * fsdp) for name, (data, fsdp, _) in grids.items()}
    assert held["one"] == held["data"] == pytest.approx(state, rel=1e-3)  # the parameters are whole on each
    assert held["fsdp"] == pytest.approx(state / 8, rel=0.05)  # all but biases of d_ff
    assert held["model"] == pytest.approx(state / 8, rel=0.15)  # all but norms and biases of d_model
    for name in ("data", "fsdp"):
        assert found[name]["temporaries"] < 0.4 * found["one"]["temporaries"]
    assert found["model"]["temporaries"] < 0.8 * found["one"]["temporaries"]


@pytest.fixture
def compiled_anew():
    """Nothing comes from the cache of compiled programs."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_no_array_is_made_whole_on_every_device_to_be_split_anew(toy, compiled_anew, capfd):
    """XLA warns of it: where it finds no way from one layout to the next, it first gathers the array everywhere."""
    cost.compiled(spread(toy, 2, 2, 2))
    assert "rematerialization" not in capfd.readouterr().err


def test_the_pure_step_runs_under_pmap(toy):
    """Each device takes its rows; the sums add up to those of the whole batch."""
    toy = override(toy, {"model.p_drop": 0.0})
    prepared = prepare(toy.task, Sizes(toy.model.vocab_size), lambda _: None)
    batch = TrainingBatches(prepared, toy.batching, toy.seed)[0]
    state = jax.jit(lambda key: unboxed(train.init_state(toy, key)))(jax.random.key(toy.seed))
    _, whole = jax.jit(train.train_step, static_argnums=0)(toy, state, batch)
    split = jax.tree.map(lambda x: x.reshape(8, -1, x.shape[-1]), batch)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), state)
    _, sums = jax.pmap(train.train_step, static_broadcasted_argnums=0)(toy, copies, split)
    for name in ("loss", "nll", "correct", "tokens"):
        np.testing.assert_allclose(np.sum(sums[name]), whole[name], rtol=1e-5)


def trained(experiment, steps, folder):
    return train.train(override(experiment, {"train_steps": steps}), folder, lambda _: None, lambda *_: None)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """Eight steps on one device."""
    return trained(spread(toy, 1, 1, 1), 8, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def begun(toy, tmp_path_factory):
    """The first four of them on eight."""
    return trained(spread(toy, 2, 2, 2), 4, tmp_path_factory.mktemp("begun") / "run")


@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_goes_on_on_another_mesh(count, toy, whole, begun, tmp_path):
    """Eight devices, then fewer; the same batches, dropout included. A gradient's scale shows in its norm alone."""
    shutil.copytree(begun.folder, tmp_path / "run")
    moved = trained(spread(toy, count, 1, 1), 8, tmp_path / "run")
    found, expected = (checkpoint.load_params(where, spread(toy, 1, 1, 1))[0] for where in (moved, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
    found, expected = (
        [(row["step"], row["loss"], row["gradient_norm"]) for row in run.read_metrics(where) if row["split"] == "train"]
        for where in (moved, whole)
    )
    assert len(found) == 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_work_side_by_side_comes_in_order_and_on_the_mesh(threads):
    with on(make_mesh(MeshConfig(data=2))):
        found = list(side_by_side(lambda i: (i, row_shares()), range(20), threads))
    assert found == [(i, 2) for i in range(20)]
    assert list(side_by_side(lambda i: row_shares(), [0], threads)) == [1]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_work_side_by_side_is_raised_here(threads):
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda i: 1 // i, [2, 1, 0, 1], threads))
