"""The maps explorer: cosines against NumPy, panels against the maps."""

import numpy as np
import pytest
import torch

from kdlab import plots
from kdlab.explorers import MapsExplorer

RNG = np.random.default_rng(3)
IMAGES = RNG.random((4, 12, 12))
CLASSES, LABELS = ["cat", "dog", "bird"], np.array([0, 2, 1, 2])
SIZES = {"early": (6, 6), "late": (4, 2)}


def some_maps(*shape):
    return RNG.random((4, *shape)) ** 3


MAPS = {
    "teacher": {stage: some_maps(*size) for stage, size in SIZES.items()},
    "before": {stage: some_maps(*size) for stage, size in SIZES.items()},
    "coarse": {"late": some_maps(2, 2), "early": some_maps(3, 3)},
}


@pytest.fixture
def explorer():
    return MapsExplorer(IMAGES, MAPS, CLASSES, LABELS, goal="Find it.")


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


@pytest.mark.parametrize("stage", ["early", "late"])
@pytest.mark.parametrize("image", [0, 3])
def test_cosines_equal_numpy_and_the_larger_map_is_averaged(explorer, stage, image):
    result = explorer.set(image=image, stage=stage)
    teacher = MAPS["teacher"][stage]
    assert result.cosines["teacher"] == pytest.approx(1)
    same_size = MAPS["before"][stage]
    assert result.cosines["before"] == pytest.approx(cosine(teacher[image], same_size[image]))
    h, w = MAPS["coarse"][stage].shape[1:]
    pooled = teacher.reshape(4, h, teacher.shape[1] // h, w, -1).mean((2, 4))
    each = [cosine(a, b) for a, b in zip(pooled, MAPS["coarse"][stage], strict=True)]
    assert result.cosines["coarse"] == pytest.approx(each[image])
    assert result.mean_cosines["coarse"] == pytest.approx(np.mean(each))


def test_panels_show_the_image_and_each_map_over_it(explorer):
    explorer.set(image=2, stage="late")
    picture, *panels, bar = explorer.figure.axes
    np.testing.assert_array_equal(picture.images[0].get_array(), IMAGES[2])
    assert picture.get_xlabel() == "true class: dog"
    assert [panel.get_title() for panel in panels] == list(MAPS)
    shares = {
        model: stages["late"] / stages["late"].mean((1, 2), keepdims=True)
        for model, stages in MAPS.items()
    }
    top = np.percentile(np.concatenate([s.ravel() for s in shares.values()]), 99.5)
    for panel, share in zip(panels, shares.values(), strict=True):
        under, over = panel.images
        np.testing.assert_array_equal(under.get_array(), IMAGES[2])
        np.testing.assert_allclose(over.get_array(), share[2])
        assert over.get_clim() == pytest.approx((0, top))
    assert bar.get_ylim() == pytest.approx((0, top))
    assert panels[0].get_xlabel() == "4 × 2 places"
    assert panels[1].get_xlabel() == f"cosine {explorer.result.cosines['before']:.2f}"


def test_the_scale_belongs_to_the_stage_so_that_images_compare(explorer):
    tops = {explorer.set(image=i, stage="early").top for i in range(4)}
    assert len(tops) == 1 and tops != {explorer.set(stage="late").top}


def test_readout_names_image_class_stage_and_both_cosines(explorer):
    result = explorer.set(image=1, stage="early")
    here, mean = result.cosines, result.mean_cosines
    assert repr(explorer) == (
        "<MapsExplorer image 1 (bird) | early | cosine with the map of teacher: "
        f"before {here['before']:.2f} (all images {mean['before']:.2f}), "
        f"coarse {here['coarse']:.2f} (all images {mean['coarse']:.2f})>"
    )


def test_starts_at_the_first_image_and_stage_with_a_goal(explorer):
    assert explorer.state == {"image": 0, "stage": "early"}
    assert "Find it." in explorer.children[0].value
    classes = {name: set(c._dom_classes) for name, c in explorer.controls.items()}
    assert "kd-image" in classes["image"] and "kd-stage" in classes["stage"]


def test_compute_is_pure(explorer):
    picture = explorer.picture.value
    first, second = (explorer.compute({"image": 2, "stage": "late"}) for _ in range(2))
    assert first.cosines == second.cosines and first.top == second.top
    assert explorer.state["image"] == 0 and explorer.picture.value == picture


def test_a_frame_does_not_depend_on_the_way_to_it(explorer):
    straight = MapsExplorer(IMAGES, MAPS, CLASSES, LABELS)
    straight.set(image=3, stage="late")
    for image, stage in ((1, "late"), (2, "early"), (3, "late")):
        explorer.set(image=image, stage=stage)
    assert explorer.picture.value == straight.picture.value


def test_the_stored_picture_is_the_live_one(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == repr(explorer) and len(data["image/png"]) > 1000


def test_labels_are_optional_tensors_are_taken_and_colour_is_shown_once():
    maps = {m: {s: torch.tensor(v) for s, v in st.items()} for m, st in MAPS.items()}
    colour = RNG.random((4, 12, 12, 3))
    explorer = MapsExplorer(colour, maps)
    picture, first, *_ = explorer.figure.axes
    assert picture.images[0].get_array().shape == (12, 12, 3) and picture.get_xlabel() == ""
    np.testing.assert_allclose(first.images[0].get_array(), plots.grey(colour[0]))
    assert repr(explorer).startswith("<MapsExplorer image 0 | early |")


def test_a_dead_map_resembles_nothing_and_breaks_nothing():
    maps = {**MAPS, "dead": {stage: np.zeros((4, *size)) for stage, size in SIZES.items()}}
    explorer = MapsExplorer(IMAGES, maps)
    assert explorer.result.cosines["dead"] == 0 and explorer.result.mean_cosines["dead"] == 0


def test_many_models_go_on_in_a_second_row():
    maps = {f"model {i}": MAPS["teacher"] for i in range(7)}
    *panels, _ = MapsExplorer(IMAGES, maps).figure.axes
    boxes = [panel.get_position() for panel in panels]
    assert len({round(box.y0, 6) for box in boxes}) == 2
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": IMAGES[0]}, r"images has shape \(12, 12\)"),
        ({"maps": {"teacher": MAPS["teacher"]}}, "maps has 1 models; expected the teacher first"),
        ({"maps": {"teacher": {}, "s": {}}}, r"maps\['teacher'\] is empty"),
        (
            {"maps": {"teacher": MAPS["teacher"], "s": {"late": some_maps(4, 2)}}},
            r"maps\['s'\] has the stages late; expected those of 'teacher': early, late",
        ),
        (
            {"maps": {"t": MAPS["teacher"], "s": {**MAPS["before"], "late": np.ones((3, 4, 2))}}},
            r"maps of 's, late' have shape \(3, 4, 2\); expected \[4, h, w\]",
        ),
        (
            {"maps": {"t": MAPS["teacher"], "s": {k: -v for k, v in MAPS["before"].items()}}},
            "maps of 's, early' hold negative",
        ),
        ({"labels": LABELS[:2]}, r"labels: int64 \(2,\); expected \(4,\)"),
        ({"labels": LABELS / 2}, "labels: float64"),
        ({"labels": LABELS + 1}, "labels must be from 0 to 2: classes has 3 names"),
        ({"labels": LABELS - 1}, "labels must be from 0 to 2"),
    ],
)
def test_refuses(change, match):
    arguments = {"images": IMAGES, "maps": MAPS, "classes": CLASSES, "labels": LABELS}
    with pytest.raises(ValueError, match=match):
        MapsExplorer(**{**arguments, **change})
