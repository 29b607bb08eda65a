"""What of a changed configuration waits for the next daemon."""

from __future__ import annotations

from modelsupd.config import Config
from modelsupd.errors import Refused


def until_restart(running: Config, reread: Config) -> tuple[str, ...]:
    """Return a sentence for each setting that a reload does not change."""
    was, now = running.declaration.daemon, reread.declaration.daemon
    changed = {
        "daemon.state_dir": reread.state_dir != running.state_dir,
        "daemon.runtime_dir": reread.runtime_dir != running.runtime_dir,
        "daemon.metrics_listen": reread.metrics_listen != running.metrics_listen,
        "daemon.journal": now.journal != was.journal,
        "daemon.log_level": now.log_level != was.log_level,
    }
    return tuple(f"{what}: takes effect when the daemon is restarted" for what, differs in changed.items() if differs)


def not_emptied(running: Config, reread: Config) -> Config:
    """Return what was read; raises Refused where no model is left, because an editor may be writing the file."""
    if running.declaration.models and not reread.declaration.models:
        raise Refused(
            f"cannot reload: {reread.path} declares no model any more, and an editor may be writing it; "
            "to stop models use 'modelsupd stop', or stop the daemon"
        )
    return reread
