"""A network camera for the tests, by a Python that has GStreamer: serves an H.264 file over RTSP, anew to each client.

Usage: rtsp_server.py PORT FILE.mp4; prints `ready` once it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main() -> None:
    port, path = sys.argv[1:]
    Gst.init(None)
    if missing := [n for n in ("filesrc", "qtdemux", "rtph264pay", "rtpbin") if not Gst.ElementFactory.find(n)]:
        sys.exit(f"GStreamer has no {', '.join(missing)}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f'( filesrc location="{path}" ! qtdemux ! rtph264pay name=pay0 pt=96 config-interval=-1 )')
    server.get_mount_points().add_factory("/eye", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
