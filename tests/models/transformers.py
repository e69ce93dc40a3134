"""Small transformers in the styles of other authors, as torch modules to export; embeddings are 32-d."""

import io
from typing import Any

import onnx
import torch
from torch import Tensor, nn

SIZE, SIDE, WIDTH, HEADS = 16, 4, 24, 3  # pixels, patches per row, channels per token, heads


class Block(nn.Module):
    """Pre-norm attention and dense layers, written out as in most repositories."""

    def __init__(self, width: int = WIDTH, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 48), activation or nn.GELU(), nn.Linear(48, width))

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (c // HEADS) ** -0.5
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.view(n // windows, windows, HEADS, t, t) + mask[None, :, None]
            scores = scores.view(-1, HEADS, t, t)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClassToken(nn.Module):
    """A ViT as in timm: the embedding is computed from a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, SIZE // SIDE, SIZE // SIDE)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, SIDE**2 + 1, WIDTH))
        self.blocks = nn.Sequential(Block(), Block(activation=nn.ReLU6()))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Pooled(nn.Module):
    """A Face-Transformer: no convolution, patches by reshaping, mean of the tokens, attention by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Linear(3 * (SIZE // SIDE) ** 2, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32)

    def tokens(self, x: Tensor) -> Tensor:
        n, p = x.shape[0], SIZE // SIDE
        x = x.reshape(n, 3, SIDE, p, SIDE, p).permute(0, 2, 4, 1, 3, 5).reshape(n, SIDE**2, -1)
        x = self.patch(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + torch.einsum("nij,njc->nic", torch.einsum("nic,njc->nij", q, k).softmax(-1), v)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x).mean(1))


class Swin(nn.Module):
    """A SwinFace: shifted windows with a mask, patch merging, tokens pooled over the sequence."""

    def __init__(self, last: str = "pool") -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, WIDTH, 2, 2), last
        self.blocks = nn.ModuleList([Block(), Block()])
        self.merge, self.norm_merge = nn.Linear(4 * WIDTH, WIDTH, bias=False), nn.LayerNorm(4 * WIDTH)
        self.norm, self.feature = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32)
        mask = torch.zeros(4, 16, 16)
        mask[1:, :8, 8:] = -100.0
        self.register_buffer("mask", mask)

    def window(self, x: Tensor, block: Block, shift: int) -> Tensor:
        b, side, _, c = x.shape
        y = torch.roll(block.norm1(x), (-shift, -shift), (1, 2))
        y = y.view(b, side // 4, 4, side // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        y = block.attend(y, self.mask if shift else None)
        y = y.view(b, side // 4, side // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, side, side, -1)
        x = x + torch.roll(y, (shift, shift), (1, 2))
        return x + block.mlp(block.norm2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = self.window(self.window(x, self.blocks[0], 0), self.blocks[1], 2)
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.norm(self.merge(self.norm_merge(torch.cat(corners, -1))))
        if self.last == "map":  # as in timm and torchvision: channels last up to the mean
            return self.feature(x.mean((1, 2)))
        x = nn.functional.adaptive_avg_pool1d(x.flatten(1, 2).transpose(1, 2), 1)
        return self.feature(torch.flatten(x, 1))


def exported(module: nn.Module, opset: int = 17, batch: int | None = None) -> onnx.ModelProto:
    """The module exported by torch; with ``batch``, for that batch size only."""
    stream: Any = io.BytesIO()
    axes = {"x": {0: "n"}} if batch is None else None
    x = torch.zeros(batch or 2, 3, SIZE, SIZE)
    torch.onnx.export(
        module.eval(), (x,), stream, input_names=["x"], output_names=["embedding"], dynamic_axes=axes,
        opset_version=opset, dynamo=False,
    )  # fmt: skip
    return onnx.load_model_from_string(stream.getvalue())
