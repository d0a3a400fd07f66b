"""Trains PyTorch's `nn.Transformer`: WORK.json eager|compiled THREADS

The paper's model as that module has it: post-norm, sinusoids, one embedding for both sides and the projection. It has
one rate for all of its dropout; the dropout that the paper does not have is set to zero here. What is compiled is
the model with its loss, on a GPU, whose kernels want lengths that are multiples of 8, once for all lengths.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from contender import Found, serve
from torch import nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAD = 0
EIGHT = 8
SHAPES = 64  # programs that may be compiled before PyTorch goes on without compiling


class Translator(nn.Module):
    """Tokens of both sides to logits."""

    def __init__(self, vocab_size: int, layers: int, d_model: int, d_ff: int, heads: int, p_drop: float, longest: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.transformer = nn.Transformer(d_model, heads, layers, layers, d_ff, p_drop, batch_first=True)
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
                module.dropout.p = 0.0  # within the feed-forward layer
        self.dropout = nn.Dropout(p_drop)
        angle = torch.arange(longest)[:, None] / 10_000 ** (torch.arange(0, d_model, 2) / d_model)
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], -1).reshape(longest, d_model))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Section 3.4 and 3.5."""
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + self.positions[: tokens.shape[1]])

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Source [B S], target [B T] -> logits [B T V]."""
        before = nn.functional.pad(target, (1, -1), value=PAD)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        padding = torch.zeros(source.shape, device=source.device).masked_fill(source == PAD, -math.inf)
        y = self.transformer(
            self.embed(source),
            self.embed(before),
            tgt_mask=causal,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return y @ self.embedding.weight.T


def tensor(side: list[list[int]], multiple: int) -> torch.Tensor:
    """Rows of tokens, padded so that their length is a multiple of this number."""
    rows = torch.tensor(side, device=DEVICE)
    return nn.functional.pad(rows, (0, -rows.shape[1] % multiple), value=PAD)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function through torch.compile; an error rather than going on uncompiled."""
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(function, dynamic=True if DEVICE.type == "cuda" else None)


def main(path: str, kind: str, threads: str) -> None:
    """Answers until its input ends."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    task = json.loads(Path(path).read_text())
    multiple = EIGHT if DEVICE.type == "cuda" else 1
    batches = [tuple(tensor(side, multiple) for side in batch) for batch in task["padded"]]
    longest = max(side.shape[1] for batch in batches for side in batch)
    sizes = (task[name] for name in ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "p_drop"))
    model = Translator(*sizes, longest=longest).to(DEVICE).train()
    parameters = sum(p.numel() for p in model.parameters())
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, fused=True)
    criterion = nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=0.1)

    def loss_of(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return criterion(model(source, target).flatten(0, 1), target.flatten())

    run = compiled(loss_of) if kind == "compiled" else loss_of

    def step(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
            loss = run(source, target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    def work() -> Found:
        losses = [step(*batch) for batch in batches]
        assert math.isfinite(float(sum(losses)))  # waits for the device
        programs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
        return {"tokens": float(sum((target != PAD).sum() for _, target in batches)), "programs": programs}

    def after() -> Found:
        """The most of a GPU's memory that was taken."""
        return {"memory": torch.cuda.max_memory_allocated()} if DEVICE.type == "cuda" else {}

    serve(work, after, version=torch.__version__, parameters=parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
