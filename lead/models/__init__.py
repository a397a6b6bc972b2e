"""Models that turn queries and passages into scores, at every layer (section 3.2)."""
