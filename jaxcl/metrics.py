"""What a run says while it trains: a progress line, a metrics file, TensorBoard, collapse meters.

`Logger` writes `metrics.jsonl` (always), one progress line (on a terminal) or plain lines (else),
and TensorBoard scalars where a writer is installed. The meters are pure functions of the
embeddings; `diagnose` turns their history into words.
"""

import collections
import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

FILE_NAME = "metrics.jsonl"
TIMES = ("time", "images_per_second")
"""The columns of `metrics.jsonl` that depend on the clock; all others repeat exactly on resume."""

_RESERVED = ("step", "nonfinite", *TIMES)
_HISTORY = 200  # rows that are kept in memory for `advise`
_SPEED_WINDOW = 20  # log calls over which images/s is averaged
_REMOTE_SECONDS = 60.0  # a bucket cannot be appended to: the file is replaced about this often


# ---------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------


def encode_row(step: int, times: Mapping[str, float], values: Mapping[str, float]) -> str:
    """Returns one line of `metrics.jsonl`, strict JSON, without the line break.

    JSON has no NaN or infinity: such a value is written as `null`, and its word ("nan", "inf" or
    "-inf") stands under "nonfinite".
    """
    row: dict[str, Any] = {"step": step, **times}
    words = {}
    for name, value in values.items():
        row[name] = value if math.isfinite(value) else None
        if row[name] is None:
            words[name] = str(value)
    if words:
        row["nonfinite"] = words
    return json.dumps(row, allow_nan=False)


def decode_row(line: str) -> dict[str, float]:
    """Inverse of `encode_row`: {"step": int, name: float}; NaN and infinities are floats again.

    Raises:
      ValueError: the line is not a whole row (a run that was killed may leave half a line).
    """
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError(f"not a row of {FILE_NAME}: {line[:80]!r}")
    words = row.pop("nonfinite", {})
    return row | {name: float(word) for name, word in words.items()}


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Returns the rows of a workdir's `metrics.jsonl` in order; [] where there is no file.

    Only the last line may be incomplete (it is left out); anything else that is not a row is a
    ValueError with the line's number.
    """
    path = epath.Path(workdir) / FILE_NAME
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(decode_row(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def curves(rows: Iterable[Mapping[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {name: (steps i64[n], values f64[n])} for every value in the rows."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                points.setdefault(name, []).append((row["step"], value))
    return {
        name: (np.array([s for s, _ in pairs], np.int64), np.array([v for _, v in pairs], float))
        for name, pairs in points.items()
    }


class _Rows:
    """The metrics file: rows after `resume_step` are dropped once, then lines are added.

    A local file is appended to without a buffer, so that a line is in the file when `add` returns.
    """

    def __init__(self, path: epath.Path, resume_step: int):
        self._path = path
        self.dropped = 0
        self.kept: list[dict[str, float]] = []
        kept = []
        if path.exists():
            lines = [line for line in path.read_text().split("\n") if line.strip()]
            for line in lines:
                try:
                    row = decode_row(line)
                except ValueError:  # half a line of a killed run
                    continue
                if row["step"] <= resume_step:
                    kept.append(line + "\n")
                    self.kept.append(row)
            self.dropped = len(lines) - len(kept)
        self._remote = "://" in str(path)
        self._text = "".join(kept)
        self._written = time.monotonic()
        if self._remote:
            self._file = None
            path.write_text(self._text)
        else:
            replacement = path.with_name(path.name + ".new")
            replacement.write_text(self._text)
            replacement.replace(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def add(self, line: str) -> None:
        if self._file is None:
            self._text += line + "\n"
            if time.monotonic() - self._written > _REMOTE_SECONDS:
                self._write_remote()
            return
        try:
            self._file.write((line + "\n").encode())
        except OSError as error:
            error.filename = str(self._path)  # "No space left on device" alone names no file
            raise

    def _write_remote(self) -> None:
        self._path.write_text(self._text)
        self._written = time.monotonic()

    def close(self) -> None:
        if self._file is None:
            self._write_remote()
        else:
            self._file.close()


# ---------------------------------------------------------------------------------------------
# TensorBoard
# ---------------------------------------------------------------------------------------------


class ScalarWriter(Protocol):
    """The part of a TensorBoard writer that is used."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Adds one point of the curve `tag`."""

    def flush(self) -> Any:
        """Writes what is buffered."""

    def close(self) -> Any:
        """Flushes and closes the event file."""


def open_tensorboard(workdir: epath.PathLike, resume_step: int) -> ScalarWriter | None:
    """Returns a writer into `workdir/tensorboard`, or None where no such package is installed.

    tensorboardX is preferred, as it hides the points after `resume_step` that an interrupted run
    has left; with tensorboard's own writer they stay visible.
    """
    folder = str(epath.Path(workdir) / "tensorboard")
    with contextlib.suppress(ImportError):
        purge = resume_step + 1 if resume_step else None
        return importlib.import_module("tensorboardX").SummaryWriter(folder, purge_step=purge)
    with contextlib.suppress(ImportError):
        return importlib.import_module("tensorboard.summary").Writer(folder)
    return None


# ---------------------------------------------------------------------------------------------
# The logger
# ---------------------------------------------------------------------------------------------


class Logger:
    """Says how a run is going, and keeps its numbers.

    Call `log` with everything measured at a step *before* the checkpoint of that step is saved:
    on resume the rows after the restored step are dropped, and the file becomes that of an
    uninterrupted run, up to the columns in `TIMES`.

    Args:
      workdir: folder (or bucket) of the run; `metrics.jsonl` is written there.
      total_steps: steps of the whole run.
      batch_size: images a step, over all devices (an image counts once, whatever its views).
      steps_per_epoch: None leaves the epoch out of the line.
      resume_step: completed updates of the restored state, 0 for a fresh run.
      enabled: False makes every method do nothing; give True on process 0 only.
      tensorboard: also write TensorBoard scalars, when tensorboardX or tensorboard is installed.
      shown: values that the progress line shows, in this order, when they were logged.
      line_seconds: where the stream is no terminal: the shortest time between two plain lines.
      stream: a text stream, standard output by default.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        total_steps: int,
        *,
        batch_size: int,
        steps_per_epoch: float | None = None,
        resume_step: int = 0,
        enabled: bool = True,
        tensorboard: bool = True,
        shown: Sequence[str] = ("loss", "contrastive_top1"),
        line_seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._enabled = enabled
        self._total = total_steps
        self._batch = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._shown = tuple(shown)
        self._line_seconds = line_seconds
        self._clock = clock
        self._paused = 0.0
        self._recurring = 0.0
        self._recurring_step = resume_step
        self._first_step = self._step = resume_step
        self._last: dict[str, float] = {}
        self._last_line = -math.inf
        self._advised: set[str] = set()
        self._recent: collections.deque[Mapping[str, float]] = collections.deque(maxlen=_HISTORY)
        self._best: dict[str, float] = {}
        self._display: Progress | None = None
        self._writer: ScalarWriter | None = None
        if not enabled:
            return
        folder = epath.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = _Rows(folder / FILE_NAME, resume_step)
        self._console = Console(file=stream or sys.stdout, highlight=False, markup=False)
        self._begin = clock()
        for row in self._rows.kept:
            self._remember(row)
        self._elapsed = self._rows.kept[-1].get("time", 0.0) if self._rows.kept else 0.0
        self.start(resume_step)
        if tensorboard:
            self._writer = open_tensorboard(folder, resume_step)
            if self._writer is None:
                self._console.print(
                    "no TensorBoard files are written: pip install tensorboardX (or tensorboard) for them"
                )
        if self._console.is_terminal:
            self._display = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._display.add_task("", total=total_steps, completed=resume_step)
            self._display.start()
        if self._rows.dropped:
            rows = f"{self._rows.dropped} row{'s' if self._rows.dropped > 1 else ''}"
            self.say(f"{FILE_NAME}: dropped {rows} after step {resume_step}, to be measured again")

    # -- time --------------------------------------------------------------------------------

    def _active(self) -> float:
        """Seconds of this process spent on training steps."""
        return self._clock() - self._begin - self._paused

    def start(self, step: int) -> None:
        """Begins the measurement of images/s anew, after `step` steps; call it after compiling."""
        if self._enabled:
            self._points = collections.deque([(step, self._active())], maxlen=_SPEED_WINDOW)

    @contextlib.contextmanager
    def pause(self, what: str = "evaluating", *, once: bool = False) -> Iterator[None]:
        """Time inside does not count for images/s, and a terminal shows `what` meanwhile.

        Args:
          what: a word or two.
          once: True for what will not come again (compiling); else the time left includes as
            many more such pauses as there have been so far for the steps done.
        """
        if not self._enabled:
            yield
            return
        began = self._clock()
        self._show(what + " ...")
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._paused += seconds
            if not once:
                self._recurring += seconds
                self._recurring_step = self._step
            self._show()

    def images_per_second(self) -> float:
        """Images a second over the last log calls, pauses left out; NaN before it is known."""
        (first, began), (last, ended) = self._points[0], self._points[-1]
        if last <= first or ended <= began:
            return math.nan
        return (last - first) * self._batch / (ended - began)

    def seconds_left(self) -> float:
        """Expected seconds to the end, with recurring pauses; NaN before it is known."""
        left = self._total - self._step
        seconds = left * self._batch / self.images_per_second()
        done = self._recurring_step - self._first_step
        return seconds + (left * self._recurring / done if done > 0 else 0.0)

    def elapsed(self) -> float:
        """Seconds of the run so far, those before an interruption included, as in the column "time"."""
        return self._elapsed + self._clock() - self._begin if self._enabled else 0.0

    # -- output ------------------------------------------------------------------------------

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the values of one step: a row of the file, TensorBoard, the progress line.

        A row without any of the shown values (an evaluation) is always said in a line of its own.

        Args:
          step: completed updates.
          values: name -> a number or an array of one element; fetched from the device here.

        Raises:
          ValueError: a value is not a number, or its name is one of the file's own columns.
        """
        if not self._enabled:
            return
        numbers = {name: _number(name, value) for name, value in values.items()}
        self._step = step
        times = {"time": round(self.elapsed(), 3)}
        if training := any(name in numbers for name in self._shown):
            if step > self._points[-1][0]:
                self._points.append((step, self._active()))
            self._last = numbers
            if math.isfinite(speed := self.images_per_second()):
                times["images_per_second"] = round(speed, 2)
        self._rows.add(encode_row(step, times, numbers))
        self._remember({"step": step} | numbers)
        if self._writer is not None:
            for name, number in (numbers | times).items():
                if name != "time":
                    self._writer.add_scalar(name, number, step)
            self._writer.flush()
        if not training:
            body = "  ".join(f"{name} {_short(number)}" for name, number in numbers.items())
            self.say(f"step {step}  {body}")
        elif self._display is not None:
            self._show()
        elif self._clock() - self._last_line >= self._line_seconds or step >= self._total:
            self._last_line = self._clock()
            self.say(self.line())

    def line(self) -> str:
        """Returns the progress line of the last logged step."""
        width = len(str(self._total))
        parts = [f"step {self._step:>{width}}/{self._total}"]
        if self._steps_per_epoch:
            parts.append(f"epoch {self._step / self._steps_per_epoch:.1f}")
        parts += [f"{n} {_short(self._last[n])}" for n in self._shown if n in self._last]
        if math.isfinite(speed := self.images_per_second()):
            parts.append(f"{speed:,.0f} images/s")
            if self._step < self._total:
                parts.append(f"ETA {duration(self.seconds_left())}")
        return "  ".join(parts)

    def say(self, text: str) -> None:
        """Prints a line of its own, above the progress line."""
        if self._enabled:
            self._console.print(text, soft_wrap=True)

    def advise(
        self, trivial_loss: float | None = None, grace_steps: int = 100, advice: str = ""
    ) -> None:
        """Says what `diagnose` finds in the rows so far, restored ones included.

        Each kind of message is said once, and again only if it went away in between.
        """
        messages = diagnose(self._recent, trivial_loss, grace_steps=grace_steps, advice=advice)
        kinds = {message.split(":")[0]: message for message in messages}
        for kind, message in kinds.items():
            if kind not in self._advised:
                self.say(f"warning, step {self._step}: {message}")
        self._advised = set(kinds)

    def best(self, name: str) -> float:
        """Returns the highest value logged under `name`, restored rows included; -inf if none."""
        return self._best.get(name, -math.inf)

    def _remember(self, row: Mapping[str, float]) -> None:
        self._recent.append(row)
        for name, value in row.items():
            if value > self.best(name):  # never true for NaN
                self._best[name] = value

    def _show(self, note: str = "") -> None:
        if self._display is not None:
            text = self.line() + (f"  {note}" if note else "")
            self._display.update(self._task, completed=self._step, description=text)
            self._display.refresh()

    def close(self) -> None:
        """Ends the progress line and closes the files; may be called again."""
        if not self._enabled:
            return
        self._enabled = False
        if self._display is not None:
            self._display.stop()
            self._console.print(self.line(), soft_wrap=True)  # the live line goes away: this stays
        self._rows.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def say(text: str) -> None:
    """Prints a line at once; while a logger's line lives on the terminal, above that line."""
    print(text, flush=True)


def duration(seconds: float) -> str:
    """Returns seconds as "m:ss" or "h:mm:ss"; "?" where they are not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(name: str, value: Any) -> float:
    if name in _RESERVED:
        raise ValueError(
            f"metric {name!r} has the name of a column of {FILE_NAME}'s own; give it another name"
        )
    array = np.asarray(value)
    real = array.dtype.kind in "biu" or jnp.issubdtype(array.dtype, jnp.floating)  # bfloat16 too
    if array.size != 1 or not real:
        raise ValueError(
            f"metric {name!r} must be one number, but has shape {array.shape}, dtype {array.dtype}"
        )
    return float(array.reshape(()))


def _short(value: float) -> str:
    return f"{value:.4g}"


# ---------------------------------------------------------------------------------------------
# Collapse meters
# ---------------------------------------------------------------------------------------------


def _unit(z: jax.Array) -> jax.Array:
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    # The floor stands inside the root, so that a zero row stays zero and has a finite gradient.
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def embedding_std(z: jax.Array) -> jax.Array:
    """Mean over dimensions of the standard deviation of the normalised embeddings, times sqrt(D).

    1 for embeddings spread evenly over the sphere, 0 when all are the same (Chen and He 2021,
    figure 2, where the healthy value 1/sqrt(D) is what is here 1).

    Args:
      z: float[..., D], any leading axes.

    Returns:
      A scalar, at least float32.
    """
    rows = _unit(z).reshape(-1, z.shape[-1])
    return jnp.std(rows, axis=0).mean() * math.sqrt(z.shape[-1])


def positive_cosine(z: jax.Array) -> jax.Array:
    """Mean cosine of two different views of the same image; z float[B, V, D] with V >= 2."""
    views = z.shape[1]
    z = _unit(z)
    own = jnp.sum(jnp.sum(z, axis=1) ** 2)  # every ordered pair of an image's views, and itself
    return (own - jnp.sum(z * z)) / (z.shape[0] * views * (views - 1))


def negative_cosine(z: jax.Array) -> jax.Array:
    """Mean cosine of views of two different images; z float[B, V, D] with B >= 2.

    From sums of embeddings, so it costs B * V * D and needs no matrix of similarities.
    """
    images, views, _ = z.shape
    z = _unit(z)
    own = jnp.sum(z, axis=1)
    return (jnp.sum(jnp.sum(own, axis=0) ** 2) - jnp.sum(own**2)) / (
        images * (images - 1) * views**2
    )


def alignment(z: jax.Array) -> jax.Array:
    """Mean squared distance of two views of one image, 0 to 4; z float[B, V, D] with V >= 2.

    Wang and Isola 2020, with exponent 2.
    """
    z = _unit(z)
    spread = jnp.sum((z - z.mean(axis=1, keepdims=True)) ** 2)
    return 2.0 * spread / (z.shape[0] * (z.shape[1] - 1))


def uniformity(z: jax.Array, limit: int = 512) -> jax.Array:
    """Log of the mean of exp(-2 ||zi - zj||^2) over pairs of different images; 0 when collapsed.

    Wang and Isola 2020, with t = 2: the lower the better, about -4 at best. Taken over the first
    views of the first `limit` images, so that the matrix stays small; z float[B, V, D], B >= 2.
    """
    z = _unit(z[:limit, 0])
    count = z.shape[0]
    square = jnp.sum(z * z, axis=-1)
    inner = jnp.matmul(z, z.T, precision="highest")
    distance = jnp.maximum(square[:, None] + square[None, :] - 2.0 * inner, 0.0)
    logits = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, -2.0 * distance)
    return jax.scipy.special.logsumexp(logits) - math.log(count * (count - 1))


def collapse_meters(z: jax.Array) -> dict[str, jax.Array]:
    """Returns all meters of a batch of embeddings, for logging; jit-safe, no gradient.

    Args:
      z: float[B, V, D], what the loss sees; need not be normalised.

    Returns:
      embedding_std, and where B >= 2 negative_cosine and uniformity, where V >= 2
      positive_cosine and alignment; scalars of at least float32.
    """
    z = jax.lax.stop_gradient(z)
    meters = {"embedding_std": embedding_std(z)}
    if z.shape[1] >= 2:
        meters |= {"positive_cosine": positive_cosine(z), "alignment": alignment(z)}
    if z.shape[0] >= 2:
        meters |= {"negative_cosine": negative_cosine(z), "uniformity": uniformity(z)}
    return meters


# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------


def diagnose(
    rows: Sequence[Mapping[str, float]],
    trivial_loss: float | None = None,
    *,
    grace_steps: int = 100,
    window: int = 5,
    advice: str = "",
) -> list[str]:
    """Says in words what looks wrong; [] where nothing does.

    A rule other than "not finite" fires only after `grace_steps`, and only if all of the last
    `window` rows that have the value agree, as every run begins near its trivial loss.

    Args:
      rows: logged rows in order, each with "step" and any of: loss, grad_norm, embedding_std,
        positive_cosine, negative_cosine, alignment, effective_rank.
      trivial_loss: the loss of embeddings that tell nothing: log(number of candidates), for
        NT-Xent log(2N - 1); the margin for a triplet loss.
      grace_steps: at least the steps of the warm-up.
      window: rows.
      advice: what to do where embeddings are all equal or tell nothing; "" for what helps with two views of an image.

    Returns:
      Messages "kind: what was seen: what to do". The kind (all before the first colon) has no
      numbers in it, so that a message can be told from its repetition.
    """
    if not rows:
        return []
    broken = sorted(k for k, v in rows[-1].items() if k not in TIMES and not math.isfinite(v))
    if broken:
        return [
            f"not finite: {', '.join(broken)} at step {rows[-1]['step']}: lower the learning rate "
            "or lengthen the warm-up, clip gradients, raise the temperature, and look for images "
            "or labels that are not what they should be; the newest good checkpoint is from before"
        ]

    def recent(name: str) -> np.ndarray | None:
        values = [row[name] for row in rows if name in row and row["step"] > grace_steps]
        return np.array(values[-window:]) if len(values) >= window else None

    def all_of(name: str, test: Callable[[np.ndarray], np.ndarray]) -> float | None:
        values = recent(name)
        return float(values[-1]) if values is not None and bool(np.all(test(values))) else None

    messages = []
    loss = recent("loss")
    std = all_of("embedding_std", lambda v: v < 0.1)
    if std is not None and not _recovering(recent("embedding_std")):
        messages.append(
            f"collapsed: std * sqrt(D) of the embeddings is {std:.3f} (about 1 is healthy), all "
            "images get the same embedding: "
            + (
                advice
                or "lower the learning rate, check the temperature (0.05 to 0.5) and the batch norm of the head"
            )
        )
    if loss is not None and trivial_loss:
        close = np.abs(loss - trivial_loss) < 0.01 * trivial_loss
        if close.all() and not messages:
            messages.append(
                f"not separating: loss {loss[-1]:.3f} equals {trivial_loss:.3f}, that of "
                "embeddings which tell nothing (log of the number of candidates, or the margin): "
                + (
                    advice
                    or "raise the learning rate if it is tiny, weaken the augmentations, lower the "
                    "temperature, check that both views come from the same image"
                )
            )
        # A hinge of distances between unit vectors may be its margin plus 2, and nothing is wrong.
        if (loss > max(2 * trivial_loss, trivial_loss + 2)).all():
            messages.append(
                f"diverging: loss {loss[-1]:.3f} is more than twice {trivial_loss:.3f}, that of "
                "embeddings which tell nothing: lower the learning rate, lengthen the warm-up"
            )
    positive, negative = recent("positive_cosine"), recent("negative_cosine")
    if not messages and positive is not None and negative is not None:
        gap = positive - negative
        if (gap < 0.02).all():
            messages.append(
                f"views do not match: two views of an image (cosine {positive[-1]:.3f}) are no "
                f"nearer than two images ({negative[-1]:.3f}): check that views of one image stay "
                "together in the batch, weaken the augmentations, lower the learning rate"
            )
    same = all_of("alignment", lambda v: v < 1e-3)
    if not messages and same is not None:
        messages.append(
            f"views are the same: their mean squared distance is {same:.1e}, there is nothing to "
            "learn from: check that the augmentations are on and strong enough"
        )
    rank = all_of("effective_rank", lambda v: v < 3.0)
    if std is None and rank is not None:
        messages.append(
            f"few directions: the effective rank of the embeddings is {rank:.1f}: lower the "
            "learning rate, use a larger batch or a wider head, strengthen the augmentations"
        )
    if all_of("grad_norm", lambda v: v == 0.0) is not None:
        messages.append(
            "no gradient: its norm is exactly 0: check the loss for a stop_gradient or an empty "
            "set of positives, and the optimizer's mask"
        )
    return messages


def _recovering(values: np.ndarray | None) -> bool:
    return values is not None and bool(values[-1] > 1.5 * values[0])
