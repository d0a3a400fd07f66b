"""What came after the paper, each one field away from the quickstart; some also from the model of Multi30k.

A row a line: what is changed, by whom it was proposed, and the field.
"""

from experiments.multi30k import MULTI30K_ENDE
from experiments.quickstart import QUICKSTART

ROWS = {
    "pre_ln": ("LayerNorm before each sub-layer (Xiong et al. 2020)", {"model.norm": "pre"}),
    "rope": ("rotary positions (Su et al. 2021)", {"model.positions": "rope"}),
    "learned": ("learned positions (Table 3, row E)", {"model.positions": "learned"}),
    "restricted": ("self-attention restricted to 9 places (Table 1, section 4)", {"model.attention_span": 9}),
    "blocked": ("attention without its array of weights (Dao et al. 2022)", {"model.attention": "blocked"}),
}
ON_MULTI30K = ("pre_ln", "rope", "learned")

for name, (what, changes) in ROWS.items():
    QUICKSTART.variant(f"modern_{name}", f"nothing in the paper: the quickstart with {what}", changes)
    if name in ON_MULTI30K:
        MULTI30K_ENDE.variant(f"multi30k_{name}", f"nothing in the paper: multi30k_ende with {what}", changes)
