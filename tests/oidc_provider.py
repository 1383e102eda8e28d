"""An OpenID provider: a real key, its description over HTTP, and tokens signed with it."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

KEY_ID = "key-1"
AUDIENCE = "storyrec-features"


@dataclass(frozen=True)
class Provider:
    """What it signs with, and where it says so."""

    discovery: str
    key: rsa.RSAPrivateKey

    def token(
        self, *roles: str, lifetime: float = 600, audience: str = AUDIENCE, key: rsa.RSAPrivateKey | None = None
    ) -> str:
        """A token that names roles."""
        now = time.time()
        claims = {"preferred_username": "somebody", "roles": list(roles), "aud": audience}
        claims |= {"iat": now, "exp": now + lifetime}
        return jwt.encode(claims, key or self.key, algorithm="RS256", headers={"kid": KEY_ID})


@contextmanager
def oidc_provider() -> Iterator[Provider]:
    """A provider on a free port of this machine."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            root = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            about = {
                "issuer": root,
                "authorization_endpoint": f"{root}/authorize",
                "token_endpoint": f"{root}/token",
                "jwks_uri": f"{root}/keys",
            }
            keys = {"keys": [public | {"kid": KEY_ID, "use": "sig", "alg": "RS256"}]}
            content = json.dumps(keys if self.path == "/keys" else about).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Provider(f"http://127.0.0.1:{server.server_port}/.well-known/openid-configuration", key)
        finally:
            server.shutdown()
