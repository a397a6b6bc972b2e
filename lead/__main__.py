"""`python -m lead`."""

from lead.cli import main

raise SystemExit(main())
