# What every rule uses: the checked configuration, paths, and how a stage is called.
import shlex
import sys

from lead.workflow import load_plan, one_line, one_of, option

plan = load_plan(workflow)

RESULTS = plan.results
DATA = f"{RESULTS}/{{dataset}}/data"
# the interpreter that runs Snakemake, whether or not its environment is activated
LEAD = f"{shlex.quote(sys.executable)} -m lead"


wildcard_constraints:
    dataset="[^/]+",
    run="[^/]+",
    split="train|dev|test",


def settings(stage):
    """The slice of configuration that a job of this stage reads: a job is rerun when, and only when, it changes."""
    return one_line(lambda w: plan.settings_json(stage, w.dataset, w.get("run")))
