"""People in the browser, live: the video, the moving meshes that one can orbit, a table of joints, charts of times.

Built on viser (extra `view`), which serves the page and needs nothing on the screen of the machine itself.
"""

from __future__ import annotations

import contextlib
import errno
import html
import io
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.files import reason
from metro_edge.joints import joint_set
from metro_edge.preprocess import Frame
from metro_edge.template import BodyTemplate
from metro_edge.video.drawing import Drawer, Style, colour_of
from metro_edge.video.glb import drawing_level
from metro_edge.video.people import Person
from metro_edge.video.recording import STAGES
from metro_edge.video.stream import FrameResult

if TYPE_CHECKING:
    from typing_extensions import Self

LOCALHOST = "127.0.0.1"
PICTURE_WIDTH = 640  # px of the video on the page
TABLE_EVERY_S, CHART_EVERY_S = 0.2, 0.3
CHART_S = 20.0  # that the charts look back
GONE_S = 0.5  # after which someone who was not seen disappears
EYE, LOOK_AT = (2.6, 1.7, 0.4), (1.0, 0.8, -3.8)  # where the page's own camera begins, metres in the ground's frame
CHARTED = STAGES[:-1]  # results are not handed over here
SHADES = ("#8884d8", "#e07a5f", "#3d85c6", "#6aa84f", "#c27ba0", "#f1a33c", "#76a5af", "#999999")


class Viewer:
    """Serves a page and shows results on it.

        with Viewer(bundle.template) as viewer:
            print(viewer.address)
            for result in stream:
                viewer.show(result)

    Attributes:
        address: of the page.
        paused: whether the page's user has paused; `show` then waits.

    Raises:
        MissingExtraError: without the extra `view`.
        UserError: the port is taken or the host is not one of this machine.
    """

    def __init__(self, template: BodyTemplate, host: str = LOCALHOST, port: int = 8080, title: str = "") -> None:
        self._vertices, self._faces = drawing_level(template)
        self._draw = Drawer(template, Style(mesh=False, boxes=True, labels=True))
        self._bodies: dict[int, _Shown] = {}
        self._times: deque[tuple[float, dict[str, float]]] = deque(maxlen=2000)
        self._table_at = self._chart_at = 0.0
        self.stop: Callable[[], bool] = lambda: False  # asked while the user has paused
        self._server = _server(host, port, title)
        self.address = f"http://{_bracketed(host)}:{self._server.get_port()}"
        self._build(title)

    @property
    def paused(self) -> bool:
        """Whether the page's user has paused."""
        return bool(self._pause.value)

    def _build(self, title: str) -> None:
        server = self._server
        server.gui.configure_theme(control_width="large", show_logo=False, show_share_button=False, dark_mode=True)
        server.scene.set_up_direction("+y")
        server.scene.add_grid("/floor", 12.0, 12.0, plane="xz", position=(0.0, 0.0, -4.0), cell_size=0.5)
        self._image = server.gui.add_image(np.zeros((9, 16, 3), np.uint8), label=title or None, format="jpeg")
        self._pause = server.gui.add_checkbox("pause", False)
        self._status = server.gui.add_markdown("waiting for the first frame")
        with server.gui.add_folder("speed"):
            self._fps = server.gui.add_uplot(
                *_chart(["frames a second"]), height=130, title="frames a second", scales=_scales()
            )
            self._stages = server.gui.add_uplot(*_chart(CHARTED), height=190, title="stages, ms", scales=_scales())
        with server.gui.add_folder("joints"):
            self._table = server.gui.add_html("")

        @server.on_client_connect  # type: ignore[untyped-decorator]
        def _(client: Any) -> None:
            client.camera.up_direction = (0.0, 1.0, 0.0)
            client.camera.position, client.camera.look_at = EYE, LOOK_AT

    def show(self, result: FrameResult) -> None:
        """Show a frame's results; waits while the user has paused, unless `stop()` is true."""
        while self.paused and not self.stop():
            time.sleep(0.05)
        now = time.monotonic()
        self._times.append((now, result.stages_ms))
        with self._server.atomic():
            self._image.image = _small(self._draw(result))
            for person in result.people:
                self._show_person(person, result.ground, now)
            for identity in [i for i, shown in self._bodies.items() if now - shown.seen_s > GONE_S]:
                self._bodies.pop(identity).remove()
            if now - self._table_at >= TABLE_EVERY_S:
                self._table_at = now
                self._table.content = joint_table(result)
                self._status.content = self._words(result)
            if now - self._chart_at >= CHART_EVERY_S:
                self._chart_at = now
                self._show_charts(now)

    def _show_person(self, person: Person, ground: Any, now: float) -> None:
        body = person.body
        shown = self._bodies.get(person.identity)
        if shown is None:
            shown = self._bodies[person.identity] = _Shown(self._server, person.identity)
        shown.seen_s = now
        if body.has_mesh:
            placed = (body.vertices[self._vertices] + body.translation) @ ground[:3, :3].T + ground[:3, 3]
            shown.mesh(placed.astype(np.float32), self._faces)
        joints = (body.joints + body.translation) @ ground[:3, :3].T + ground[:3, 3]
        bones = np.array(joint_set(body.joint_set).bone_indices)
        shown.bones(joints[bones].astype(np.float32), joints.max(axis=0))

    def _words(self, result: FrameResult) -> str:
        people = "1 person" if len(result.people) == 1 else f"{len(result.people)} people"
        left_out = f", {result.dropped} frames left out" if result.dropped else ""
        return f"frame {result.index}, {result.time_s:.2f} s: **{people}**, {self.fps():.1f} FPS{left_out}"

    def fps(self, over_s: float = 2.0) -> float:
        """Return the frames a second that were shown lately."""
        times = [at for at, _ in self._times if self._times[-1][0] - at <= over_s]
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    def _show_charts(self, now: float) -> None:
        recent = [(at, stages) for at, stages in self._times if now - at <= CHART_S]
        if len(recent) < 3:
            return
        at = np.array([one[0] for one in recent]) - now
        rate = 1.0 / np.maximum(np.diff(at), 1e-4)
        self._fps.data = (at[1:], _smooth(rate))
        columns = [_smooth(np.array([stages.get(name, 0.0) for _, stages in recent])) for name in CHARTED]
        self._stages.data = (at, *columns)

    def close(self) -> None:
        """End the page's server; doing it twice is fine."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Shown:
    """A person's parts of the scene."""

    def __init__(self, server: Any, identity: int) -> None:
        self._server, self._name = server, f"/person{identity}"
        self._colour = tuple(round(255 * value) for value in reversed(colour_of(identity)))
        self._mesh: Any = None
        self._bones: Any = None
        self._label = server.scene.add_label(f"{self._name}/label", str(identity))
        self.seen_s = 0.0

    def mesh(self, vertices: Any, faces: Any) -> None:
        if self._mesh is None:
            scene = self._server.scene
            self._mesh = scene.add_mesh_simple(f"{self._name}/mesh", vertices, faces, color=self._colour, side="double")
        else:
            self._mesh.vertices = vertices

    def bones(self, segments: Any, top: Any) -> None:
        self._label.position = (float(top[0]), float(top[1]) + 0.2, float(top[2]))
        if self._bones is None:
            name = f"{self._name}/bones"
            self._bones = self._server.scene.add_line_segments(name, segments, colors=(255, 170, 60), thickness=0.02)
        else:
            self._bones.points = segments

    def remove(self) -> None:
        for handle in (self._mesh, self._bones, self._label):
            if handle is not None:
                handle.remove()


def joint_table(result: FrameResult) -> str:
    """Return an HTML table of the people's joints: centimetres in the ground's frame, a column group per person."""
    if not result.people:
        return "<p>nobody</p>"
    ground = result.ground
    heads, columns = [], []
    for person in result.people:
        heads.append(f'<th colspan="3">person {person.identity} ({person.confidence:.2f}), cm</th>')
        placed = (person.body.joints + person.body.translation) @ ground[:3, :3].T + ground[:3, 3]
        columns.append(np.round(100 * placed).astype(int))
    rows = []
    for number, name in enumerate(result.people[0].body.joint_names):
        cells = "".join(f'<td align="right">{value}</td>' for column in columns for value in column[number])
        rows.append(f"<tr><td>{html.escape(name.replace('_', ' '))}</td>{cells}</tr>")
    style = "font: 11px monospace; border-spacing: 6px 0; padding: 0 8px"
    first = f"<tr><th>x right, y up, z back</th>{''.join(heads)}</tr>"
    return f'<table id="joints" style="{style}">{first}{"".join(rows)}</table>'


def _server(host: str, port: int, title: str) -> Any:
    try:
        import viser
    except ImportError:
        raise MissingExtraError("viser", "view", "show results in the browser") from None
    _check_free(host, port)
    with contextlib.redirect_stdout(io.StringIO()):  # its banner, which comes whatever `verbose` says
        return viser.ViserServer(host=host, port=port, label=f"metro-edge {title}".strip(), verbose=False)


def _check_free(host: str, port: int) -> None:
    """Raise UserError unless the port can be taken: viser itself would take another one and say nothing."""
    import socket

    if not 1 <= port <= 65_535:
        raise UserError(f"a port is a number from 1 to 65535, got {port}")
    if not host:  # every address of the machine, which nobody may want
        raise UserError("the host has no name; write 0.0.0.0 for the whole network")
    try:
        host.encode("idna")  # what `bind` does, which leaves a socket open when it cannot
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as error:
        words, number = reason(error).partition(" (while")[0], error.errno
    except UnicodeError:
        words, number = "this cannot be a host's name", None
    if number in (errno.EADDRINUSE, errno.EACCES):  # ports below 1024 are the administrator's
        words += "; choose another with --port"
    else:
        words += f"; --host must be an address of this machine, such as {LOCALHOST} or 0.0.0.0"
    raise UserError(f"cannot serve on {_bracketed(host)}:{port}: {words}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host  # as addresses of IPv6 are written before a port


def _chart(names: Sequence[str]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return empty data and the series of a chart over seconds."""
    from viser import uplot

    series = [uplot.Series(label="s")]
    series += [uplot.Series(label=n, stroke=SHADES[k % len(SHADES)], width=2) for k, n in enumerate(names)]
    return tuple(np.zeros(1) for _ in series), tuple(series)


def _scales() -> dict[str, Any]:
    from viser import uplot

    return {"x": uplot.Scale(time=False, auto=False, range=(-CHART_S, 0.0)), "y": uplot.Scale(auto=True)}


def _smooth(values: Any, over: int = 5) -> Any:
    kernel = np.ones(min(over, len(values))) / min(over, len(values))
    padded = np.concatenate([np.repeat(values[:1], len(kernel) - 1), values])
    return np.convolve(padded, kernel, mode="valid")


def _small(picture: Frame) -> Any:
    height, width = picture.shape[:2]
    if width > PICTURE_WIDTH:
        size_wh = (PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width)))
        picture = np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
