"""A registry in memory that does as it is told, lies included; images for it."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import re
import socket
import ssl
import threading
import urllib.parse

import engine
from image_help import digest, gz, oci_parts


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status, code, message="", **headers):
        said = {"code": code, "message": message or code.lower()}
        self.reply(status, json.dumps({"errors": [said]}).encode(), **headers)

    def serve(self):
        registry = self.server.registry
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = self.rfile.read(length)
        registry.log.append((self.command, self.path, dict(self.headers)))
        for fault in list(registry.faults):
            if fault(self):
                return
        url = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(url.query)
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if method == self.command and match:
                act(self, registry, *match.groups())
                return
        self.error(404, "UNSUPPORTED")

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = serve


def get_manifest(self, registry, name, ref):
    found = registry.manifests.get((name, ref))
    if found is None:
        self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        return
    data, media = found
    self.reply(200, data, Content_Type=media, Docker_Content_Digest=digest(data))


def put_manifest(self, registry, name, ref):
    media = self.headers["Content-Type"]
    registry.manifests[name, ref] = registry.manifests[name, digest(self.sent)] = self.sent, media
    self.reply(201, Location="/")


def get_blob(self, registry, name, hex):
    data = registry.blobs.get("sha256:" + hex)
    if data is None or ("sha256:" + hex) in registry.hidden.get(name, ()):
        self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return
    asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
    if asked and registry.has_ranges:
        start = int(asked[1])
        self.reply(206, data[start:],
                   Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        return
    self.reply(200, data)


def post_upload(self, registry, name):
    source = self.query.get("from", [""])[0]
    wanted = self.query.get("mount", [""])[0]
    if wanted in registry.blobs and source and registry.mounts:
        registry.hidden.get(name, set()).discard(wanted)
        self.reply(201, Location=f"/v2/{name}/blobs/{wanted}")
        return
    upload = str(len(registry.uploads))
    registry.uploads[upload] = b""
    self.reply(202, Location=f"/v2/{name}/blobs/uploads/{upload}?state=x", Range="0-0")


def patch_upload(self, registry, name, upload):
    registry.uploads[upload] += self.sent
    self.reply(202, Location=f"/v2/{name}/blobs/uploads/{upload}?state=y")


def put_upload(self, registry, name, upload):
    data = registry.uploads.pop(upload) + self.sent
    wanted = self.query["digest"][0]
    if digest(data) != wanted:
        self.error(400, "DIGEST_INVALID")
        return
    registry.blobs[wanted] = data
    registry.hidden.get(name, set()).discard(wanted)
    self.reply(201, Location="/")


def get_tags(self, registry, name):
    tags = sorted(tag for repository, tag in registry.manifests
                  if repository == name and ":" not in tag)
    if not tags:
        self.error(404, "NAME_UNKNOWN", "repository name not known to registry")
        return
    last = self.query.get("last", [""])[0]
    page = [tag for tag in tags if tag > last][:2]
    more = {}
    if page and page[-1] != tags[-1]:
        more["Link"] = f'</v2/{name}/tags/list?last={page[-1]}>; rel="next"'
    self.reply(200, json.dumps({"name": name, "tags": page}).encode(), **more)


def get_base(self, registry):
    self.reply(200, b"{}")


ROUTES = (
    ("GET", r"/v2/", get_base),
    ("GET", r"/v2/(.+)/manifests/([^/]+)", get_manifest),
    ("PUT", r"/v2/(.+)/manifests/([^/]+)", put_manifest),
    ("GET", r"/v2/(.+)/blobs/sha256:([0-9a-f]+)", get_blob),
    ("HEAD", r"/v2/(.+)/blobs/sha256:([0-9a-f]+)", get_blob),
    ("POST", r"/v2/(.+)/blobs/uploads/", post_upload),
    ("PATCH", r"/v2/(.+)/blobs/uploads/([^/]+)", patch_upload),
    ("PUT", r"/v2/(.+)/blobs/uploads/([^/]+)", put_upload),
    ("GET", r"/v2/(.+)/tags/list", get_tags),
)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that go away are what is tried here."""


class Registry:
    """`faults` are functions of the handler: who returns True has answered in its place."""

    def __init__(self, context=None):
        self.blobs, self.manifests, self.uploads, self.hidden = {}, {}, {}, {}
        self.faults, self.log = [], []
        self.has_ranges = self.mounts = True
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.registry = self
        self.scheme = "http"
        if context is not None:
            self.scheme = "https"
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{self.scheme}://{self.host}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, name, tag, layers, packed=gz, **more):
        """An image of plain layers, packed; the digest of its manifest."""
        files, descriptor = oci_parts(layers, packed, **more)
        for path, data in files.items():
            self.blobs["sha256:" + path.rpartition("/")[2]] = data
        data = self.blobs[descriptor["digest"]]
        return self.manifest(name, tag, data, descriptor["mediaType"])

    def manifest(self, name, tag, data, media=engine.MEDIA_MANIFEST):
        self.manifests[name, tag] = self.manifests[name, digest(data)] = data, media
        return digest(data)

    def name(self, text):
        return engine.reference_parse(f"{self.host}/{text}")

    def asked(self, method, part):
        return [path for verb, path, _ in self.log if verb == method and part in path]


def challenge(realm, scope=True):
    """A fault that wants a token from `realm` for everything below /v2/."""

    def fault(handler):
        if handler.headers.get("Authorization", "").startswith("Bearer good"):
            return False
        if handler.path.startswith("/token"):
            return False
        handler.error(401, "UNAUTHORIZED", "authentication required",
                      WWW_Authenticate=f'Bearer realm="{realm}",service="test"')
        return True

    return fault


def basic(user, password):
    """A fault that wants a user and a password."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def fault(handler):
        if handler.headers.get("Authorization") == wanted:
            return False
        handler.error(401, "UNAUTHORIZED", "authentication required",
                      WWW_Authenticate='Basic realm="test"')
        return True

    return fault


def once(fault):
    """The fault, for one request only."""
    left = [1]

    def faulty(handler):
        return bool(left and fault(handler) and left.pop())

    return faulty


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def registry_running(context=None):
    registry = Registry(context)
    try:
        yield registry
    finally:
        registry.close()


def server_context(cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
