"""DECIDES. The core knows phases and events; it has no clock, process, file, socket, log or randomness.

Two rules:

1. Everything that happens enters `replica.step` as an event, and everything to be done leaves it as an action. There
   is no other way in or out, so a test that gives events and reads actions has seen all of it.
2. Time is an argument. There are no timers: `replica.deadline` says when `Ticked` is due, and asking twice is harmless.

Glossary:

model     a `[models.NAME]` entry, what clients ask for
replica   one supervised copy of a model: `qwen/0`
run       one process of a replica, numbered: `qwen/0#7`
phase     what is the case                          want     what is wanted: up or down
event     what happened, past tense                 action   what to do, imperative
probe     one health request: start, alive, generation, drain
cause     why a run is being ended: deliberate, or by its own fault
fault     a failure of a run: class, words, and how long it had been ready
pulse     what is known of the life of a run
digest    changes when the engine would be started differently
inputs    fingerprint of weights and binary
claim     what a replica that waits wants of GPUs    hold     what its run has been given, until nothing of it is left
card      a GPU and what was last seen on it
"""
