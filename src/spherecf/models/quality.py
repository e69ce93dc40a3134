"""Quality measures computed from a recogniser without training: norm, SER-FIQ, GraFIQs and FaceQAN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, dropout, mse_loss, normalize
from torch.nn.modules.batchnorm import _BatchNorm

from spherecf.errors import InputError, ModelError
from spherecf.models.backbone import FrozenBackbone
from spherecf.models.onnx.module import OnnxModule

Images = NDArray[Any] | Tensor


class RecogniserQuality:
    """Training-free face image quality from a recogniser; for every measure larger means better.

    Each method takes aligned uint8 RGB images (n, height, width, 3) and returns one number per image (n,),
    which does not depend on the other images: the same random numbers are used for every image of a call.

    Args:
        backbone: frozen; it is not modified.

    Raises:
        ModelError: torch cannot run the network (see `FrozenBackbone.differentiable`).

    Example:
        >>> quality = RecogniserQuality(FrozenBackbone.default())
        >>> face = torch.full((1, 112, 112, 3), 128, dtype=torch.uint8)
        >>> [tuple(measure(face).shape) for measure in (quality.norm, quality.ser_fiq, quality.grafiqs)]
        [(1,), (1,), (1,)]
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        network = backbone.differentiable()
        # The inner graph: its wrapper requires as many embeddings as maps, but SER-FIQ has more embeddings.
        self._network: nn.Module = network.network if isinstance(network, OnnxModule) else network
        self._backbone = backbone

    def norm(self, images: Images) -> Float[Tensor, " n"]:
        """L2 norm of the raw embedding.

        MagFace (Q. Meng et al., CVPR 2021) trains the norm to measure quality, and AdaFace (M. Kim et al.,
        CVPR 2022) uses it as a quality proxy during training. For other recognisers it is not trained for
        this.
        """
        return self._backbone(images).norm

    def ser_fiq(
        self, images: Images, *, passes: int = 100, rate: float = 0.5, seed: int = 0
    ) -> Float[Tensor, " n"]:
        """SER-FIQ, same-model variant (P. Terhörst et al., CVPR 2020, arXiv 2003.09373), in (0, 1]:

            q = 2 sigmoid(-mean over pairs of |z_a - z_b|),   z: unit embeddings

        The embeddings z are computed with ``passes`` random dropout masks on the input of the last layer, as
        in the authors' code.

        Args:
            images: uint8 (n, height, width, 3).
            passes: stochastic embeddings per image, at least 2.
            rate: dropout rate, between 0 and 1.
            seed: of the dropout masks.

        Raises:
            InputError: arguments out of range, or images of the wrong type or size.
            ModelError: the network has no suitable layer, or cannot process the repeated rows.
        """
        if passes < 2 or not 0 < rate < 1:
            raise InputError(
                f"SER-FIQ: expected passes >= 2 and a rate between 0 and 1, got {passes}, {rate}"
            )
        scores, last = [], self._last_layer(images)
        for pixels in self._pixels(images):
            with _seeded(seed, pixels.device), torch.no_grad():
                hook = last.register_forward_pre_hook(
                    lambda layer, args: (dropout(args[0].repeat_interleave(passes, 0), rate),)
                )
                try:
                    z = normalize(self._embed(pixels), dim=1)  # (passes, dim)
                except RuntimeError as error:
                    raise ModelError(f"{self._backbone.name}: SER-FIQ cannot be computed: {error}") from error
                finally:
                    hook.remove()
            if len(z) != passes:
                raise ModelError(
                    f"{self._backbone.name}: {passes} rows with dropout gave {len(z)} embeddings; the last "
                    "layers mix rows"
                )
            scores.append(2 * torch.sigmoid(-torch.pdist(z).mean()))
        return torch.stack(scores)

    def grafiqs(self, images: Images) -> Float[Tensor, " n"]:
        """GraFIQs (J. N. Kolf et al., CVPR workshops 2024, arXiv 2404.12203), from one backward pass, > 0:

            L = mean over batch normalisations of [mse(m, M) + mse(s, S)],    q = 1 / sum |dL / d image|

        m, s are the mean and variance of each channel for this image; M, S are the layer's running
        statistics. The authors rank by the sum, for which larger is worse; its inverse reverses the order and
        can serve as a weight. They compute the gradient at the image or at a block; here it is at the image,
        since blocks differ between networks.

        Raises:
            ModelError: the network has no batch normalisation of maps.
            InputError: images of the wrong type or size.
        """
        terms: list[Tensor] = []

        def compare(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x, (mean, variance) = args[0], (layer.running_mean, layer.running_var)
            if x.ndim == 4 and isinstance(mean, Tensor) and isinstance(variance, Tensor):
                values = x.transpose(0, 1).flatten(1)  # (channels, positions)
                terms.append(mse_loss(values.mean(1), mean) + mse_loss(values.var(1, correction=0), variance))

        norms = [m for m in self._network.modules() if isinstance(m, _BatchNorm)]
        hooks, scores = [norm.register_forward_pre_hook(compare) for norm in norms], []
        try:
            for pixels in self._pixels(images):
                terms.clear()
                pixels.requires_grad_()
                self._network(pixels)
                if not terms:
                    raise ModelError(
                        f"{self._backbone.name}: GraFIQs needs batch normalisations of maps, it has none"
                    )
                (gradient,) = torch.autograd.grad(torch.stack(terms).mean(), pixels)
                scores.append(1 / gradient.abs().sum())
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(scores)

    def faceqan(
        self,
        images: Images,
        *,
        copies: int = 10,
        steps: int = 5,
        epsilon: float = 0.001,
        power: int = 5,
        seed: int = 0,
    ) -> Float[Tensor, " n"]:
        """FaceQAN (Ž. Babnik, P. Peer, V. Štruc, ICPR 2022, arXiv 2212.02127), in [-1, 1]:

            q = [ (1 + mean s) / 2  x  clip(1 - std s, 0, 1)  x  cos(z(image), z(mirrored image)) ]^power

        s are the cosines between the image's embedding and those of adversarial neighbours, over all copies
        and steps. Each copy starts from the image plus uniform noise of ``epsilon`` and takes steps of
        ``epsilon`` along the sign of the gradient of 1 - cos (basic iterative method). The defaults are those
        of the authors' code.

        Args:
            images: uint8 (n, height, width, 3).
            copies: number of adversarial copies k, at least 2.
            steps: number of steps l, at least 1; each takes a forward and a backward pass of all copies.
            epsilon: step size as a fraction of the pixel range, between 0 and 1.
            power: exponent p, at least 1.
            seed: of the noise.

        Raises:
            InputError: arguments out of range, or images of the wrong type or size.
        """
        if copies < 2 or steps < 1 or not 0 < epsilon < 1 or power < 1:
            raise InputError(
                "FaceQAN: expected copies >= 2, steps >= 1, 0 < epsilon < 1 and power >= 1, got "
                f"{copies}, {steps}, {epsilon}, {power}"
            )
        # Smallest and largest pixel values after preprocessing, (1, 3, height, width) each.
        black, white = (
            self._backbone.preprocessing(torch.full((1, *self._backbone.preprocessing.size, 3), value).byte())
            for value in (0, 255)
        )
        black, white = black.to(self._backbone.device), white.to(self._backbone.device)
        step, scores = epsilon * (white - black), []
        for pixels in self._pixels(images):
            with _seeded(seed, pixels.device), torch.no_grad():
                embedding, mirrored = self._embed(torch.cat([pixels, pixels.flip(3)]))  # (dim,) each
                noise = torch.rand(copies, *pixels.shape[1:], device=pixels.device) * 2 - 1
            noisy, cosines = (pixels + step * noise).clamp(black, white), []
            for _ in range(steps):
                noisy.requires_grad_()
                cosine = cosine_similarity(self._embed(noisy), embedding[None])  # (copies,)
                (gradient,) = torch.autograd.grad((1 - cosine).mean(), noisy)
                noisy = (noisy.detach() + step * gradient.sign()).clamp(black, white)
                cosines.append(cosine.detach())
            s = torch.stack(cosines)  # (steps, copies)
            spread = (1 - s.std(correction=0)).clamp(0, 1)
            symmetry = cosine_similarity(embedding, mirrored, dim=0)
            scores.append(((1 + s.mean()) / 2 * spread * symmetry) ** power)
        return torch.stack(scores)

    def _embed(self, pixels: Tensor) -> Tensor:
        """Raw embeddings (n, dim) of pixels (n, 3, height, width)."""
        embedding: Tensor = self._network(pixels)[0]
        return embedding.flatten(1)

    def _pixels(self, images: Images) -> list[Tensor]:
        """The network's input (1, 3, height, width) for each image."""
        preprocessing = self._backbone.preprocessing
        checked = preprocessing.check(images)
        if not len(checked):
            raise InputError("expected at least one image, got none")
        return [preprocessing(image).to(self._backbone.device) for image in torch.split(checked, 1)]

    def _last_layer(self, images: Images) -> nn.Module:
        """The last linear or convolutional layer of a forward pass, which computes the embedding."""
        reached: list[nn.Module] = []
        hooks = [
            m.register_forward_hook(lambda layer, args, output: reached.append(layer))
            for m in self._network.modules()
            if isinstance(m, nn.Linear | nn.Conv2d)
        ]
        with torch.no_grad():
            self._network(self._pixels(images)[0])
        for hook in hooks:
            hook.remove()
        if not reached:
            raise ModelError(
                f"{self._backbone.name}: no linear layer or convolution to which dropout could be applied"
            )
        return reached[-1]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random numbers inside a block, without affecting the caller's random state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
