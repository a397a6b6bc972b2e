"""What a search ranks with is what the stages ranked with."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from searchable import Searchable

from lead.search.systems import Collection


def test_bm25_has_the_settings_of_its_row(searchable: Searchable, tmp_path: Path) -> None:
    config = Path(shutil.copytree(searchable.config.parent, tmp_path / "config"))
    _, query = next(iter(searchable.queries().items()))

    def scores() -> list[float]:
        system = Collection.find("tiny/bm25", config / "config.yaml", searchable.overrides).system()
        return [float(score) for score in system.rank(query, 5)[1]]

    before = scores()
    rows = yaml.safe_load((config / "experiments.yaml").read_text())
    rows["runs"]["bm25"]["settings"] = {"bm25": {"k1": 3.0}}
    (config / "experiments.yaml").write_text(yaml.safe_dump(rows))
    assert scores() != before
