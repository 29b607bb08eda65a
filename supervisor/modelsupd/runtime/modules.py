"""Looks whether an interpreter has the packages that an engine written in Python needs.

It is asked in a process of its own, with the environment that the engine will have, and imports none of them:
importing llama_cpp takes half a second and loads its libraries.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence

#: Starting an interpreter takes some 20 ms; from a file system that hangs it takes for ever.
_TIMEOUT_S = 20.0

_ASK = """
import importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    found[name] = spec and (spec.origin or "")
print("\\n" + json.dumps(found))
"""


class UnaskableError(Exception):
    """The interpreter could not be asked; the message says why."""


def where(python: str, modules: Sequence[str], env: Mapping[str, str]) -> dict[str, str | None]:
    """Return for each top-level module the file that would be imported, None for one that is not there.

    Blocks for as long as that interpreter takes to start. Raises UnaskableError when it does not tell.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the operator's interpreter, which is about to be run as an engine
            [python, "-c", _ASK, *modules],
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise UnaskableError(f"it did not answer within {_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise UnaskableError(str(error.strerror or error)) from error
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnaskableError(said[-1] if said else f"it exited with {done.returncode}, without a word") from None
    return found
