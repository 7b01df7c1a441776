"""LitServe: JPEGs as the request's body, batches in its own worker processes."""

from typing import Annotated, Any

import litserve as ls
from fastapi import Body
from same_model import SETTINGS, Model


class Labeler(ls.LitAPI):
    """One model a worker."""

    def setup(self, device: str) -> None:
        """Called once in each worker."""
        del device
        self._model = Model()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> bytes:
        """The image as it came: a batch is decoded as one, in several threads."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """As they are."""
        return list(inputs)

    def predict(self, x: Any) -> Any:
        """A list of images, or one where batches are off."""
        return self._model.label(x) if isinstance(x, list) else self._model.label([x])[0]

    def unbatch(self, output: Any) -> Any:
        """One answer a request."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """JSON."""
        return {"labels": output}


if __name__ == "__main__":
    api = Labeler(max_batch_size=SETTINGS["batch"], batch_timeout=SETTINGS["wait_ms"] / 1000)
    server = ls.LitServer(
        api, accelerator="cpu", workers_per_device=SETTINGS["workers"], fast_queue=SETTINGS["fast_queue"], timeout=120
    )
    server.run(
        host="127.0.0.1",
        port=SETTINGS["port"],
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
