"""The classifier that a run has trained itself, scored on test images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcl import checkpoint, data, evaluators
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.data import Source
from jaxcl.evaluators import Layer, Row
from jaxcl.methods.base import labels_apart, own_classifier
from jaxcl.models import Model
from jaxcl.probe.inputs import restore
from jaxcl.probe.networks import TRAINED, Networks
from jaxcl.probe.options import ProbeError


def score_own(networks: Networks, directory: epath.Path, step: int, model: Model) -> Row:
    """The accuracy of the head of cross-entropy, or of the joint probe, at the level that it was trained for.

    Args:
      networks: the run's network, and the splits; its layer does not matter.
      directory: of the checkpoints.
      step: which one.
      model: the whole network.

    Raises:
      ProbeError: the method has no classifier.
      CheckpointError: damage.
      ValueError: no test image has a label.
    """
    config = networks.config
    method: Any = config.build_method()
    kind = own_classifier(method)
    if not kind:
        raise ProbeError(
            f"--eval=classifier: the method {config.method['name']!r} of this run has trained none; --eval=linear and --eval=sgd"
            " train one on its features"
        )
    network = (Layer("classifier") if kind == "head" else Layer()).of(model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), networks.shape))
    sharding = mesh_lib.replicated(networks.mesh)
    variables, _ = restore(directory, step, network, shapes, sharding)
    test = networks.splits.test
    found = dataclasses.replace(networks, network=network).features(variables, test)
    logits = found.h
    if kind == "probe":
        own, _ = checkpoint.restore_part(directory, {"params/method": None}, step=step)
        logits = logits @ np.asarray(own["params/method"]["kernel"])
        logits += np.asarray(own["params/method"]["bias"])
    column = method.labels.column(method.level)
    truth = class_numbers(found.labels, test, networks.config)[:, column]
    truth = np.where(truth >= method.labels.classes[column], -2, truth)
    accuracy, queries, _, unseen = evaluators.score(logits.argmax(1), truth)
    level = method.labels.names[column]
    where = {"head": "its head", "probe": "its joint probe"}[kind]
    return Row(TRAINED, "classifier", level, accuracy, queries, {"is": where, "unseen": unseen})


def class_numbers(labels: np.ndarray, test: Source, config: Config) -> np.ndarray:
    """Labels i32[N,L] of test images as the method saw those of its training images; of unseen classes any number beyond theirs."""
    if labels_apart(config.build_method()) or test.tree.depth == 1:
        return labels
    return data.path_numbers(test.tree, labels, data.load(config.data, "train").labels)
