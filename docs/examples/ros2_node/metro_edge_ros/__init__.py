"""A ROS 2 node around metro_edge.MeshEstimator."""
