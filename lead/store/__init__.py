"""Artifacts on disk: tables, folders, atomic writes, checksums, and how each was made."""
