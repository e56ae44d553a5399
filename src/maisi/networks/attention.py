"""Attention over the voxels of a feature map: plain, and with a context of tokens.

The arithmetic is in one place, `attend`; the rest are linear layers and norms. Voxels become tokens by flattening the
three spatial axes, so tokens carry no position of their own and their order does not matter.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from maisi.networks.blocks import GroupNorm, conv1


def attend(query: Tensor, key: Tensor, value: Tensor, head_channels: int) -> Tensor:
    """softmax(Q K^T / sqrt(head_channels)) V for tokens (b, n, c), a head taking `head_channels` adjoining channels.

    Vaswani et al., "Attention is all you need", 2017, equation 1.
    """
    q, k, v = (tokens.unflatten(2, (-1, head_channels)).transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention of tokens (b, n, c) to a context (b, m, d); without `project` the heads are just joined."""

    def __init__(self, channels: int, context_channels: int, head_channels: int, bias: bool, project: bool) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key = nn.Linear(context_channels, channels, bias=bias)
        self.value = nn.Linear(context_channels, channels, bias=bias)
        self.out = nn.Linear(channels, channels) if project else nn.Identity()

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        attended = attend(self.query(tokens), self.key(context), self.value(context), self.head_channels)
        return self.out(attended)


class SelfAttention(nn.Module):
    """Residual attention of every voxel of a feature map (b, channels, u, v, w) to every other, after a GroupNorm."""

    def __init__(self, channels: int, head_channels: int, groups: int, eps: float, project: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.attention = Attention(channels, channels, head_channels, bias=True, project=project)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (b, u*v*w, c)
        tokens = self.attention(tokens, tokens)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class FeedForward(nn.Module):
    """Gated linear unit of tokens (b, n, c), four times as wide: linear2(a gelu(gate)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, 8 * channels)
        self.linear2 = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        a, gate = self.linear1(tokens).chunk(2, dim=2)
        return self.linear2(a * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context and a feed-forward network, each residual after a LayerNorm.

    Tokens (b, n, channels), context (b, m, context_channels); Rombach et al., arXiv 2112.10752, section 3.3.
    """

    def __init__(self, channels: int, head_channels: int, context_channels: int, project: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, head_channels, bias=False, project=project)
        self.norm2 = nn.LayerNorm(channels)
        self.cross_attention = Attention(channels, context_channels, head_channels, bias=False, project=project)
        self.norm3 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross_attention(self.norm2(tokens), context)
        return tokens + self.feed_forward(self.norm3(tokens))


class ContextAttention(nn.Module):
    """Residual transformer over the voxels of (b, channels, u, v, w) that attends to (b, m, context_channels) too."""

    def __init__(
        self, channels: int, head_channels: int, context_channels: int, groups: int, eps: float, project: bool
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.proj_in = conv1(channels, channels)
        self.transformer = TransformerBlock(channels, head_channels, context_channels, project)
        self.proj_out = conv1(channels, channels)
        for parameter in self.proj_out.parameters():  # a fresh block passes its input on
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (b, u*v*w, c)
        tokens = self.transformer(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
