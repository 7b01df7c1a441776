"""Starts MLServer on settings that are made here: `python mlserver_server.py`. PEER has what differs."""

import json
import sys
import tempfile
from pathlib import Path

from same_model import SETTINGS


def _folder() -> Path:
    here = Path(tempfile.mkdtemp(prefix="mlserver-", dir=SETTINGS["scratch"]))
    quiet = {name: {"level": "WARNING"} for name in ("mlserver", "mlserver.kafka", "mlserver.rest", "mlserver.grpc")}
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": SETTINGS["port"],
        "grpc_port": SETTINGS["more_ports"][0],
        "metrics_port": SETTINGS["more_ports"][1],
        "metrics_dir": str(here / "metrics"),
        "parallel_workers": SETTINGS["workers"],
        "gzip_enabled": False,
        # A line for each message otherwise.
        "logging_settings": {"version": 1, "disable_existing_loggers": False, "loggers": quiet},
    }
    if "kafka" in SETTINGS:
        server |= {
            "kafka_enabled": True,
            "kafka_servers": SETTINGS["kafka"]["servers"],
            "kafka_topic_input": SETTINGS["kafka"]["input"],
            "kafka_topic_output": SETTINGS["kafka"]["output"],
        }
    model = {
        "name": "labeler",
        "implementation": "mlserver_model.Labeler",
        "max_batch_size": SETTINGS["batch"],
        "max_batch_time": SETTINGS["wait_ms"] / 1000,
    }
    (here / "settings.json").write_text(json.dumps(server))
    (here / "labeler").mkdir()
    (here / "labeler" / "model-settings.json").write_text(json.dumps(model))
    return here


if __name__ == "__main__":
    from mlserver.cli import main

    sys.argv = ["mlserver", "start", str(_folder())]
    main()
