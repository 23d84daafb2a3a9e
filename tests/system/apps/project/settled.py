"""An app that sets what there is to set, and tells what it finds of it."""

import importlib
import os
import platform
import sys
from pathlib import Path

import fal


class Parent(fal.App, keep_alive=11, max_concurrency=3):
    host_kwargs = {"scaling_delay": 0.25}


class Settled(
    Parent,
    keep_alive=77,
    name="never-seen",
    regions=["us-east", "eu-west"],
    resolver="pip",
    kind="virtualenv",
    private_logs=True,
    compile_bytecode=True,
    exposed_port=8080,
    setup_function=None,
    force=True,
    _scheduler="nomad",
    _scheduler_options={"storage_region": "us-east"},
    _base_image="python:3.11",
    python_version=f"{sys.version_info[0]}.{sys.version_info[1]}",
):
    """What is not here stands in small apps of its own: it changes when runners start and end."""

    app_name = "settled"
    app_auth = "public"
    machine_type = ["GPU-NOBODY-HAS-THIS", "XS"]
    num_gpus = 1
    max_concurrency = 4
    concurrency_buffer_perc = 10
    max_multiplexing = 2
    startup_timeout = 50
    request_timeout = 55
    termination_grace_period_seconds = 3
    skip_retry_conditions = ["timeout"]
    retry_config = fal.RetryConfig(server_error=2)
    requirements = ["./library"]
    requirements_context_dir = "."
    local_python_modules = ["carried"]
    app_files = ["texts"]
    app_files_ignore = [r"\.skip$"]
    app_files_context_dir = "files"
    secrets = ["LISTED"]
    data_mounts = ["/data"]
    metrics_port = 9090
    metadata = {"team": "tables"}
    isolate_channel = "anything"
    local_file_path = "anything"
    version = "3"

    @fal.endpoint("/")
    def tell(self) -> dict[str, object]:
        shelf = importlib.import_module("shelf")

        return {
            "files": sorted(path.as_posix() for path in Path().rglob("*.txt")),
            "text": Path("texts/a.txt").read_text(),
            "at /app": Path("/app/texts/a.txt").read_text(),
            "on the path": [place for place in (os.getcwd(), "/app") if place in sys.path],
            "carried": importlib.import_module("carried").WORD,
            "library": shelf.WORD,
            "python": platform.python_version_tuple()[:2],
            "secrets": {name: name in os.environ for name in ("LISTED", "UNLISTED")},
        }

    @fal.endpoint("/environment")
    def environment(self) -> dict[str, str]:
        return dict(os.environ)
