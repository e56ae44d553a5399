"""`maisi reconstruct`, `encode`, `decode` and `info`."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, Patient, files_in
from PIL import Image

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo, save_bundle
from maisi.evaluation.fidelity import fidelity
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.space.files import read_volume, write_labels
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap

RESULTS = ["metrics.json", "reconstruction.nii.gz", "reconstruction_preview.png", "run.json", "run.yaml"]


def test_reconstruct_measures_what_it_writes(maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = maisi("reconstruct", patient.ct, "-b", tiny_bundle, "--out", out)

    assert answer.code == 0, answer.err
    assert files_in(out) == RESULTS
    metrics = json.loads((out / "metrics.json").read_text())
    measured = fidelity(read_volume(out / "reconstruction.nii.gz"), read_volume(patient.ct))
    assert metrics["reconstruction"]["psnr_db"] == pytest.approx(measured.psnr_db, abs=0.01)
    assert metrics["reconstruction"]["mae_hu"] == pytest.approx(measured.mae_hu, abs=0.5)
    assert metrics["yardstick"]["psnr_db"] > 10
    assert f"{measured.psnr_db:.2f}" in answer.out
    with Image.open(out / "reconstruction_preview.png") as picture:
        assert picture.size[0] > 500


def test_the_reconstruction_lies_on_the_grid_of_its_ct_also_where_sizes_are_odd(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    ask = ("reconstruct", patient.ct, "-b", tiny_bundle, "--spacing", 18, 16, 20)
    answer = maisi(*ask, "-o", tmp_path / "out", "--json")
    assert answer.json["reconstruction"]["psnr_db"] > 0
    written = read_volume(tmp_path / "out" / "reconstruction.nii.gz")
    assert any(n % 2 for n in written.grid.shape)
    assert np.allclose(written.grid.spacing, (18, 16, 20))


def test_a_spacing_that_the_bundle_does_not_know_is_warned_of(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    answer = maisi("reconstruct", patient.ct, "-b", tiny_bundle, "--spacing", 14, 14, 30, "-o", tmp_path / "out")
    assert answer.code == 0
    assert answer.err.startswith(
        "warning: spacing 14 x 14 x 30 mm is above the 20 x 20 x 20 mm that the bundle was trained for"
    )


def test_encode_then_decode_is_the_reconstruction(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    latent, ct = tmp_path / "latent.safetensors", tmp_path / "again.nii.gz"
    assert maisi("encode", patient.ct, "-b", tiny_bundle, "-o", latent).out.strip() == str(latent)
    assert maisi("decode", latent, "-b", tiny_bundle, "-o", ct).code == 0
    maisi("reconstruct", patient.ct, "-b", tiny_bundle, "-o", tmp_path / "out")
    again, expected = (nib.load(path) for path in (ct, tmp_path / "out" / "reconstruction.nii.gz"))
    assert np.array_equal(np.asarray(again.dataobj), np.asarray(expected.dataobj))
    assert np.array_equal(again.affine, expected.affine)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("encode", "{ct}", "-o", "{tmp}/latent.pt"), "accepted: .safetensors"),
        (("encode", "{ct}", "-o", "{tmp}/nowhere/latent.safetensors"), "there is no folder"),
        (("decode", "{ct}", "-o", "{tmp}/ct.nii.gz"), "is not a latent"),
        (("decode", "{tmp}/none.safetensors", "-o", "{tmp}/ct.nii.gz"), "no latent at"),
        (("encode", "{ct}", "--memory", "much", "-o", "{tmp}/latent.safetensors"), "write 8GB"),
    ],
)
def test_what_cannot_be_encoded_or_decoded_is_refused(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    answer = maisi(*(a.format(ct=patient.ct, tmp=tmp_path) for a in arguments), "-b", tiny_bundle)
    assert answer.code == 2
    assert complaint in answer.err
    assert files_in(tmp_path) == []


def test_info_tells_a_ct_a_label_map_a_latent_a_bundle_and_a_run_apart(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    latent, run = tmp_path / "latent.safetensors", tmp_path / "run"
    maisi("encode", patient.ct, "-b", tiny_bundle, "-o", latent)
    maisi("reconstruct", patient.ct, "-b", tiny_bundle, "-o", run)
    subjects = (patient.ct, patient.labels, latent, tiny_bundle, run)
    kinds = [maisi("info", subject, "--json").json["kind"] for subject in subjects]
    assert kinds == ["volume", "labels", "latent", "bundle", "run"]


def test_info_names_the_structures_of_a_label_map(maisi: Maisi, patient: Patient) -> None:
    about = maisi("info", patient.labels, "--json").json
    assert about["size"] == [26, 22, 18]
    assert about["spacing_mm"] == [14.0, 14.0, 14.0]
    assert "abdomen" in about["regions"]
    liver = next(s for s in about["structures"] if s["name"] == "liver")
    assert liver["voxels"] == int((np.asarray(nib.load(patient.labels).dataobj) == liver["id"]).sum())
    assert liver["volume_ml"] == pytest.approx(liver["voxels"] * 14**3 / 1000, abs=0.01)
    assert "liver" in maisi("info", patient.labels).out


def test_info_writes_names_of_files_as_they_are(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    maisi("reconstruct", patient.ct, "-b", tiny_bundle, "-o", tmp_path / "run")
    assert "  reconstruction_preview.png: " in maisi("info", tmp_path / "run").out
    assert str(patient.ct.resolve()) in maisi("info", tmp_path / "run").out


def test_info_joins_sizes_with_x_and_other_lists_with_commas(maisi: Maisi, tiny_bundle: Path, patient: Patient) -> None:
    told = maisi("info", patient.ct).out
    assert "spacing mm: 14.0 x 14.0 x 14.0" in told
    assert " x " not in next(line for line in told.splitlines() if line.startswith("origin mm: "))


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_an_autoencoder_of_label_maps_takes_no_ct(maisi: Maisi, patient: Patient, tmp_path: Path, command: str) -> None:
    config = AutoencoderConfig(
        in_channels=8, out_channels=5, channels=(8, 16), num_res_blocks=(1, 1), norm_groups=4, upsampling="transposed"
    )
    info = BundleInfo(name="masks", licence="none", vocabulary_version="1.0")
    save_bundle(Bundle.of(info, {"autoencoder": Autoencoder(config)}), tmp_path / "masks")
    answer = maisi(command, patient.ct, "-b", tmp_path / "masks", "-o", tmp_path / "out.safetensors")
    assert answer.code == 2
    assert "autoencoder of bundle 'masks' takes 8 channels and gives 5 (label maps)" in answer.err
    assert not (tmp_path / "out.safetensors").exists()


def test_info_describes_a_bundle(maisi: Maisi, tiny_bundle: Path) -> None:
    answer = maisi("info", tiny_bundle)
    assert "name: tiny" in answer.out
    assert "size multiple: 4" in answer.out
    assert maisi("info", tiny_bundle, "--json").json["networks"]["unet"]["num_parameters"] > 1000


def test_real_scans_are_reconstructed(maisi: Maisi, tiny_bundle: Path, shared_data: Path, tmp_path: Path) -> None:
    ct = shared_data / "torso_head" / "totalseg_example_ct" / "ct.nii.gz"
    answer = maisi("reconstruct", ct, "-b", tiny_bundle, "--spacing", 8, 8, 8, "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert files_in(tmp_path / "out") == RESULTS


def test_the_packaged_autoencoder_beats_the_box_blur(
    maisi: Maisi, packaged: str, shared_data: Path, tmp_path: Path
) -> None:
    ct = shared_data / "torso_head" / "totalseg_example_ct" / "ct.nii.gz"
    answer = maisi("reconstruct", ct, "-b", packaged, "-o", tmp_path / "out", "--json")
    assert answer.json["reconstruction"]["psnr_db"] > answer.json["yardstick"]["psnr_db"] + 2


def test_label_maps_are_encoded_and_decoded_by_an_autoencoder_of_label_maps(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    config = AutoencoderConfig(
        in_channels=8, out_channels=125, channels=(8, 16), num_res_blocks=(1, 1), norm_groups=4, upsampling="transposed"
    )
    info = BundleInfo(name="masks", licence="none", vocabulary_version="1.0")
    bundle = save_bundle(Bundle.of(info, {"autoencoder": Autoencoder(config)}), tmp_path / "masks")
    vocabulary = load_vocabulary()
    labels = read_labels(patient.labels)
    known = np.isin(labels.array, [*vocabulary.group("lungs"), vocabulary.id("liver"), vocabulary.id("body")])
    write_labels(LabelMap(np.where(known, labels.array, 0).astype(np.uint8), labels.grid), tmp_path / "own.nii.gz")
    latent, again = tmp_path / "own.safetensors", tmp_path / "again.nii.gz"
    answer = maisi("encode", tmp_path / "own.nii.gz", "-b", bundle, "-o", latent)
    assert answer.code == 0, answer.err
    assert maisi("info", latent, "--json").json["content"] == "labels"
    answer = maisi("decode", latent, "-b", bundle, "-o", again)
    assert answer.code == 0, answer.err
    decoded = read_labels(again)
    assert decoded.grid.is_close(labels.grid)
    assert set(np.unique(decoded.array)) <= {0, *vocabulary.ids}
    refused = maisi("reconstruct", patient.ct, "-b", bundle, "-o", tmp_path / "out")
    assert refused.code == 2
    assert "takes 8 channels and gives 125 (label maps)" in refused.err


def test_a_latent_is_decoded_as_the_modality_that_is_asked_for(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    latent = tmp_path / "l.safetensors"
    assert maisi("encode", patient.ct, "-b", tiny_bundle, "-o", latent).code == 0
    ask = ("decode", latent, "-b", tiny_bundle, "--modality", "mr", "-o", tmp_path / "mr.nii.gz")
    refused = maisi(*ask)
    assert refused.code == 2
    assert "not trained for modality 'mr'" in refused.err
    assert maisi(*ask, "--force").code == 0
    assert np.asarray(nib.load(tmp_path / "mr.nii.gz").dataobj).min() >= 0
