"""A byte-level BPE tokenizer of at most 2,048 tokens, trained on the corpus, in Qwen's form.

    python -P -m tinyllm.reference.week4.tokenizer OUT

writes OUT/tokenizer.json and OUT/tokenizer_config.json, which transformers' AutoTokenizer and mlx_lm.load
read. Digits stand alone, as in Qwen's: a number is copied digit by digit, and none has to be learnt as a
word.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from . import corpus

SPECIAL = (corpus.END, corpus.TURN, corpus.TURN_END)
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)  # one token each, but plain text

# Qwen2's own pattern (its tokenizer.json): contractions, words with the space before them, single digits,
# punctuation, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

# Qwen's turns; the system turn that offers tools is `corpus.system_text`'s, and a test compares the two.
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'system' and not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function or tool_call %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}
                {{- tool_call.arguments }}
            {%- else %}
                {{- tool_call.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train(vocab_size: int = 2048, samples: int = 20_000) -> Tokenizer:
    """Learn the merges from `samples` training samples, the first of all kinds. The same on every run."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # The added tokens come after the learnt ones, as in Qwen's vocabulary.
        vocab_size=vocab_size - len(SPECIAL) - len(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(samples), trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKS])
    return tokenizer


def _texts(samples: int) -> Iterator[str]:
    """The samples without the added tokens, which are no merges' business."""
    for index in range(corpus.FIRST_NOTES, corpus.FIRST_NOTES + samples):
        text = "".join(piece for piece, _ in corpus.sample("train", index).pieces())
        for token in SPECIAL + MARKS:
            text = text.replace(token, "")
        yield text


def twins(tokenizer: Tokenizer) -> dict[int, int]:
    """Word for word, the token that has no space before it -> the one that has: "Mia" -> " Mia"."""
    vocabulary = tokenizer.get_vocab()
    space = "\u0120"  # how byte-level BPE writes it
    return {
        token: vocabulary[space + text]
        for text, token in sorted(vocabulary.items())
        if text.isalpha() and not text.startswith(space) and space + text in vocabulary
    }


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 1024,
        "bos_token": None,
        "eos_token": corpus.TURN_END,
        "pad_token": corpus.END,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "additional_special_tokens": [corpus.TURN, corpus.TURN_END],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    save(train(), Path(sys.argv[1]))
