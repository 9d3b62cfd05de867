"""A stand-in of the Hub on this machine: the endpoints that uploading a folder and opening it by id use, in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


TOKEN, USER = "hf_token_of_a_test", "someone"
LARGE = (".safetensors", ".png")


class Hub(ThreadingHTTPServer):
    """`repositories`: id -> {"private": bool, "files": {path: bytes}}; `requests`: (method, path, token) in their order."""

    daemon_threads = True

    def __init__(self, max_failures=0):
        super().__init__(("127.0.0.1", 0), Endpoints)
        self.repositories, self.objects, self.requests, self.failures_left = {}, {}, [], max_failures

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Endpoints(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, value=None, body=None, **headers):
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        return self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def read(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self):
        hub, body = self.server, self.read()
        path = self.path.split("?")[0].replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.requests.append((self.command, path, token))
        if self.command == "PUT":
            name = path.rsplit("/", 1)[1]
            if hashlib.sha256(body).hexdigest() != name:
                return self.answer(400, {"error": "damaged on the way"})
            hub.objects[name] = body
            return self.answer(200, {})
        if self.command == "POST" and token != TOKEN:
            return self.refuse(401, "Unauthorized", "Invalid user token.")
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": USER, "type": "user"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        found = re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(preupload|commit|revision|tree)/\w+)?", path)
        found = found or re.fullmatch(r"/(\w+/[\w.-]+)(?:\.git/info/lfs/objects/(batch))", path)
        if re.search("/tree/\\w+/", path):
            return self.refuse(404, "EntryNotFound", "No such folder")
        if found is None:
            return self.resolve(path, token)
        name, what = found.groups()
        if name not in hub.repositories:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        return {"preupload": self.preupload, "batch": self.batch, "commit": self.commit}.get(what, self.info)(name, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, wanted):
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, {"private": is_private, "files": {}})
        return self.answer(status, {"url": f"{self.server.address}/{name}", "name": name})

    def preupload(self, name, body):
        mode = lambda path: "lfs" if path.endswith(LARGE) else "regular"
        files = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in json.loads(body)["files"]]
        return self.answer(200, {"files": files})

    def batch(self, name, body):
        if self.server.failures_left:
            self.server.failures_left -= 1
            return self.answer(503, {"error": "busy"})
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.address}/objects/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/json")

    def commit(self, name, body):
        for line in map(json.loads, body.decode().splitlines()):
            value, files = line["value"], self.server.repositories[name]["files"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        return self.answer(200, {"commitOid": "1" * 40, "commitUrl": f"{self.server.address}/{name}/commit/{'1' * 40}"})

    def info(self, name, body):
        repository = self.server.repositories[name]
        if "/tree/" in self.path:
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repository["files"].items()
            ]
            return self.answer(200, tree)
        siblings = [{"rfilename": path} for path in repository["files"]]
        return self.answer(
            200, {"id": name, "sha": "1" * 40, "private": repository["private"], "siblings": siblings, "tags": []}
        )

    def resolve(self, path, token):
        found = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/\w+/(.+)", path)
        repository = found and self.server.repositories.get(found[1])
        if repository is None or (repository["private"] and token != TOKEN):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        content = repository["files"].get(found[2])
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, body=content, ETag=tag, X_Repo_Commit="1" * 40, Content_Type="application/octet-stream")


@contextmanager
def hub_stand_in(**options):
    """A running `Hub`, and the environment in which huggingface_hub talks to it."""
    with Hub(**options) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub, {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
        finally:
            hub.shutdown()
            thread.join()
