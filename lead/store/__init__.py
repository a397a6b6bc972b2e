"""Artifacts on disk: tables, folders, atomic writes, checksums, and records of how each was made."""
