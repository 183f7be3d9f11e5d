"""Images with segmentation masks, as the studies of class and context tokens go through them. methods §13."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from analyses.activations.class_masks import Labelling, mask_columns, patch_labels
from analyses.data import ImageData, as_data, load_data
from analyses.data.batches import Batch
from analyses.processes.walking import Walk
from analyses.questions.class_space.measures.subjects import Subject

ASK_FOR_LESS = (
    "a patch is of its class by rule='area' where a share tau of its pixels is: a smaller tau, rule='any', or a model "
    "with smaller patches"
)


def with_masks(data: Any) -> ImageData:
    """The data, by default scenes, refused before a head is fitted where they have no masks."""
    data = load_data("scenes:test", n=1000) if data is None else as_data(data)
    mask_columns(data)
    return data


def masked_batches(
    subject: Subject, data: ImageData, batch_size: int, what: str, labelling: Labelling
) -> Walk[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(pixels, classes of the head, labels of the patches [b, n], numbers of the images), with a progress bar.

    Raises ValueError for masks that do not fit, and for a processor that moves a mask otherwise than its image.
    """
    model = subject.model

    def labelled(found: tuple[Tensor, Tensor, Batch]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels, labels, batch = found
        return pixels, labels, patch_labels(model, pixels, batch, labelling), batch.index

    return subject.batches(data, batch_size, what, extra=mask_columns(data)).map(labelled)
