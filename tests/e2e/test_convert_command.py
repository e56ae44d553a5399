"""`maisi convert`: upstream checkpoints to a bundle that works."""

from pathlib import Path

import pytest
import torch
from command_line import Maisi, files_in

from maisi.bundle.bundle import load_bundle
from maisi.bundle.upstream import RELEASED, to_upstream
from maisi.networks.build import build_network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released label autoencoder's file, with random weights."""
    path = tmp_path_factory.mktemp("upstream") / "mask_generation_autoencoder.pt"
    config = RELEASED["mask-autoencoder"].autoencoder
    assert config is not None
    torch.save(to_upstream(build_network(config)), path)
    return path


def test_a_checkpoint_becomes_a_bundle(maisi: Maisi, checkpoint: Path, tmp_path: Path) -> None:
    answer = maisi("convert", checkpoint, "--to", tmp_path / "mask", "--licence", "NVIDIA OneWay")
    assert answer.code == 0, answer.err
    assert answer.out.strip() == str(tmp_path / "mask")
    bundle = load_bundle(tmp_path / "mask")
    assert bundle.names == ("autoencoder",)
    assert bundle.info.licence == "NVIDIA OneWay"
    assert bundle.configs["autoencoder"] == RELEASED["mask-autoencoder"].autoencoder
    assert maisi("info", tmp_path / "mask", "--json").json["networks"]["autoencoder"]["num_parameters"] > 10**5


@pytest.mark.parametrize("content", [{"a.weight": torch.ones(3)}, [1, 2], {}])
def test_a_foreign_checkpoint_is_refused_and_nothing_written(maisi: Maisi, tmp_path: Path, content: object) -> None:
    foreign = tmp_path / "foreign.pt"
    torch.save(content, foreign)
    answer = maisi("convert", foreign, "--to", tmp_path / "bundle")
    assert answer.code == 2
    assert "foreign.pt" in answer.err
    assert "Traceback" not in answer.err
    assert files_in(tmp_path) == ["foreign.pt"]


def test_a_checkpoint_cut_off_is_refused(maisi: Maisi, checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:10000])
    answer = maisi("convert", cut, "--to", tmp_path / "bundle")
    assert answer.code == 2
    assert "cut.pt is damaged" in answer.err
    assert files_in(tmp_path) == ["cut.pt"]


def test_an_existing_bundle_is_kept_unless_overwritten(maisi: Maisi, checkpoint: Path, tmp_path: Path) -> None:
    maisi("convert", checkpoint, "--to", tmp_path / "mask")
    assert maisi("convert", checkpoint, "--to", tmp_path / "mask").code == 2
    assert maisi("convert", checkpoint, "--to", tmp_path / "mask", "--name", "new", "--overwrite").code == 0
    assert load_bundle(tmp_path / "mask").name == "new"
