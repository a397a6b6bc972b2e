"""Configuration: schema, loading with one-line errors, and the slice each stage reads."""
