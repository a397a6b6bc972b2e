"""Commands leave out what they do not need: an import of pandas takes longer than many of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from lead.errors import LeadError
from lead.store.tables import read_table, write_table


def test_a_command_reads_a_table_without_pandas_which_stays_within_reach(tmp_path: Path) -> None:
    write_table(pa.table({"qid": ["a"], "text": ["b"]}), tmp_path / "t.parquet", "queries")
    code = """if True:
        import gc, importlib.util, sys
        from lead.imports import importing, lean_imports
        from lead.store.tables import read_table
        lean_imports()
        table = read_table(sys.argv[1], columns=["text", "qid"])
        assert table.to_pydict() == {"text": ["b"], "qid": ["a"]} and "pandas" not in sys.modules
        assert len(table.to_pandas()) == 1 and "pandas" in sys.modules
        with importing("wave"):
            assert importlib.util.find_spec("wave") is None and not gc.isenabled()
        import wave
        assert gc.isenabled()
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.parquet")], check=True)
    with pytest.raises(LeadError, match=r"no column rel"):
        read_table(tmp_path / "t.parquet", columns=["qid", "rel"])
