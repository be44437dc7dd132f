"""Parameters that can look a word up in the text before training begins.

Most of what the corpus asks for is one act: find the word that the question names in the text, and say what
stands behind it. A transformer does it with two heads in a row (Elhage et al. 2021, "A Mathematical Framework
for Transformer Circuits"; Olsson et al. 2022, "In-context Learning and Induction Heads"):

    heads that look back   write into each place which words stand one, two and three places before it
    a head that finds      looks for the place that has the same words before it as this one, and copies
                           what stands there

Neither is of use without the other, so from random parameters gradients hardly point at them: in 8 million
tokens the model learnt to tell from a question what kind of sentence answers it, and chose among those of
that kind by chance. Here both stand in the first two layers from the start, made of random directions and no
knowledge of any word, and training sharpens them.

Letters: E hidden size, D head dim, H_q query heads, H key/value heads, R numbers that stand for a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlx.core as mx

from .gpt import GPTConfig, Parameters

REACH = 150  # tokens; pairs of features that RoPE turns by less than a radian over it tell words apart
FAST = 0.1  # radians a token; pairs that turn faster tell distances apart
LOOK_BACK = (1, 2, 3)  # places; a query head of layer 0 for each
SHARPNESS = 15.0  # score of the place looked back at
LIKENESS = 2.0  # of a matrix that reads a word, over one with rows of length 1
COPIED = 0.5  # of what is found, into the stream, beside a token of length 1


def with_induction(parameters: Parameters, config: GPTConfig, seed: int) -> Parameters:
    """`parameters`, as from init_parameters, with heads of the first two layers made to look words up.

    Returns a new dict; E >= 2 D, and at least two query heads and two layers.
    """
    E, D = config.hidden_size, config.head_dim
    keys = mx.random.split(mx.random.key(seed), 2 + config.num_key_value_heads)
    slow = [i for i in range(D // 2) if _frequency(config, i) * REACH < 1]
    features = mx.array(slow + [i + D // 2 for i in slow])  # (R,) of a head: both halves of each slow pair
    R = features.size
    word = _orthonormal(keys[0], E)[:R]  # (R, E): what of a word is carried along
    stream = _orthonormal(keys[1], E)  # its rows are directions of the stream that nothing else uses yet
    # read[d] reads, out of the stream, what is known of the word d places back.
    distances = LOOK_BACK[: config.num_attention_heads]
    read = [word] + [stream[d * R - R : d * R] for d in distances]
    result = dict(parameters)

    def change(layer: int, projection: str, head: int, block: mx.array) -> None:
        """Put `block` in the place of a head's rows; of its columns where the heads go in, at o_proj."""
        name = f"model.layers.{layer}.self_attn.{projection}"
        here = slice(head * D, head * D + D)
        p = mx.array(result[name])
        if projection == "o_proj.weight":
            p[:, here] = block
        else:
            p[here] = block
        result[name] = p

    def at_features(rows: mx.array) -> mx.array:
        """(R, E) as a head's rows, (D, E), the others 0."""
        block = mx.zeros((D, E))
        block[features] = rows
        return block

    groups = config.num_attention_heads // config.num_key_value_heads
    for head, distance in enumerate(distances):
        query, key = _look_back(config, distance)
        change(0, "q_proj.bias", head, query)
        change(0, "k_proj.bias", head // groups, key)
        for projection, owner in (("q_proj.weight", head), ("k_proj.weight", head // groups)):
            change(0, projection, owner, mx.zeros((D, E)))  # by distance alone
        change(0, "v_proj.weight", head // groups, at_features(word))
        # A normed token has length sqrt(E), and `word` reads sqrt(R) of it; it is written with length 1.
        change(0, "o_proj.weight", head, at_features(read[distance]).T / math.sqrt(R))
    for kv_head in range(config.num_key_value_heads):
        # In "the price of the kite is seven" the place of "seven" is known by "the kite is", and whoever has
        # just written "the kite is" asks for that. Each distance has a rotation of its own, so that "is kite"
        # is something else.
        turns = [_orthonormal(k, R) for k in mx.random.split(keys[2 + kv_head], len(distances))]
        known_by = sum(turn @ read[d] for turn, d in zip(turns, distances, strict=True))
        asks_for = sum(turn @ read[d - 1] for turn, d in zip(turns, distances, strict=True))
        change(1, "k_proj.weight", kv_head, LIKENESS * at_features(known_by))
        change(1, "q_proj.weight", kv_head * groups, LIKENESS * at_features(asks_for))
        copy = _orthonormal(mx.random.split(keys[2 + kv_head])[0], E)[:D]  # (D, E)
        change(1, "v_proj.weight", kv_head, copy)
        change(1, "o_proj.weight", kv_head * groups, COPIED * copy.T)
    return result


def with_twins(parameters: Parameters, twins: Mapping[int, int], seed: int) -> Parameters:
    """`parameters` in which the embedding of each of these tokens is near its twin's.

    "Mia" at the start of a reply and " Mia" in a text are two tokens. As random vectors they have nothing in
    common, and that they are one name would have to be learnt for each name. What all first ones differ by
    is one direction, the same for all, and a little of their own.

    Args:
        twins: token -> its twin, as from tokenizer.twins.
    """
    if not twins:
        return parameters
    name = "model.embed_tokens.weight"
    embedding = parameters[name]  # (V, E)
    E = embedding.shape[1]
    keys = mx.random.split(mx.random.key(seed))
    shared = mx.random.normal((E,), key=keys[0]) / math.sqrt(E)
    own = mx.random.normal((len(twins), E), key=keys[1]) / math.sqrt(E)
    first, second = mx.array(list(twins)), mx.array(list(twins.values()))
    moved = mx.array(embedding)
    moved[first] = 0.8 * embedding[second] + 0.4 * shared + 0.45 * own  # the squares sum to 1
    return parameters | {name: moved}


def _frequency(config: GPTConfig, pair: int) -> float:
    """Radians by which RoPE turns a pair of features from one token to the next."""
    return config.rope_theta ** (-pair / (config.head_dim // 2))


def _look_back(config: GPTConfig, distance: int) -> tuple[mx.array, mx.array]:
    """Biases of a query and a key head, (D,) each, whose score is highest for the key `distance` places back.

    RoPE turns a pair by its position times its frequency f, so two equal pairs r places apart have the
    product cos(r f). With the query's turned back by distance * f it is cos((r - distance) f).
    """
    D = config.head_dim
    fast = [i for i in range(D // 2) if _frequency(config, i) > FAST]
    length = math.sqrt(SHARPNESS * math.sqrt(D) / len(fast))  # the score is a sum over them, over sqrt(D)
    query, key = [0.0] * D, [0.0] * D
    for i in fast:
        angle = -distance * _frequency(config, i)
        query[i], query[i + D // 2] = length * math.cos(angle), length * math.sin(angle)
        key[i] = length
    return mx.array(query), mx.array(key)


def _orthonormal(key: mx.array, size: int) -> mx.array:
    """(size, size) random rows of length 1 that stand at right angles to each other."""
    return mx.linalg.qr(mx.random.normal((size, size), key=key), stream=mx.cpu)[0].T
