"""A small Hub on loopback: what `huggingface_hub` asks of the real one to create, fill and read a model repository.

A data set's repository is read alike; a test puts its files there itself.
"""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

TOKEN = "hf_local"


class LocalHub(ThreadingHTTPServer):
    """Repositories live in memory: `repositories[id]` is a list of commits, each a dictionary of path to bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.cut_uploads = 0  # so many of the next large files stop half-way


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if match := re.fullmatch(r"/api/datasets/([\w.-]+/[\w.-]+)/paths-info/\w+", self.path):
            files = self.server.repositories.get(match[1], [{}])[-1]
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            return self._answer(_tree({name: content for name, content in files.items() if name in wanted}))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            repository = f"tester/{json.loads(body)['name'].split('/')[-1]}"
            url = {"url": f"{self.server.endpoint}/{repository}", "id": repository}
            if repository in self.server.repositories:
                return self._answer(url | {"error": "You already created this model repo"}, 409)
            self.server.repositories[repository] = [{}]
            return self._answer(url)
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/(\w+)", self.path):
            large = (".safetensors", ".bin", ".model")
            return self._answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        if self.path.endswith(".git/info/lfs/objects/batch"):
            answer = []
            for wanted in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.server.endpoint}/objects/{wanted['oid']}"}}
                answer.append(wanted | ({} if wanted["oid"] in self.server.objects else {"actions": upload}))
            return self._answer({"transfer": "basic", "objects": answer})
        if match := re.fullmatch(r"/api/models/(.+)/commit/(\w+)", self.path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        return self._answer({"error": f"no {self.path}"}, 404)

    def _commit(self, repository: str, operations: list[dict]):
        files = dict(self.server.repositories[repository][-1])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        self.server.repositories[repository].append(files)
        commit = _commit_id(files)
        self._answer(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.server.endpoint}/{repository}/commit/{commit}"}
        )

    def do_PUT(self):
        length = int(self.headers["Content-Length"])
        if self.server.cut_uploads:
            self.server.cut_uploads -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.close()
        content = self.rfile.read(length)
        oid = self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(content).hexdigest() != oid:
            return self._answer({"error": "checksum"}, 400)
        self.server.objects[oid] = content
        return self._answer({})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(self.path.split("?")[0])
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self._answer({"name": "tester", "type": "user", "orgs": []} if known else {}, 200 if known else 401)
        match = re.fullmatch(r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/\w+)?(/.*)?", path)
        resolved = re.fullmatch(r"(?:/datasets)?/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", path)
        commits = self.server.repositories.get((match or resolved or [None, None])[1])
        if commits is None:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = commits[-1]
        if resolved:
            content = files.get(resolved[2])
            headers = {"X-Repo-Commit": _commit_id(files)}
            if content is None:
                return self._answer({"error": "no entry"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
            headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
            if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(part[1]), int(part[2] or len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                return self._send(content[start : end + 1], 206, headers)
            return self._send(content, 200, headers)
        if match[2] == "tree":
            folder = f"{match[3] or ''}/"
            below = {name: content for name, content in files.items() if f"/{name}".startswith(folder)}
            if "recursive=true" in self.path.lower():
                return self._answer(_tree(below))
            parts = {name: f"/{name}".removeprefix(folder).split("/") for name in below}
            inside = {f"{folder}{first}"[1:] for first, *others in parts.values() if others}
            answer = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(inside)]
            return self._answer(answer + _tree({name: below[name] for name in below if len(parts[name]) == 1}))
        siblings = [{"rfilename": name} for name in files]
        return self._answer(
            {"id": match[1], "modelId": match[1], "sha": _commit_id(files), "private": False, "siblings": siblings}
        )

    def _answer(self, content, status: int = 200, headers: dict | None = None):
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content: bytes, status: int, headers: dict):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tree(files: dict[str, bytes]) -> list[dict]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
    ]


def _commit_id(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
