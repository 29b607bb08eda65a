"""Finds what an engine loads: sources, hub download, sha256, GGUF and safetensors structure, lock file.

Two rules:

1. An engine is started on nothing but files that were found whole and verified just now, by `look.look`, which reads
   the disk and asks nobody. Whoever fetched or hashed is not believed: what was done is looked at again.
2. Nothing is visible under its final name before it is verified, and nothing that turned out wrong is deleted: it is
   moved aside.

Glossary:

- *source*: where weights come from, as declared: `hf:ORG/REPO[@REVISION][/FILE]`, or a local file or folder.
- *part*: one source of a model and the role that it plays: the weights, a multimodal projector, a draft model, a LoRA.
- *pin*: one file of a source with its size and digest. The *lock* pins sources in models.lock, for people; a *record*
  is the same for what was resolved without a lock, kept in the state directory.
- *blob*: a file in the hub's cache, named by its digest: sha256, or git's sha1 for what is small.
- *verdict*: that a file of this (device, inode, size, mtime) was found to be whole; kept, so that an unchanged file
  is not hashed again.
- *claim*: how much memory a model will take.
"""
