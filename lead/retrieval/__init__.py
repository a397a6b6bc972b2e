"""Ranked lists: BM25, exact search over vectors, hard negatives, reranking (section 4.3)."""
