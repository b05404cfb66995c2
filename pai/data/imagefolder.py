"""Any folder of images: ``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``."""

from dataclasses import dataclass, replace

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, DataSpec
from pai.data.decode import decode_squares, header_size
from pai.data.folders import ClassFolders, Listing, list_class_folders
from pai.data.options import check_fraction
from pai.data.split import Split


@dataclass(frozen=True)
class ImageFolder:
    """RGB images in memory, decoded once and kept in ``cache_dir`` (``None``: not kept).

    Which folder is which part: :class:`pai.data.folders.ClassFolders`. Images are resized so that
    the shorter side is ``image_size`` (by default the shorter side of the first training image)
    and cropped to the central square. ``train_per_class`` limits the training folder to that many
    random files of each class (by ``split_seed``); validation images come out of these.
    """

    root: str
    image_size: int | None = None
    train_per_class: int | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    crop_padding: int = 4
    horizontal_flip: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.train_per_class is not None and self.train_per_class < 2:
            raise ValueError(f"train_per_class must be at least 2, got {self.train_per_class}")
        check_fraction("val_fraction", self.val_fraction)
        RandomCropFlip(self.crop_padding, self.horizontal_flip)  # checks its options

    def check(self) -> DataSpec:
        """Return what a model must fit, from the listing and one image header.

        Raises:
            ConfigError: a folder is missing or empty, or the parts have different classes.
            RunError: the first training image cannot be read.
        """
        folders = self._list()
        left = folders.left_to_train(self.val_fraction)
        size = self._size(folders)
        return DataSpec(
            num_classes=folders.num_classes, channels=3, height=size, width=size,
            smallest_class=min(left), train_images=sum(left),
        )  # fmt: skip

    def load(self) -> DataBundle[Split]:
        """Return the bundle.

        Raises:
            RunError: an image cannot be decoded; its path is named.
        """
        folders = self._list()
        size = self._size(folders)
        return DataBundle.from_train_and_test(
            self._read(folders.train, size),
            self._read(folders.test, size),
            val=None if folders.val is None else self._read(folders.val, size),
            num_classes=folders.num_classes,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            augment=RandomCropFlip(self.crop_padding, self.horizontal_flip),
        )

    def _list(self) -> ClassFolders:
        folders = list_class_folders(self.root)
        if self.train_per_class is None:
            return folders
        return replace(folders, train=folders.train.some(self.train_per_class, self.split_seed))

    def _size(self, folders: ClassFolders) -> int:
        return self.image_size or min(header_size(folders.train.paths()[0]))

    def _read(self, part: Listing, size: int) -> Split:
        return Split(decode_squares(part.paths(), size, self.cache_dir), part.labels())
