"""Runs the example's node beside a camera, over the middleware; needs rclpy."""

from __future__ import annotations

import sys
import time
from typing import Any

import rclpy
from metro_edge_ros.node import NEWEST_PICTURE, RESULTS, MetroEdgeNode
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from metro_edge.demo import DemoAssets


def main() -> int:
    rclpy.init()
    picture = DemoAssets.load().picture
    node, camera = MetroEdgeNode(), rclpy.create_node("camera")
    arrived: dict[str, Any] = {}
    camera.create_subscription(MarkerArray, "/metro_edge/markers", lambda m: arrived.update(markers=m), RESULTS)
    camera.create_subscription(PointCloud2, "/metro_edge/vertices", lambda m: arrived.update(cloud=m), RESULTS)
    publisher = camera.create_publisher(Image, "image", NEWEST_PICTURE)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(camera)
    end = time.monotonic() + 60
    for encoding in ("bayer_rggb8", "bgr8"):
        message = Image(height=picture.shape[0], width=picture.shape[1], encoding=encoding, step=picture.strides[0])
        message.header.frame_id = "camera_optical"
        message.header.stamp.sec, message.header.stamp.nanosec = 12, 345678901
        message.data.frombytes(picture.tobytes())
        sent, first = 0.0, time.monotonic()
        # Nothing comes of the first kind but a warning: it gets five seconds.
        while len(arrived) < 2 and time.monotonic() < (end if encoding == "bgr8" else first + 5):
            if time.monotonic() - sent > 1.0:  # best effort: a picture may get lost before both have met
                publisher.publish(message)
                sent = time.monotonic()
            executor.spin_once(timeout_sec=0.05)
    stamp = arrived["markers"].markers[1].header.stamp
    cloud = arrived["cloud"]
    print(f"markers under stamp {stamp.sec}.{stamp.nanosec}: {len(arrived['markers'].markers)}, ", end="")
    print(f"points {cloud.height} x {cloud.width}")
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
