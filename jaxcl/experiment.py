"""An experiment on a mesh, before its first array: method, model, optimizer, shapes and places, and the compiled functions.

What trains and what plans a training make the same thing here, so that a plan is of the program that will run. Devices may be
descriptions of devices that this machine does not have.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxcl import mesh as mesh_lib
from jaxcl import models, optim
from jaxcl.config import Config
from jaxcl.data import Source, by_path
from jaxcl.losses import nce
from jaxcl.methods import Method
from jaxcl.methods.base import labels_apart, learned_levels, method_columns
from jaxcl.models import Model
from jaxcl.state import TrainState, make_init, make_train_step

PyTree = Any
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration is on a mesh.

    Attributes:
      method: the method, with its views.
      model: its network, with its heads.
      image_shape: (h, w, C) of one view.
      params: the shapes of all parameters, the method's own under "method".
      tx: the optimizer.
      schedule: the learning rate by number of completed updates.
      state: shapes, dtypes and shardings of the whole train state.
      init: jitted, (key, parts that are given and not drawn) -> the first state, made in its place.
      step: jitted, (state, batch) -> (state, metrics); it takes the memory of the state that it is given.
    """

    method: Method
    model: Model
    image_shape: Shape
    params: PyTree
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    state: TrainState
    init: Any
    step: Any


def build(
    config: Config,
    mesh: Mesh,
    source_shape: Shape,
    total_steps: int,
    steps_per_epoch: int,
    method: Method | None = None,
) -> Experiment:
    """Settles everything that does not depend on the values of arrays; runs nothing on the devices.

    Args:
      config: the experiment.
      mesh: its devices.
      source_shape: (H, W, C) of the images that the views are made of.
      total_steps: length of the training, for the schedule.
      steps_per_epoch: length of an epoch, for the schedule.
      method: None for that of the config.

    Raises:
      ValueError: a setting that does not fit the data or the devices; the text names it.
    """
    check(config, mesh)
    method = config.build_method() if method is None else method
    check_columns(config, method)
    model = models.build(config.model, method.heads)
    height, width, channels = method.views.output_shape(source_shape)
    image_shape = (height, width, channels)
    schedule = optim.make_schedule(config.optim, total_steps, steps_per_epoch, config.batch_size)
    params = {
        **jax.eval_shape(lambda: model.init(jax.random.key(0), image_shape))["params"],
        "method": jax.eval_shape(method.init_params, jax.random.key(0)),
    }
    tx = optim.make_optimizer(config.optim, params, schedule)

    init = make_init(method, model, tx, image_shape)
    shapes = jax.eval_shape(init, jax.random.key(config.seed))
    shardings = mesh_lib.state_shardings(mesh, shapes)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    step = jax.jit(
        in_sight_of(
            mesh,
            make_train_step(method, model, tx, schedule, config.micro_batch),
            config.mesh.loss_impl,
            config.mesh.loss_kernel,
        ),
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )
    return Experiment(
        method=method,
        model=model,
        image_shape=image_shape,
        params=params,
        tx=tx,
        schedule=schedule,
        state=state,
        init=jax.jit(init, out_shardings=shardings),
        step=step,
    )


def labelled(config: Config, source: Source) -> Source:
    """The training data with the labels as the method reads them: numbers of paths, or columns that stand by themselves."""
    return source if labels_apart(config.build_method()) else by_path(source)


def check_labels(config: Config, source: Source) -> None:
    """Refuses training data all of whose images are of one class at a level that the method learns from.

    A tree may have names of classes that no image has, of which `Config.for_labels` does not know.

    Args:
      config: as `Config.for_labels` makes it.
      source: as `labelled` makes it.

    Raises:
      ValueError: names the level.
    """
    for name in learned_levels(config.build_method()):
        found = np.unique(source.labels[:, source.tree.level(name)])
        if (count := int(np.sum(found >= 0))) < 2:
            raise ValueError(
                f"the training images have {count or 'no'} class at the label level {name!r}, and so nothing to tell apart"
                f" (the label tree names {len(source.tree.names[source.tree.level(name)])}): name the other levels in"
                f" method.hierarchy, out of {source.tree.levels}"
            )


def check(config: Config, mesh: Mesh) -> None:
    """Refuses, before anything is loaded, a batch that does not divide over the devices.

    Raises:
      ValueError: says what to choose.
    """
    mesh_lib.check_batch_size(mesh, config.batch_size)
    config.check_micro_batch(mesh.size)


def check_columns(config: Config, method: Method) -> None:
    """Refuses a table of pairs or triples that the method does not read, and a method that reads one without a table.

    Raises:
      ValueError: says what to choose.
    """
    table, columns = config.data.pairs.get("train", ""), method_columns(method)
    name = config.method.get("name")
    if table and not columns:
        raise ValueError(
            f"data.pairs['train']={table!r}: the method {name!r} reads no pairs or triples, and would train on their images alone;"
            " take the table out, or use the method 'similarity' with method.target='pairs' or 'triples'"
        )
    if columns and not table:
        raise ValueError(
            f"the method {name!r} reads a column {' and '.join(map(repr, columns))} of each batch, and data.pairs['train'] names no"
            " table of them"
        )


def in_sight_of(
    mesh: Mesh, function: Callable[..., Any], impl: str = "auto", kernel: str = "auto"
) -> Callable[..., Any]:
    """`function`, traced where losses see the mesh, by which they choose their form unless one is preferred (`nce.using`)."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nce.using(impl, kernel):
            return function(*arguments)

    return traced


def batch_shapes(
    config: Config, mesh: Mesh, method: Method, source_shape: Shape, levels: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline gives to a step: shapes, dtypes and shardings of the global batch.

    Args:
      config: the experiment.
      mesh: its devices.
      method: the method, whose views say how many crops an image has.
      source_shape: (H, W, C) of the images that the views are made of.
      levels: levels of the labels, 0 for none.
    """
    b, v = config.batch_size, len(method.views.views)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((b, *source_shape), np.uint8),
        "label": ((b, levels), np.int32),
        "index": ((b,), np.int32),
    }
    if config.data.crop == "host":
        shapes |= {
            "image": ((b, v, *method.views.output_shape(source_shape)), np.uint8),
            "crop/on": ((b, v), np.bool_),
            "crop/box": ((b, v, 4), np.int32),
        }
    shapes |= dict.fromkeys(method_columns(method), ((b,), np.float32))
    sharding = mesh_lib.batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(s, d, sharding=sharding) for k, (s, d) in shapes.items()}
