"""Tokenizers: loading one, and cutting texts into token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from lead.errors import LeadError
from lead.imports import UNUSED, importing
from lead.pretrained import loading, rules_sum

TOKENIZED = 1 << 21  # characters tokenized at a time: until it cuts, a tokenizer keeps some 150 bytes for each token
CHARACTERS = 64  # read of a text for each token that is kept, at first; words have about 4 a token


def load_tokenizer(name: str, reference: str) -> Any:
    """The tokenizer of a model. Raises LeadError in one line."""
    with importing(*UNUSED):
        from transformers import AutoTokenizer
    with loading(f"the tokenizer of '{reference}'"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):  # made up by transformers where there is none
        raise LeadError(f"models: the tokenizer of '{reference}' knows no word; are its files missing?")
    return tokenizer


def tokenizer_sum(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer: everything that makes ids from a text, but for cutting and padding."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {k: v for k, v in parts.items() if k not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def same_tokens(a: Any, b: Any) -> bool:
    """Whether two tokenizers make the same tokens with the same ids of a text, whatever they put around it."""
    rules = [rules_sum(json.loads(tokenizer.backend_tokenizer.to_str())) for tokenizer in (a, b)]
    return rules[0] == rules[1] and bool(a.get_vocab() == b.get_vocab())


def prompted(prompt: str, texts: list[str]) -> list[str]:
    """The texts as they are read: each after the prompt."""
    return [prompt + text for text in texts] if prompt else texts


def cut(tokenizer: Any, texts: list[str], length: int) -> list[list[int]]:
    """Token ids of each text, cut to `length` tokens; the special tokens at both ends survive the cut.

    An empty text has at least one token (`blank`).
    Of a long text only the beginning is tokenized: 64 characters for each token, up to white space, and four times as
    many for as long as that gives less than `length` tokens. The ids are those of the whole text, unless tokens of the
    vocabulary reach across white space, or the text has none there. Memory: beyond the ids, what the tokenizer keeps of
    `TOKENIZED` characters, or of the longest beginning.
    """
    at_end = getattr(tokenizer, "truncation_side", "right") == "left"  # it keeps the end of a text
    most = max(map(len, texts), default=0) if at_end else CHARACTERS * length
    ids = _tokenize(tokenizer, [_beginning(text, most) for text in texts], length)
    for i, text in enumerate(texts):
        size = most
        while len(ids[i]) < length and size < len(text):
            size *= 4
            ids[i] = _tokenize(tokenizer, [_beginning(text, size)], length)[0]
    return [i or [blank(tokenizer)] for i in ids]


def blank(tokenizer: Any) -> int:
    """The token that stands for an empty text where the tokenizer adds no special token: its vector is defined so."""
    known = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return next(token for token in known if token is not None)


def _beginning(text: str, most: int) -> str:
    """At most the first `most` characters of a text, cut at white space if there is any."""
    if len(text) <= most:
        return text
    words = [] if text[most].isspace() else text[:most].rsplit(None, 1)
    return words[0] if len(words) == 2 else text[:most]


def _tokenize(tokenizer: Any, texts: list[str], length: int) -> list[list[int]]:
    ids: list[list[int]] = []
    for some in _portions(texts, TOKENIZED):
        ids += tokenizer(
            some,
            truncation=True,
            max_length=length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    return ids


def _portions(texts: list[str], most: int) -> Iterator[list[str]]:
    """Consecutive texts of at most `most` characters together, or one."""
    start = size = 0
    for i, text in enumerate(texts):
        if size + len(text) > most and i > start:
            yield texts[start:i]
            start, size = i, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]
