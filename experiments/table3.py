"""Table 3: variations on base, EN-DE, newstest2013. Section 6.2: beam search as for Table 2, no checkpoint averaging.

A row a line, to be read beside the page: row letter, what the paper prints (perplexity per word piece, BLEU, millions
of parameters; None: nothing), and what differs from base.
"""

from experiments.table2 import BIG, ENDE_BASE
from t2t.experiment import Reported

ROWS = {
    "base": ("", 4.92, 25.8, 65, {}),
    "a_h1": ("A", 5.29, 24.9, None, {"model.num_heads": 1, "model.d_k": 512, "model.d_v": 512}),
    "a_h4": ("A", 5.00, 25.5, None, {"model.num_heads": 4, "model.d_k": 128, "model.d_v": 128}),
    "a_h16": ("A", 4.91, 25.8, None, {"model.num_heads": 16, "model.d_k": 32, "model.d_v": 32}),
    "a_h32": ("A", 5.01, 25.4, None, {"model.num_heads": 32, "model.d_k": 16, "model.d_v": 16}),
    "b_dk16": ("B", 5.16, 25.1, 58, {"model.d_k": 16}),
    "b_dk32": ("B", 5.01, 25.4, 60, {"model.d_k": 32}),
    "c_n2": ("C", 6.11, 23.7, 36, {"model.num_layers": 2}),
    "c_n4": ("C", 5.19, 25.3, 50, {"model.num_layers": 4}),
    "c_n8": ("C", 4.88, 25.5, 80, {"model.num_layers": 8}),
    "c_d256": ("C", 5.75, 24.5, 28, {"model.d_model": 256, "model.d_k": 32, "model.d_v": 32}),
    "c_d1024": ("C", 4.66, 26.0, 168, {"model.d_model": 1024, "model.d_k": 128, "model.d_v": 128}),
    "c_ff1024": ("C", 5.12, 25.4, 53, {"model.d_ff": 1024}),
    "c_ff4096": ("C", 4.75, 26.2, 90, {"model.d_ff": 4096}),
    "d_drop0": ("D", 5.77, 24.6, None, {"model.p_drop": 0.0}),
    "d_drop02": ("D", 4.95, 25.5, None, {"model.p_drop": 0.2}),
    "d_ls0": ("D", 4.67, 25.3, None, {"label_smoothing": 0.0}),
    "d_ls02": ("D", 5.47, 25.7, None, {"label_smoothing": 0.2}),
    "e_learned": ("E", 4.92, 25.7, None, {"model.positions": "learned"}),
    "big": ("", 4.33, 26.4, 213, {**BIG, "model.p_drop": 0.3, "train_steps": 300_000, "checkpoint_every": 600}),
}

HOURS = {"base": 12, "big": 84}  # of training, section 5.2

for name, (row, perplexity, bleu, parameters, changes) in ROWS.items():
    ENDE_BASE.variant(
        f"table3_{name}",
        f"Table 3{f' ({row})' if row else ''}: newstest2013 PPL {perplexity}, BLEU {bleu}"
        + (f", {parameters} M parameters" if parameters else ""),
        {"table": 3, "final_evaluation": "dev", "average": 1, **changes},
        Reported(perplexity, bleu, parameters, hours=HOURS.get(name)),
    )
