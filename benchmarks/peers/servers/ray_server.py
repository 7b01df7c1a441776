"""Ray Serve: JPEGs as the request's body, batches by `serve.batch`."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

import ray
from ray import serve
from same_model import SETTINGS, Model
from starlette.requests import Request


@serve.deployment(
    num_replicas=SETTINGS["workers"],
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"PEER": os.environ["PEER"]}}},
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
class Labeler:
    """One model a replica."""

    def __init__(self) -> None:
        self._lanes = ThreadPoolExecutor(SETTINGS["lanes"])
        self._model = Model()

    @serve.batch(
        max_batch_size=SETTINGS["batch"],
        batch_wait_timeout_s=SETTINGS["wait_ms"] / 1000,
        max_concurrent_batches=SETTINGS["lanes"],
    )
    async def label(self, images: list[bytes]) -> list[Any]:
        """A batch, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._lanes, self._model.label, images)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One request."""
        return {"labels": await self.label(await request.body())}


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        _temp_dir=SETTINGS["scratch"],
        configure_logging=False,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": SETTINGS["port"]}, logging_config={"enable_access_log": False}
    )
    serve.run(Labeler.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
