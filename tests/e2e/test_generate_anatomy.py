"""`maisi generate --anatomy`: what was asked for is in the label map, and what cannot be is refused in a line."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from command_line import Maisi, files_in

from maisi.anatomy.vocabulary import load_vocabulary

V = load_vocabulary()
SMALL = ("--region", "abdomen", "--size", 32, 28, 28, "--spacing", 12, 12, 12, "--steps", 1)


def test_organs_and_tumours_that_are_asked_for_are_in_the_label_map(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi(
        "generate", "-b", tiny_bundle, *SMALL, "-n", 2, "--out", out,
        "--anatomy", "liver=0.7", "Liver Tumor=60ml", "gallbladder=none",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    for name in ("sample_000_labels.nii.gz", "sample_001_labels.nii.gz"):
        ids = np.asarray(nib.load(out / name).dataobj)
        ml = {name: (ids == V.id(name)).sum() * 1.728 for name in ("liver", "hepatic tumor", "hepatic vessel")}
        assert sum(ml.values()) == pytest.approx(1520 * 1.5**0.4, rel=0.05)
        assert ml["hepatic tumor"] == pytest.approx(60, rel=0.1)
        assert not (ids == V.id("gallbladder")).any()
    settings = yaml.safe_load((out / "run.yaml").read_text())
    assert settings["anatomy"] == ["liver=0.7", "Liver Tumor=60ml", "gallbladder=none"]
    assert maisi("reproduce", out / "run.yaml", "--out", tmp_path / "again").code == 0
    again = np.asarray(nib.load(tmp_path / "again" / "sample_001_labels.nii.gz").dataobj)
    np.testing.assert_array_equal(again, ids)


@pytest.mark.parametrize(
    ("anatomy", "complaint"),
    [
        (("livr=0.5",), "unknown structure 'livr'; did you mean 'liver'"),
        (("liver=2",), "anatomy: liver: 2 is above 1 and has no unit"),
        (("hepatic tumor=0.5", "liver=none"), "hepatic tumor grows in liver, which is to be absent"),
        (("hepatc tumor=0.5",), "did you mean 'hepatic tumor'"),
        (("brain=0.5",), "brain lies in the region head, outside of abdomen"),
        (("liver=0.5", "LIVER=0.6"), "say the size of liver twice"),
        (("liver=5000ml", "spleen=5000ml", "stomach=5000ml", "right kidney=2900ml"), "the field of view"),
    ],
)
def test_anatomy_that_cannot_be_is_refused_before_anything_is_written(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, anatomy: tuple[str, ...], complaint: str
) -> None:
    small = ("--region", "abdomen", "--size", 24, 24, 24, "--spacing", 12, 12, 12)
    answer = maisi("generate", "-b", tiny_bundle, *small, "--anatomy", *anatomy, "--out", tmp_path / "out")
    assert answer.code == 2
    assert answer.err.count("error: ") == 1
    assert complaint in answer.err
    assert files_in(tmp_path) == []
