"""MLServer: an inference request with the image in base64, over HTTP or Kafka, in MLServer's adaptive batches."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pybase64
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from same_model import SETTINGS, Model


class Labeler(MLModel):
    """A model in the server's process, or one in each of its workers."""

    async def load(self) -> bool:
        """Called once in each process that serves."""
        # The loop must go on while a batch is labelled. Batches at a time beyond `lanes` wait.
        self._lanes = ThreadPoolExecutor(SETTINGS["lanes"])
        self._labeler = await asyncio.get_running_loop().run_in_executor(self._lanes, Model)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """BYTES [N] in base64 -> BYTES [N], the labels of each as JSON."""
        data = payload.inputs[0].data
        images = getattr(data, "root", data)
        labels = await asyncio.get_running_loop().run_in_executor(self._lanes, self._label, images)
        output = ResponseOutput(name="labels", shape=[len(labels), 1], datatype="BYTES", data=labels)
        return InferenceResponse(model_name=self.name, outputs=[output])

    def _label(self, images: list[str]) -> list[str]:
        return [json.dumps(labels) for labels in self._labeler.label([pybase64.b64decode(each) for each in images])]
