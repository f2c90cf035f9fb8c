"""Who may connect, and how much one connection may ask for."""

from __future__ import annotations

import hmac
import ssl
import time
from pathlib import Path

from wamserve.action_codec.errors import RequestError


class Tokens:
    """Accepted secrets; none means everybody may connect."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        self._secrets = tuple(secret.encode() for secret in secrets)

    @classmethod
    def from_file(cls, path: Path) -> Tokens:
        """One token per line; empty lines and lines that start with # are skipped."""
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"the token file cannot be read: {path}", seen=str(error)) from error
        secrets = tuple(line for line in lines if line and not line.startswith("#"))
        if not secrets or min(map(len, secrets)) < 8:
            raise RequestError(
                "the token file has no usable token",
                seen=path,
                expected="one token of at least 8 characters per line",
                fix=f"openssl rand -hex 32 > {path}",
            )
        return cls(secrets)

    @property
    def required(self) -> bool:
        return bool(self._secrets)

    def accepts(self, authorization: str | None) -> bool:
        """True for `Api-Key SECRET` (openpi) and `Bearer SECRET` (RoboLab). Every secret is compared in
        full, so that the time taken says nothing about any of them."""
        if not self._secrets:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        matches = [hmac.compare_digest(given.strip().encode(), secret) for secret in self._secrets]
        return any(matches) and scheme.lower() in ("api-key", "bearer")


class RateLimit:
    """A token bucket: `rate` requests per second on average, twice as many at once. 0: no limit."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._burst = max(1.0, 2 * rate)
        self._level = self._burst
        self._filled = time.monotonic()

    def take(self) -> bool:
        """Counts one request; False when it is one too many."""
        if not self.rate:
            return True
        now = time.monotonic()
        self._level = min(self._burst, self._level + self.rate * (now - self._filled))
        self._filled = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS 1.2 or later with this certificate chain; None where neither file is given."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise RequestError("TLS needs both files", expected="--tls-cert and --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise RequestError(
            "the TLS certificate cannot be loaded", seen=f"{certificate}, {key}: {error}"
        ) from error
    return context


def exposure_warning(host: str, tokens: Tokens, tls: bool) -> str | None:
    """What a host other than loopback exposes, in words; None when nothing is."""
    if host in ("127.0.0.1", "::1", "localhost"):
        return None
    if not tokens.required:
        return (
            f"WARNING: {host} is reachable from the network and no token is set: anybody there can use this "
            "GPU, see what the policy is asked and read its actions. Use --token-file, or --host 127.0.0.1."
        )
    if not tls:
        return f"WARNING: {host} without TLS: the token and the camera images cross the network in the clear."
    return None
