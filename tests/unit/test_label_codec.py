"""Label maps through the label autoencoder, at tiny size with drawn weights."""

import dataclasses

import numpy as np
import pytest
import torch

from maisi.anatomy.bits import label_bits
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo
from maisi.bundle.upstream import RELEASED
from maisi.data.latents import Latent
from maisi.errors import InvalidBundleError, InvalidLabelsError, InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.pipelines.label_codec import (
    decode_labels,
    encode_labels,
    label_autoencoder,
    label_channels,
    takes_labels,
)
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap
from maisi.splitting.slabs import SlabTensor

CONFIG = AutoencoderConfig(
    in_channels=8, out_channels=125, channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2, upsampling="transposed"
)
INFO = BundleInfo(name="labels", licence="CC0-1.0", vocabulary_version="1.0")


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG).eval().requires_grad_(False)


def labels(shape: tuple[int, int, int] = (9, 8, 6)) -> LabelMap:
    ids = np.random.default_rng(0).choice(np.array(label_channels(), np.uint8), shape)
    return LabelMap(ids, Grid.centered(shape, (1.5, 1.5, 1.5)))


def test_the_channels_are_those_of_the_released_label_autoencoder() -> None:
    channels, vocabulary = label_channels(), load_vocabulary()
    assert len(channels) == len(set(channels)) == 125
    assert takes_labels(RELEASED["mask-autoencoder"].autoencoder)
    told = {0: 0, 1: 1, 21: vocabulary.id("hepatic tumor"), 111: vocabulary.id("prostate"), 122: 129}
    told |= {123: vocabulary.id("airway"), 124: vocabulary.id("body")}
    assert {channel: channels[channel] for channel in told} == told
    assert not set(channels) & {vocabulary.id("left kidney cyst"), vocabulary.id("right kidney cyst")}
    assert [k for k, id in enumerate(channels) if k == id] == [0, 1]


def test_the_network_reads_the_bits_of_ids_padded_by_the_last_plane(autoencoder: Autoencoder) -> None:
    latent = encode_labels(autoencoder, labels(), dtype=torch.float16, made_from="here")
    padded = np.pad(labels().array, [(0, 1), (0, 0), (0, 0)], mode="edge")
    mean, log_variance = autoencoder.encode(label_bits(padded)[None])
    assert torch.equal(latent.mean, mean.half())
    assert torch.equal(latent.log_variance, log_variance.half())
    assert (latent.content, latent.made_from, latent.factor) == ("labels", "here", 2)
    assert latent.grid.is_close(labels().grid)


@pytest.mark.parametrize("shape", [(8, 8, 6), (9, 7, 6)])
def test_a_label_map_comes_back_on_its_grid_with_known_ids(autoencoder: Autoencoder, shape: tuple) -> None:
    latent = encode_labels(autoencoder, labels(shape))
    back, again = decode_labels(autoencoder, latent), decode_labels(autoencoder, latent)
    assert back.array.dtype == np.uint8
    assert back.array.shape == shape
    assert back.grid.is_close(labels(shape).grid)
    assert set(np.unique(back.array)) <= set(label_channels())
    assert len(np.unique(back.array)) > 1
    assert np.array_equal(back.array, again.array)


def test_a_voxel_gets_the_id_of_its_largest_logit(autoencoder: Autoencoder) -> None:
    latent = encode_labels(autoencoder, labels((8, 8, 6)))
    logits = autoencoder.decode(latent.mean)[0]
    back = torch.from_numpy(decode_labels(autoencoder, latent).array).long()
    place = {id: channel for channel, id in enumerate(label_channels())}
    chosen = torch.tensor([place[int(id)] for id in back.flatten()]).reshape(1, *back.shape)
    assert torch.equal(logits.gather(0, chosen)[0], logits.amax(0))


def test_slabs_of_a_label_map_are_coded_like_the_whole(autoencoder: Autoencoder) -> None:
    class Split:
        """The autoencoder slab by slab, as a run fits it to memory."""

        def __getattr__(self, name: str) -> object:
            return getattr(autoencoder, name)

        def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(part.gather() for part in autoencoder.encode(SlabTensor.split(x, 2)))

        def decode(self, x: torch.Tensor) -> torch.Tensor:
            return autoencoder.decode(SlabTensor.split(x, 2)).gather()

    whole, split = encode_labels(autoencoder, labels()), encode_labels(Split(), labels())
    torch.testing.assert_close(split.mean, whole.mean, rtol=0, atol=1e-4)
    agreement = decode_labels(Split(), whole).array == decode_labels(autoencoder, whole).array
    assert agreement.mean() > 0.99


def test_ids_that_could_not_come_back_are_refused_by_name(autoencoder: Autoencoder) -> None:
    ids = labels().array.copy()
    ids[0, 0, :3] = 116, 154, 204
    with pytest.raises(InvalidLabelsError, match=r"no channel for the ids 116 \(left kidney cyst\), 154.*, 204"):
        encode_labels(autoencoder, LabelMap(ids, labels().grid))


def test_volumes_and_label_maps_are_not_taken_for_each_other(autoencoder: Autoencoder) -> None:
    volumes = Autoencoder(AutoencoderConfig(channels=(4,), num_res_blocks=(1,), norm_groups=2))
    latent = encode_labels(autoencoder, labels())
    with pytest.raises(InvalidRequestError, match="accepted for label maps: 8 and 125"):
        encode_labels(volumes, labels())
    with pytest.raises(InvalidRequestError, match="accepted for label maps: 8 and 125"):
        decode_labels(volumes, latent)
    with pytest.raises(InvalidRequestError, match="this latent is of a volume"):
        decode_labels(autoencoder, dataclasses.replace(latent, content="volume"))
    with pytest.raises(InvalidRequestError, match="which need"):
        decode_labels(autoencoder, Latent(latent.mean[:, :, :2], latent.mean[:, :, :2], latent.grid, content="labels"))


def test_a_bundle_gives_its_label_autoencoder_by_either_name(autoencoder: Autoencoder) -> None:
    volumes = Autoencoder(AutoencoderConfig(channels=(4,), num_res_blocks=(1,), norm_groups=2))
    assert label_autoencoder(Bundle.of(INFO, {"autoencoder": autoencoder})) is autoencoder
    both = Bundle.of(INFO, {"autoencoder": volumes, "label_autoencoder": autoencoder})
    assert label_autoencoder(both) is autoencoder
    assert both.autoencoder is volumes
    with pytest.raises(InvalidBundleError, match=r"no autoencoder of label maps; it holds autoencoder; .*125"):
        label_autoencoder(Bundle.of(INFO, {"autoencoder": volumes}))
