"""A small Hugging Face Hub on loopback, for the real client and the real timm to talk to.

It speaks what `huggingface_hub` and timm ask for models: create, info, tree, preupload, LFS batch and upload, commit,
pull request, resolve with redirect, etag and range; and it can misbehave by a list of faults.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = 'me'
TOKENS = {'hf_writer': 'write', 'hf_reader': 'read'}


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD path` the pattern is found in, the first `times` of them.

    The kinds: a status code in place of an answer; `drop before`, `drop in` and `drop after` close the connection
    before the request is read, with half of the answer sent, and after all has been done but nothing answered;
    `truncate` and `corrupt` spoil the bytes of the answer, and `slow` waits before it.
    """

    pattern: str
    kind: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Commit:
    """A commit: its files by path, each with its bytes and whether LFS stores it."""

    oid: str
    title: str
    files: dict[str, tuple[bytes, bool]]


@dataclass
class Repo:
    """A model repository: branches and pull requests, each a list of commits."""

    private: bool
    refs: dict[str, list[Commit]]

    def find(self, revision: str) -> Commit | None:
        """Return the head of a ref, or a commit by its oid."""
        if revision in self.refs:
            return self.refs[revision][-1]
        return next((c for commits in self.refs.values() for c in commits if c.oid == revision), None)


class HubServer(ThreadingHTTPServer):
    """The server; `repos`, `uploads` and `requests` are what a test looks at, `faults` what it sets."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_activate()
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        # Where to stop for good: a pattern, what to set when a request is there, and what to wait for.
        self.stop_at: tuple[str, threading.Event, threading.Event] | None = None

    @property
    def url(self) -> str:
        """The endpoint, for HF_ENDPOINT."""
        return 'http://{}:{}'.format(*self.socket.getsockname())

    def take_fault(self, request: str) -> Fault | None:
        """Return the fault that is due for a request, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that a fault or a client broke."""


@contextlib.contextmanager
def running(listener: socket.socket) -> Iterator[HubServer]:
    """Run a server in a thread, on a socket that is bound already."""
    server = HubServer(listener)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Refused(Exception):
    """An answer that is an error of the Hub."""

    def __init__(self, status: int, message: str, code: str = '') -> None:
        super().__init__(message)
        self.status, self.code = status, code


def git_oid(content: bytes) -> str:
    """Return the name that git gives a file's content."""
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    wbufsize = -1  # an answer in one packet, for which nobody waits
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *arguments: object) -> None:
        """Write nothing to the terminal."""

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self) -> None:
        request = f'{self.command} {unquote(self.path)}'
        self.server.requests.append(request)
        self.fault = self.server.take_fault(request)
        kind = self.fault.kind if self.fault else None
        if kind == 'drop before':
            self.drop()
            return
        if self.server.stop_at and re.search(self.server.stop_at[0], request):
            _, reached, release = self.server.stop_at
            reached.set()
            release.wait(3600)  # a hang, not slowness
            self.drop()
            return
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if kind == 'slow':
            threading.Event().wait(0.3)  # not time.sleep, which tests replace
        try:
            if isinstance(kind, int):
                raise Refused(kind, 'the server misbehaves')
            answer = self.answer(body)
        except Refused as error:
            headers = {'X-Error-Message': str(error), **({'X-Error-Code': error.code} if error.code else {})}
            headers |= self.fault.headers if self.fault else {}
            self.send(error.status, json.dumps({'error': str(error)}).encode(), headers)
            return
        if kind == 'drop after':
            self.drop()
        elif isinstance(answer, tuple):
            self.send(*answer)
        else:
            self.send(200, json.dumps(answer).encode(), {'Content-Type': 'application/json'})

    def drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        kind = self.fault.kind if self.fault else None
        size = headers.pop('Content-Length', str(len(content)))
        if kind == 'corrupt' and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        if kind == 'truncate':  # a whole answer, but of a shorter file
            content = content[: len(content) // 2]
            size = str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', size)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content[: len(content) // 2] if kind == 'drop in' else content)
        if kind == 'drop in':
            self.wfile.flush()
            self.drop()

    # What the Hub answers.

    def answer(self, body: bytes) -> object:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        routes = {
            'GET /api/whoami-v2': self.whoami,
            'POST /api/repos/create': self.create,
            'POST /api/validate-yaml': self.validate_yaml,
            r'POST /api/models/([^/]+/[^/]+)/preupload/(.+)': self.preupload,
            r'POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch': self.lfs_batch,
            r'PUT /lfs/([0-9a-f]{64})': self.lfs_upload,
            r'POST /lfs/verify': self.lfs_verify,
            r'POST /api/models/([^/]+/[^/]+)/commit/(.+)': self.commit,
            r'POST /api/models/([^/]+/[^/]+)/branch/(.+)': self.branch,
            r'GET /api/models/([^/]+/[^/]+)/tree/([^/]+)/?': self.tree,
            r'GET /api/models/([^/]+/[^/]+)(?:/revision/(.+))?': self.info,
            r'(?:GET|HEAD) /([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)': self.resolve,
            r'(?:GET|HEAD) /cdn/([0-9a-f]{64})': self.cdn,
        }
        for pattern, route in routes.items():
            if match := re.fullmatch(pattern, f'{self.command} {path}'):
                return route(*match.groups(), body=body, query=query)
        raise Refused(404, f'no such page: {self.command} {path}')

    def role(self) -> str | None:
        header = self.headers.get('Authorization')
        if header is None:
            return None
        role = TOKENS.get(header.removeprefix('Bearer '))
        if role is None:
            raise Refused(401, 'Invalid credentials in Authorization header')
        return role

    def repo(self, name: str, write: bool = False) -> Repo:
        role, repo = self.role(), self.server.repos.get(name)
        if repo is None or (repo.private and role is None):
            raise Refused(401 if role is None else 404, 'Repository not found', 'RepoNotFound')
        if write and (role != 'write' or not name.startswith(f'{USER}/')):
            raise Refused(403 if role else 401, 'You have no write access to this repository')
        return repo

    def head(self, name: str, revision: str | None, write: bool = False) -> Commit:
        commit = self.repo(name, write).find(revision or 'main')
        if commit is None:
            raise Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return commit

    def whoami(self, body, query):
        role = self.role()
        if role is None:
            raise Refused(401, 'Invalid username or password.')
        return {
            'type': 'user',
            'name': USER,
            'orgs': [],
            'auth': {'accessToken': {'displayName': 'test', 'role': role}},
        }

    def create(self, body, query):
        role = self.role()
        wanted = json.loads(body)
        name = f'{wanted.get("organization") or USER}/{wanted["name"]}'
        if role != 'write' or not name.startswith(f'{USER}/'):
            raise Refused(403 if role else 401, 'You have no right to create a model under this namespace')
        with self.server.lock:
            if name in self.server.repos:
                raise Refused(409, 'You already created this model repo')
            first = Commit(hashlib.sha1(name.encode()).hexdigest(), 'initial commit', {'.gitattributes': (b'', False)})
            private = wanted.get('visibility') == 'private' or wanted.get('private') is True
            self.server.repos[name] = Repo(private, {'main': [first]})
        return {'url': f'{self.server.url}/{name}', 'name': name, 'id': name}

    def validate_yaml(self, body, query):
        text = json.loads(body)['content']
        match = re.match(r'---\n(.*?)\n---(\n|$)', text, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            content = json.dumps({'errors': [{'message': str(error)}], 'warnings': []}).encode()
            return 400, content, {'Content-Type': 'application/json'}
        warnings = [] if isinstance(data, dict) else [{'message': 'empty or missing yaml metadata'}]
        return {'errors': [], 'warnings': warnings}

    def preupload(self, name, revision, body, query):
        pull_request = bool(query.get('create_pr'))
        files = self.head(name, revision, write=not pull_request).files
        return {
            'files': [
                {
                    'path': file['path'],
                    'uploadMode': 'lfs' if file['path'].endswith(('.safetensors', '.png')) else 'regular',
                    'shouldIgnore': False,
                    'oid': self.oid(*files[file['path']]) if file['path'] in files else None,
                }
                for file in json.loads(body)['files']
            ]
        }

    @staticmethod
    def oid(content: bytes, lfs: bool) -> str:
        return hashlib.sha256(content).hexdigest() if lfs else git_oid(content)

    def lfs_batch(self, name, body, query):
        self.repo(name)
        if self.role() is None:
            raise Refused(401, 'Invalid username or password.')
        objects = []
        for wanted in json.loads(body)['objects']:
            entry = {'oid': wanted['oid'], 'size': wanted['size'], 'authenticated': True}
            if wanted['oid'] not in self.server.uploads:
                upload = {'href': f'{self.server.url}/lfs/{wanted["oid"]}'}
                entry['actions'] = {'upload': upload, 'verify': {'href': f'{self.server.url}/lfs/verify'}}
            objects.append(entry)
        return {'transfer': 'basic', 'objects': objects}

    def lfs_upload(self, oid, body, query):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, 'the content is not that of its name')
        self.server.uploads[oid] = body
        return {}

    def lfs_verify(self, body, query):
        wanted = json.loads(body)
        if len(self.server.uploads.get(wanted['oid'], b'')) != wanted['size']:
            raise Refused(404, 'no such upload')
        return {}

    def commit(self, name, revision, body, query):
        pull_request = bool(query.get('create_pr'))
        repo = self.repo(name, write=not pull_request)
        if self.role() is None:
            raise Refused(401, 'Invalid username or password.')
        with self.server.lock:
            parent = repo.find(revision)
            if parent is None:
                raise Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
            files, title = dict(parent.files), ''
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry['value']
                if entry['key'] == 'header':
                    title = value['summary']
                    if value.get('parentCommit', parent.oid) != parent.oid:
                        raise Refused(412, 'A commit has happened since. Please refresh and try again.')
                elif entry['key'] == 'file':
                    files[value['path']] = (base64.b64decode(value['content']), False)
                elif entry['key'] == 'lfsFile':
                    if value['oid'] not in self.server.uploads:
                        raise Refused(400, f'the LFS file of {value["path"]} was not uploaded')
                    files[value['path']] = (self.server.uploads[value['oid']], True)
                elif entry['key'] == 'deletedFile':
                    if value['path'] not in files:
                        raise Refused(400, f'no file {value["path"]} to delete')
                    del files[value['path']]
            oid = hashlib.sha1(parent.oid.encode() + body).hexdigest()
            if pull_request:
                number = sum(ref.startswith('refs/pr/') for ref in repo.refs) + 1
                repo.refs[f'refs/pr/{number}'] = [parent, Commit(oid, title, files)]
                url = f'{self.server.url}/{name}/discussions/{number}'
            else:
                repo.refs[revision].append(Commit(oid, title, files))
                url = None
        page = f'{self.server.url}/{name}/commit/{oid}'
        return {'success': True, 'commitOid': oid, 'commitUrl': page, 'pullRequestUrl': url, 'hookOutput': ''}

    def branch(self, name, branch, body, query):
        repo = self.repo(name, write=True)
        if branch in repo.refs:
            raise Refused(409, 'Reference already exists')
        repo.refs[branch] = list(repo.refs['main'])
        return {}

    def info(self, name, revision, body, query):
        commit, repo = self.head(name, revision), self.repo(name)
        siblings = [{'rfilename': path} for path in commit.files]
        if query.get('blobs'):
            for sibling in siblings:
                content, lfs = commit.files[sibling['rfilename']]
                sibling |= {'size': len(content), 'blobId': git_oid(content)}
                if lfs:
                    sibling['lfs'] = {'sha256': self.oid(content, True), 'size': len(content), 'pointerSize': 134}
        return {'_id': '0', 'id': name, 'sha': commit.oid, 'private': repo.private, 'siblings': siblings, 'tags': []}

    def tree(self, name, revision, body, query):
        entries = []
        for path, (content, lfs) in self.head(name, revision).files.items():
            entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': git_oid(content)}
            if lfs:
                entry['lfs'] = {'oid': self.oid(content, True), 'size': len(content), 'pointerSize': 134}
            entries.append(entry)
        return entries

    def resolve(self, name, revision, path, body, query):
        commit = self.head(name, revision)
        if path not in commit.files:
            raise Refused(404, 'Entry not found', 'EntryNotFound')
        content, lfs = commit.files[path]
        headers = {'X-Repo-Commit': commit.oid}
        if not lfs:
            return self.ranged(content, headers | {'ETag': f'"{git_oid(content)}"'})
        oid = self.oid(content, True)
        # On another host, as large files are, to which the client sends no token.
        linked = {
            'X-Linked-Etag': f'"{oid}"',
            'X-Linked-Size': str(len(content)),
            'Location': f'{self.server.url}/cdn/{oid}'.replace('127.0.0.1', 'localhost'),
        }
        return 302, b'', headers | linked

    def cdn(self, oid, body, query):
        return self.ranged(self.server.uploads[oid], {'ETag': f'"{oid}"'})

    def ranged(self, content: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        match = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
        headers |= {'Accept-Ranges': 'bytes'}
        if not match:
            return 200, content, headers
        start, stop = int(match[1]), int(match[2] or len(content) - 1) + 1
        headers['Content-Range'] = f'bytes {start}-{min(stop, len(content)) - 1}/{len(content)}'
        return 206, content[start:stop], headers
