"""How a child process of ours begins: tied to its parent, with its pipes out of the way of what libraries print, and
where it speaks to W&B without secrets of others."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# What a child that speaks to a server needs of our environment, and nothing else: the rest may hold secrets of others.
_HANDED_ON = (
    *("PATH", "HOME", "USER", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "NETRC"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "XDG_CONFIG_HOME"),
    *("WANDB_BASE_URL", "WANDB_CONFIG_DIR", "WANDB_INSECURE_DISABLE_SSL", "WANDB_HTTP_TIMEOUT"),
)
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE")


def wandb_environment(*, keys: bool, more: Iterable[str] = ()) -> dict[str, str]:
    """What a child is given that speaks to W&B.

    Args:
        keys: whether W&B's keys of our own environment are handed on.
        more: names of variables that are handed on as well.
    """
    names = (*_HANDED_ON, *more, *(_KEYS if keys else ()))
    return {name: os.environ[name] for name in names if name in os.environ} | {
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(each or str(Path.cwd()) for each in sys.path),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",  # its client would report its own failures to a third party
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
    }


def die_with_parent() -> None:
    """Where the kernel can; elsewhere the end of the requests ends it."""
    parent = os.getppid()
    if sys.platform == "linux":
        _ask_to_die()
        if os.getppid() != parent:
            os._exit(0)


def tie_grandchildren() -> None:
    """From now on what a library starts in this process stays in our group, and is killed when the thread that started
    it ends: W&B's own process, which its client puts into a session of its own, may outlive us otherwise."""

    class Tied(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **how: Any) -> None:
            how["start_new_session"] = False
            if sys.platform == "linux":
                how["preexec_fn"] = _ask_to_die
            super().__init__(*args, **how)

    subprocess.Popen = Tied  # type: ignore[misc]


_libc = ctypes.CDLL(None)


def _ask_to_die() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def take_pipes() -> tuple[int, int]:
    """Requests and answers, under other numbers: what a library prints must not get between them."""
    requests, answers = os.dup(0), os.dup(1)
    with Path(os.devnull).open("r+b", buffering=0) as nowhere:
        os.dup2(nowhere.fileno(), 0)
        os.dup2(nowhere.fileno(), 1)
    return requests, answers
