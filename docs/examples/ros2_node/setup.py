"""An ament_python package; metro-edge itself comes by pip."""

from setuptools import setup

setup(
    name="metro_edge_ros",
    version="0.1.0",
    packages=["metro_edge_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/metro_edge_ros"]),
        ("share/metro_edge_ros", ["package.xml"]),
    ],
    entry_points={"console_scripts": ["node = metro_edge_ros.node:main"]},
)
