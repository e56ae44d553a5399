"""Label maps through our label autoencoder and MONAI's, same weights."""

import numpy as np
import torch
from oracle_networks import drawn_network, oracle_of, relative_error

from maisi.anatomy.bits import label_bits
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.pipelines.label_codec import decode_labels, encode_labels, label_channels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

CONFIG = AutoencoderConfig(
    in_channels=8,
    out_channels=125,
    channels=(16, 32, 16),
    num_res_blocks=(1, 2, 1),
    norm_groups=8,
    upsampling="transposed",
)


@torch.inference_mode()
def test_label_maps_are_coded_as_monai_does():
    ours = drawn_network(CONFIG, torch.float64)
    theirs = oracle_of(ours)
    shape = (16, 12, 8)
    ids = np.random.default_rng(0).choice(np.array(label_channels(), np.uint8), shape)
    latent = encode_labels(ours, LabelMap(ids, Grid.centered(shape, (1.5, 1.5, 1.5))), dtype=torch.float64)
    expected, _ = theirs.encode(label_bits(ids, torch.float64)[None])
    assert relative_error(latent.mean, expected) < 1e-5
    channels = theirs.decode(latent.mean).softmax(1).argmax(1)[0].numpy()
    assert np.array_equal(decode_labels(ours, latent).array, np.array(label_channels())[channels])
