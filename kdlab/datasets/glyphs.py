"""Glyphs: digits and capitals drawn from matplotlib's fonts under warps, contrast and noise.

Offline, endless and seeded. Look-alikes (0 and O, 1 and I, 5 and S, 8 and B) are wanted: they are
what a teacher's soft targets tell and a label hides. One image is

    background + contrast · warp(glyph) + noise,   clipped to [0, 1],

where the warp is affine (turn, shear, scale, shift), the background is a slope plus soft clouds,
the contrast is of either sign, and every range widens with ``difficulty``. Images come from one
``torch.Generator``; they are equal for equal seeds, whatever the number of threads.
"""

import math
import string
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdlab.datasets.data import Data, Split

CLASSES = tuple(string.digits + string.ascii_uppercase)
HELD_OUT_FAMILY = "STIX"  # a whole family: its styles resemble one another more than the others

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAMES = dict(zip(string.digits, _WORDS, strict=True))
_CHUNK = 2048  # images warped at once: bounds the memory, keeps the vector units busy

_Range = float | tuple[float, float]


def load(
    *,
    seed: int = 0,
    n_train: int = 12_000,
    n_val: int = 2_000,
    n_test: int = 4_000,
    size: int = 28,
    difficulty: float = 1.0,
    held_out_fonts: bool = False,
) -> Data:
    """Draw a training, a validation and a test split, balanced over the 36 classes.

    The splits come from separate random streams, so the size of one never changes another.
    With ``held_out_fonts`` one font family is drawn in the test split alone.
    """
    for name, n in (("n_train", n_train), ("n_val", n_val), ("n_test", n_test)):
        if n < 1:
            raise ValueError(f"{name} must be at least 1, got {n}")
    seen, unseen = fonts(), fonts()
    if held_out_fonts:
        unseen = tuple(name for name in seen if name.startswith(HELD_OUT_FAMILY))
        seen = tuple(name for name in seen if name not in unseen)
    parts = []
    for stream, (n, names) in enumerate([(n_train, seen), (n_val, seen), (n_test, unseen)], 1):
        x, y, _ = _draw(n, _generator(seed, stream), size, difficulty, fonts=names)
        parts.append((x, y))
    # NumPy's sums are the same for any number of threads, torch's are not.
    pixels = parts[0][0].numpy()
    mean, std = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    card = {
        "name": "glyphs",
        "source": "drawn by kdlab from the fonts that matplotlib ships",
        "licence": "the images are free to use; the fonts (DejaVu, STIX, Computer Modern) "
        "are free under the licences beside them in matplotlib",
        "how": "glyph masks under random affine warps, contrast, background and noise",
        "sizes": {"train": n_train, "val": n_val, "test": n_test},
        "seed": seed,
        "options": {"size": size, "difficulty": difficulty, "held_out_fonts": held_out_fonts},
        "fonts": {"train": list(seen), "test": list(unseen)},
    }
    train, val, test = (Split(x.sub_(mean).div_(std), y) for x, y in parts)
    return Data("glyphs", train, val, test, CLASSES, (mean,), (std,), card)


def sample(
    n: int,
    *,
    seed: int,
    size: int = 28,
    difficulty: float = 1.0,
    classes: Sequence[int | str] | None = None,
    fonts: Sequence[int | str] | None = None,
    scale: _Range | None = None,
    noise: _Range | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Draw ``n`` more images, and tell what each was made of.

    ``classes`` and ``fonts`` restrict the draw (names or positions in ``CLASSES`` and ``fonts()``).
    ``scale`` (1 = capitals three fifths of the image high) and ``noise`` (standard deviation per
    pixel) are one value or a range ``(low, high)`` and replace those of the difficulty. No seed
    gives the images of ``load``.

    Returns x float32 ``[n, 1, size, size]`` in [0, 1] (not normalised), y int64 ``[n]`` and the
    factors, each ``[n]``: font, scale, noise, contrast (its sign tells light on dark from dark
    on light), angle (radians).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return _draw(n, _generator(seed, 0), size, difficulty, classes, fonts, scale, noise)


def fonts() -> tuple[str, ...]:
    """Names of the fonts in use: those of matplotlib's own that really have the 36 glyphs."""
    return tuple(_font_files())


def _draw(
    n: int,
    generator: torch.Generator,
    size: int,
    difficulty: float,
    classes: Sequence[int | str] | None = None,
    fonts: Sequence[int | str] | None = None,
    scale: _Range | None = None,
    noise: _Range | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    if not 8 <= size <= 128:
        raise ValueError(f"size must be from 8 to 128 pixels, got {size}")
    if not 0 <= difficulty <= 3:
        raise ValueError(f"difficulty must be from 0 (plain) to 3, got {difficulty}")
    d = difficulty

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    def order() -> Tensor:
        return torch.randperm(n, generator=generator)

    which = torch.tensor(_positions("classes", classes, CLASSES))
    styles = torch.tensor(_positions("fonts", fonts, tuple(_font_files())))
    y = which[torch.arange(n) % len(which)][order()]
    font = styles[torch.randint(len(styles), (n,), generator=generator)]
    low, high = _bounds("scale", scale, (max(0.3, 1 - 0.3 * d), 1 + 0.1 * d), 0.1, 3)
    scales = low * (high / low) ** torch.rand(n, generator=generator)
    noises = uniform(*_bounds("noise", noise, (0.04 * d, 0.19 * d), 0, 2))
    angle = uniform(-0.35 * d, 0.35 * d)
    shear = uniform(-0.3 * d, 0.3 * d)
    shift = torch.stack([uniform(-0.15 * d, 0.15 * d), uniform(-0.15 * d, 0.15 * d)], 1)
    contrast = uniform(max(0.2, 0.9 - 0.55 * d), 0.9)
    contrast *= torch.where(torch.rand(n, generator=generator) < min(0.5, 0.5 * d), -1.0, 1.0)
    # The darker of glyph and ground lies so that both fit into [0, 1].
    ground = torch.rand(n, generator=generator) * (1 - contrast.abs()) + (-contrast).clamp(min=0)
    slope = torch.stack([uniform(-0.15 * d, 0.15 * d), uniform(-0.15 * d, 0.15 * d)], 1)
    clouds = 0.1 * d * torch.randn(n, 1, 5, 5, generator=generator)

    # Output pixel → place in the mask: the inverse of scale · turn · shear, then the shift.
    cos, sin = angle.cos() / scales, angle.sin() / scales
    theta = torch.stack(
        [cos + shear * sin, sin - shear * cos, shift[:, 0], -sin, cos, shift[:, 1]], 1
    ).view(n, 2, 3)
    masks = _masks(size)
    axis = torch.linspace(-1, 1, size)
    x = torch.empty(n, 1, size, size)
    for start in range(0, n, _CHUNK):
        part = slice(start, min(start + _CHUNK, n))
        out, column = x[part], [-1, 1, 1, 1]
        grid = F.affine_grid(theta[part], list(out.shape), align_corners=False)
        glyph = F.grid_sample(masks[font[part], y[part]], grid, align_corners=False)
        torch.randn(out.shape, generator=generator, out=out)
        out.mul_(noises[part].view(column)).add_(glyph.mul_(contrast[part].view(column)))
        out.add_(F.interpolate(clouds[part], size=(size, size), mode="bilinear"))
        out.add_(slope[part, 0].view(column) * axis.view(1, 1, 1, -1))
        out.add_(slope[part, 1].view(column) * axis.view(1, 1, -1, 1))
        out.add_(ground[part].view(column)).clamp_(0, 1)
    factors = {
        "font": font,
        "scale": scales,
        "noise": noises,
        "contrast": contrast,
        "angle": angle,
    }
    return x, y, factors


@lru_cache(maxsize=4)
def _masks(size: int) -> Tensor:
    """Glyph shapes ``[fonts, 36, 1, m, m]`` in [0, 1], drawn at one and a half times ``size``."""
    side = math.ceil(1.5 * size)
    shapes = np.zeros((len(_font_files()), len(CLASSES), 1, side, side), np.float32)
    for f, path in enumerate(_font_files().values()):
        # Fonts disagree about the size of a point: capitals get one height in all of them.
        left, top, right, bottom = ImageFont.truetype(path, 100).getbbox("H")
        font = ImageFont.truetype(path, round(100 * 0.6 * side / (bottom - top)))
        for c, character in enumerate(CLASSES):
            left, top, right, bottom = font.getbbox(character)
            canvas = Image.new("L", (side, side))
            corner = ((side - left - right) / 2, (side - top - bottom) / 2)
            ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
            shapes[f, c, 0] = np.asarray(canvas, np.float32) / 255
    return torch.from_numpy(shapes)


@lru_cache(maxsize=1)
def _font_files() -> dict[str, str]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = {path.stem: str(path) for path in sorted(folder.glob("*.ttf")) if _has_glyphs(path)}
    if not files:
        raise RuntimeError(
            f"no usable font in {folder}: matplotlib was installed without its fonts. "
            "Reinstall it from its wheel: pip install --force-reinstall matplotlib"
        )
    return files


def _has_glyphs(path: Path) -> bool:
    # By the glyph's name: symbol fonts put braces and arrows where the letters should be.
    font = FT2Font(str(path))
    return all(
        (index := font.get_char_index(ord(c))) and font.get_glyph_name(index) == _NAMES.get(c, c)
        for c in CLASSES
    )


def _generator(seed: int, stream: int) -> torch.Generator:
    # Hashed, so that streams of neighbouring seeds have nothing in common.
    state = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _positions(name: str, chosen: Sequence[int | str] | None, names: tuple[str, ...]) -> list[int]:
    if chosen is None:
        return list(range(len(names)))
    found = [names.index(c) if c in names else c for c in chosen]
    wrong = [c for c in found if isinstance(c, str) or not 0 <= c < len(names)]
    if wrong or not found:
        raise ValueError(
            f"{name} must be names or positions among {', '.join(names)}; got {wrong or chosen}"
        )
    return [int(c) for c in found]


def _bounds(
    name: str, given: _Range | None, default: tuple[float, float], least: float, most: float
) -> tuple[float, float]:
    if given is None:
        return default
    low, high = given if isinstance(given, tuple | list) else (given, given)
    if not least <= low <= high <= most:
        raise ValueError(
            f"{name} must be a value or (low, high) within [{least}, {most}], got {given}"
        )
    return low, high
