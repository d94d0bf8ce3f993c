"""Between ROS messages and metro-edge: no node and no middleware in here.

A body's camera frame (x right, y down, z away) is the optical frame of REP 103, so headers are kept as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from metro_edge import Body, HostFrame, UserError
from metro_edge.joints import joint_set

# Names of sensor_msgs/image_encodings.hpp whose bytes HostFrame reads as they lie.
FORMATS = {
    "bgr8": "bgr",
    "rgb8": "rgb",
    "mono8": "grey",
    "yuyv": "yuyv",
    "yuv422_yuy2": "yuyv",
    "nv12": "nv12",
}
SWAPPED = ("uyvy", "yuv422")  # U, Y0, V, Y1: converted by OpenCV
JOINT_M, BONE_M = 0.05, 0.02
COLOURS = ((0.1, 0.6, 1.0), (1.0, 0.5, 0.1), (0.2, 0.8, 0.3), (0.9, 0.2, 0.5))


def frame_from_image(message: Image) -> HostFrame:
    """Return the picture of an Image message, in place but for uyvy; raises UserError for other encodings and sizes."""
    if message.encoding in SWAPPED:
        rows = HostFrame(message.data, message.width, message.height, "yuyv", message.step).planes()[0]
        pixels = rows.reshape(message.height, message.width, 2)
        return HostFrame.from_array(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_UYVY), np.uint8))
    if message.encoding not in FORMATS:
        raise UserError(
            f"encoding {message.encoding!r} is not supported; known: {', '.join((*FORMATS, *SWAPPED))}. "
            "image_proc debayers, and cv_bridge converts 16-bit pictures"
        )
    return HostFrame(message.data, message.width, message.height, FORMATS[message.encoding], message.step)


def camera_matrix(info: CameraInfo) -> NDArray[np.float64] | None:
    """Return K (3, 3) of a calibrated camera; None for an uncalibrated one, whose K is zero. Pictures are rectified."""
    matrix = np.asarray(info.k, np.float64).reshape(3, 3)
    return matrix if matrix[0, 0] > 0 else None


def markers_from_bodies(bodies: Sequence[Body], header: Header) -> MarkerArray:
    """Return joints as spheres and bones as lines, in metres in the camera's optical frame.

    The first marker removes those of the picture before. The header is the image's: its time and frame.
    """
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for number, body in enumerate(bodies):
        places = (body.joints + body.translation).astype(float).tolist()
        points = [Point(x=x, y=y, z=z) for x, y, z in places]
        ends = [points[joint] for bone in joint_set(body.joint_set).bone_indices for joint in bone]
        markers.append(_marker(header, "joints", number, Marker.SPHERE_LIST, JOINT_M, points))
        markers.append(_marker(header, "bones", number, Marker.LINE_LIST, BONE_M, ends))
    return MarkerArray(markers=markers)


def _marker(header: Header, name: str, number: int, kind: int, size_m: float, points: list[Point]) -> Marker:
    marker = Marker(header=header, ns=f"metro_edge/{name}", id=number, type=kind, action=Marker.ADD, points=points)
    marker.pose.orientation.w = 1.0
    marker.scale.x = size_m
    if kind == Marker.SPHERE_LIST:  # lines have a width alone
        marker.scale.y = marker.scale.z = size_m
    red, green, blue = COLOURS[number % len(COLOURS)]
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    return marker


def cloud_from_bodies(bodies: Sequence[Body], header: Header) -> PointCloud2:
    """Return all vertices as x, y, z float32, metres in the optical frame; a row of the cloud for each person."""
    meshes = [body.vertices + body.translation for body in bodies]
    rows = np.stack(meshes).astype("<f4") if meshes else np.zeros((0, 0, 3), "<f4")
    fields = [
        PointField(name=name, offset=4 * axis, datatype=PointField.FLOAT32, count=1) for axis, name in enumerate("xyz")
    ]
    cloud = PointCloud2(header=header, height=rows.shape[0], width=rows.shape[1], fields=fields, is_dense=True)
    cloud.point_step, cloud.row_step = 12, 12 * rows.shape[1]
    cloud.data.frombytes(rows.tobytes())
    return cloud
