"""Generated people as whole frames with boxes, rendered when asked for: for any crop rule, unlike the cached shards."""

from __future__ import annotations

import numpy as np

from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.generator import GeneratedPeople
from training.data.labelled import LabelledPicture, LabelledSet, centred_vertices


class GeneratedPictures(LabelledSet):
    """The first `count` generated people of a seed; nothing is stored.

    Args:
        seed: of the generator.
        count: samples.
        spec: of the network; the square is the true box grown by its box_scale.
        template: of Anny.
        size: of the whole generated set, for the generator; None takes `count`. A sample depends on seed and index
            only.
        frame_wh, family: of the generator.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        spec: ModelSpec,
        template: BodyTemplate,
        size: int | None = None,
        frame_wh: tuple[int, int] = (320, 320),
        family: str | None = None,
    ) -> None:
        super().__init__(count, spec)
        self.people, self.template = GeneratedPeople(seed, size or count, frame_wh, family), template

    def picture(self, index: int) -> LabelledPicture:
        """Render a sample."""
        sample = self.people[index]
        name, known = self.spec.joint_set, np.ones((len(self.spec.joints), 1), np.float32)
        joints = self.template.joints(name, sample.vertices)
        pixels = joints[:, :2] / joints[:, 2:] * sample.focal_px + np.asarray(sample.centre_px)
        root = self.template.root(name, sample.vertices)
        box = sample.box.astype(np.float64)
        return LabelledPicture(
            key=f"generated people of seed {self.people.seed}:{index}",
            image=sample.frame,
            centre_px=box[:2] + (box[2:] - 1) / 2,
            side_px=float(box[2:].max()) * self.spec.box_scale,
            joints_2d=np.hstack((pixels, known)).astype(np.float32),
            joints=np.hstack((joints - root, known)).astype(np.float32),
            vertices=centred_vertices(sample.vertices, self.template, name),
        )
