"""What a probe is to tell of an image: its label, any column, whether something is present, or where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from PIL import Image
from torch import Tensor

from analyses.controls.control_task import ControlTask
from analyses.data import ImageData, as_data
from analyses.data.batches import Batch, batch_sizes
from analyses.data.contents import Apart
from analyses.data.sets import common_names, count_classes, unread_batches
from analyses.running.notes import about_data, progress_batches
from hooked_vit.config.showing import Displayed, some

LABEL, ORIGIN = "label", "dataset"


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """Images, the class of each by every target [b, k], and numbers that tell the images of one pass apart.

    `number` and `first` are the batch's and its first image's in the pass.
    """

    images: list[Image.Image]
    labels: Int64[Tensor, "b k"]
    index: Int64[Tensor, "b"]
    number: int = 0
    first: int = 0


@dataclass(frozen=True, repr=False)
class Target(Displayed):
    """A question to an image: `spec` as given, `classes` the names of its answers 0, 1, …

    >>> Target("label=3", ("not 3", "3")).n_classes
    2
    """

    spec: str
    classes: tuple[str, ...]

    def _rows(self) -> dict[str, object]:
        return {"spec": self.spec, "classes": f"{self.n_classes}: {some(self.classes)}"}

    @property
    def n_classes(self) -> int:
        """How many answers there are."""
        return len(self.classes)


class TargetData:
    """Images of one or several data sets, each with its answer; made by `with_target`."""

    def __init__(self, parts: Sequence[ImageData], target: Target) -> None:
        self.parts, self.target = tuple(parts), target
        self._permuted: Int64[Tensor, "n k"] | None = None
        self._control: ControlTask | None = None

    @property
    def n(self) -> int | None:
        """Number of images; None where a part is a stream of unknown length."""
        sizes = [part.n for part in self.parts]
        return None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)

    @property
    def name(self) -> str:
        """What errors call these images."""
        return " and ".join(part.name for part in self.parts)

    @property
    def labels(self) -> Int64[Tensor, "n"] | None:
        """All answers in order; None for a stream."""
        answers = []
        for number, part in enumerate(self.parts):
            column = _column_of(part, self.target.spec)
            if column is None:
                answers.append(None if part.n is None else torch.full((part.n,), number))
                continue
            values = _values(part, column)
            answers.append(None if values is None else self._answers(values, part))
        known = [x for x in answers if x is not None]
        return torch.cat(known) if len(known) == len(answers) else None

    def with_permutations(self, k: int, seed: int = 0) -> TargetData:
        """The same images with `k` further targets: the answers dealt out anew among all images.

        Raises ValueError for a stream, whose answers are not known beforehand.
        """
        labels = self.labels
        if labels is None:
            raise ValueError(
                f"permuted labels need the labels beforehand, and {self.name} is a stream; leave the control out, or "
                "save the images as parquet or in folders first"
            )
        copy = TargetData(self.parts, self.target)
        draws = [np.random.default_rng([seed, i]).permutation(len(labels)) for i in range(k)]
        copy._permuted = torch.stack([labels[torch.from_numpy(order)] for order in draws], dim=1) if k else None
        copy._control = self._control
        return copy

    def with_control(self, task: ControlTask | None) -> TargetData:
        """The same images with one more target, behind all others: the answers of a control task."""
        copy = TargetData(self.parts, self.target)
        copy._permuted, copy._control = self._permuted, task
        return copy

    def batches(
        self, batch_size: int, what: str, *, pictures: bool = True, into: Sequence[Any] = ()
    ) -> Iterator[TargetBatch]:
        """All images in order, with a progress bar that says `what` is being done; `into` as in `progress_batches`.

        Without `pictures` they are left out, unless a control task has to look at them; not for streams.
        """
        pictures = pictures or self._control is not None
        batches = images = 0  # of the parts before
        for number, part in enumerate(self.parts):
            column = _column_of(part, self.target.spec)
            extra = [column] if column not in (None, part.label) else []
            here = seen = 0
            for batch in (
                progress_batches(part, batch_size, what, extra=extra, into=into)
                if pictures
                else unread_batches(part, batch_size, extra)
            ):
                first = images + batch.first
                answers = self._of_batch(batch, part, number, column)[:, None]
                if self._permuted is not None:
                    # By place in the pass: an image left out on the way moves the rest, and they stay as random.
                    answers = torch.cat([answers, self._permuted[first : first + len(answers)]], dim=1)
                if self._control is not None:
                    answers = torch.cat([answers, self._control.answers(batch.images)[:, None]], dim=1)
                index = batch.index * len(self.parts) + number
                yield TargetBatch(batch.images, answers, index, batches + batch.number, first)
                here, seen = batch.number + 1, batch.first + len(batch)
            # another process may have had the last batch
            shared = part.can_be_shared and part.n is not None
            batches += len(batch_sizes(len(part), batch_size)) if shared else here
            images += len(part) if shared else seen

    def marks_read(self) -> UInt64[np.ndarray, "k"]:
        """What the images hold that were read, each once."""
        return np.unique(np.concatenate([part.marks_read() for part in self.parts]))

    @contextmanager
    def refusing(self, *apart: Apart) -> Iterator[None]:
        """Meanwhile an image that is among these is an error."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.refusing(*apart))
            yield

    def about(self, note: str | None = None) -> dict[str, Any]:
        """What a result's `meta` says of these images."""
        parts = [about_data(part, note) for part in self.parts]
        return parts[0] if len(parts) == 1 else {"name": self.name, "n": self.n, "parts": parts}

    def _of_batch(self, batch: Batch, part: ImageData, number: int, column: str | None) -> Int64[Tensor, "b"]:
        if column is None:
            return torch.full((len(batch),), number)
        values = batch.labels.tolist() if column == part.label else batch.extra[column]
        return self._answers(values, part)

    def _answers(self, values: Sequence[Any], part: ImageData) -> Int64[Tensor, "b"]:
        spec, classes = self.target.spec, self.target.classes
        column, presence, wanted = spec.partition("=")
        if presence:
            names = part.class_names if column in (LABEL, part.label) else None
            return torch.tensor([int(_is_present(value, wanted, names)) for value in values])
        if column in (LABEL, part.label):
            answers = torch.as_tensor(np.asarray(values, np.int64))
            if len(answers) and int(answers.max()) >= len(classes):
                raise ValueError(
                    f"the probe knows classes 0 to {len(classes) - 1}; {part.name} has {int(answers.max())}"
                )
            return answers
        known = {name: number for number, name in enumerate(classes)}
        if strange := sorted({str(value) for value in values} - known.keys()):
            raise ValueError(f"{column!r} is one of {', '.join(classes)}; {part.name} has {', '.join(strange[:5])}")
        return torch.tensor([known[str(value)] for value in values])


def with_target(target: str, *sets: ImageData | Sequence[ImageData]) -> list[TargetData]:
    """Sets of images with the answers a probe is to give, numbered alike in all of them.

    >>> from analyses.data import load_data
    >>> data, = with_target("count", load_data("scenes:test", n=50))
    >>> data.target.classes
    ('1', '2', '3', '4', '5')

    `target` is "label"; any other column of whole numbers, text or true and false; "label=dog" or "column=value" for
    whether that is what an image has (or what its list holds); or "dataset", for which a set is several data sets in
    the same order. Classes that occur in one set only are classes of all.
    Raises ValueError for a column there is not, values that are no classes, and fewer than two of them.
    """
    groups = [(s,) if isinstance(s, ImageData) else tuple(s) for s in sets]
    parts = [part for group in groups for part in group]
    if target != ORIGIN:
        for part in parts:
            column = target.partition("=")[0]
            if column != LABEL and column not in part.columns:
                raise ValueError(f"a target is a column of the data; {part.name} has {part.columns}, not {column!r}")
        classes = _classes(target, parts)
    else:
        classes = tuple(part.name for part in groups[0])
        if len(classes) < 2 or any(len(group) != len(classes) for group in groups):
            raise ValueError(
                f"telling data sets apart needs two or more of them, the same in every set; got "
                f"{[len(group) for group in groups]} data sets"
            )
    if len(classes) < 2:
        raise ValueError(f"a probe tells at least two classes apart; {target!r} is always {', '.join(classes)}")
    return [TargetData(group, Target(target, classes)) for group in groups]


def _classes(target: str, parts: Sequence[ImageData]) -> tuple[str, ...]:
    column, presence, wanted = target.partition("=")
    if presence:
        if not wanted:
            raise ValueError(f"presence is asked for as column=value; got {target!r}")
        for part in parts:
            names = part.class_names if column in (LABEL, part.label) else None
            if names is not None and wanted not in names:
                raise ValueError(f"{part.name} has no class {wanted!r}; it has {', '.join(names[:10])}")
        return f"not {wanted}", wanted
    if all(column in (LABEL, part.label) for part in parts):
        return tuple(common_names(*parts) or map(str, range(count_classes(*parts))))
    found: set[Any] = set()
    for part in parts:
        values = _values(part, column)
        if values is None:
            raise ValueError(f"{part.name} is a stream, so the values of {column!r} are not known beforehand")
        found |= {value for value in values if not isinstance(value, list)}
        if strange := [v for v in values if isinstance(v, (float, list)) or v is None]:
            raise ValueError(
                f"a probe tells classes apart: whole numbers, text, true or false; column {column!r} of {part.name} "
                f"holds {strange[0]!r}. Whether something is in a list is asked for as {column}=value"
            )
    return tuple(map(str, sorted(found)))


def _column_of(part: ImageData, spec: str) -> str | None:
    if spec == ORIGIN:
        return None
    column = spec.partition("=")[0]
    return part.label if column == LABEL else column


def _values(part: ImageData, column: str) -> list[Any] | None:
    if column == part.label:
        return None if part.labels is None else part.labels.tolist()
    return part.column(column)


def _is_present(value: Any, wanted: str, names: Sequence[str] | None) -> bool:
    held = value if isinstance(value, (list, tuple, set)) else [value]
    return any((names[v] if names is not None else str(v)) == wanted for v in held)


def target_data(data: Any, target: Target | str) -> TargetData:
    """Images with the answers of a target: of one that is given, numbered as there; of a spec, as `with_target` does.

    Raises ValueError for data whose classes have other names than the target's, and what `as_data` and `with_target`
    raise.
    """
    if isinstance(data, TargetData):
        return data
    parts = data if isinstance(data, list) else [data]
    group = [as_data(part) for part in parts]
    if isinstance(target, str):
        return with_target(target, group)[0]
    for part in group:
        _check_names(part, target)
    return TargetData(group, target)


def _check_names(part: ImageData, target: Target) -> None:
    """Refuse labels that mean other classes than those a probe was asked for."""
    if target.spec not in (LABEL, part.label) or part.class_names is None:
        return
    numbered = list(map(str, range(target.n_classes)))  # it was fitted on classes without names
    if list(target.classes) not in (part.class_names, numbered):
        raise ValueError(
            f"the probe knows the classes {', '.join(target.classes[:5])} …, and {part.name} has "
            f"{', '.join(part.class_names[:5])} …: the same number would be another class"
        )
