"""What MONAI Label asks of a Keycloak realm: its public key, and tokens for users with the right password."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ROLES = {"admin": ["monailabel-admin", "monailabel-user"], "user": ["monailabel-user"]}
PASSWORD = "secret"


@contextmanager
def login_realm():
    """Serve a realm with the users of `ROLES`; give its address and what makes a user's token."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def token_for(user, algorithm="RS256"):
        payload = {"preferred_username": user, "realm_access": {"roles": ROLES[user]}, "exp": time.time() + 3600}
        return jwt.encode(payload, None if algorithm == "none" else key, algorithm=algorithm)

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self):
            token = f"http://{self.headers['Host']}/token"
            self.answer(200, {"public_key": base64.b64encode(public).decode(), "token_endpoint": token})

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            user = form["username"][0]
            if user not in ROLES or form["password"] != [PASSWORD]:
                return self.answer(401, {"error": "invalid_grant"})
            return self.answer(200, {"access_token": token_for(user), "token_type": "bearer"})

        def answer(self, status, content):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/realms/monailabel", token_for
    finally:
        server.shutdown()
        server.server_close()
