"""Passages as token ids on disk: tokenized once, for every model with the same tokenizer and length.

A store is a folder with `tokens.safetensors` (ids [tokens], of 16 bits if the vocabulary allows, and ends [n]), which
is mapped into memory, `tokens.json` (tokenizer, length, prompt) and checksums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from lead.config.stages import TokenizeSettings
from lead.errors import LeadError
from lead.pretrained import resolve
from lead.store.atomic import atomic_folder
from lead.store.checksums import check_folder
from lead.store.tables import open_table, read_json, read_rows, shard_rows, without_nulls, write_json
from lead.tokenizer import cut, load_tokenizer, prompted, tokenizer_sum

CHUNK = 1 << 14  # texts read at a time
TOKENS, DESCRIPTION = "tokens.safetensors", "tokens.json"


def tokenize(*, settings: TokenizeSettings, texts: Path, out: Path) -> None:
    """Write the token ids of all passages, or of one shard of them, cut to `length` tokens.

    Memory: `CHUNK` texts with their ids, and 2 bytes for each token of the shard. Raises LeadError for a file with
    other columns, or a tokenizer that cannot be loaded.
    """
    file = open_table(texts, "corpus")
    tokenizer = load_tokenizer(resolve(settings.reference), settings.reference)
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    start, stop = shard_rows(file.metadata.num_rows, settings.shard)
    parts, lengths = [np.empty(0, dtype)], [np.empty(0, np.int64)]
    with tqdm(total=stop - start, desc="tokenize", unit="passage", disable=None) as bar:
        for chunk in read_rows(file, start, stop, CHUNK):
            read = prompted(settings.prompt, without_nulls(chunk, texts)["text"].to_pylist())
            ids = cut(tokenizer, read, settings.length)
            lengths.append(np.array([len(i) for i in ids], np.int64))
            parts.append(np.fromiter((token for i in ids for token in i), dtype, int(lengths[-1].sum())))
            bar.update(len(chunk))
    description = {"tokenizer": tokenizer_sum(tokenizer), "length": settings.length, "reference": settings.reference}
    description |= {"prompt": settings.prompt} if settings.prompt else {}
    with atomic_folder(out) as folder:
        arrays = {"ids": np.concatenate(parts), "ends": np.cumsum(np.concatenate(lengths))}
        save_file(arrays, folder / TOKENS)
        write_json(description, folder / DESCRIPTION)


class Tokens:
    """Token ids of n passages, read from the mapped file on demand."""

    def __init__(self, folder: Path, tokenizer: Any, length: int, n: int, prompt: str = "") -> None:
        """Open a store of n texts that were read after `prompt`.

        Raises LeadError if it is damaged, or of another tokenizer, length, prompt or number of passages.
        """
        description = read_json(check_folder(folder) / DESCRIPTION)
        self._file = safe_open(folder / TOKENS, "numpy")
        self._ids, self._ends = self._file.get_slice("ids"), self._file.get_tensor("ends")
        for what, ours, theirs in (
            ("tokenizer", tokenizer_sum(tokenizer), description["tokenizer"]),
            ("length", length, description["length"]),
            ("prompt", prompt, description.get("prompt", "")),
            ("number of passages", n, len(self._ends)),
        ):
            if ours != theirs:
                raise LeadError(
                    f"{folder}: its {what} is not the model's or the corpus's; make it again (lead tokenize)"
                )

    def rows(self, start: int, stop: int) -> list[NDArray[np.int64]]:
        """Ids of the passages start .. stop - 1."""
        first = int(self._ends[start - 1]) if start else 0
        ends = self._ends[start:stop] - first
        ids = self._ids[first : first + int(ends[-1])].astype(np.int64) if len(ends) else np.empty(0, np.int64)
        return np.split(ids, ends[:-1]) if len(ends) else []
