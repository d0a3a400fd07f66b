"""What `t2t sample` draws: texts that begin with a prompt."""

import dataclasses
from collections.abc import Callable
from typing import Any

from t2t.batch import UNK
from t2t.data.vocabulary import Vocabularies
from t2t.decode import SamplingConfig, decode
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.knobs import Count
from t2t.lines import most_tokens
from t2t.models.language_model import LanguageModelConfig

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which texts are drawn."""

    prompt: str | None = None  # what each begins with; None: nothing
    samples: Count = 1  # texts


def check(experiment: Experiment) -> None:
    """Raises UserError when a run's outputs belong to sources, or its model does not take prompts."""
    if experiment.task.has_sources:
        verb = "parse" if experiment.task.linearisation else "translate"
        raise UserError(f"this run has outputs for sources, by `t2t {verb}`; texts are drawn from one of lm_quickstart")
    if not isinstance(experiment.model, LanguageModelConfig):
        raise UserError(f"{type(experiment.model).__name__} takes no prompt: it has sources apart from targets")


def texts(
    experiment: Experiment,
    params: Any,
    vocabulary: Vocabularies,
    wanted: TextConfig,
    sampling: SamplingConfig,
    say: Say,
) -> list[str]:
    """The prompt and how it went on, `samples` times; runs of spaces in the prompt become one.

    Text n depends on the prompt, the seed and n alone. After the prompt come at most as many tokens as it has and
    `experiment.decoding.extra_length` more, EOS counted.

    Raises:
        UserError: the run does not model text; the prompt is empty, or longer than the model takes.
    """
    check(experiment)
    prompt = " ".join((wanted.prompt or "").split())
    if wanted.prompt is not None and not prompt:
        raise UserError("--prompt is empty: leave it out for texts that begin with anything")
    (ids,) = vocabulary.target.encode([prompt])
    begin = ids[:-1]  # without EOS: the text goes on
    if len(begin) > (most := most_tokens(experiment)):
        raise UserError(f"--prompt has {len(begin):,} tokens; the model takes {most:,} (--decoding.max_input)")
    if UNK in begin:
        say("the prompt has characters that training had too few of: the model does not see which")
    numbers = [(0, n) for n in range(wanted.samples)]
    longest = experiment.model.longest
    sources = [begin] * wanted.samples
    found = decode(experiment.model.build(), params, sources, experiment.decoding, sampling, numbers, longest)
    drawn = [best[0].tokens for _, best in sorted(found)]
    cut = len(vocabulary.target.decode(begin))
    return [prompt + vocabulary.target.decode([*begin, *tokens])[cut:] for tokens in drawn]
