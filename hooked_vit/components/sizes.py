"""How large the images of a run are: what the processor makes, what is native, what is given; all three may differ."""

from __future__ import annotations

from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from hooked_vit.components.watching import may_look
from hooked_vit.config import ViTConfig
from hooked_vit.processing import known_finite, processor_size
from hooked_vit.tokens import Run, TokenLayout


class Sizes(nn.Module):
    """From pixels to tokens, as a mixin of the model."""

    cfg: ViTConfig
    run: Run
    processor: Any
    _sized: tuple[Any, str, tuple[int, int] | None] = (None, "", None)

    @property
    def tokens(self) -> TokenLayout:
        """Which token is which: of the run in progress inside a hook, otherwise of the images the processor makes.

        The checkpoint's own image size counts only where there is no processor, or where what it makes depends on the
        picture: many are native at another size than they are used at. A run that is over leaves nothing behind: the
        layout says of which `pixels` it is, and that of others is `layout_for(pixels)`, or `cache.tokens(name)`.
        """
        return self.run.tokens if self.run.depth else self.layout_for(*self.usual_size)

    @property
    def processor_size(self) -> tuple[int, int] | None:
        """(height, width) of the images its processor makes; None without one, or where that depends on the picture."""
        known, settings, size = self._sized
        if known is not self.processor or settings != repr(self.processor):
            size = processor_size(self.processor)
            self._sized = self.processor, repr(self.processor), size
        return size

    @property
    def usual_size(self) -> tuple[int, int]:
        """(height, width) of the images the model is used on: what its processor makes, else the native size."""
        size = self.processor_size or self.cfg.image_size
        return size if all(side % self.cfg.patch_size == 0 for side in size) else self.cfg.image_size

    def expected_layouts(self) -> list[TokenLayout]:
        """The tokens a run may have that is yet to be made: of the usual size, then of the native one.

        Inside a run, or inside `with model.running(layout)`, the tokens as they are there.
        """
        if self.run.depth:
            return [self.run.tokens]
        return [self.layout_for(*size) for size in dict.fromkeys((self.usual_size, self.cfg.image_size))]

    def layout_for(self, height: int | Shaped[Tensor, "..."], width: int | None = None) -> TokenLayout:
        """The tokens of an image of this many pixels, or of pixels [b c h w].

        >>> model.layout_for(pixels), model.layout_for(224, 224)  # doctest: +SKIP

        Raises ValueError where patches do not cover it, unless it is of the native size.
        """
        if isinstance(height, Tensor):
            height, width = self._size_of(height)
        if (height, width) == self.cfg.image_size:
            return self.run.native
        p = self.cfg.patch_size
        if width is None or height % p or width % p or not (height and width):
            raise ValueError(
                f"image height and width must be multiples of the patch size {p}, or the native "
                f"{self.cfg.image_size[0]} x {self.cfg.image_size[1]}, got {height} x {width}: the rest would be "
                "ignored silently; use model.preprocess(images)"
            )
        return TokenLayout.native(self.cfg.prefix, (height // p, width // p), (height, width))

    def covered(self, pictures: Shaped[Tensor, "*b h w"]) -> Shaped[Tensor, "*b rows cols"]:
        """What patches see of pictures of one size: all of it, but for a native size that is no multiple of a patch.

        >>> seen = model.covered(model.preprocess(images))  # doctest: +SKIP

        Then the last rows and columns of pixels belong to no patch. Raises ValueError where `layout_for` does.
        """
        rows, columns = self.layout_for(*pictures.shape[-2:]).grid
        return pictures[..., : rows * self.cfg.patch_size, : columns * self.cfg.patch_size]

    def check_pixels(self, pixels: Shaped[Tensor, "..."] | Any) -> TokenLayout:
        """The tokens of these pixels.

        Raises TypeError for what is no tensor, ValueError for pixels of the wrong shape, type or size, or with NaN or
        infinity; where torch.func.vmap or torch.export hide the numbers, those pass.
        """
        if not isinstance(pixels, Tensor):
            raise TypeError(f"a model runs pixels, got a {type(pixels).__name__}; use model(model.preprocess(images))")
        height, width = self._size_of(pixels)
        if not pixels.is_floating_point():
            raise ValueError(f"pixels must be normalised floats, got {pixels.dtype}; use model.preprocess(images)")
        layout = self.layout_for(height, width)
        if not known_finite(pixels) and may_look(pixels) and not pixels.isfinite().all():
            bad = (~pixels.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"pixels hold NaN or infinity in images {bad[:8]} of the batch")
        return layout

    def _size_of(self, pixels: Tensor) -> tuple[int, int]:
        if pixels.ndim != 4 or pixels.shape[1] != self.cfg.n_channels:
            raise ValueError(
                f"pixels are [batch, {self.cfg.n_channels}, height, width], got {tuple(pixels.shape)}; "
                "use model.preprocess(images)"
            )
        return pixels.shape[2], pixels.shape[3]
