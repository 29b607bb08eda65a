"""The parent of one engine, and the warm process that forks such parents.

Rules of this package:

1. Standard library only, and everything is imported at the start: the code on disk may be replaced under a process
   that runs for months.
2. One thread. The parent-death signal that ends the engine with its shim is tied to the thread that forked it.
3. Nothing here decides when an engine ends. The daemon does, by signals; only the backstop acts when no daemon follows.
"""
