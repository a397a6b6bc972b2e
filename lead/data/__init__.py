"""From raw collections to Parquet: passages, queries, and judgements in three splits.

Each source (`pydocs`, `files`, `ir`) reads a `collection.Collection`; `prepare` checks it, counts and writes it.
"""
