"""Certificates: what cannot be used is said, and what is renewed is taken over once it is whole."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from modelsupd.errors import ModelsupdError
from modelsupd.gateway.tls import Certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")


def certify(folder: Path, subject: str, *secrecy: str) -> tuple[Path, Path]:
    """Make a certificate and its key, which is not encrypted unless `secrecy` says so in openssl's words."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2",
         "-subj", f"/CN={subject}", "-out", certificate, "-keyout", key, *(secrecy or ("-nodes",))],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def name_shown(server: ssl.SSLContext) -> bytes:
    """Return the certificate that a client gets, by a handshake in memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    done = False
    while not done:
        done = True
        for each in (client, other):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                done = False
    return client.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_is_taken_over_when_its_key_is_there_too(tmp_path: Path) -> None:
    certificate, key = certify(tmp_path / "a", "first")
    used = Certificate(certificate, key)
    assert b"first" in name_shown(used.context)
    assert not used.refresh()
    new_certificate, new_key = certify(tmp_path / "b", "second")
    new_certificate.replace(certificate)
    assert not used.refresh()
    assert b"first" in name_shown(used.context)
    new_key.replace(key)
    assert used.refresh()
    assert b"second" in name_shown(used.context)
    certificate.unlink()
    assert not used.refresh()
    assert b"second" in name_shown(used.context)


def test_what_cannot_be_used_is_said_and_nobody_is_asked_for_a_password(tmp_path: Path) -> None:
    certificate, key = certify(tmp_path / "a", "a")
    _, other = certify(tmp_path / "b", "b")
    _, locked = certify(tmp_path / "c", "c", "-passout", "pass:secret-word")
    for given, words in (
        ((certificate, tmp_path / "none"), "no such file"),
        ((certificate, other), "mismatch"),
        ((key, key), "cannot use the certificate"),
        ((certificate, locked), "password"),
    ):
        with pytest.raises(ModelsupdError, match=words) as caught:
            Certificate(*given)
        assert str(caught.value).startswith("cannot use the certificate")


def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path) -> None:
    context = Certificate(*certify(tmp_path / "a", "a")).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
