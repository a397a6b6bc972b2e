"""The examples run as they stand, offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_one_step_of_lead_names_every_equation_and_prints_the_parts_of_the_loss() -> None:
    example = ROOT / "examples" / "lead_step.py"
    lines = [line for line in example.read_text(encoding="utf-8").splitlines() if "quation" in line]
    assert {int(n) for line in lines for n in re.findall(r"\b\d+\b", line)} == set(range(1, 13))
    done = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    parts = {name: float(value) for name, value in re.findall(r"^L_(\w+) +([\d.]+)$", done.stdout, re.MULTILINE)}
    assert set(parts) == {"lyr", "rep", "stu", "tch", "total"}
    assert abs(sum(parts[name] for name in ("lyr", "rep", "stu", "tch")) - parts["total"]) < 1e-3
    assert "teacher layer 6 teaches student layer 3" in done.stdout
    norms = [float(value) for value in re.findall(r"gradient norm of the .*: ([\d.]+)", done.stdout)]
    assert len(norms) == 2 and min(norms) > 0
