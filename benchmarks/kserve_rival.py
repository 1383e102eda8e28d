# /// script
# requires-python = ">=3.11"
# dependencies = ["kserve==0.21.0", "numpy", "onnxruntime==1.32.0"]
# ///
"""The model as a server of KServe's SDK: item vectors come as JSON tensors; for `serving.py`, which starts it.

    uv run --script benchmarks/kserve_rival.py RANKER PORT

RANKER is the file `ranker_of_one_user.onnx` of a bundle. KServe has its own environment, because its pins and the
lock's do not meet.
"""

import logging
import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

NAME = "storyrec"


class Ranker(Model):
    """Scores the tensors of a request, on one thread as the model server does."""

    def __init__(self, path: str) -> None:
        super().__init__(NAME)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: object = None
    ) -> InferResponse:
        """The click probabilities of the candidates."""
        inputs = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        scores = self.session.run(["probabilities_B"], inputs)[0]
        output = InferOutput("scores", list(scores.shape), "FP32", scores.tolist())
        return InferResponse(payload.id or "1", NAME, [output])  # without an id KServe answers 500


if __name__ == "__main__":
    logging.disable(logging.INFO)  # a line a request
    server = ModelServer(http_port=int(sys.argv[2]), enable_grpc=False)
    server.start([Ranker(sys.argv[1])])
