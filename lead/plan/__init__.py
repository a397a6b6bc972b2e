"""Which runs there are, what they are made from, and what each stage reads: decided before any work, without torch."""
