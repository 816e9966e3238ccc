"""A submodel's view in training: the same bytes as on a device."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples
from tests.support.scenes import noise, views

from devit_contract.views import View
from devit_decompose.models.inference import run
from devit_decompose.models.look import Look
from devit_decompose.models.model import Model, StemLayer, uniform_config


@given(views(), st.integers(1, 3))
@examples(3)
def test_torch_makes_the_same_bytes_in_any_order_and_batch(case: tuple[View, int, int], colours: int) -> None:
    view, height, width = case
    images = noise(5, height, width, colours)
    seen, order = view.of(images), [3, 0, 4, 1, 2]
    look = Look(view, height, width)
    np.testing.assert_array_equal(look(torch.from_numpy(images[order])).numpy(), seen[order])
    np.testing.assert_array_equal(look(torch.from_numpy(images[2:3])).numpy(), seen[2:3])
    assert not look.state_dict()  # so that models with a view and without have the same files
    mixed = look(torch.from_numpy(images).float())
    np.testing.assert_allclose(mixed.numpy(), seen, atol=0.5)


def test_a_submodel_that_sees_a_view_has_the_features_of_a_model_that_is_given_it() -> None:
    torch.manual_seed(1)
    config = uniform_config(
        backbone="cct",
        image_size=(8, 10, 1),
        mean=(0.3,),
        std=(0.2,),
        stem=(StemLayer(8, stride=2),),
        depth=1,
        heads=1,
        mlp_ratio=1.0,
        classes=(0, 1),
    )
    model, view = Model(config).eval(), View(2, 3, 6, 7, -20.0)
    images = noise(4, 8, 10)
    given = run(model.features, view.of(images))
    names = list(model.state_dict())
    model.see(view)
    np.testing.assert_array_equal(run(model.features, images), given)
    assert list(model.state_dict()) == names
    model.see(None)
    np.testing.assert_array_equal(run(model.features, view.of(images)), given)
