"""From raw collections to Parquet: passages, queries, and judgements in three splits.

Each source (`pydocs`, `files`, `ir`) returns a `collection.Collection`; `prepare` checks, counts and writes it.
"""
