"""Serves: one OpenAI-compatible address for every model on the host, in a process of its own.

Three rules:

1. Bytes of an engine's answer reach the client as they are. What we add stands in headers of our own, or, when an
   engine dies in the middle of a stream, in exactly one final error event in the shape of the API that was called.
2. Nothing here knows the fleet. It works from the last routing table that the daemon sent, and goes on with it for as
   long as the daemon is away.
3. Every wait, buffer and queue has a limit that the configuration names, and whoever meets one is told which.

Glossary:

- *exchange*: one request of a client and its answer.
- *run*: an engine's process that may be routed to; *suspect* when it failed here a moment ago.
- *table*: which models there are, in what state, and their runs; made by the daemon, replaced whole or model by model.
- *traffic*: what was delivered by each run; told to the daemon, which takes it as evidence of life, or of its absence.
- *admission*: how many requests a model works on at once, how many wait, and for how long.
"""
