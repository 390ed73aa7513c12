"""Eyes: networks that turn images (N, C, H, W), about −0.5 to 0.5, into features (N, F).

    cnn         two strided convolutions, pooled to 4 × 4
    vit         patches as tokens, two blocks of attention and MLP, their mean (arXiv 2010.11929)
    vit-ssm     the same, a two-dimensional state space before each attention (arXiv 2306.06635)
    vit-hyena   the same, Hyena over two dimensions in place of attention (arXiv 2309.13600)

The last two know what is near what; plain patches have to learn it from a position embedding.
Shapes: N images, D width of a token, I × J grid of patches.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops
from decision_s4.envs.errors import UserError, nearest

WIDTH, BLOCKS, HEADS, GRID = 64, 2, 4, 8
STATES = 8  # of the state space, of each direction, channel and axis
FREQUENCIES, HIDDEN = 4, 32  # of the filters of Hyena
Eyes = Literal["cnn", "vit", "vit-ssm", "vit-hyena"]
KINDS = get_args(Eyes)


def make_eyes(kind: str, shape: tuple[int, int, int], features: int) -> nn.Module:
    """The network `kind`, for images of `shape` (C, H, W). Raises UserError for none of KINDS."""
    if kind not in KINDS:
        raise UserError(f"eyes '{kind}' are unknown{nearest(kind, KINDS)}")
    if kind == "cnn":
        return convolutions(shape[0], features)
    return Patches(kind, shape, features)


def convolutions(channels: int, features: int) -> nn.Sequential:
    """Of images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        ops.Activation("gelu"),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        ops.Activation("gelu"),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, features),
    )


class Patches(nn.Module):
    """A vision transformer; the shorter side is GRID patches, or as many as it has pixels."""

    def __init__(self, kind: str, shape: tuple[int, int, int], features: int):
        super().__init__()
        channels, height, width = shape
        patch = math.ceil(min(height, width) / GRID)
        self.grid = (math.ceil(height / patch), math.ceil(width / patch))
        self.padding = (0, self.grid[1] * patch - width, 0, self.grid[0] * patch - height)
        self.embed = nn.Conv2d(channels, WIDTH, patch, stride=patch)
        self.position = nn.Parameter(0.5 * torch.randn(WIDTH, *self.grid))
        self.blocks = nn.ModuleList(PatchBlock(kind, self.grid) for _ in range(BLOCKS))
        self.norm = ops.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.pad(x, self.padding)) + self.position  # (N, D, I, J)
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x).mean((1, 2)))


class PatchBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), of tokens (N, I, J, D)."""

    def __init__(self, kind: str, grid: tuple[int, int]):
        super().__init__()
        mixers: dict[str, Callable[[], list[nn.Module]]] = {
            "vit": lambda: [PatchAttention()],
            "vit-ssm": lambda: [StateSpace2d(grid), PatchAttention()],
            "vit-hyena": lambda: [Hyena2d(grid)],
        }
        self.mixer = nn.Sequential(ops.LayerNorm(WIDTH), *mixers[kind]())
        self.mlp = nn.Sequential(
            ops.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            ops.Activation("gelu"),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return x + self.mlp(x)


class PatchAttention(nn.Module):
    """Every patch sees every other."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(x.flatten(1, 2)).unflatten(-1, (3, HEADS, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.reshape(x.shape))


class StateSpace2d(nn.Module):
    """A linear state space over a grid: Baron, Zimerman and Wolf, arXiv 2306.06635, section 3.

        h[i, j+1] = A₁ h[i, j] + A₂ v[i, j] + B₁ u[i, j]      y = C₁ h[i, j+1] + C₂ v[i+1, j] + d u
        v[i+1, j] = A₃ h[i, j] + A₄ v[i, j] + B₂ u[i, j]

    It runs from each of the four corners with parameters of its own and the results are summed: a
    convolution whose kernel reaches over the whole grid. Real diagonal A with A₁ + A₂ and A₃ + A₄
    below 1, so that it fades whatever the size.
    """

    def __init__(self, grid: tuple[int, int]):
        super().__init__()
        self.grid, shape = grid, (2, 4, WIDTH, STATES)
        self.keep = nn.Parameter(torch.randn(shape))  # σ(·) = A₁ + A₂, and A₃ + A₄
        self.share = nn.Parameter(torch.randn(shape))  # σ(·) of it is A₁, and A₄
        self.b = nn.Parameter(torch.randn(shape))
        self.c = nn.Parameter(torch.randn(shape) / (2 * STATES))
        self.d = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x.movedim(-1, 1), self.kernel()).movedim(1, -1)
        return ops.act(y + self.d * x, "silu")

    def kernel(self) -> Tensor:
        """(D, 2 I − 1, 2 J − 1): what the patch at each offset adds, itself in the middle."""
        rows, columns = (size - 1 for size in self.grid)
        one, two, three, four = self.corners()
        return (
            F.pad(one.flip(-1, -2), (0, columns, 0, rows))
            + F.pad(two.flip(-2), (columns, 0, 0, rows))
            + F.pad(three.flip(-1), (0, columns, rows, 0))
            + F.pad(four, (columns, 0, rows, 0))
        )

    def corners(self) -> Tensor:
        """(4, D, I, J), by corner: what a patch adds to those i rows and j columns on."""
        keep, share = torch.sigmoid(self.keep), torch.sigmoid(self.share)
        (a1, a4), (a2, a3) = keep * share, keep * (1 - share)
        nothing = torch.zeros_like(a1)
        above, rows = [nothing] * self.grid[1], []
        for i in range(self.grid[0]):
            left, row = nothing, []
            for j, v in enumerate(above):
                h, v = a1 * left + a2 * v, a3 * left + a4 * v
                if i == j == 0:
                    h, v = h + self.b[0], v + self.b[1]
                left, above[j] = h, v
                row.append((self.c[0] * h + self.c[1] * v).sum(-1))
            rows.append(torch.stack(row, -1))
        return torch.stack(rows, -2)


class Hyena2d(nn.Module):
    """Gates between convolutions over the grid: Zimerman and Wolf, arXiv 2309.13600.

        v, x₁, x₂ = conv3×3(W u);   v ← xᵢ ⊙ (hᵢ ∗ v + dᵢ v), i = 1, 2;   out = W_o v

    hᵢ(Δ) = e^(−δ |Δ|₁) MLP(waves of Δ) at each offset Δ, in all directions.
    """

    distance: Tensor
    waves: Tensor

    def __init__(self, grid: tuple[int, int]):
        super().__init__()
        self.into = nn.Linear(WIDTH, 3 * WIDTH)
        self.near = nn.Conv2d(3 * WIDTH, 3 * WIDTH, 3, padding=1, groups=3 * WIDTH)
        self.hidden = nn.Linear(4 * FREQUENCIES, HIDDEN)
        self.filters = nn.Linear(HIDDEN, 2 * WIDTH)
        self.rate = nn.Parameter(torch.linspace(-3, 0, WIDTH))  # log δ
        self.d = nn.Parameter(torch.randn(2, WIDTH, 1, 1))
        self.out = nn.Linear(WIDTH, WIDTH)
        offsets = [torch.arange(1 - size, size) for size in grid]
        place = torch.stack(torch.meshgrid(*offsets, indexing="ij"), -1)
        self.register_buffer("distance", place.abs().sum(-1).float(), persistent=False)
        angle = math.pi * (place / torch.tensor(grid))[..., None] * torch.arange(1, 1 + FREQUENCIES)
        waves = torch.cat([angle.cos(), angle.sin()], -1).flatten(2)
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        v, *gates = self.near(self.into(x).movedim(-1, 1)).chunk(3, 1)
        for gate, kernel, d in zip(gates, self.kernels(), self.d, strict=True):
            v = ops.gate(convolve(v, kernel) + d * v, gate)
        return self.out(v.movedim(1, -1))

    def kernels(self) -> Tensor:
        """(2, D, 2 I − 1, 2 J − 1) by offset."""
        values = self.filters(torch.sin(self.hidden(self.waves)))  # (2 I − 1, 2 J − 1, 2 D)
        fade = torch.exp(-self.distance[..., None] * self.rate.exp())
        return (values.unflatten(-1, (2, -1)) * fade[:, :, None]).permute(2, 3, 0, 1)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Of each channel over the whole grid: x (N, D, I, J), kernel (D, 2 I − 1, 2 J − 1)."""
    padding = tuple(size // 2 for size in kernel.shape[1:])
    return F.conv2d(x, kernel[:, None], padding=padding, groups=len(kernel))
