"""Triton's Python backend: every request of a batch in one run, tensors in and out as NumPy."""

import numpy as np
import triton_python_backend_utils as pb_utils

from bench.peers.servers.runtime import Model


class TritonPythonModel:
    """Called with what the server's dynamic batcher put together; lengths may differ."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        del args
        self.model = Model()

    def execute(self, requests: list[object]) -> list[object]:
        """One run for all requests, whose answers are slices of it."""
        parts = [
            {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in self.model.inputs
            }
            for request in requests
        ]
        if len(parts) == 1:
            return [_response(self.model.run(parts[0]))]
        joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        answers = self.model.run(joined)
        first = next(iter(self.model.inputs))
        ends = np.cumsum([len(part[first]) for part in parts])[:-1]
        split = {name: np.split(array, ends) for name, array in answers.items()}
        return [
            _response({name: arrays[at] for name, arrays in split.items()})
            for at in range(len(parts))
        ]


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Padded with 0 to the longest, as tokenizers pad."""
    longest = max(array.shape[1] for array in arrays)
    if any(array.shape[1] != longest for array in arrays):
        arrays = [np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays]
    return np.concatenate(arrays)


def _response(tensors: dict[str, np.ndarray]) -> object:
    outputs = [pb_utils.Tensor(name, array) for name, array in tensors.items()]
    return pb_utils.InferenceResponse(output_tensors=outputs)
