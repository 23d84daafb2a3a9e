"""A real S3 server process with a bucket, for what stores files in one."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from keepwarm.tls import TlsFiles
from tests.support.waiting import wait_until


@contextmanager
def s3_server(tls: TlsFiles | None = None) -> Iterator[dict[str, str]]:
    """Variables that name the bucket; over HTTPS with these files."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    secure = [] if tls is None else ["-c", str(tls.certificate), "-k", str(tls.certificate)]
    verify = True if tls is None else ssl.create_default_context(cafile=tls.roots)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), *secure],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"]},
    )

    def made() -> bool:
        try:
            return httpx.put(f"{url}/bucket", trust_env=False, verify=verify).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(made, "the S3 server to make a bucket", timeout=60)
        yield {
            "KEEPWARM_FILES_URL": "s3://bucket/files",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.terminate()
        process.wait(10)
