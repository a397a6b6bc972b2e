"""The README.md of a dual encoder's folder: how its vectors are made, and how other libraries make them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lead.config.schema import Lengths, Prompts, Scoring

TAGS = ["sentence-transformers", "feature-extraction", "dense-retrieval", "lead"]
HEADER = f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [{", ".join(TAGS)}]
---
"""
POOLING = {
    "cls": ("the first token's vector", "states[:, 0]"),
    "mean": ("the mean of the tokens' vectors", "(states * mask).sum(1) / mask.sum(1)"),
    "last": ("the last token's vector", 'states[torch.arange(len(states)), batch["attention_mask"].sum(1) - 1]'),
}
TEXTS = {1: ["a question"], 2: ["a passage that may answer it", "another passage"]}


@dataclass(frozen=True)
class Facts:
    """What decides a text's vector. size: of the vector; linear: whether there is a linear layer."""

    scoring: Scoring
    lengths: Lengths
    prompts: Prompts
    size: int
    linear: bool


def short_card(facts: Facts) -> str:
    """A card of what the model's folder itself tells, without numbers."""
    return "\n".join(
        [
            HEADER,
            "# A dual encoder for retrieval",
            "",
            "Made by LEAD, which distils strong retrievers into small ones. `lead export DATASET/RUN --to FOLDER`",
            "copies it with a card that says what it was made of, and how good it is.",
            "",
            *vectors(facts),
            "",
            *usage(".", facts),
        ]
    )


def vectors(facts: Facts) -> list[str]:
    """The section that says how a text becomes a vector."""
    scoring, lengths, prompts = facts.scoring, facts.lengths, facts.prompts
    steps = [POOLING[scoring.pooling][0], *(["a linear layer"] if facts.linear else [])]
    steps += ["unit length"] if scoring.normalise == "unit" else []
    scale = "" if scoring.scale == 1 else f" (in training it was multiplied by {scoring.scale:g}; no ranking changes)"
    sides = ("query", prompts.query), ("passage", prompts.passage)
    told = [f"`{json.dumps(prompt, ensure_ascii=False)}` before each {side}" for side, prompt in sides if prompt]
    read = [f"- It reads {', '.join(told)}."] if told else []
    return [
        "## Vectors",
        "",
        f"- A text has one vector of {facts.size} numbers: {', then '.join(steps)}.",
        f"- The score of a passage for a query is the inner product of their vectors{scale}.",
        f"- A query is cut to {lengths.query} tokens, a passage to {lengths.passage}, special tokens included.",
        *read,
    ]


def usage(name: str, facts: Facts, onnx: str | None = None, on_hub: bool = False) -> list[str]:
    """The section with code for other libraries. name: of the folder or on the hub; onnx: path inside, if there."""
    scoring, lengths, linear = facts.scoring, facts.lengths, facts.linear
    download = ["from huggingface_hub import hf_hub_download"] if on_hub else []

    def file(path: str) -> str:
        return f'hf_hub_download("{name}", "{path}")' if on_hub else f'"{name}/{path}"'

    encoded = [
        f"queries = encode({_texts(facts.prompts.query, 1)}, {lengths.query})",
        f"passages = encode({_texts(facts.prompts.passage, 2)}, {lengths.passage})",
    ]
    head = f"head = load_file({file('2_Dense/model.safetensors')})  # the linear layer"
    transformers = [
        "import torch",
        *([*download, "from safetensors.torch import load_file"] if linear else []),
        "from transformers import AutoModel, AutoTokenizer",
        "",
        f'tokenizer, encoder = AutoTokenizer.from_pretrained("{name}"), AutoModel.from_pretrained("{name}").eval()',
        *([head] if linear else []),
        "",
        "@torch.no_grad()",
        "def encode(texts, length):",
        '    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")',
        "    states = encoder(**batch).last_hidden_state",
        *(['    mask = batch["attention_mask"].unsqueeze(-1)'] if scoring.pooling == "mean" else []),
        f"    x = {POOLING[scoring.pooling][1]}",
        *(['    x = x @ head["linear.weight"].T + head["linear.bias"]'] if linear else []),
        "    return torch.nn.functional.normalize(x, dim=-1)" if scoring.normalise == "unit" else "    return x",
        "",
        *(f"{line}.numpy()" for line in encoded),
    ]
    library = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}")',
        f"queries = model.encode_query({_texts('', 1)})",
        f"passages = model.encode_document({_texts('', 2)})",
        "scores = queries @ passages.T",
    ]
    faiss = [
        "import faiss",
        "",
        f"index = faiss.IndexFlatIP({facts.size})",
        "index.add(passages)",
        "scores, found = index.search(queries, 2)",
    ]
    session = [
        "import onnxruntime",
        *download,
        "from transformers import AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f"session = onnxruntime.InferenceSession({file(str(onnx))})",
        "",
        "def encode(texts, length):",
        '    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="np")',
        '    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}',
        '    return session.run(["sentence_embedding"], inputs)[0]',
        "",
        *encoded,
    ]
    version = " (version 6 or newer, since queries are cut shorter)" if lengths.query != lengths.passage else ""
    parts = [(f"sentence-transformers{version}", library), ("transformers", transformers), ("faiss", faiss)]
    parts += [("ONNX", session)] if onnx else []
    lines = ["## Use"]
    for title, code in parts:
        lines += ["", f"With {title}:", "", "```python", *code, "```"]
    return [*lines, ""]


def _texts(prompt: str, which: int) -> str:
    """A list of example texts with a prompt before each, as Python code."""
    return json.dumps([prompt + text for text in TEXTS[which]], ensure_ascii=False)
