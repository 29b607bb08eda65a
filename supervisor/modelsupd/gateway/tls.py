"""TLS by certificate files, which are read again when they have been renewed."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from modelsupd.errors import ModelsupdError

log = structlog.get_logger("gateway.tls")

#: How often it is looked whether the files have changed.
LOOK_EVERY_S = 10.0


class Certificate:
    """A certificate and its private key, as connections use them that begin now."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read both. Raises ModelsupdError."""
        self._files = (certificate, key)
        self._seen = self._look()
        self._trouble = ""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)

    def refresh(self) -> bool:
        """Take over renewed files, and tell whether there were some. What cannot be used leaves things as they are."""
        seen = self._look()
        if seen == self._seen:
            return False
        try:
            # A context of its own first: half of a renewal, a key that fits no certificate, must not be taken over.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(self.context)
        except ModelsupdError as error:
            if str(error) != self._trouble:
                log.warning("the renewed certificate is not used", why=str(error))
            self._trouble = str(error)
            return False
        self._seen, self._trouble = seen, ""
        log.info("the certificate was renewed", file=str(self._files[0]))
        return True

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._files
        try:
            # Without a password given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ModelsupdError(
                f"cannot use the certificate '{certificate}' with the key '{key}': {why.lower()}"
            ) from error

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._files)


def _no_password() -> str:
    raise ValueError("the key needs a password, which nobody is there to give")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
