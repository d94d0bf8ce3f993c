from __future__ import annotations

import pytest
import torch

from metro_edge.spec import ModelSpec
from training.bodies.anny import load_anny_template
from training.data.generator import GeneratedPeople
from training.data.rig import load_rig
from training.data.shards import write_shards


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rig():
    return load_rig()


@pytest.fixture(scope="session")
def template():
    return load_anny_template()


@pytest.fixture(scope="session")
def spec(template):
    return ModelSpec("test", 96, "h36m14", "anny", len(template.vertices))


@pytest.fixture(scope="session")
def people():
    return GeneratedPeople(seed=5, size=40)


@pytest.fixture(scope="session")
def shards(people, template, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_shards(people, folder, 20, spec, template, workers=1, shard_size=16)
    return folder
