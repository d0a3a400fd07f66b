"""Trains with Joey NMT's model, batch and loss, in the order of its `_train_step`: WORK.json THREADS"""

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from contender import Found, serve
from joeynmt.batch import Batch
from joeynmt.model import Model, build_model
from joeynmt.transformer_layers import MultiHeadedAttention
from joeynmt.vocabulary import Vocabulary

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAD, BOS, EOS = 1, 2, 3  # Joey NMT's
SHIFT = 3  # its tokens begin after its four symbols, t2t's after PAD and EOS, which is 1 there


def build(task: dict) -> Model:
    """The model of these sizes, one embedding for both sides and the projection."""
    symbols = SimpleNamespace(
        **dict(unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None, lang_tags=[]),
        **dict(unk_id=0, pad_id=PAD, bos_id=BOS, eos_id=EOS),
    )
    vocabulary = Vocabulary([], symbols)
    more = [str(i) for i in range(task["vocab_size"] - len(vocabulary))]
    vocabulary._itos += more
    vocabulary._stoi |= {word: i + 4 for i, word in enumerate(more)}
    p_drop, d_model = task["p_drop"], task["d_model"]
    side = {
        "type": "transformer",
        "num_layers": task["num_layers"],
        "num_heads": task["num_heads"],
        "embeddings": {"embedding_dim": d_model, "scale": True, "dropout": p_drop},
        "hidden_size": d_model,
        "ff_size": task["d_ff"],
        "dropout": p_drop,
        "layer_norm": "post",
    }
    config = {
        "encoder": side,
        "decoder": side,
        "tied_embeddings": True,
        "tied_softmax": True,
        "initializer": "xavier_uniform",
    }
    config |= {"embed_initializer": "xavier_uniform", "bias_initializer": "zeros"}
    model = build_model(config, vocabulary, vocabulary)
    for module in model.modules():
        if isinstance(module, MultiHeadedAttention):
            module.dropout.p = 0.0  # the paper has none there
    model.loss_function = ("crossentropy", 0.1)
    return model.to(DEVICE).train()


def batch_of(source: list, target: list) -> Batch:
    """One of Joey NMT's batches."""
    source, target = (_own_tokens(torch.tensor(side)) for side in (source, target))
    begin = torch.full((len(target), 1), BOS)
    lengths = (source != PAD).sum(1)
    rows = torch.arange(len(source))
    return Batch(source, lengths, None, torch.cat([begin, target], 1), None, rows, DEVICE, PAD, EOS)


def _own_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """From t2t's numbers: 0 is padding and 1 the end."""
    return torch.where(tokens == 0, PAD, torch.where(tokens == 1, EOS, tokens + SHIFT - 1))


def main(path: str, threads: str) -> None:
    """Answers until its input ends."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    task = json.loads(Path(path).read_text())
    task["vocab_size"] += SHIFT - 1
    model = build(task)
    batches = [batch_of(*batch) for batch in task["padded"]]
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9)

    def step(batch: Batch) -> float:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
            loss, *_ = model(return_type="loss", **vars(batch))
        loss = batch.normalize(loss, "tokens")
        loss.backward()
        adam.step()
        model.zero_grad()
        return loss.item()

    def work() -> Found:
        assert math.isfinite(sum(step(batch) for batch in batches))
        return {"tokens": float(sum(batch.ntokens for batch in batches))}

    serve(work, version=version("joeynmt"), parameters=sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main(*sys.argv[1:])
