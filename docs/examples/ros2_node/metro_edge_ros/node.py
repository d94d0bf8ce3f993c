"""The node: `image` and `camera_info` in, `~/markers` and `~/vertices` out.

ros2 run metro_edge_ros node --ros-args -r image:=/camera/image_rect -r camera_info:=/camera/camera_info
"""

from __future__ import annotations

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from metro_edge import MeshEstimator, UserError

from .conversions import camera_matrix, cloud_from_bodies, frame_from_image, markers_from_bodies

# As drivers publish pictures. Depth 1: a picture that comes while the network runs replaces the one that waits.
NEWEST_PICTURE = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
RESULTS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5, reliability=QoSReliabilityPolicy.RELIABLE)
WARN_EVERY_S = 5.0


class MetroEdgeNode(Node):
    """Estimates the people of each picture.

    Parameters: `bundle` (path; empty takes the shipped one), `precision`, `backend`, `boxes` (x, y, width, height in px
    of each person, one after the other; all zero takes the whole picture as one person's box).
    """

    def __init__(self) -> None:
        super().__init__("metro_edge")
        bundle: str = self.declare_parameter("bundle", "").value
        precision: str = self.declare_parameter("precision", "fp32").value
        backend: str = self.declare_parameter("backend", "onnxruntime").value
        # Not an empty list, which has no type: ROS would take it for bytes.
        boxes: list[float] = self.declare_parameter("boxes", [0.0, 0.0, 0.0, 0.0]).value
        self.boxes = boxes_from_parameter(boxes)
        self.estimator = MeshEstimator.from_bundle(bundle or None, precision, backend)
        self.matrix: NDArray[np.float64] | None = None
        self.markers = self.create_publisher(MarkerArray, "~/markers", RESULTS)
        self.vertices = self.create_publisher(PointCloud2, "~/vertices", RESULTS)
        self.images = self.create_subscription(Image, "image", self.on_image, NEWEST_PICTURE)
        self.infos = self.create_subscription(CameraInfo, "camera_info", self.on_camera_info, NEWEST_PICTURE)

    def on_camera_info(self, message: CameraInfo) -> None:
        """Take the camera's intrinsics for the pictures from now on."""
        self.matrix = camera_matrix(message)

    def on_image(self, message: Image) -> None:
        """Publish the people of one picture under its header; a picture that cannot be used is a warning."""
        try:
            bodies = self.estimator(frame_from_image(message), self.boxes, self.matrix)
        except UserError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=WARN_EVERY_S)
            return
        self.markers.publish(markers_from_bodies(bodies, message.header))
        self.vertices.publish(cloud_from_bodies(bodies, message.header))

    def destroy_node(self) -> None:
        """Free the engine too."""
        self.estimator.close()
        super().destroy_node()


def boxes_from_parameter(values: list[float]) -> NDArray[np.float64] | None:
    """Return boxes (N, 4) of a flat list, None where all are zero; raises UserError for a list of another length."""
    if len(values) % 4:
        raise UserError(f"`boxes` must hold four numbers a person, got {len(values)}")
    return np.array(values, np.float64).reshape(-1, 4) if any(values) else None


def main() -> None:
    """Spin until interrupted."""
    rclpy.init()
    node = None
    try:
        node = MetroEdgeNode()
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    except UserError as error:  # of a parameter
        raise SystemExit(f"error: {error}") from None
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
