"""The classes of a data set in the head of a model."""

import pytest
import torch

from analyses.data import (
    LabelMap,
    as_data,
    map_labels,
)


def named(*names):
    data = as_data((["x"] * len(names), list(range(len(names)))), name="photos")
    data.class_names = list(names)
    return data


@pytest.mark.parametrize(
    ("names", "head", "ids"),
    [
        (["cat", "dog"], ["dog", "eel", "cat"], [2, 0]),
        (["Cat", "guinea_pig"], ["guinea pig", "CAT", "dog"], [1, 0]),
        (["cat", "Cat"], ["Cat", "cat"], [1, 0]),
        (["tabby", "tench"], ["tench, Tinca tinca", "tabby, tabby cat", "dog"], [1, 0]),
        (["a", "b"], ["LABEL_0", "LABEL_1"], [0, 1]),
        (["a", "b"], 2, [0, 1]),
        # ImageNet: two classes called crane in one list, told apart in the other.
        (["crane", "tench", "crane2"], ["crane", "tench", "crane"], [0, 1, 2]),
    ],
)
def test_labels_find_their_class_in_the_head(names, head, ids):
    assert map_labels(named(*names), head).ids.tolist() == ids


def test_imagenets_synset_folders_are_in_the_heads_order():
    synsets = [f"n{i:08d}" for i in range(1000)]
    assert map_labels(named(*synsets), [f"class {i}" for i in range(1000)]).ids.tolist() == list(range(1000))


def test_labels_without_names_are_head_classes():
    mapped = map_labels(as_data((["x"] * 3, [0, 2, 1])), ["a", "b", "c", "d"])
    assert mapped(torch.tensor([3, 0])).tolist() == [3, 0]
    with pytest.raises(ValueError, match=r"labels 0 to 3; the data has \[4\]"):
        mapped(torch.tensor([1, 4]))


def test_a_map_translates_batches():
    assert LabelMap(torch.tensor([5, 7]))(torch.tensor([[1, 0]])).tolist() == [[7, 5]]


@pytest.mark.parametrize(
    ("data", "head", "says"),
    [
        (
            named("cat", "yak"),
            ["cat", "dog"],
            "1 of 2 classes that the model's head does not know: 'yak'. The head knows 2",
        ),
        (named("crane"), ["crane", "crane", "dog"], "more than once: 'crane'"),
        (named("a", "b"), ["LABEL_0", "LABEL_1", "LABEL_2"], "2 classes and the model's head 3 without names"),
        (named("a", "b"), 3, "which is which is not known"),
        (as_data((["x"], [7])), ["a", "b"], "label 7; the model's head has 2 classes"),
    ],
)
def test_labels_the_head_does_not_know(data, head, says):
    with pytest.raises(ValueError, match=says):
        map_labels(data, head)
