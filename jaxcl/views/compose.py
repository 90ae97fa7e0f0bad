"""View programs: which ops make a view, in which order, and what the views of an image share.

    ViewsConfig --build_program--> ViewProgram --(keys, images)--> Views(images[B,V,h,w,C], drawn)

Views are batch-major and made image by image, so that a batch that is sharded over devices stays
where it is.
"""

import dataclasses
import difflib
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.views.crop import Crop
from jaxcl.views.op import Op, Params, Shape, as_float
from jaxcl.views.ops import OPS

Drawn = dict[str, Params]
"""What was drawn: op name -> parameters, each with a leading axis V (before it B, for a batch)."""


class Views(NamedTuple):
    """The views of a batch.

    Attributes:
      images: float[B,V,h,w,C] in [0,1].
      drawn: op name -> parameters [B,V,...], the coin ``"on"`` among them.
    """

    images: jax.Array
    drawn: Drawn


@dataclasses.dataclass(frozen=True)
class View:
    """What is particular to one view.

    Attributes:
      prob: op name -> probability of the op in this view, instead of the op's own.
      share: op name -> index of an earlier view whose drawn parameters (coin, order, ...) are used
        again.
      differ: op name -> index of an earlier view, whose draw is not drawn here (`Op.sample_other`).
    """

    prob: Mapping[str, float] = dataclasses.field(default_factory=dict)
    share: Mapping[str, int] = dataclasses.field(default_factory=dict)
    differ: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(tuple(frozenset(x.items()) for x in (self.prob, self.share, self.differ)))


VIEW_FIELDS = tuple(field.name for field in dataclasses.fields(View))


@dataclasses.dataclass(frozen=True)
class ViewProgram:
    """An ordered list of named ops and the views that they make.

    The key of op o in view v is fold_in(fold_in(key, v), crc32(name of o)): what one op draws does
    not depend on which other ops or views there are.

    Attributes:
      ops: (name, op) in the order of application.
      views: one entry a view.
    """

    ops: tuple[tuple[str, Op], ...]
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.ops]
        if len(set(names)) < len(names):
            raise ValueError(f"ops {names}: expected different names; give the second one its own")
        if not self.views:
            raise ValueError("views is empty: expected at least one view")
        for index, view in enumerate(self.views):
            where = f"views[{index}]"
            for name, prob in view.prob.items():
                _check_known(name, names, f"{where}.prob: there is no op")
                if not 0 <= prob <= 1:
                    raise ValueError(
                        f"{where}.prob[{name!r}] = {prob!r}: expected a number in [0, 1]"
                    )
            for name, source in view.share.items():
                _check_known(name, names, f"{where}.share: there is no op")
                if not 0 <= source < index:
                    raise ValueError(
                        f"{where}.share[{name!r}] = {source!r}: expected the index of an earlier "
                        + (f"view, 0 to {index - 1}" if index else "view, and the first has none")
                    )
                if name in view.prob:
                    raise ValueError(
                        f"{where} has {name!r} in prob and in share: a shared op takes the coin of "
                        f"the view it shares with; drop one of the two"
                    )
            for name, source in view.differ.items():
                _check_known(name, names, f"{where}.differ: there is no op")
                drawn_by = source
                while 0 <= drawn_by < index and name in self.views[drawn_by].share:
                    drawn_by = self.views[drawn_by].share[name]
                if not 0 <= drawn_by < index or name in self.views[drawn_by].differ:
                    raise ValueError(
                        f"{where}.differ[{name!r}] = {source!r}: expected the index of an earlier view "
                        f"that draws {name!r} freely"
                    )
                if name in view.share:
                    raise ValueError(
                        f"{where} has {name!r} in share and in differ: it cannot be both; drop one"
                    )

    def output_shape(self, shape: Shape) -> Shape:
        """(h, w, C) of the views of an image of `shape`."""
        for _, op in self.ops:
            shape = op.output_shape(shape)
        return shape

    def draw(self, key: jax.Array, shape: Shape) -> Drawn:
        """Draws the parameters of all views of one image.

        Args:
          key: a key of this image and this step.
          shape: (H, W, C) of the image.

        Returns:
          op name -> parameters with a leading axis V.
        """
        fold_in = jax.vmap(jax.random.fold_in, (None, 0))
        names = np.asarray([_stable_index(name) for name, _ in self.ops], np.uint32)
        keys = jax.vmap(fold_in, (0, None))(fold_in(key, np.arange(len(self.views))), names)
        drawn = {}
        for index, (name, op) in enumerate(self.ops):
            probs = jnp.asarray([view.prob.get(name, op.prob) for view in self.views], jnp.float32)
            sample = jax.vmap(functools.partial(op.sample, shape=shape))
            params = sample(keys[:, index], prob=probs)
            if any(name in view.differ for view in self.views):
                others = functools.partial(op.sample_other, shape=shape)
                params = self._differing(name, params, others, keys[:, index], probs)
            drawn[name] = self._shared(name, params)
            shape = op.output_shape(shape)
        return drawn

    def _sources(self, name: str) -> list[int]:
        """For each view the one that drew the parameters that it has of an op."""
        sources: list[int] = []
        for index, view in enumerate(self.views):
            sources.append(sources[view.share[name]] if name in view.share else index)
        return sources

    def _shared(self, name: str, params: Params) -> Params:
        """Puts the parameters of the view that is shared in place of the view's own."""
        if not any(name in view.share for view in self.views):
            return params
        return _take(params, self._sources(name))

    def _differing(
        self,
        name: str,
        params: Params,
        others: Callable[..., Params],
        keys: jax.Array,
        probs: jax.Array,
    ) -> Params:
        """Draws anew, where a view is to differ from another one."""
        sources = self._sources(name)
        other = [sources[view.differ.get(name, i)] for i, view in enumerate(self.views)]
        new = jax.vmap(lambda key, prob, other: others(key, other=other, prob=prob))(
            keys, probs, _take(params, other)
        )
        # Views that need not differ were compared with themselves: theirs is the first draw.
        chosen = [(new if name in v.differ else params, i) for i, v in enumerate(self.views)]
        return {field: jnp.stack([drawn[field][i] for drawn, i in chosen]) for field in params}

    def apply(self, image: jax.Array, drawn: Drawn) -> jax.Array:
        """Makes the views of one image from drawn parameters.

        Args:
          image: uint8 or float [H,W,C]; or, cropped on the host, [V,h,w,C]. The crop op, which must be the first, is then
            left out.
          drawn: what `draw` or `__call__` gave, or such parameters from elsewhere.

        Returns:
          float[V,h,w,C].

        Raises:
          ValueError: images of another rank, or crops of other shapes than the program's.
        """
        image = as_float(image)
        if image.ndim == 3:
            views, ops = jnp.broadcast_to(image, (len(self.views), *image.shape)), self.ops
        elif image.ndim == 4:
            self._host_crop(image.shape)
            views, ops = image, self.ops[1:]
        else:
            raise ValueError(
                f"image has shape {image.shape}: expected one image [H,W,C], or its crops [V,h,w,C]; jax.vmap makes the "
                f"views of a batch"
            )
        for name, op in ops:
            views = jax.vmap(op.apply)(views, drawn[name])
        return views

    def __call__(
        self, keys: jax.Array, images: jax.Array, drawn_crop: Params | None = None
    ) -> Views:
        """Makes the views of a batch.

        Args:
          keys: key[B], one an image.
          images: uint8 (divided by 255) or float in [0,1], [B,H,W,C]; or, cropped on the host,
            [B,V,h,w,C] with
          drawn_crop: the parameters [B,V,...] of those crops. The crop op, which must be the first,
            is then left out and this is its record.

        Returns:
          Views of the dtype that `as_float` says.

        Raises:
          ValueError: images of another rank, or other shapes than the program's.
        """
        if drawn_crop is None:
            if images.ndim != 4:
                raise ValueError(
                    f"images have shape {images.shape}: expected [B,H,W,C], or [B,V,h,w,C] "
                    f"together with drawn_crop for crops made on the host"
                )
            return jax.vmap(self._one)(keys, images)
        crop_name = self._host_crop(images.shape[1:])
        rest = ViewProgram(self.ops[1:], tuple(_without(view, crop_name) for view in self.views))

        def one_cropped(key: jax.Array, crops: jax.Array, drawn_crop: Params) -> Views:
            drawn = {crop_name: dict(drawn_crop), **rest.draw(key, crops.shape[1:])}
            return Views(self.apply(crops, drawn), drawn)

        return jax.vmap(one_cropped)(keys, images, drawn_crop)

    def _one(self, key: jax.Array, image: jax.Array) -> Views:
        """All views of one image."""
        drawn = self.draw(key, image.shape)
        return Views(self.apply(image, drawn), drawn)

    def _host_crop(self, shape: Shape) -> str:
        """Name of the op that the host has applied; checks that the crops of an image have the `shape` that it gives."""
        if not self.ops or not isinstance(self.ops[0][1], Crop):
            raise ValueError(
                f"crops made on the host need a program that begins with a crop, got ops "
                f"{[name for name, _ in self.ops]}: crop on the device, or put the crop first"
            )
        name, crop = self.ops[0]
        if any(name in view.differ for view in self.views):
            raise ValueError(
                f"views differ in {name!r}, which the host draws without regard to it: crop on the device"
            )
        size = crop.output_shape((0, 0, 0))[:2]
        if len(shape) != 4 or shape[:3] != (len(self.views), *size):
            raise ValueError(
                f"the crops of an image have shape {shape}: expected the host's crops of each view, "
                f"[{len(self.views)},{size[0]},{size[1]},C]"
            )
        return name


def _without(view: View, name: str) -> View:
    """The view without what it says about op `name`."""
    return View(
        {op: prob for op, prob in view.prob.items() if op != name},
        {op: source for op, source in view.share.items() if op != name},
        {op: source for op, source in view.differ.items() if op != name},
    )


def _take(params: Params, views: Sequence[int]) -> Params:
    """The parameters of the given views, in that order."""
    return jax.tree.map(lambda values: jnp.stack([values[i] for i in views]), params)


def _stable_index(name: str) -> int:
    """A number for an op's name that is the same in every program, process and release."""
    return zlib.crc32(name.encode())


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
    """A view program as data, for configurations.

    Attributes:
      order: names of the ops in the order of application.
      ops: name -> fields of the op. The type is entry ``"op"`` if given, else the name. An op that
        `order` leaves out is not applied.
      views: one mapping a view, with the fields of `View`.
    """

    order: tuple[str, ...] = ()
    ops: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    views: tuple[dict[str, Any], ...] = ({}, {})

    def __post_init__(self) -> None:
        for name in self.order:
            _check_known(name, self.ops, "order: there is no op")
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order = {self.order}: expected each op once")


def build_program(spec: ViewsConfig) -> ViewProgram:
    """Turns a configuration into a program.

    Raises:
      ValueError: an unknown op, field or view entry, with the nearest name; a value out of range.
    """
    ops = []
    for name in spec.order:
        fields = dict(spec.ops[name])
        kind = fields.pop("op", name)
        _check_known(kind, OPS, f"ops[{name!r}]: there is no op type")
        known = [field.name for field in dataclasses.fields(OPS[kind])]
        for field in fields:
            _check_known(field, known, f"ops[{name!r}]: {OPS[kind].__name__} has no field")
        values = {field: _as_tuple(value) for field, value in fields.items()}
        try:
            ops.append((name, OPS[kind](**values)))
        except ValueError as error:
            raise ValueError(f"ops[{name!r}]: {error}") from error
    views = []
    for index, entry in enumerate(spec.views):
        for field in entry:
            _check_known(field, VIEW_FIELDS, f"views[{index}]: a view has no field")
        views.append(View(**{field: dict(values) for field, values in entry.items()}))
    return ViewProgram(tuple(ops), tuple(views))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_known(name: str, known: Iterable[str], what: str) -> None:
    """Raises a ValueError that names the nearest of `known` if `name` is not among them."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f"{what} {name!r}; {hint}")
