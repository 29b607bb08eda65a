"""What the mock hub does wrong on demand. Each fault is put under a path in `MockHub.faults`, also while requests run.

`times` says how many requests of the kind it spoils, None all of them; `method` which kind: GET, HEAD or both ("").
`only_from` spoils only those that ask for bytes from that offset on, so that one of several ranges can be chosen.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Fault:
    """What all have in common."""

    times: int | None = None
    method: str = "GET"
    only_from: int | None = None

    def concerns(self, method: str, start: int | None = None) -> bool:
        """Tell whether it spoils a request of this method, for bytes from `start` on."""
        return (
            self.times != 0
            and self.method in ("", method)
            and (self.only_from is None or (start is not None and start >= self.only_from))
        )


@dataclass(kw_only=True)
class Drop(Fault):
    """Send so many bytes of the body, then reset the connection."""

    after: int


@dataclass(kw_only=True)
class End(Fault):
    """Send so many bytes of the body, then close the connection in an orderly way."""

    after: int


@dataclass(kw_only=True)
class Stall(Fault):
    """Send so many bytes of the body, then nothing more, with the connection open until the hub closes."""

    after: int


@dataclass(kw_only=True)
class Pause(Fault):
    """Send so many bytes of the body, and the rest once `go` is set, for all requests that it holds."""

    after: int = 0
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(kw_only=True)
class Drip(Fault):
    """Send slowly: `piece` bytes every `every_s` seconds."""

    piece: int
    every_s: float = 0.01


@dataclass(kw_only=True)
class Silence(Fault):
    """Take the request and answer nothing at all until the hub closes."""


@dataclass(kw_only=True)
class Leave(Fault):
    """Answer, and close the connection only when the next request has come over it, as who was about to close it."""


@dataclass(kw_only=True)
class Status(Fault):
    """Answer with this status; `code` and `message` are the hub's X-Error-Code and X-Error-Message."""

    status: int
    code: str = ""
    message: str = ""
    retry_after: str | None = None
    body: bytes = b"{}"


@dataclass(kw_only=True)
class Length(Fault):
    """Claim a Content-Length that is wrong by `by`: negative is too short, positive too long."""

    by: int


@dataclass(kw_only=True)
class Wrong(Fault):
    """Send the right number of bytes, one of them with a bit flipped: the one at `at` in the file."""

    at: int


@dataclass(kw_only=True)
class NoRange(Fault):
    """Ignore Range: 200 and the whole file."""


@dataclass(kw_only=True)
class WrongRange(Fault):
    """Answer 206 for a range that starts `by` bytes from the one asked for; `total_by` makes the size wrong."""

    by: int = 0
    total_by: int = 0


@dataclass(kw_only=True)
class OtherETag(Fault):
    """Serve under another ETag, as if the file had changed; If-Range with the old one is then answered by 200."""

    etag: str = "0" * 40


@dataclass(kw_only=True)
class Truncated(Fault):
    """Cut the body after so many bytes, with a Content-Length that fits what is left."""

    after: int


@dataclass(kw_only=True)
class Html(Fault):
    """Answer 200 with a page, as a captive portal does."""

    body: bytes = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>"


@dataclass(kw_only=True)
class Redirect(Fault):
    """Redirect to this address; `{path}` in it stands for the path that was asked for (so `{path}` alone is a loop)."""

    to: str
    status: int = 302
    headers: dict[str, str] = field(default_factory=dict)
