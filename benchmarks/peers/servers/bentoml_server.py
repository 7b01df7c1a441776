"""Starts BentoML on one port: `python bentoml_server.py`."""

import os
import sys
from pathlib import Path

from same_model import SETTINGS

if __name__ == "__main__":
    # Nothing is told to its makers, and it writes below the benchmark's own folder.
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(Path(SETTINGS["scratch"]) / "bentoml")}
    here = Path(__file__).resolve().parent
    command = [
        *(sys.executable, "-m", "bentoml", "serve", "bentoml_service:Labeler", "--working-dir", str(here)),
        *("--host", "127.0.0.1", "--port", str(SETTINGS["port"]), "-q"),
    ]
    os.execv(sys.executable, command)  # noqa: S606  a fixed command
