"""Requests as nobody should send them, and some that only look so."""

from __future__ import annotations

import hashlib

import orjson
from fal._spec import AppSpec, EnvironmentSpec

APP = "tester/hello"
DEEP = b"[" * 100_000
#: As deep as the parser of JSON allows.
LADDER = b"[" * 1000 + b"]" * 1000


def post(path: bytes | str, body: bytes = b"", *headers: bytes) -> bytes:
    """A request that is complete, with the key's place left open."""
    path = path.encode() if isinstance(path, str) else path
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join([*lines, b"authorization: Key KEY", *headers, b"", body])


def get(path: bytes | str, *headers: bytes) -> bytes:
    return post(path, b"", *headers).replace(b"POST ", b"GET ", 1)


def put(path: bytes | str, body: bytes = b"", *headers: bytes) -> bytes:
    return post(path, body, *headers).replace(b"POST ", b"PUT ", 1)


def patch(path: bytes | str, body: bytes = b"", *headers: bytes) -> bytes:
    return post(path, body, *headers).replace(b"POST ", b"PATCH ", 1)


def deploy(metadata: bytes) -> bytes:
    """The body of a deploy that would be good but for its metadata."""
    spec = {**AppSpec("deep", "Deep", "deep.py", EnvironmentSpec("3.11")).to_json(), "metadata": {"a": 0}}
    files = [{"path": "deep.py", "sha256": hashlib.sha256(b"").hexdigest(), "size": 0}]
    return orjson.dumps({"spec": spec, "files": files}).replace(b'{"a":0}', b'{"a":%s}' % metadata)


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"POST /tester/hello HTTP/1.1", b"host: x", b"connection: close", *lines, b"", b""])


FORM = b"content-type: multipart/form-data; boundary=x"
FILES = "/rest/files/file/local//data/x"
#: What is refused. Each is a request as it goes over the wire.
REFUSED: dict[str, bytes] = {
    # the request line
    "http 2 without asking": b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n",
    "http 0.9": b"GET /\r\n\r\n",
    "http 0.9 with a line break": b"GET /\n\n",
    "http 2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version from the future": b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
    "a version without a number": b"GET / HTTP/x.y\r\nhost: x\r\n\r\n",
    "no version": b"GET /health\r\nhost: x\r\n\r\n",
    "an unknown method": b"EXPLODE / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method of 10 KB": b"A" * 10_000 + b" / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a nul in the path": b"GET /a\0b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a tunnel": b"CONNECT fal.run:443 HTTP/1.1\r\nhost: fal.run:443\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "bytes that are not utf-8 in the path": b"GET /tester/\xc3\x28 HTTP/1.1\r\nhost: x\r\n\r\n",
    "only line breaks, then nonsense": b"\r\n" * 50 + b"nonsense\r\n\r\n",
    "nuls": b"\0" * 1000,
    # headers
    "a nul in a header": head(b"a: b\0c", b"content-length: 0"),
    "a nul in a name": head(b"a\0: b", b"content-length: 0"),
    "a space before the colon": head(b"content-length : 0"),
    "a folded header": head(b"a: b", b" folded", b"content-length: 0"),
    "a header without a colon": head(b"nonsense", b"content-length: 0"),
    "a bare line break in a header": head(b"a: b\nc: d", b"content-length: 0\rx"),
    "no host": head(b"content-length: 0").replace(b"host: x\r\n", b""),
    "two hosts": head(b"host: y", b"content-length: 0"),
    "a host with a path": head(b"content-length: 0").replace(b"host: x", b"host: a/../b"),
    "a host with a user": head(b"content-length: 0").replace(b"host: x", b"host: a@b"),
    "a host that is not ascii": head(b"content-length: 0").replace(b"host: x", b"host: \xff\xfe"),
    "a host of 10 KB": head(b"content-length: 0").replace(b"host: x", b"host: " + b"a" * 10_000),
    "two keys": head(b"authorization: Key a:b", b"authorization: Key c:d", b"content-length: 0"),
    # lengths and chunks: what two servers could read differently
    "a length and chunks": head(b"content-length: 5", b"transfer-encoding: chunked") + b"0\r\n\r\n",
    "chunks and a length": head(b"transfer-encoding: chunked", b"content-length: 5") + b"0\r\n\r\n",
    "chunked twice": head(b"transfer-encoding: chunked", b"transfer-encoding: chunked, identity") + b"0\r\n\r\n",
    "chunked, but not in the end": head(b"transfer-encoding: chunked, gzip") + b"0\r\n\r\n",
    "an unknown encoding": head(b"transfer-encoding: xchunked") + b"0\r\n\r\n",
    "an encoding with a tab": head(b"transfer-encoding:\tchunked", b"content-length: 1") + b"0\r\n\r\n",
    "two lengths": head(b"content-length: 2", b"content-length: 3") + b"{}x",
    "two lengths in one line": head(b"content-length: 2, 2") + b"{}",
    "a negative length": head(b"content-length: -1"),
    "a length with a plus": head(b"content-length: +2") + b"{}",
    "a length in hex": head(b"content-length: 0x2") + b"{}",
    "a length beyond 64 bits": head(b"content-length: 99999999999999999999999"),
    "a length of 5000 zeros": head(b"content-length: " + b"0" * 5000 + b"2") + b"{}",
    "no length where one is": head(b"content-length: "),
    "a chunk size beyond 64 bits": head(b"transfer-encoding: chunked") + b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n",
    "a negative chunk size": head(b"transfer-encoding: chunked") + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer than it says": head(b"transfer-encoding: chunked") + b"1\r\n{}\r\n0\r\n\r\n",
    "a chunk with a nul in its extension": head(b"transfer-encoding: chunked") + b"2;a=\0\r\n{}\r\n0\r\n\r\n",
    # paths
    "a path out of the files": get("/cdn/files/../../../etc/passwd"),
    "the same, escaped": get("/cdn/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd/x"),
    "an escaped nul in a file's id": get("/cdn/files/a%00b/x"),
    "an escape of nothing": get("/cdn/files/%zz%/%"),
    "escapes that are not utf-8": get("/api/v1/apps/tester/%ff%fe"),
    "an app of nothing": post("//"),
    "an escaped nul in an app": post("/tester/a%00b"),
    "an escaped line break in an app": post("/tester/a%0d%0ab"),
    "an app of 10 KB": post("/tester/" + "a" * 10_000),
    "an app of another script": post("/tester/%F0%9F%92%A5"),
    "a file out of the data": get("/rest/files/file//data/../../etc/passwd"),
    "the same, escaped, of data": get("/rest/files/file//data/%2e%2e/%2e%2e/etc/passwd"),
    "a nul in a file of data": get("/rest/files/file//data/a%00b"),
    "a name of 5000 letters in data": get("/rest/files/file//data/" + "a" * 5000),
    "a bundle's object out of its folder": put("/api/v1/bundles/objects/..%2f..%2fx", b"x"),
    # queries
    "a query that is not utf-8": post(f"/queue/{APP}?fal_webhook=%ff%fe", b"{}"),
    "a webhook that is no address": post(f"/queue/{APP}?fal_webhook=http://[::1", b"{}"),
    "a webhook with a port beyond all": post(f"/queue/{APP}?fal_webhook=http://example.com:99999999/", b"{}"),
    "a webhook with a host of nothing": post(f"/queue/{APP}?fal_webhook=http:///x", b"{}"),
    "a webhook of an odd name": post(f"/queue/{APP}?fal_webhook=http://%C0%80.%F0%9F/", b"{}"),
    "a queue length that is no number": post(f"/queue/{APP}?fal_max_queue_length=%D9%A1", b"{}"),
    "1001 fields beside ours": post(f"/queue/{APP}?fal_webhook=http://x/&" + "&".join(["a=b"] * 1001), b"{}"),
    "a limit of another script": get("/api/v1/queue/tester/hello/letters?limit=%D9%A1"),
    "a time that is none": post("/rest/logs/history?job_id=x&since=yesterday"),
    "a signature that is none": put("/cdn/uploads/" + "0" * 32 + "?signature=%ff.%ff.%ff", b"x"),
    "a signature that is not ascii": put("/cdn/uploads/" + "0" * 32 + "?signature=%D9%A1.a.b", b"x"),
    # headers of ours
    "a time-out of infinity": post(f"/{APP}", b"{}", b"x-fal-request-timeout: inf"),
    "a time-out of nothing": post(f"/{APP}", b"{}", b"x-fal-request-timeout: nan"),
    "a time-out of bytes": post(f"/{APP}", b"{}", b"x-fal-request-timeout: \xd9\xa1"),
    "a priority of bytes": post(f"/{APP}", b"{}", b"x-fal-queue-priority: \xff"),
    "a lifecycle that is deep": post(f"/{APP}", b"{}", b"x-fal-object-lifecycle-preference: " + b"[" * 9000),
    "a lifecycle that is for ever": post(
        f"/{APP}", b"{}", b'x-fal-object-lifecycle-preference: {"expiration_duration_seconds": 1e308}'
    ),
    "an idempotency key with spaces": post(f"/queue/{APP}", b"{}", b"idempotency-key: a b"),
    "a target that is no address": post("/fal/proxy", b"{}", b"x-fal-target-url: https://[fal.run/"),
    "a target with an odd port": post("/fal/proxy", b"{}", b"x-fal-target-url: https://fal.run:999999/"),
    "a target of bytes": post("/fal/proxy", b"{}", b"x-fal-target-url: https://fal.run/\xff"),
    "a key that is not ascii": get("/api/v1/whoami").replace(b"Key KEY", b"Key \xff:\xfe"),
    "a basic key that is no base64": get("/api/v1/whoami").replace(b"Key KEY", b"Basic ====="),
    "a bearer of three parts": post("/cdn/files/upload", b"x").replace(b"Key KEY", b"Bearer \xff.\xff.\xff"),
    # JSON bodies
    "json that is none": post("/api/v1/keys", b"{name}"),
    "json that ends": post("/api/v1/keys", b'{"name": "'),
    "json that is not utf-8": post("/api/v1/keys", b'{"name": "\xff"}'),
    "json with half a surrogate": post("/api/v1/keys", b'{"name": "\\ud800"}'),
    "json with a mark of utf-16": post("/api/v1/keys", '{"name": "x"}'.encode("utf-16")),
    "json that is a list": post("/api/v1/keys", b"[]"),
    "json that is not a number": post("/api/v1/keys", b'{"name": NaN}'),
    "json that is infinite": post("/api/v1/keys", b'{"name": Infinity}'),
    "json with a number beyond all": post("/api/v1/keys", b'{"name": 1e999}'),
    "json with a number of 5000 digits": post(
        "/rest/tokens", b'{"allowed_apps": ["a"], "token_expiration": %s}' % (b"9" * 5000)
    ),
    "json that is deep": post("/api/v1/keys", DEEP),
    "json that is deep inside": post("/api/v1/deployments", b'{"spec": {"metadata": {"a": %s}}}' % LADDER),
    "metadata of a good app that are deep": post("/api/v1/deployments", deploy(LADDER)),
    "a message that is deep": post("/api/v1/deployments", b'{"spec": %s}' % LADDER),
    "a scaling that is deep": patch(f"/api/v1/apps/{APP}/scaling", b'{"keep_alive": %s}' % LADDER),
    "a revision that is deep": post(f"/api/v1/apps/{APP}/revision", b'{"revision": %s}' % LADDER),
    "hashes that are deep": post("/api/v1/bundles/missing", b'{"hashes": [%s]}' % LADDER),
    "apps that are deep": post("/rest/tokens", b'{"allowed_apps": [%s]}' % LADDER),
    "a life that is deep": post("/rest/tokens", b'{"allowed_apps": ["a"], "token_expiration": %s}' % LADDER),
    "a destination with a nul": post("/rest/files/rename//data/x", b'{"destination": "/data/a\\u0000"}'),
    "a destination of 5000 letters": post(
        "/rest/files/rename//data/x", b'{"destination": "/data/%s"}' % (b"a" * 5000)
    ),
    "json with a key twice": post("/api/v1/keys", b'{"name": "a", "name": 1}'),
    "nothing instead of json": post("/api/v1/keys"),
    "parts that are deep": post("/cdn/uploads/" + "0" * 32 + "/complete?signature=x", DEEP),
    # forms
    "a form without a boundary": post(FILES, b"x", b"content-type: multipart/form-data"),
    "a form with an empty boundary": post(FILES, b"x", b"content-type: multipart/form-data; boundary="),
    "a form of another boundary": post(FILES, b"--y\r\n\r\n\r\n--y--", FORM),
    "a form that ends": post(
        FILES, b'--x\r\ncontent-disposition: form-data; name="file_upload"; filename="a"\r\n\r\nhalf', FORM
    ),
    "a form with a header that ends": post(FILES, b"--x\r\ncontent-disposition", FORM),
    "a form part without a name": post(FILES, b"--x\r\ncontent-disposition: form-data\r\n\r\na\r\n--x--\r\n", FORM),
    "a form of two files": post(
        FILES,
        b'--x\r\ncontent-disposition: form-data; name="file_upload"; filename="a"\r\n\r\na\r\n' * 2 + b"--x--\r\n",
        FORM,
    ),
    "a form in a charset that is none": post(
        FILES, b'--x\r\ncontent-disposition: form-data; name="\xff"\r\n\r\na\r\n--x--\r\n', FORM + b"; charset=nonsense"
    ),
    "a form in urls": post(FILES, b"file_upload=%zz&&&=", b"content-type: application/x-www-form-urlencoded"),
    "a form of nothing": post(FILES, b"", FORM),
    "a form whose type is bytes": post(FILES, b"x", b"content-type: \xff/\xfe; boundary=\xfd"),
    "a form with 2000 headers": post(FILES, b"--x\r\n" + b"a: b\r\n" * 2000 + b"\r\na\r\n--x--\r\n", FORM),
}  # fmt: skip


#: What may be sent, and what is not quite right but harmless: status of each answer on the connection.
TAKEN: dict[str, tuple[bytes, list[int]]] = {
    "http 1.0": (b"GET /health HTTP/1.0\r\n\r\n", [200]),
    "line breaks before a request": (b"\r\n\r\n" + get("/health"), [200]),
    "an address with its host": (get("http://elsewhere.example/health"), [200]),
    "a host that nobody has": (get("/health").replace(b"host: x", b"host: elsewhere.example"), [200]),
    "bytes in a header of the app": (post(f"/{APP}", b"{}", b"x-mine: \xff\xfe"), [200]),
    "json that is none, for the app": (post(f"/{APP}", b"{'a'", b"content-type: application/json"), [200]),
    "a type that is none, for the app": (post(f"/{APP}", b"{}", b"content-type: ;;;\xff; charset=\xfe"), [200]),
    "an escape of nothing in a query, for the app": (post(f"/{APP}?a=%zz&%&=&&", b"{}"), [200]),
    "an expectation of something else": (post(f"/{APP}", b"{}", b"expect: a-pony"), [200]),
    "a token that is none, for a public app": (post(f"/{APP}?fal_jwt_token=%D9%A1.%D9%A1", b"{}"), [200]),
    "retries that are deep": (post(f"/queue/{APP}", b"{}", b"x-fal-retry-config: " + b"[" * 9000), [200]),
    "retries beyond all numbers": (
        post(f"/queue/{APP}", b"{}", b'x-fal-retry-config: {"timeout": {"retries": 99999999999999999999}}'),
        [200],
    ),
    "a preflight with names of bytes": (
        get("/health", b"access-control-request-method: \xff", b"access-control-request-headers: \xff\xfe").replace(
            b"GET", b"OPTIONS", 1
        ),
        [204],
    ),
    "two requests at once": (get("/health").replace(b"connection: close\r\n", b"") + get("/health"), [200, 200]),
    "a request and nonsense": (get("/health").replace(b"connection: close\r\n", b"") + b"\x00\r\n\r\n", [400]),
    "a request inside a body": (post(f"/{APP}", get("/api/v1/whoami")), [200]),
    "a request behind a connection that ends": (get("/health") + get("/health"), [200]),
    "a body where none is meant": (get("/health") + b"GET /api/v1/whoami HTTP/1.1\r\nhost: x\r\n\r\n", [200]),
}  # fmt: skip
