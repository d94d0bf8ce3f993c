"""What a frame's people are on the GPU and on the host, and the promise of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.body import Body
from metro_edge.cuda.context import DeviceContext
from metro_edge.cuda.driver import Event, check_stream
from metro_edge.cuda.inputs import stream_handle
from metro_edge.cuda.postprocess import Placed
from metro_edge.errors import UserError
from metro_edge.postprocess import NO_FACES, Intrinsics

POLL_S = 0.0002


@dataclass(frozen=True, eq=False)
class DeviceBodies:
    """The people of one frame. Metres, camera frame: x right, y down, z away from the camera; px from pixel centres.

    Arrays on the host and on the GPU are the estimator's own memory: nothing was copied for them. They hold until the
    estimator needs that memory again, `lanes` frames later; `copy` and `bodies` give what stays.

    Attributes:
        boxes: (N, 4) float64 x, y, width, height in px, that the people were cropped by.
        intrinsics: of the frame.
        joint_set: name of the set of the joints.
        faces: (F, 3) int32, of the mesh.
        host: part -> NumPy array, of the parts that are downloaded: `camera` (N, 3), `translation` (N, 3),
            `joints` (N, J, 3) and `vertices` (N, V, 3) from the root joint, `joints_px` (N, J, 2) and
            `vertices_px` (N, V, 2), all float32, and `status` (N,) int32.
        device: the same on the GPU, all parts; see Placed. They offer __cuda_array_interface__ and DLPack.
    """

    boxes: NDArray[np.float64]
    intrinsics: Intrinsics
    joint_set: str
    faces: NDArray[np.int32]
    host: dict[str, NDArray[Any]]
    device: Placed

    def __len__(self) -> int:
        return len(self.boxes)

    def __getattr__(self, name: str) -> NDArray[Any]:
        """A part on the host: `bodies.joints` is `bodies.host["joints"]`."""
        host = self.__dict__.get("host", {})
        if name in host:
            return host[name]  # type: ignore[no-any-return]
        raise AttributeError(f"{name!r} is no part that was downloaded; there are {', '.join(host)}")

    def copy(self) -> DeviceBodies:
        """Return the same with arrays on the host that nobody else writes; those on the GPU stay what they are."""
        host = {name: part.copy() for name, part in self.host.items()}
        return DeviceBodies(self.boxes, self.intrinsics, self.joint_set, self.faces, host, self.device)

    def bodies(self) -> list[Body]:
        """Return a Body for each person, as MeshEstimator does, with arrays of their own.

        Raises UserError where camera, translation or joints were not downloaded; without vertices there is no mesh.
        """
        if missing := [name for name in ("camera", "translation", "joints") if name not in self.host]:
            raise UserError(
                f"a Body needs {missing[0]}, which is not among the parts that are downloaded: {list(self.host)}"
            )
        parts = {name: self.host[name].copy() for name in ("camera", "translation", "joints")}
        vertices = self.host.get("vertices", np.zeros((len(self), 0, 3), np.float32)).copy()
        return [
            Body(
                joints=parts["joints"][i],
                vertices=vertices[i],
                camera=parts["camera"][i],
                translation=parts["translation"][i],
                box=self.boxes[i].astype(np.float32),
                focal_px=self.intrinsics.focal_px,
                centre_px=self.intrinsics.centre_px,
                joint_set=self.joint_set,
                faces=self.faces if vertices.shape[1] else NO_FACES,
            )
            for i in range(len(self))
        ]


class Pending:
    """A frame that is on its way.

    Attributes:
        device: where its bodies will be on the GPU; read them in a stream after `wait_on`.
    """

    def __init__(
        self, finish: Callable[[], DeviceBodies], context: DeviceContext, event: Event, device: Placed
    ) -> None:
        self._finish: Callable[[], DeviceBodies] | None = finish
        self._context = context
        self._event = event
        self._mutex = threading.Lock()
        self.device = device
        self._result: DeviceBodies | Exception | None = None

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._result is not None or self._passed()

    def wait(self) -> None:
        """Wait for the GPU, and look at nothing."""
        if self._result is None:
            with self._context:
                self._event.wait()

    def wait_on(self, stream: Any) -> None:
        """Let a stream wait for this frame; the processor does not wait.

        Args:
            stream: a CUstream handle, or an object of PyCUDA, PyTorch, CuPy or Numba; 0 is the default stream.

        Raises:
            UserError: no stream, or one of another context.
        """
        handle = stream_handle(stream)
        if handle is None:
            raise UserError("wait_on needs a stream to wait in: a handle, or an object of a CUDA library, got None")
        if self._result is None:
            with self._context:
                check_stream(handle, self._context.handle)
                self._event.hold(handle)

    def result(self, timeout_s: float | None = None) -> DeviceBodies:
        """Return the people, waiting for the GPU; other Python threads go on meanwhile.

        Raises:
            TimeoutError: not ready after `timeout_s`.
            PredictionError: of an output no body can be made, see metro_edge.cuda.postprocess.check_status.
            DeviceError: the GPU failed.
        """
        if self._result is None and timeout_s is not None:
            end_s = time.monotonic() + timeout_s
            while not self.done():
                if time.monotonic() >= end_s:
                    raise TimeoutError(f"the GPU is not done after {timeout_s} s")
                time.sleep(POLL_S)
        self._settle(copying=False)
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result

    def settle(self) -> None:
        """Take what is still in the estimator's memory out of it, before that is used again."""
        self._settle(copying=True)

    def _settle(self, copying: bool) -> None:
        # A second thread waits here, so that the memory is not used again while the first one looks at it.
        with self._mutex:
            if self._result is not None:
                return
            assert self._finish is not None
            try:
                with self._context:
                    result = self._finish()
                    self._result = result.copy() if copying else result
            except Exception as error:
                self._result = error
            self._finish = None  # it holds the lane

    def _passed(self) -> bool:
        with self._context:
            return self._event.passed()
