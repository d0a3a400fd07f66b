"""Section 5.3: Adam, with a rate that rises linearly and then falls with the inverse square root of the step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from t2t.knobs import Count, NonNegative, Positive, Probability


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The constants of section 5.3."""

    warmup_steps: Count = 4000  # warmup_steps: steps over which the rate rises; paper: 4000
    scale: Positive = 1.0  # multiplies the paper's rate; paper: 1
    beta1: Probability = 0.9  # β1; paper: 0.9
    beta2: Probability = 0.98  # β2; paper: 0.98
    epsilon: Positive = 1e-9  # ε; paper: 1e-9
    clip_norm: NonNegative = 0.0  # largest norm of the whole gradient; 0: no clipping; paper: none
    ema: Probability = 0.0  # decay a step of a moving mean of the weights, kept beside them; 0: none; paper: none

    def build(self, d_model: int) -> optax.GradientTransformation:
        """Adam with the paper's schedule, behind gradient clipping if that is on."""
        adam = optax.adam(
            lambda count: self.rate(jnp.asarray(count) + 1, d_model), self.beta1, self.beta2, self.epsilon
        )
        adam = optax.chain(optax.clip_by_global_norm(self.clip_norm), adam) if self.clip_norm else adam
        return optax.chain(adam, moving_mean(self.ema)) if self.ema else adam

    def rate(self, step: ArrayLike, d_model: int) -> jax.Array:
        """Equation (3) at `step`, counted from 1: d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5)."""
        step = jnp.asarray(step, jnp.float32)
        return self.scale * d_model**-0.5 * jnp.minimum(step**-0.5, step * self.warmup_steps**-1.5)


class MovingMean(NamedTuple):
    """Σ (1 - decay) decay^(t - i) · weights after update i, over the t updates so far."""

    weighted: Any


def moving_mean(decay: float) -> optax.GradientTransformation:
    """Keeps a moving mean of the weights in the optimizer's state; the updates pass as they are.

    As in Adam (Kingma and Ba 2015, section 3) it begins with zeros, which `unbiased` makes up for.
    """

    def init(params: Any) -> MovingMean:
        return MovingMean(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MovingMean]:
        after = optax.apply_updates(params, updates)
        return updates, MovingMean(jax.tree.map(lambda m, x: decay * m + (1 - decay) * x, state.weighted, after))

    return optax.GradientTransformation(init, update)


def unbiased(state: MovingMean, decay: float, step: int) -> Any:
    """The moving mean after `step` updates."""
    return jax.tree.map(lambda m: m / (1 - decay**step), state.weighted)
