"""Checks of the experiments' rows against each other, for all datasets."""

from __future__ import annotations

from typing import Any

from lead.config.experiments import Row
from lead.config.kinds import KINDS
from lead.config.methods import METHODS
from lead.errors import LeadError, nearest
from lead.methods.load import check_method
from lead.plan.rows import Rows, split_seed

OF_DATASET = (("checks", None), ("dev_share", None), ("denoise", None), ("retrieval", "rerank_from"))


def check_rows(rows: Rows) -> None:
    """Refuse rows that do not fit each other, or whose method or kind lacks a part. LeadError for the first mistake."""
    for row in rows.values():
        check_method(METHODS[row.method])
        KINDS[row.kind].check()
    for name, row in rows.items():
        _check_row(rows, name, row)


def _check_row(rows: Rows, name: str, row: Row, seen: tuple[str, ...] = ()) -> None:
    where, method = f"{rows.where}: run '{name}'", METHODS[row.method]
    if name in seen:
        raise LeadError(f"{where} depends on itself ({' -> '.join([*seen, name])}); break the circle")
    if split_seed(name)[1] != 1:
        raise LeadError(f"{where}: names that end in -s2, -s3, .. are other seeds of a run; rename it")
    _check_references(rows, name, row, seen)
    if row.denoise is not None and (rows.kind(row.denoise).ranks_by == "search" or not method.judged):
        raise LeadError(f"{where}: key 'denoise': give a cross encoder or a ColBERT, to a run that trains")
    _check_queries_only(rows, name, row)
    _check_settings(where, row)
    trained_by = name.removesuffix("_teacher")
    if method.stage is not None and trained_by != name and trained_by in rows.joint():
        raise LeadError(f"{where}: '{trained_by}' leaves its teacher under this name; rename the run")
    for listed in (m.name for m in METHODS.values() if not m.has_model):
        if (row.method == listed) != (name == listed):
            raise LeadError(f"{where}: the run of method {listed}, and no other, is called '{listed}'; rename it")
    if method.distils:
        _check_searches(rows, where, "start", row.start, "the student must be a dual encoder")
    if method.stage == "align":
        for key, of in (("teacher", row.teacher), ("start", name)):
            _check_searches(rows, where, key, of, "alignment is of one vector a text: it needs dual encoders")
    if row.of is not None and row.of not in rows.joint():
        raise LeadError(f"{where}: key 'of': '{row.of}' does not train its teacher (distil.joint: false)")
    if method.judged and row.negatives != "bm25":
        _check_searches(rows, where, "negatives", row.negatives, "negatives are mined with a dual encoder")


def _check_references(rows: Rows, name: str, row: Row, seen: tuple[str, ...]) -> None:
    """Refuse a row that names a run which does not exist or has no model, and check the rows that it names."""
    with_model = {n for n in rows if rows.method(n).has_model}
    valid = dict.fromkeys(("start", "teacher", "passages", "of", "negatives", "denoise"), with_model)
    valid |= {"of": {n for n in rows if rows.method(n).joint}, "negatives": with_model | {"bm25"}}
    for key, names in valid.items():
        value = getattr(row, key)
        if value is None or (key == "negatives" and not METHODS[row.method].judged):
            continue
        if value not in names:
            hint = nearest(value, names)
            raise LeadError(f"{rows.where}: run '{name}': key '{key}': no run '{value}' with a model; {hint}")
        if value in rows:
            _check_row(rows, value, rows[value], (*seen, name))
    for scorer in row.scores or ():  # others are files, or unknown: that is checked for a dataset
        if scorer in rows:
            _check_row(rows, scorer, rows[scorer], (*seen, name))


def _check_queries_only(rows: Rows, name: str, row: Row) -> None:
    """Refuse rows that need passage vectors of a model that encodes only queries (ADORE)."""
    where = f"{rows.where}: run '{name}'"
    named = [(key, getattr(row, key)) for key in ("start", "teacher", "passages")]
    for key, other in [*named, *(("scores", scorer) for scorer in row.scores or () if scorer in rows)]:
        if other is None or (of := rows[other].passages) is None or (key == "start" and row.passages):
            continue
        remedy = {"passages": f"name '{of}'"}.get(key, "name another")
        if key == "start" and not METHODS[row.method].distils:
            remedy = f"give `passages: {of}` too"
        raise LeadError(f"{where}: key '{key}': '{other}' encodes queries only; {remedy}")
    if METHODS[row.method].passages == "searched" and row.passages not in _spaces(rows, str(row.start)):
        raise LeadError(
            f"{where}: key 'passages': '{row.start}' was not aligned with '{row.passages}', so they share no space; "
            "name the `teacher` of its method align"
        )
    if row.passages is not None:
        for key in ("start", "passages"):
            _check_searches(rows, where, key, getattr(row, key), "`passages` needs dual encoders")


def _spaces(rows: Rows, run: str | None) -> set[str | None]:
    """The teachers that a model, or one that it grew from, was aligned with."""
    found: set[str | None] = set()
    while run is not None:
        row = rows[run]
        found |= {row.teacher} if METHODS[row.method].stage == "align" else set()
        run = row.start
    return found


def _check_searches(rows: Rows, where: str, key: str, name: str | None, why: str) -> None:
    """Refuse a run under `key` whose model does not search. why: for the message. Raises LeadError."""
    if (kind := rows.kind(str(name))).ranks_by != "search":
        raise LeadError(f"{where}: key '{key}': '{name}' is {kind.a}; {why}")


def _check_settings(where: str, row: Row) -> None:
    """Refuse settings of a row that its run does not read, or that belong to the whole dataset."""
    for key, inside in OF_DATASET:
        if key in row.settings and (inside is None or inside in row.settings[key]):
            full = f"{key}.{inside}" if inside else key
            raise LeadError(f"{where}: key 'settings.{full}' is of the whole dataset; move it to the dataset's file")
    method = METHODS[row.method]
    unread = {"bm25"} if method.stage != "bm25" else set()
    unread |= {"models", "lengths", "scoring"} if row.init is None else set()
    unread |= {"distil"} if not method.distils else set()
    unread |= {"align"} if method.stage != "align" else set()
    keys = sorted(unread & row.settings.keys())
    keys += [f"distil.{key}" for key in _unread(row.settings.get("distil", {}), method.reads)]
    for key in keys:
        raise LeadError(
            f"{where}: key 'settings.{key}' is not read by this run; set it for the run or dataset that reads it"
        )


def _unread(keys: dict[str, Any], reads: Any) -> list[str]:
    """The keys that are not read. reads: for each key that is read, True or the set of inner keys that are.

    >>> _unread({"tau": 2, "joint": True, "weights": {"lyr": 1, "rep": 1}}, METHODS["rd"].reads)
    ['joint', 'weights.lyr']
    """
    found = [key for key in keys if key not in reads]
    inside = ((key, keys[key], reads.get(key)) for key in keys)
    return found + [f"{key}.{k}" for key, v, r in inside if isinstance(r, set) and v for k in v if k not in r]
