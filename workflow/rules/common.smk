# What every rule uses: the checked configuration, paths, and where the command `lead` is.
import shlex
import sys
from pathlib import Path

from lead.plan.snakemake import checked, exactly, executions, load_plan, memories, one_line, one_of, option, recipes
from lead.plan.targets import targets

plan = load_plan(workflow)
settings = recipes(plan)
execution = executions(plan)
memory = memories(plan)

# How often a training is tried again, from its checkpoint. Only the Snakemake that submits jobs does so, not the one inside a job.
# A training's command starts with exec: at a scheduler's SIGTERM a shell would end before the checkpoint is written.
RETRIES = 0 if workflow.remote_exec else 3

RESULTS = plan.results
DATA = f"{RESULTS}/{{dataset}}/data"

# `lead` of the environment that runs Snakemake, whether or not it is activated
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


wildcard_constraints:
    dataset="[^/]+",
    run="[^/]+",
    split="train|dev|test",
