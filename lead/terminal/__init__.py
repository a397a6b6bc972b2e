"""What people see on the terminal: running the workflow, its plan, its state, and the settings of a run."""
