"""Searching with what was trained: a typed query, answered at once, by a run, BM25 or a teacher."""
