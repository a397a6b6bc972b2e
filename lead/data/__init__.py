"""From raw collections to Parquet: passages, queries, and judgements in three splits.

A source (`pydocs`, `files`) turns what lies on disk into a `collection.Collection`; `prepare` checks, counts and
writes it.
"""
