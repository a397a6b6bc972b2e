"""Snakemake, as `lead run` starts it: what happens is also written as JSON lines, to the pipe that `PIPE` names."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

PIPE = "LEAD_EVENTS"  # environment variable: number of a file descriptor
NAME = "lead"
FACTS = ("jobid", "job_id", "jobs", "rule_name", "rule_msg", "wildcards", "log", "benchmark", "reason")


class LogHandler(LogHandlerBase):
    """A logger of Snakemake that writes a line for each event: `event`, `message`, and those of `FACTS` that it has."""

    writes_to_stream = False
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. Nobody may be there to read it."""
        facts = {key: getattr(record, key) for key in FACTS if hasattr(record, key)}
        line = {"event": str(getattr(record, "event", None) or ""), "message": str(record.msg or ""), **facts}
        with contextlib.suppress(OSError):
            os.write(int(os.environ[PIPE]), json.dumps(line, default=str).encode() + b"\n")


def main() -> None:
    """Run Snakemake with this logger beside its own."""
    from snakemake.cli import main as snakemake

    LoggerPluginRegistry().register_plugin(f"snakemake_logger_plugin_{NAME}", sys.modules[__name__])
    snakemake(["--logger", NAME, *sys.argv[1:]])


if __name__ == "__main__":
    main()
