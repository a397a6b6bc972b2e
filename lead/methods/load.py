"""Loading the loss that a record of lead.config.methods names."""

from __future__ import annotations

from typing import Any

from lead.config.methods import Method
from lead.config.registry import check_reference, imported
from lead.config.schema import Distil, LossWeights
from lead.errors import LeadError, nearest


def check_method(method: Method) -> None:
    """Refuse a record that lacks a part. It imports no torch. Raises LeadError."""
    where = f"method '{method.name}' (lead.config.methods)"
    if not method.trains:
        return
    check_reference(method.loss, where)
    for key, inside in method.reads.items():
        if key not in Distil.model_fields:
            raise LeadError(f"{where}: reads '{key}', no key of distil; {nearest(key, Distil.model_fields)}")
        for name in sorted(inside) if key == "weights" and inside is not True else ():
            if name not in LossWeights.model_fields:
                hint = nearest(name, LossWeights.model_fields)
                raise LeadError(f"{where}: reads 'weights.{name}', no key of distil.weights; {hint}")


def load_loss(method: Method) -> Any:
    """The loss of a method. It imports torch. Raises LeadError if a part of the record is missing or not importable."""
    check_method(method)
    return imported(method.loss, f"method '{method.name}' (lead.config.methods)")
