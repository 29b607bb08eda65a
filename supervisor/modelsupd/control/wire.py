"""What server and client of the admin API agree on. JSON over HTTP/1.1 on a unix socket.

| request | answer |
|---|---|
| GET /v1/version | `{"version", "pid", "state_dir", "runtime_dir"}` |
| GET /v1/status | the document of `modelsupd status --json` |
| GET /v1/targets?target= | `{"replicas": [name, …]}`: what is meant by a model, an alias or a replica |
| GET /v1/show?target=&reveal= | `{"replicas": [{"name", "model", "argv", "env", "masked", "spec"}, …]}` |
| GET /v1/events?after=&follow=&target= | journal records, one a line, endless with `follow=1` |
| POST /v1/command `{"verb", "target"}` | `{"replicas": [name, …]}`, once it is on disk |
| GET /v1/gpus | `{"gpus": [as in the status document], "notes": [sentence, …]}`, looked at anew |
| POST /v1/gpu `{"verb", "target", "why"}` | `{"uuid": …}`: `quarantine` or `release` a GPU |
| POST /v1/reload | `{"changes": [sentence, …]}` |

An error is `{"error": {"message": …}}`: 400 for a request that makes no sense, 403 for a foreign user, 404 for an
unknown target or path, 409 for what is refused as things are, 422 for a configuration that cannot be used, 503 for
what is refused while the journal cannot be written.
"""

from __future__ import annotations

#: The socket's name in the runtime directory.
SOCKET_NAME = "control.sock"

#: What an operator may ask of replicas.
VERBS = ("start", "stop", "restart")

#: The same of GPUs.
GPU_VERBS = ("quarantine", "release")
