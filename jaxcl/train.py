"""The straight-line program: devices, data, method, model, optimizer, state, loop, evaluation, report.

"Step" is the number of completed updates. The data of a step is a function of (seed, step) alone, its random numbers of
(key, step): a run that was interrupted and continued is the run that was not.
"""

import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from etils import epath
from rich.console import Console

from jaxcl import checkpoint, data, evaluators, experiment, lock, metrics, optim, pretrained
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.methods.base import Method, advice, own_rate, remarks, similarity_by_depth, trivial_loss
from jaxcl.models import HeadOn, HeadSpec
from jaxcl.report.run import run_report
from jaxcl.state import TrainState

RESULTS = "results.json"
REPORT_SECONDS = 3600.0
"""How long the other processes wait for process 0 to write the report."""


class RunError(RuntimeError):
    """A run that cannot start or go on; the text says why and what to do."""


def train(config: Config, workdir: str) -> dict[str, Any]:
    """Trains, evaluates and reports; continues by itself what an earlier call left in `workdir`.

    Args:
      config: the experiment.
      workdir: directory or bucket of the run: config.json, metrics.jsonl, checkpoints/, best/, results.json,
        report.html, and skipped.txt if there were images that cannot be read.

    Returns:
      "step", "complete", the last logged values under "metrics", and the rows of the table under "rows" (empty if
      the config names no test split, or the run was stopped).

    Raises:
      RunError: the workdir belongs to another config, or the training does not stay finite.
      InUseError: another run has the workdir.
      CheckpointError: no checkpoint of the workdir can be restored, or none can be written.
      ValueError: a setting that does not fit the data or the devices; the text names it.
    """
    with ExitStack() as held:
        return _train(config, epath.Path(workdir), held)


def _train(config: Config, root: epath.Path, held: ExitStack) -> dict[str, Any]:
    """The run; what it must give back at the end, whatever happens, is in `held`."""
    # ------------------------------------------------------------------------------------------------------- devices
    mesh_lib.initialize(config.mesh)
    mesh = mesh_lib.make_mesh()
    experiment.check(config, mesh)
    main = mesh_lib.is_main()
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not main)
    say = console.print

    # ---------------------------------------------------------------------------------------------------------- data
    source = data.load(config.data, "train")
    labelled = experiment.labelled(config, source)
    config = config.for_labels(labelled.tree).for_run(len(source), labelled.tree.depth)
    experiment.check_labels(config, labelled)
    stored = config_lib.to_dict(config)
    sampler = data.make_sampler(config.data, labelled, config.batch_size, config.seed)
    steps_per_epoch = sampler.steps_per_epoch
    total_steps = config.total_steps(steps_per_epoch * config.batch_size)

    # ------------------------------------------------------- method, model, optimizer, state and step, not yet any array
    built = experiment.build(
        config, mesh, data.image_shape(source, config.data), total_steps, steps_per_epoch
    )
    method, model = built.method, built.model
    key = jax.random.key(config.seed)

    # -------------------------------------------------------------- the newest good state of the workdir, or a new one
    say(f"{config.name}: {mesh_lib.describe(mesh)}; workdir {root}")
    held.enter_context(lock.hold(root, say))
    # A sampler that has read more than the images says what that was too.
    content_id = getattr(sampler, "content_id", source.content_id)
    identity: dict[str, Any] = {"config": stored, "content_id": content_id, "log": say}
    checkpoints = checkpoint.Checkpoints(root / "checkpoints", keep=config.run.keep, **identity)
    refuse_other_run(checkpoints, root, config)
    restored = checkpoints.restore(built.state)
    state, first_step = restored or (
        built.init(key, pretrained.load(config.init, config.model, built.state, say)),
        0,
    )
    best = checkpoint.Checkpoints(root / "best", keep=1, **identity)
    best_score = best_so_far(best, say)

    say("settings, without those at their defaults (config.json has all):")
    say(config_lib.describe(config))
    say(f"data: {source.describe()}")
    say(
        f"{total_steps:,} steps of {config.batch_size} images: {total_steps / steps_per_epoch:.1f} epochs of"
        f" {steps_per_epoch:,} steps; {sampler.describe()}"
    )
    parameters = optim.describe(config.optim, built.params)
    say(
        f"{config.model.name}, {config.optim.name}: {parameters.splitlines()[-1]} (each of them: parameters.txt)"
    )
    for note in notes(config, method):
        say(f"note: {note}")
    if restored:
        say(f"continues after step {first_step:,} of {total_steps:,}")
    if main:
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True))
        (root / "parameters.txt").write_text(parameters)

    # ------------------------------------------------------------------------------------------------- what goes round
    batches = data.train_batches(
        labelled,
        sampler,
        config.data,
        first_step,
        total_steps,
        process_index=mesh_lib.process_index(),
        process_count=mesh_lib.process_count(),
        views=method.views,
        crop_seed=config.seed,
    )
    if main and restored is None:
        forget_skipped(root, mesh_lib.process_count())
    # The other processes have no logger, and bad images and a file of them of their own.
    skipped = held.enter_context(
        data.Skipped(
            metrics.say if main else warn,
            root / ("skipped.txt" if main else f"skipped-{mesh_lib.process_index()}.txt"),
            resume=restored is not None,
        )
    )
    online = None
    if config.evaluation.gallery:
        online = evaluators.Online(
            config.evaluation,
            config.data,
            model,
            mesh,
            config.evaluation.image_size or built.image_shape[0],
            similarity_by_depth(method),
            skipped,
            method.views,
            process_index=mesh_lib.process_index(),
            process_count=mesh_lib.process_count(),
        )
    logger = metrics.Logger(
        root,
        total_steps,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        resume_step=first_step,
        enabled=main,
        tensorboard=config.run.tensorboard,
    )

    # ------------------------------------------------------------------------------------------------------ the loop
    step, saved, bad, values = first_step, first_step, 0, {}
    before = checkpoint.read_manifest(root, first_step).metrics if restored else {}
    profile = Profile(config.run.profile, root)
    with stop_requests(say) as stop, logger, checkpoints, best, profile:
        for batch in until_stopped(batches, stop, say):
            bad += skipped.count(batch, source)
            arrays = mesh_lib.to_global(mesh, data.arrays(batch))
            if step == first_step:
                with logger.pause("compiling", once=True):
                    state, measured = jax.block_until_ready(built.step(state, arrays))
                logger.start(step + 1)
            else:
                state, measured = profile(step + 1, built.step, state, arrays)
            step += 1
            last = step == total_steps

            if step % config.run.log_every == 0 or step == 1 or last:
                values = {k: float(v) for k, v in mesh_lib.to_host(measured).items()}
                values |= skipped_in_all(bad, before)
                logger.log(step, values)
                logger.advise(
                    trivial_loss(method, config.batch_size),
                    max(100, total_steps // 10),
                    advice(method),
                )
                if values["rejected"] >= config.run.max_rejected:
                    raise RunError(
                        f"{values['rejected']:.0f} updates were not finite and were left out, the last one at about step"
                        f" {step}. The state before them is whole. Lower optim.base_lr, lengthen the warm-up, set"
                        " optim.clip_norm or raise method.temperature, and start in a new workdir"
                    )

            if online and config.evaluation.every and (step % config.evaluation.every == 0 or last):
                with logger.pause("evaluating"):
                    scores = online.run(state.params, state.batch_stats)
                logger.log(step, scores)
                if config.run.keep_best and scores.get("knn", -math.inf) > best_score:
                    best_score = scores["knn"]
                    best.save(step, state, metrics={"knn": best_score})

            stopping = (
                mesh_lib.agree(bool(stop))
                if mesh_lib.process_count() == 1 or step % 10 == 0
                else False
            )
            if step % config.run.checkpoint_every == 0 or last or stopping:
                with logger.pause("saving"):
                    checkpoints.save(step, state, metrics=skipped_in_all(bad, before))
                saved = step
            if stopping and not last:
                break
        if saved < step:  # the input has failed while the run was being stopped
            checkpoints.save(step, state, metrics=skipped_in_all(bad, before))
        seconds = logger.elapsed()
    if step < total_steps:
        say(
            f"stopped after step {step:,} of {total_steps:,}; saved in {root}. The same command goes on from there."
        )
        return {"step": step, "complete": False, "metrics": values, "rows": []}

    # ------------------------------------------------------------------------------------- the table and the picture
    trained = {"trained encoder": network(state)}
    networks = {"raw pixels": None, "untrained encoder": network(built.init(key)), **trained}
    rows: list[evaluators.Row] | None = None
    again = restored is not None and first_step == total_steps
    scored: dict[str, Any] = {"evaluation": stored["evaluation"]}
    if online and config.evaluation.test:
        scored |= {
            "content": online.content_ids(),
            "data": {"max_pixels": stored["data"]["max_pixels"]},  # larger images are left out
        }
        if again:
            rows = kept_rows(root / RESULTS, scored, say)
    if mesh_lib.agree(rows is None) or rows is None:
        rows = []
        if online and config.evaluation.test:
            say("evaluating on the test split ...")
            rows = online.table_rows(networks if config.evaluation.baselines else trained)
        # Asked again without a table, the run keeps the one that it has.
        if main and (rows or not again):
            write_rows(root / RESULTS, step, scored, rows)
    next_steps = what_next(root, config, online.source if online else None)
    if main and rows:
        title = f"{config.name}: {config.evaluation.test} split, accuracy in %"
        Console().print(evaluators.table(rows, title=title))
    if config.run.report and online:
        say("drawing the report ...")
        run_report(
            root,
            config.name,
            stored,
            source,
            method.views,
            online,
            dict(reversed(networks.items())),
            rows,
            {"devices": mesh_lib.describe(mesh), "training time": metrics.duration(seconds)},
            next_steps,
            trivial_loss(method, config.batch_size),
            write=main,
            advice=advice(method),
        )
        say(f"pictures: {root / 'report.html'}")
    mesh_lib.barrier("jaxcl/report", REPORT_SECONDS)  # who leaves early would end process 0 too
    say("next:")
    for what, command in next_steps:
        say(f"  {what}: {command}")
    return {"step": step, "complete": True, "metrics": values, "rows": [r.as_dict() for r in rows]}


def notes(config: Config, method: Method) -> list[str]:
    """What has to be said of the settings before a training, a line each."""
    found = list(remarks(method))
    if (own := own_rate(method)) and config.optim.method_lr == 1:
        found.append(
            f"optim.method_lr=1: the {own} learn at the network's rate, and usually need one that is 5 to 300 times as high"
        )
    return found


def kept_rows(
    path: epath.Path, scored: Mapping[str, Any], say: Callable[[str], None]
) -> list[evaluators.Row] | None:
    """The rows of results.json, if they are of these settings and data; None if not, or if there are none.

    Args:
      path: of the file.
      scored: what is scored and how: settings, and the contents of the splits and tables.
      say: gets a line, unless there is no file.
    """
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        found = checkpoint.config_diff({k: kept[k] for k in scored if k in kept}, scored)
        rows = [evaluators.Row(**row) for row in kept["rows"]]
    except (ValueError, KeyError, TypeError):
        say(f"{path} cannot be read as results: the run is evaluated again")
        return None
    if found:
        changed = ", ".join(d.key for d in found)
        say(f"{path} is of other settings or data ({changed}): the run is evaluated again")
        return None
    say(f"this run is complete; its results are from {path}")
    return rows


def write_rows(
    path: epath.Path, step: int, scored: Mapping[str, Any], rows: list[evaluators.Row]
) -> None:
    """Writes results.json; the old one stays whole until the new one is."""
    plain = {"step": step, **scored, "rows": [row.as_dict() for row in rows]}
    new = path.parent / f"{path.name}.new"
    new.write_text(json.dumps(plain, indent=2))
    new.replace(path)


def forget_skipped(root: epath.Path, processes: int) -> None:
    """Removes what an earlier run of more processes has left; the processes of this one begin their own files anew."""
    for path in root.glob("skipped-*.txt"):
        number = path.stem.removeprefix("skipped-")
        if number.isdecimal() and int(number) >= processes:
            path.unlink()


def warn(text: str) -> None:
    """Prints a line of a process that has no logger."""
    print(text, file=sys.stderr, flush=True)


def network(state: TrainState) -> dict[str, Any]:
    """What an evaluator needs of a state."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def refuse_other_run(checkpoints: checkpoint.Checkpoints, root: epath.Path, config: Config) -> None:
    """Refuses to continue in a workdir whose checkpoints are of another experiment.

    A setting that they do not have, as it came later, has to be at its default. What a method is only told of the data and the run,
    which their content id knows, is no setting.

    Raises:
      RunError: lists each differing key with both values.
    """
    chosen = config_lib.not_default(config).keys() - {f"method.{n}" for n in config_lib.GIVEN}
    found = [
        d
        for d in checkpoints.differences()
        if not config_lib.may_change(d.key) and (d.stored != checkpoint.ABSENT or d.key in chosen)
    ]
    if found:
        lines = "\n".join(f"  {d.key}: {d.stored!r} there, {d.now!r} now" for d in found)
        raise RunError(
            f"the checkpoints in {root} are of another experiment:\n{lines}\n"
            "Choose another --workdir, or give these settings the values that they have there"
        )


def best_so_far(best: checkpoint.Checkpoints, say: Callable[[str], None]) -> float:
    """The online kNN of the kept best checkpoint; -inf without one."""
    try:
        kept = [checkpoint.read_manifest(best.directory, step) for step in best.steps()]
    except (
        checkpoint.DamagedError
    ) as error:  # one that cannot be read now may count, and must not be replaced
        say(f"the best checkpoint so far does not count, the next one replaces it: {error}")
        return -math.inf
    return max((manifest.metrics["knn"] for manifest in kept), default=-math.inf)


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[list[int]]:
    """Within, Ctrl-C and SIGTERM put their number into the list instead of ending the program; the second one ends it."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say(
            f"{signal.Signals(number).name}: the run saves and stops after this step; once more stops it at once"
        )

    try:
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the program around decides
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_stopped(
    batches: Iterator[data.Batch], stop: Sequence[int], say: Callable[[str], None]
) -> Iterator[data.Batch]:
    """The batches. Input that fails when the run is to stop only ends them: what it has learned can still be saved.

    That needs one process: of several, the others cannot save without this one's next step.

    Args:
      batches: of the training.
      stop: the signals that have been received; see `stop_requests`.
      say: gets a line about what has failed.
    """
    try:
        yield from batches
    except Exception as error:
        if not stop or mesh_lib.process_count() > 1:
            raise
        say(f"no more input ({type(error).__name__}: {error}): the run saves and stops now")


def skipped_in_all(skipped: int, before: Mapping[str, float]) -> dict[str, float]:
    """{"images_skipped": ...} since the run began, on all processes; {} for none.

    Args:
      skipped: bad images of this process since the run was started or continued.
      before: what the checkpoint knows from before that.
    """
    count = before.get("images_skipped", 0.0) + mesh_lib.total(skipped)
    return {"images_skipped": count} if count else {}


class Profile:
    """A profiler trace of the steps of a span, in workdir/profile.

    A run that is started or continued within the span traces the rest of it; the step that compiles is not traced.
    """

    def __init__(self, span: tuple[int, ...], root: epath.Path) -> None:
        self.span = range(span[0], span[1] + 1) if span else range(0)
        self.folder = str(root / "profile")
        self.active = False

    def __call__(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the function as the given step."""
        if step in self.span and not self.active:
            jax.profiler.start_trace(self.folder)
            self.active = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if self.active and step + 1 not in self.span:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Writes the trace, if one is being taken."""
        if self.active:
            self.active = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def beside_each_other(heads: Mapping[str, HeadSpec | HeadOn]) -> bool:
    """Whether there are several heads on the backbone, and no other ones, whose hidden layers can be put side by side."""
    return len(heads) > 1 and all(
        isinstance(head, HeadSpec) and len(head.layers) > 1 for head in heads.values()
    )


def what_next(
    root: epath.Path, config: Config, load: Callable[[str], data.Source] | None
) -> list[tuple[str, str]]:
    """(what it does, command) for a run that is complete: those that its splits and their labels allow.

    Args:
      root: workdir of the run.
      config: of the run.
      load: name of a split -> its images; None if the config names no splits to evaluate.
    """
    run, found = config.evaluation, []
    if config.run.report and load:
        found += [("look", f"open {root / 'report.html'} in a browser")]
    probe = f"python -m jaxcl.probe --workdir={shlex.quote(str(root))}"
    evaluations: list[str] = []
    if load:
        scored = run.test or run.validation
        test, learned = load(scored), load(run.test_gallery or run.gallery)
        if evaluators.shared_levels(test.tree.levels, learned.labels, test.labels):
            evaluations += ["knn", "linear"]
        if learned.tree.depth or config.data.pairs.get(scored):
            evaluations += run.extra
    if evaluations:
        factors = f" --factors={shlex.quote(','.join(run.factors))}" if run.factors else ""
        what = f"--eval={','.join(evaluations)}{factors}"
        found += [("probe the checkpoint", f"{probe} {what}")]
        if beside_each_other(config.build_method().heads):
            found += [("probe all heads side by side", f"{probe} --layer=heads:hidden {what}")]
    else:
        labelled = "--data=folder:DIR --set=data.holdout=0.25 --test=val --eval=knn,linear"
        found += [("probe the checkpoint on images with labels", f"{probe} {labelled}")]
    if "linear" in evaluations:
        found += [("fine-tune with 10 % of the labels", f"{probe} --eval=finetune --labels=0.1")]
    if config.data.name != "folder":
        own = "python -m jaxcl.main --config=configs/simclr_folder.py --config.data.path=DIR"
        found += [("your own images", own)]
    return found
