"""`python bench NAME [--runs N]`: measures one figure against its peers or its floor, in the same run."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

#: Figure → what it shows. Each is a module beside this one, with `main(runs)`.
FIGURES = {
    "restart": "SIGKILL of an engine until its replacement has exec'd, against other supervisors",
    "readiness": "the moment from which an engine could serve until it is called ready",
    "detection": "an engine's end until it is known, of spawned and of adopted runs",
    "idle": "CPU and memory of daemon and shims while nothing happens but probes",
    "journal": "append with sync, group commit, and reading a long history",
    "commands": "`modelsupd status` against an interpreter that does nothing",
    "recovery": "kill -9 of a daemon with live runs until the next one has adopted them and answers",
    "resolve": "looking at a verified model of 50 files until an engine may be started on it",
    "sha256": "the digests of several files, against as many openssl processes",
    "download": "a file fetched from a hub on loopback and verified, against curl and openssl in a pipe",
    "gateway": "requests a second, time to the first event, CPU and memory, against nginx and HAProxy",
    "gateway_restart": "300 streams while the daemon or the gateway is replaced, against the same undisturbed",
    "placement": "1,000 replicas placed on 512 GPUs",
    "wake": "a request for a model that sleeps, until its first byte",
    "swap": "a request for a model in whose place another is, until its first byte",
    "fairness": "swaps and longest wait of requests that alternate, against first come, first served",
    "demand": "one decision about who gives way to a model that requests wait for",
    "gguf_header": "reading the header of a GGUF file with a large vocabulary, against gguf's own reader",
}


def main() -> None:
    """Run the figures that are named, all of them without names."""
    listed = "\n".join(f"  {name:16} {what}" for name, what in FIGURES.items())
    parser = argparse.ArgumentParser(
        prog="bench", epilog=f"figures:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", nargs="*", help="which; all by default")
    parser.add_argument("--runs", type=int, default=0, help="repetitions, or minutes for idle; 0: the figure's own")
    asked = parser.parse_args()
    if unknown := set(asked.figure) - FIGURES.keys():
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    sys.path[1:1] = [str(Path(__file__).parent.parent / name) for name in ("tests", "tools")]
    for name in asked.figure or FIGURES:
        importlib.import_module(name).main(asked.runs)
        print(flush=True)


if __name__ == "__main__":
    main()
