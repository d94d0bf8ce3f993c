"""The network exports as it is: dynamic batch, LayerNorm as one operator, same numbers in ONNX Runtime."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch


class _Tensors(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        output = self.model(images)
        return output.camera, output.joints, output.vertices[-1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_equals_pytorch(tiny, tmp_path):
    path = tmp_path / "tiny.onnx"
    torch.onnx.export(
        _Tensors(tiny).eval(),
        (torch.zeros(2, 3, 64, 64),),
        path,
        input_names=["images"],
        output_names=["camera", "joints", "vertices"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert counts["LayerNormalization"] == 2 * 3  # two a layer, three layers
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images = np.random.default_rng(batch).normal(size=(batch, 3, 64, 64)).astype(np.float32)
        with torch.no_grad():
            output = tiny(torch.from_numpy(images))
        expected = (output.camera, output.joints, output.vertices[-1])
        for ours, theirs in zip(session.run(None, {"images": images}), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
