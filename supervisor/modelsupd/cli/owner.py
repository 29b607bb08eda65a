"""Root's way of working on the directories of a service that runs as another user: as that user."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def become_owner(state_dir: Path, runtime_dir: Path | None = None) -> None:
    """As root, become the user that the state directory belongs to, for good; otherwise do nothing.

    What root writes there would be closed to the daemon, and root would follow links that the user may have placed.
    A `runtime_dir` that is missing (as after a reboot) is made first, since only root may; it becomes the user's too.
    Raises OSError.
    """
    if os.geteuid() != 0 or not state_dir.exists():
        return
    owner = state_dir.stat()
    if owner.st_uid == 0:
        return
    if runtime_dir is not None and not runtime_dir.exists():
        runtime_dir.mkdir(mode=0o700, parents=True)
        os.chown(runtime_dir, owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwuid(owner.st_uid)
    except KeyError:
        # No table knows the user, as in some containers; then the directory's group is all that is known.
        os.setgroups([])
        os.setgid(owner.st_gid)
    else:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
    os.setuid(owner.st_uid)
