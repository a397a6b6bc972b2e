"""Which runs exist, what they depend on, and what each stage reads. All is decided before any work, without torch."""
