# SPDX-License-Identifier: Apache-2.0
"""The vision transformer of the built-in zoo, for 28x28 images.

Sizes are constants of the modules, not read from tensors, and attention is written as matrix
products and a softmax, so that a trace holds each of them as a node of its own.
"""

import torch
from torch import Tensor, nn

__all__ = ["Attention", "TransformerBlock", "Vit"]


class Attention(nn.Module):
    """Multi-head self-attention, its queries, keys and values made by one layer.

    Args:
        tokens: Length of a sequence.
        width: Channels of a token, a multiple of ``heads``.
        heads: Heads.

    Reference:
        arXiv 1706.03762, section 3.2.
    """

    def __init__(self, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, tokens, width) to the same shape."""
        parts = torch.reshape(self.qkv(x), (-1, self.tokens, 3, self.heads, self.head_width))
        parts = torch.permute(parts, (2, 0, 3, 1, 4))  # (3, n, heads, tokens, head width)
        # a trace cannot unpack a tensor, so each part is named
        query, key, value = parts[0], parts[1], parts[2]
        scores = torch.matmul(query * self.head_width**-0.5, torch.transpose(key, 2, 3))
        mixed = torch.matmul(torch.softmax(scores, -1), value)
        mixed = torch.reshape(torch.transpose(mixed, 1, 2), (-1, self.tokens, self.width))
        return self.proj(mixed)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention, then two layers per token; each behind a norm and around a shortcut.

    Args:
        tokens: Length of a sequence.
        width: Channels of a token.
        heads: Heads of the attention.
        expansion: Channels between the two layers, as a multiple of ``width``.
    """

    def __init__(self, tokens: int, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(tokens, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, expansion * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, tokens, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class Vit(nn.Module):
    """Vision transformer of 307 k parameters: 49 tokens of 96 channels, 4 blocks of 4 heads.

    Args:
        classes: Width of the last layer.
        channels: Image channels.

    Reference:
        arXiv 2010.11929, section 3.1; the mean of all tokens stands for its class token.
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        tokens, width = 7 * 7, 96
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(tokens, width, 4, 2) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, 28, 28) to logits (n, classes)."""
        x = torch.transpose(torch.flatten(self.patches(x), 2), 1, 2)
        x = self.blocks(x + self.positions)
        return self.head(torch.mean(self.norm(x), 1))  # type: ignore[no-any-return]
