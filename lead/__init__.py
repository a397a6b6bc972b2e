"""LEAD: liberal feature-based distillation for dense retrieval (Sun et al., 2022)."""

__version__ = "0.1.0"
