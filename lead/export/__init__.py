"""A dual encoder for others: a folder of its own with a card, ONNX, vectors, TREC files, a repository of the hub."""
