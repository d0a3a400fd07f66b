"""Table 4: English constituency parsing, section 6.3; and what can be run without the Penn Treebank.

The paper chose dropout, learning rate and beam on section 22, and prints the beam alone. Dropout and warmup here are
those of the authors' first released code, the learning rate is the paper's formula: who has the Penn Treebank should
choose both anew on section 22 (dev). All else is as in the EN-DE base model, so says the paper.
"""

from t2t.data.batching import BatchingConfig
from t2t.data.parsing import Parsing
from t2t.data.treebank import EmbeddedTrees, SemiSupervised, Trees, Wsj
from t2t.decode import DecodingConfig
from t2t.experiment import Experiment, Reported, register
from t2t.models.transformer import TransformerConfig
from t2t.optimizer import OptimizerConfig

# 16,000 word pieces; the released code's 2^9 tokens of trees (some 130 are in use).
FOUR_LAYERS = TransformerConfig(
    vocab_size=16_000, target_vocab_size=512, num_layers=4, d_model=1024, d_k=128, d_v=128, p_drop=0.2, p_attention=0.2
)

WSJ_ONLY = register(
    Experiment(
        name="wsj_only",
        reports="Table 4: WSJ section 23 F1 91.3, trained on the WSJ only",
        paper=Reported(f1=91.3),
        task=Parsing(Wsj()),
        model=FOUR_LAYERS,
        optimizer=OptimizerConfig(warmup_steps=16_000),
        batching=BatchingConfig(max_length=512),
        decoding=DecodingConfig(beam=21, alpha=0.3, extra_length=300, rows=16),
        table=4,
    )
)

WSJ_ONLY.variant(
    "wsj_semi",
    "Table 4: WSJ section 23 F1 92.7, with some 17 M automatically parsed sentences in training",
    {"task.treebank": SemiSupervised(), "model.vocab_size": 32_000},
    Reported(f1=92.7),
)

# The treebank of biomedical articles that anyone may have: 18,951 trees to train on, 2,780 as dev and test.
# github.com/UCDenver-ccp/CRAFT; its official split by article (articles/ids), all trees of a part in one file.
CRAFT = register(
    Experiment(
        name="craft",
        reports="nothing in the paper: CRAFT, at a size that suits its 19,000 trees; it has no test split but dev",
        task=Parsing(Trees(train="train.mrg.xz", dev="dev.mrg.xz", test="dev.mrg.xz", folder="data/craft")),
        model=TransformerConfig(
            vocab_size=6000,
            target_vocab_size=256,
            num_layers=3,
            d_model=192,
            d_ff=512,
            num_heads=4,
            d_k=48,
            d_v=48,
            p_drop=0.1,
            dtype="float32",
        ),
        optimizer=OptimizerConfig(warmup_steps=1000),
        batching=BatchingConfig(tokens=2048, max_length=256, shapes=2),
        decoding=DecodingConfig(beam=5, alpha=0.3, extra_length=150, rows=32),
        train_steps=8000,
        log_every=100,
        evaluate_every=600,
        checkpoint_every=200,
        average=8,
        final_evaluation="dev",
    )
)

PARSE_QUICKSTART = register(
    Experiment(
        name="parse_quickstart",
        reports="nothing in the paper: parsing in minutes on two CPU cores, a slice of CRAFT that comes with t2t",
        task=Parsing(EmbeddedTrees("craft")),
        model=TransformerConfig(
            vocab_size=4000,
            target_vocab_size=128,
            num_layers=2,
            d_model=128,
            d_ff=256,
            num_heads=4,
            d_k=32,
            d_v=32,
            p_drop=0.0,
            dtype="float32",
        ),
        optimizer=OptimizerConfig(warmup_steps=400, scale=0.6),
        batching=BatchingConfig(tokens=1536, max_length=220, shapes=2),
        decoding=DecodingConfig(beam=4, alpha=0.3, extra_length=120, rows=64),
        train_steps=2500,
        log_every=50,
        evaluate_every=500,
        checkpoint_every=50,
        average=8,
    )
)
