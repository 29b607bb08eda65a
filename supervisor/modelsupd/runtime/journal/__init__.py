"""The append-only record of what was decided, from which a daemon recovers and `why` is answered.

Segments `00000001.seg`, `00000002.seg`, … hold one record a line (`frame`); each begins with a snapshot of every
replica's state, so that the newest alone suffices to recover. `reader` reads, `writer` appends, `repair` mends.
"""

from modelsupd.runtime.journal.disk import Disk
from modelsupd.runtime.journal.reader import Damaged, Reading, Torn, Unreadable, history, read
from modelsupd.runtime.journal.repair import Plan, Report, Unrepairable, apply_repair, plan_repair, verify
from modelsupd.runtime.journal.writer import Journal, Unwritable

__all__ = [
    "Damaged",
    "Disk",
    "Journal",
    "Plan",
    "Reading",
    "Report",
    "Torn",
    "Unreadable",
    "Unrepairable",
    "Unwritable",
    "apply_repair",
    "history",
    "plan_repair",
    "read",
    "verify",
]
