"""DeviceEstimator: from a frame, wherever it is, to bodies on the GPU and on the host, with TensorRT."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.bundle import Bundle
from metro_edge.cuda.context import DeviceContext
from metro_edge.cuda.dlpack import NO_WAIT
from metro_edge.cuda.driver import check_stream
from metro_edge.cuda.inputs import GivenFrame, given_frame, stream_handle
from metro_edge.cuda.lane import PARTS, Lane, part_sizes
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.network import DeviceNetwork
from metro_edge.cuda.postprocess import check_status
from metro_edge.cuda.results import DeviceBodies, Pending
from metro_edge.errors import UserError
from metro_edge.plans.cache import named_or_cached
from metro_edge.plans.options import BatchProfile, BuildOptions
from metro_edge.plans.versions import load_library
from metro_edge.postprocess import Intrinsics
from metro_edge.preprocess import check_boxes

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_PARTS = ("camera", "translation", "joints", "joints_px", "vertices")
LANES = 2
MAX_PEOPLE = 16
DEFAULT_STREAM = 0


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and bool(value >= least)


class DeviceEstimator:
    """Finds the bodies of people whose boxes are known, on an NVIDIA GPU.

        with DeviceEstimator.open(bundle, "fp16") as estimator:
            pending = estimator.infer_async(frame, boxes, stream=decoder_stream)
            ...
            people = pending.result()
            people.joints  # (N, J, 3) in page-locked memory; people.device.joints on the GPU

    Frames go round `lanes` lanes, each with a stream and memory of its own: the upload of one overlaps with the network
    of another. A result holds until its lane's turn comes again, `lanes` frames later. Any thread may call; frames are
    taken one after the other.

    Attributes:
        bundle: the model.
        context: of the GPU.
        network: the plan.
        lanes: of the frames.
        focal_px: as of MeshEstimator.

    Use `open`. Memory is allocated once, for `max_people`; larger frames, and each new number of people, once more.
    """

    def __init__(
        self,
        bundle: Bundle,
        context: DeviceContext,
        network: DeviceNetwork,
        *,
        loader: KernelLoader | None = None,
        max_people: int = MAX_PEOPLE,
        lanes: int = LANES,
        parts: Sequence[str] = DEFAULT_PARTS,
        graphs: bool = True,
        focal_px: float | None = None,
    ) -> None:
        if not (_is_whole(max_people, 1) and _is_whole(lanes, 1)):
            raise UserError(f"max_people and lanes must be 1 or more, got {max_people!r} and {lanes!r}")
        if unknown := [name for name in parts if name not in PARTS]:
            raise UserError(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
        if focal_px is not None:
            Intrinsics(focal_px, (0.0, 0.0))  # raises for a length that is none
        sizes = part_sizes(network.spec)
        wanted = [name for name in parts if 0 not in sizes[name]]
        self.bundle, self.context, self.network, self.focal_px = bundle, context, network, focal_px
        self.max_people = max_people
        self._lock = threading.Lock()
        self._turn = 0
        kernels = loader or KernelLoader()
        made: list[Lane] = []
        with context:
            try:
                for _ in range(lanes):
                    made.append(Lane(context, network, bundle.template, kernels, max_people, wanted, graphs))
            except BaseException:
                for lane in made:
                    lane.close()
                raise
        self.lanes = tuple(made)
        self._pending: list[Pending | None] = [None] * lanes

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        precision: str = "fp16",
        *,
        plan: str | os.PathLike[str] | None = None,
        library: str = "auto",
        ordinal: int = 0,
        max_people: int = MAX_PEOPLE,
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """Open a bundle's network on a GPU, building its plan first where the cache has none.

        Args:
            bundle: a path, a loaded Bundle, or None for the shipped one.
            precision: one that the bundle has.
            plan: use this plan instead of the cache's; it is checked, and refused with the reason.
            library: `tensorrt`, `tensorrt_rtx` or `auto`.
            ordinal: number of the GPU; a plan from the cache is built on GPU 0.
            max_people: most people of a frame; the plan that is built takes batches up to 16 at once.
            progress: show a bar while building.
            options: `lanes`, the frames on their way at once (2); `parts`, what is downloaded (DEFAULT_PARTS of PARTS);
                `graphs`, whether CUDA graphs are used (True); `focal_px`, see MeshEstimator; `loader`, of the kernels.

        Raises:
            UserError: no GPU, unusable settings, or too little device memory.
            BundleError, MissingExtraError, PlanMismatchError: of the bundle, of what is not installed, of the plan.
        """
        if not _is_whole(max_people, 1):
            raise UserError(f"max_people must be 1 or more, got {max_people!r}")
        loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        trt = load_library(library)
        context, free = DeviceContext(ordinal), None
        try:
            built = BuildOptions(profiles=(BatchProfile(1, 1, min(max_people, MAX_PEOPLE)),))
            path = named_or_cached(loaded, precision, trt, context.gpu, plan, built, progress=progress)
            with context:
                network = DeviceNetwork(path, loaded.spec, trt, partial(loaded.onnx_bytes, precision))
            free = network.close
            return cls(loaded, context, network, max_people=max_people, **options)
        except BaseException:
            context.close(free)
            raise

    def __call__(self, frame: Any, boxes: ArrayLike | None = None, **options: Any) -> DeviceBodies:
        """Return the people of a frame, waiting for the GPU; as `infer_async`."""
        return self.infer_async(frame, boxes, **options).result()

    def infer_async(
        self,
        frame: Any,
        boxes: ArrayLike | None = None,
        *,
        camera_matrix: ArrayLike | None = None,
        stream: Any = None,
    ) -> Pending:
        """Give a frame to the GPU and return at once, unless all lanes are taken: then when the oldest frame is done.

        Args:
            frame: see metro_edge.cuda.inputs.given_frame. On the GPU, or page-locked: it must stay as it is until the
                frame is done (`Pending.wait_on` lets a stream wait for that); it is kept alive so long.
            boxes: (N, 4) or (4,) x, y, width, height in px; None takes the whole frame as one person's box.
            camera_matrix: (3, 3) of the frame's camera, undistorted; None takes `focal_px`.
            stream: that fills the frame, a handle or an object of PyCUDA, PyTorch, CuPy or Numba; what it was given so
                far is waited for: on the GPU, but for a frame on the host that is not page-locked here. None: what the
                frame itself says, for one on the GPU else the default stream.

        Raises:
            UserError: a frame, boxes, matrix or stream that are not usable, or more people than `max_people`.
            DeviceError: the GPU failed.
        """
        handle = stream_handle(stream)
        with self._lock, self._opened():
            # By DLPack a library itself makes the lane wait for what fills its array, unless the caller says what does.
            reader = int(self.lanes[self._turn].stream.handle) if handle is None else NO_WAIT
            given = given_frame(frame, self.context.ordinal, reader)
            size = (given.height, given.width)
            checked = check_boxes([[0.0, 0.0, given.width, given.height]] if boxes is None else boxes, size)
            if len(checked) > self.max_people:
                raise UserError(f"{len(checked)} people, this estimator was opened for max_people={self.max_people}")
            if camera_matrix is None:
                intrinsics = Intrinsics.for_frame(size, self.focal_px)
            else:
                intrinsics = Intrinsics.from_matrix(camera_matrix)
            if (filling := given.stream if handle is None else handle) is not None:
                check_stream(filling, self.context.handle)
            return self._give(given, checked, intrinsics, handle)

    def warm_up(self, people: Sequence[int] = (1,), frame_hw: tuple[int, int] = (1080, 1920)) -> None:
        """Make all that frames of this size with these numbers of people will need, graphs too."""
        self._opened()
        if not isinstance(people, Sequence) or not all(_is_whole(count, 0) for count in people):
            raise UserError(f"warm_up takes numbers of people, such as (1, 2, 4), got {people!r}")
        if not isinstance(frame_hw, Sequence) or len(frame_hw) != 2 or not all(_is_whole(side, 1) for side in frame_hw):
            raise UserError(f"warm_up takes a frame's height and width in px, got {frame_hw!r}")
        frame = np.zeros((*frame_hw, 3), np.uint8)
        for count in people:
            boxes = np.tile([0.0, 0.0, frame_hw[1], frame_hw[0]], (count, 1))
            for _ in range(2 * len(self.lanes)):
                self.infer_async(frame, boxes).wait()

    def close(self) -> None:
        """Wait for all frames, and free all memory; results that were not copied are gone. Twice is fine.

        Only the page-locked memory of a result's arrays stays while somebody holds them.
        """
        with self._lock:
            if self.context.closed:
                return
            self.context.check_outside()
            for turn in range(len(self.lanes)):
                self._settle(turn)
            lanes, self.lanes, self._pending = list(self.lanes), (), []

        def free() -> None:
            while lanes:
                lanes.pop().close()
            self.network.close()

        # Not under the lock, for which a thread may wait that is inside the context.
        self.context.close(free)

    def _opened(self) -> DeviceContext:
        if not self.lanes:
            raise UserError("this estimator is closed")
        return self.context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self, turn: int) -> None:
        if (pending := self._pending[turn]) is not None:
            pending.settle()

    def _give(
        self, given: GivenFrame, boxes: NDArray[np.float64], intrinsics: Intrinsics, stream: int | None
    ) -> Pending:
        turn, lane = self._turn, self.lanes[self._turn]
        self._settle(turn)
        lane.wait()
        if given.device is None:
            device = lane.upload(given.planes, given.width, given.height, given.format, given.yuv, stream)
        else:
            device = given.device
            # Two streams that nothing else orders: the default one is where libraries work unless told otherwise.
            follow = given.stream if stream is None else stream
            lane.follow(DEFAULT_STREAM if follow is None else follow)
        placed = lane.run(device, boxes, intrinsics, given.owner)

        def finish() -> DeviceBodies:
            lane.wait()
            host = lane.downloaded(len(boxes))
            check_status(host["status"])
            return DeviceBodies(boxes, intrinsics, self.bundle.spec.joint_set, self.bundle.template.faces, host, placed)

        pending = self._pending[turn] = Pending(finish, self.context, lane.done, placed)
        self._turn = (turn + 1) % len(self.lanes)
        return pending
