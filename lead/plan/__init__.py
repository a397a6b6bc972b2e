"""What each run is made of and what each stage reads: all that is decided before any work. It imports no torch."""
