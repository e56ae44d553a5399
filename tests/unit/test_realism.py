"""What of generated volumes is compared with held-out ones."""

import json

import numpy as np
import pytest

from maisi.bundle.bundle import load_bundle
from maisi.data.manifest import Case, read_manifest
from maisi.errors import InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.recipes.realism import measure_realism, realism_tables
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    """Rendered abdomens: four held out, four to train on, the first of which is one of the held-out ones."""
    folder, rows = tmp_path_factory.mktemp("cases"), []
    for k in range(8):
        rng = np.random.default_rng(k % 7)  # the last is the first again
        labels = draw_phantom("abdomen", Grid.centered((80, 64, 16), (5, 5, 5)), rng)
        write_volume(render_phantom(labels, rng), folder / f"{k}.nii.gz")
        write_labels(labels, folder / f"{k}_labels.nii.gz")
        split = "validation" if k < 4 else "training"
        rows.append({"id": str(k), "image": f"{k}.nii.gz", "labels_maisi": f"{k}_labels.nii.gz", "split": split})
    (folder / "manifest.json").write_text(json.dumps({"cases": rows}))
    return read_manifest(folder / "manifest.json")


def test_held_out_cases_are_imitated_and_a_copy_in_the_training_data_is_seen(cases: tuple[Case, ...]) -> None:
    held_out, training = cases[:4], cases[4:]
    found = measure_realism(load_bundle("ct-small"), held_out, training, steps=1, by_steps=(2,))
    assert found.cases == 4
    assert found.blurred.frechet["mean"] > found.halves.frechet["mean"]
    assert min(found.held_out_neighbours) == pytest.approx(0.0, abs=1e-6)  # the copy
    assert min(found.generated_neighbours) > 0.01
    assert {"liver", "outside"} <= {each.name for each in found.structures}
    assert list(found.by_steps) == [2]
    tables = realism_tables(found)
    assert "| liver | 4 |" in tables
    assert "| 2 |" in tables


def test_too_few_held_out_cases_are_refused(cases: tuple[Case, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="at least 4 held-out cases; got 3"):
        measure_realism(load_bundle("ct-small"), cases[:3], cases[4:])
