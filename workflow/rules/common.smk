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

# of a training, which goes on from its checkpoint; the Snakemake inside a cluster's job leaves them to the one outside
RETRIES = 0 if workflow.remote_exec else 3
# ..and its command starts with exec: a shell that waits for it would end at a scheduler's SIGTERM, before its checkpoint

RESULTS = plan.results
DATA = f"{RESULTS}/{{dataset}}/data"

# `lead` of the environment that runs Snakemake, whether or not it is activated
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


wildcard_constraints:
    dataset="[^/]+",
    run="[^/]+",
    split="train|dev|test",
