"""The views: one image in, one augmented (`RandomView`) or plain (`PlainView`) square image out, uint8 both.

Both are picklable callables, by what they are made of, and keep no state. A random view draws only from torch's global
CPU generator, so whoever seeds that generator decides the view; see `emc2dist.data.loader`.
"""

from torch import Tensor

from emc2dist.config import Views


class RandomView:
    """uint8 [3, H, W] -> uint8 [3, size, size], one draw of the augmentations that `config` describes.

    In order: random resized crop, flip, rotation, colour jitter, grey, blur. What has probability or strength 0 is
    left out, and then draws no random numbers either.
    """

    def __init__(self, config: Views) -> None:
        from emc2dist.towers._torchvision import v2

        self._config = config
        steps = [v2.RandomResizedCrop(config.size, scale=config.crop, ratio=config.aspect, antialias=True)]
        if config.flip:
            steps.append(v2.RandomHorizontalFlip(config.flip))
        if config.rotate:
            steps.append(v2.RandomRotation(config.rotate, interpolation=v2.InterpolationMode.BILINEAR))
        if config.jitter_probability and any(config.jitter):
            steps.append(v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_probability))
        if config.grey:
            steps.append(v2.RandomGrayscale(config.grey))
        if config.blur:
            kernel = max(3, config.size // 10 | 1)  # odd
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=config.blur))
        self.transform = v2.Compose(steps)

    def __reduce__(self) -> tuple[type["RandomView"], tuple[Views]]:
        # Parts of torchvision would be loaded before what `_torchvision` mends is.
        return RandomView, (self._config,)

    def __call__(self, image: Tensor) -> Tensor:
        """One view of the image."""
        return self.transform(image)


class PlainView:
    """uint8 [3, H, W] -> uint8 [3, size, size]: shorter side resized to `size`, then the centre. Deterministic.

    Of an image more than `LONGEST` times as long as wide only the middle is resized, so that no image, however thin,
    makes a resized one of more than about `LONGEST` * size ** 2 pixels.
    """

    LONGEST = 8

    def __init__(self, size: int) -> None:
        from emc2dist.towers._torchvision import v2

        self._size = size
        self.transform = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])

    def __reduce__(self) -> tuple[type["PlainView"], tuple[int]]:
        return PlainView, (self._size,)

    def __call__(self, image: Tensor) -> Tensor:
        """The one plain view of the image."""
        most = self.LONGEST * min(image.shape[1:])
        for axis in (1, 2):
            beside = (image.shape[axis] - most) // 2  # as much on either side, that the centre stays where it is
            if beside > 0:
                image = image.narrow(axis, beside, image.shape[axis] - 2 * beside)
        return self.transform(image)
