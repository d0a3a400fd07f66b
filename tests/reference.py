"""A plain NumPy (float64) reading of the Transformer of "Attention Is All You Need", one sentence at a time.

Section numbers are the paper's. Sizes: V vocabulary, D d_model, F d_ff, H heads, k = d_k, v = d_v, S source length,
T target length. Token 0 is PAD. Weights are plain dicts of arrays:

    attention      {"q": [D, H, k], "k": [D, H, k], "v": [D, H, v], "o": [H, v, D]}
    ffn            {"w1": [D, F], "b1": [F], "w2": [F, D], "b2": [D]}
    norm           {"scale": [D], "bias": [D]}
    encoder layer  {"self": attention, "norm1": norm, "ffn": ffn, "norm2": norm}
    decoder layer  {"self": attention, "norm1": norm, "cross": attention, "norm2": norm, "ffn": ffn, "norm3": norm}
    model          {"embedding": [V, D], "positions": None or [max_len, D], "encoder": [...], "decoder": [...],
                    "target": None, or of targets with a vocabulary of their own {"embedding": ..., "positions": ...}}

What came after the paper, or stands in its section 4 alone, is in keys that a model need not have: "final_norms", the
two of a model whose norms stand before its sub-layers; "rope": True for rotary positions; "span", the r of restricted
self-attention.

There is no dropout here: this is the function that the network computes at inference.
"""

import math

import numpy as np

PAD = 0


def float64(array):
    """Any array-like as float64."""
    return np.asarray(array, dtype=np.float64)


# --- Section 3.2: attention ---
def scaled_dot_product_attention(q, keys, values, allowed):
    """Equation 1, softmax(Q K^T / sqrt(d_k)) V, for one head; illegal pairs are -inf before the softmax.

    q [T, k], keys [S, k], values [S, v], allowed [T, S] of bool -> output [T, v], weights [T, S].
    Every row of `allowed` needs at least one True.
    """
    q, keys, values = float64(q), float64(keys), float64(values)
    scores = q @ keys.T / math.sqrt(q.shape[1])
    scores = np.where(allowed, scores, -np.inf)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = exponentials / exponentials.sum(axis=1, keepdims=True)
    return weights @ values, weights


def turned(x, rope):
    """Su et al. 2021: row m of x [T, k] as k / 2 complex numbers, times e^(i m theta_j), theta_j = 10000^(-2j / k)."""
    if not rope:
        return x
    numbers = x[:, 0::2] + 1j * x[:, 1::2]
    for m in range(x.shape[0]):
        for j in range(x.shape[1] // 2):
            numbers[m, j] *= np.exp(1j * m * 10000 ** (-2 * j / x.shape[1]))
    return np.stack([numbers.real, numbers.imag], axis=2).reshape(x.shape)


def neighbourhood(length, span, causal):
    """Who sees whom in self-attention [T, T]: all, or r places centred on one's own, or, if causal, the last r."""
    allowed = np.zeros((length, length), dtype=bool)
    for t in range(length):
        first, last = (t - span + 1, t) if causal else (t - span // 2, t + (span - 1) // 2)
        for s in range(length):
            allowed[t, s] = (not span or first <= s <= last) and not (causal and s > t)
    return allowed


def multi_head_attention(weights, queries, memory, allowed, rope=False):
    """Section 3.2.2: H projected attentions, concatenated, times W_O; no biases.

    queries [T, D], memory [S, D] (keys and values alike), allowed [T, S] -> [T, D].
    """
    queries, memory = float64(queries), float64(memory)
    heads = []
    for h in range(weights["q"].shape[1]):
        q = turned(queries @ weights["q"][:, h, :], rope)
        keys = turned(memory @ weights["k"][:, h, :], rope)
        values = memory @ weights["v"][:, h, :]
        heads.append(scaled_dot_product_attention(q, keys, values, allowed)[0])
    concatenated = np.concatenate(heads, axis=1)  # [T, H * v]
    w_o = weights["o"].reshape(concatenated.shape[1], -1)  # [H * v, D]
    return concatenated @ w_o


# --- Sections 3.1, 3.3, 3.4, 3.5: the other parts of a layer, embeddings, positions ---
def layer_norm(x, norm, epsilon=1e-6):
    """Ba et al. 2016: each row of x [T, D] to mean 0 and (biased) variance 1, then scale and bias -> [T, D]."""
    x = float64(x)
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * norm["scale"] + norm["bias"]


def feed_forward(weights, x):
    """Equation 2, max(0, x W1 + b1) W2 + b2: x [T, D] -> [T, D]."""
    hidden = np.maximum(0.0, float64(x) @ weights["w1"] + weights["b1"])
    return hidden @ weights["w2"] + weights["b2"]


def sinusoids(length, d_model):
    """Section 3.5 -> [length, D]: sine at 2i, cosine at 2i + 1, both of pos / 10000^(2i / d_model)."""
    table = np.zeros((length, d_model))
    for pos in range(length):
        for j in range(d_model):
            i = j // 2
            angle = pos / 10000 ** (2 * i / d_model)
            table[pos, j] = math.sin(angle) if j % 2 == 0 else math.cos(angle)
    return table


def embed(model, tokens, rope=False):
    """Sections 3.4 and 3.5: embedding rows times sqrt(d_model), PAD's as zeros, plus positions -> [T, D]."""
    embedding = float64(model["embedding"])
    d_model = embedding.shape[1]
    x = np.zeros((len(tokens), d_model))
    for t, token in enumerate(tokens):
        if token != PAD:
            x[t] = embedding[token] * math.sqrt(d_model)
    if rope:
        return x
    if model["positions"] is None:
        return x + sinusoids(len(tokens), d_model)
    return x + float64(model["positions"])[: len(tokens)]


# --- Section 3.1: the two stacks; each sub-layer is LayerNorm(x + Sublayer(x)), nothing after the last ---
# --- (Or x + Sublayer(LayerNorm(x)), Xiong et al. 2020, and a norm after the last.)
def before(model, x, norm):
    """What a sub-layer is given."""
    return layer_norm(x, norm) if model.get("final_norms") else x


def after(model, x, norm):
    """What becomes of x + Sublayer(x)."""
    return x if model.get("final_norms") else layer_norm(x, norm)


def finished(model, x, stack):
    """The output of stack 0 or 1, the encoder or the decoder."""
    return layer_norm(x, model["final_norms"][stack]) if model.get("final_norms") else x


def encode(model, source):
    """Section 3.1, encoder: source, S token ids without padding -> [S, D]."""
    rope, near = model.get("rope", False), neighbourhood(len(source), model.get("span", 0), causal=False)
    x = embed(model, source, rope)
    for layer in model["encoder"]:
        inner = before(model, x, layer["norm1"])
        x = after(model, x + multi_head_attention(layer["self"], inner, inner, near, rope), layer["norm1"])
        x = after(model, x + feed_forward(layer["ffn"], before(model, x, layer["norm2"])), layer["norm2"])
    return finished(model, x, 0)


def decode(model, memory, target):
    """Section 3.1, decoder: memory [S, D], target T token ids (EOS last) -> logits [T, V]; row t predicts target[t].

    The input is the target shifted right by one. It begins with a zero vector, which is what PAD embeds to, plus the
    position of step 0. Logits are x E^T with the shared embedding E (section 3.4), no bias and no scale; E is the
    targets' where they have one of their own.
    """
    table = model["target"] or model
    rope, no_later = model.get("rope", False), neighbourhood(len(target), model.get("span", 0), causal=True)
    x = embed(table, [PAD, *target][:-1], rope)
    everywhere = np.ones((len(target), len(memory)), dtype=bool)
    for layer in model["decoder"]:
        inner = before(model, x, layer["norm1"])
        x = after(model, x + multi_head_attention(layer["self"], inner, inner, no_later, rope), layer["norm1"])
        inner = before(model, x, layer["norm2"])
        x = after(model, x + multi_head_attention(layer["cross"], inner, memory, everywhere), layer["norm2"])
        x = after(model, x + feed_forward(layer["ffn"], before(model, x, layer["norm3"])), layer["norm3"])
    return finished(model, x, 1) @ float64(table["embedding"]).T


def language_model(model, source, target):
    """A decoder without an encoder (Liu et al. 2018): source and target as one row -> logits [T, V] of the target.

    The row is shifted right by one, as a decoder's target is; its layers have no "cross" and two norms.
    """
    row, rope = [PAD, *source, *target][:-1], model.get("rope", False)
    x, no_later = embed(model, row, rope), neighbourhood(len(row), 0, causal=True)
    for layer in model["decoder"]:
        inner = before(model, x, layer["norm1"])
        x = after(model, x + multi_head_attention(layer["self"], inner, inner, no_later, rope), layer["norm1"])
        x = after(model, x + feed_forward(layer["ffn"], before(model, x, layer["norm2"])), layer["norm2"])
    return finished(model, x, 1)[len(source) :] @ float64(model["embedding"]).T


def count_parameters(model):
    """How many numbers the model holds; the shared embedding once, sinusoids not at all."""
    if model is None:
        return 0
    if isinstance(model, dict):
        return sum(count_parameters(part) for part in model.values())
    if isinstance(model, (list, tuple)):
        return sum(count_parameters(part) for part in model)
    return int(np.size(model))


# --- Sections 5.3 and 5.4: loss, learning rate, optimiser ---
def log_softmax(logits):
    """Log-softmax over the last axis: [..., V] -> [..., V]."""
    shifted = float64(logits) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def smoothed_loss(logits, target, epsilon):
    """Section 5.4: logits [T, V], T target ids -> cross-entropy summed over tokens.

    The truth has probability 1 - epsilon, each of the V - 1 other entries epsilon / (V - 1). The entropy of that
    distribution is not subtracted.
    """
    log_probs = log_softmax(logits)
    vocabulary_size = log_probs.shape[1]
    total = 0.0
    for t, truth in enumerate(target):
        wanted = np.full(vocabulary_size, epsilon / (vocabulary_size - 1))
        wanted[truth] = 1.0 - epsilon
        total -= float(np.sum(wanted * log_probs[t]))
    return total


def nll(logits, target):
    """Negative log-likelihood without smoothing, summed over tokens: logits [T, V], T target ids -> float."""
    log_probs = log_softmax(logits)
    return -sum(float(log_probs[t, truth]) for t, truth in enumerate(target))


def learning_rate(step, d_model, warmup):
    """Equation 3, d_model^-0.5 min(step^-0.5, step warmup^-1.5); steps count from 1."""
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)


def adam(parameters, gradients_per_step, rates, beta1=0.9, beta2=0.98, epsilon=1e-9):
    """Kingma & Ba 2015, algorithm 1, with section 5.3's constants.

    parameters: list of arrays; gradients_per_step: for each step a list of arrays of the same shapes; rates: one float
    a step -> the parameters after all steps (the given ones stay as they were).
    """
    parameters = [float64(p).copy() for p in parameters]
    m = [np.zeros_like(p) for p in parameters]
    v = [np.zeros_like(p) for p in parameters]
    for t, (gradients, rate) in enumerate(zip(gradients_per_step, rates, strict=True), start=1):
        for i, g in enumerate(map(float64, gradients)):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            parameters[i] = parameters[i] - rate * m_hat / (np.sqrt(v_hat) + epsilon)
    return parameters


# --- Section 6.1: search. log_probs_of_next(prefix tuple) gives log-probabilities [V]. Lengths count the end token.
# --- PAD is never generated, nor is a token of probability zero; ties go to the smaller token ids.
def length_penalty(length, alpha):
    """Wu et al. 2016, ((5 + |Y|) / 6)^alpha."""
    return ((5 + length) / 6) ** alpha


def best_first(scored):
    """Pairs (tokens, score), highest score first."""
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


def extensions(log_probs_of_next, prefix, log_prob):
    """Every prefix one token longer, with its log-probability: a list of (tokens, log p)."""
    following = log_probs_of_next(prefix)
    longer = []
    for token in range(len(following)):
        if token != PAD and following[token] > -np.inf:
            longer.append(((*prefix, token), log_prob + float(following[token])))
    return longer


def exhaustive_search(log_probs_of_next, vocabulary_size, end, alpha, max_length, n):
    """The n best of all sequences of at most max_length tokens that end in `end`: a list of (tokens, score)."""
    finished = []
    living = [((), 0.0)]
    for length in range(1, max_length + 1):
        longer = []
        for prefix, log_prob in living:
            assert len(log_probs_of_next(prefix)) == vocabulary_size
            longer += extensions(log_probs_of_next, prefix, log_prob)
        finished += [(y, log_prob / length_penalty(length, alpha)) for y, log_prob in longer if y[-1] == end]
        living = [(y, log_prob) for y, log_prob in longer if y[-1] != end]
    return best_first(finished)[:n]


def beam_search(log_probs_of_next, beam, end, alpha, max_length, early=False):
    """Beam search for one sentence: a list of at most `beam` (tokens, log p / length penalty), best first; alpha >= 0.

    Each step takes the 2 * beam most probable extensions of the living beams; those that end, and are among the best
    `beam`, compete for the `beam` finished places by score; the best `beam` that do not end live on. It stops when the
    worst of a full finished set beats what any living beam can still reach: log p only falls, and the penalty is
    greatest at max_length; a single beam stops where it ends, which makes it greedy decoding; `early`, it stops as soon
    as the finished set is full. Living beams are returned, with their score at that length, only where max_length is
    reached and nothing has finished.
    """
    finished = []
    living = [((), 0.0)]
    for length in range(1, max_length + 1):
        candidates = []
        for prefix, log_prob in living:
            candidates += extensions(log_probs_of_next, prefix, log_prob)
        candidates = best_first(candidates)[: 2 * beam]
        ended = [(y, log_prob / length_penalty(length, alpha)) for y, log_prob in candidates[:beam] if y[-1] == end]
        finished = best_first(finished + ended)[:beam]
        living = [(y, log_prob) for y, log_prob in candidates if y[-1] != end][:beam]
        if not living:
            break
        reachable = max(log_prob for _, log_prob in living) / length_penalty(max_length, alpha)
        if len(finished) == beam and (early or beam == 1 or finished[-1][1] > reachable):
            break
    if finished:
        return finished
    return best_first([(y, log_prob / length_penalty(max_length, alpha)) for y, log_prob in living])


def greedy(log_probs_of_next, end, max_length):
    """The most probable token at every step, up to `end` or max_length tokens: a tuple of tokens."""
    tokens = ()
    while len(tokens) < max_length and (not tokens or tokens[-1] != end):
        tokens = best_first(extensions(log_probs_of_next, tokens, 0.0))[0][0]
    return tokens
