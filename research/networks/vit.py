"""The vision transformer: Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929."""

from typing import Literal

import gymnasium
import torch
from torch import Tensor, nn

from research.networks.predictor import Predictor, image_shape


class VisionTransformer(Predictor):
    """A transformer over the patches of an image, on torch's own layers.

    Initialised as in the authors' code, https://github.com/google-research/vision_transformer; so
    it begins with the same output for everything.

    Args:
        observation_space: a Box of float images (C, H, W).
        action_space: of the targets.
        patch_size: side of a patch, in pixels; divides H and W.
        dim: width of the tokens, a multiple of ``num_heads``.
        depth: layers of the encoder, at least 1.
        num_heads: of the attention, at least 1.
        mlp_dim: hidden width of each layer's perceptron, at least 1.
        dropout: share that is dropped of tokens, attention and hidden units, in [0, 1).
        pooling: whether the head sees a token of its own (cls) or the mean of all.

    Raises:
        ValueError: for spaces that it cannot take, or a number outside its range.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
        pooling: Literal["cls", "mean"],
    ) -> None:
        super().__init__(observation_space, action_space)
        sizes = {"patch_size": patch_size, "depth": depth, "num_heads": num_heads}
        for name, value in {**sizes, "mlp_dim": mlp_dim}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if dim < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads={num_heads}, got {dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be cls or mean, got {pooling}")
        channels, height, width = image_shape(observation_space, min_side=1)
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"patch_size must divide the images' sides {height} and {width}, got {patch_size}"
            )
        num_tokens = (height // patch_size) * (width // patch_size) + (pooling == "cls")
        self.patches = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if pooling == "cls" else None
        self.positions = nn.Parameter(torch.empty(1, num_tokens, dim))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, mlp_dim, dropout, "gelu", 1e-6, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(dim, eps=1e-6)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.head = nn.Linear(dim, self.output_dim)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Fill every parameter that torch does not begin as the authors do."""
        for name, parameter in self.encoder.named_parameters():
            if parameter.ndim == 2:  # TransformerEncoder makes all layers equal
                for matrix in parameter.chunk(3 if "in_proj" in name else 1):  # query, key, value
                    nn.init.xavier_uniform_(matrix)
            elif "linear" in name:
                nn.init.normal_(parameter, std=1e-6)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.patches.weight, std=self.patches.weight[0].numel() ** -0.5)
        for zeros in (self.patches.bias, self.head.weight, self.head.bias):
            nn.init.zeros_(zeros)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.encoder(self.dropout(tokens + self.positions))
        return self.head(tokens.mean(dim=1) if self.cls_token is None else tokens[:, 0])
