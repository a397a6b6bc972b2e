"""Configuration: schema, loading with one-line errors, and the settings that each stage reads."""
