"""Docstrings as Markdown: a doctest in one is a block of code."""

import re
from typing import Any

from griffe import Extension, Object


class Doctests(Extension):
    """Put fences around doctests."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            doctest = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)+", re.M)
            obj.docstring.value = doctest.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value)
