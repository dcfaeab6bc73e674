"""embedkit train"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import output_options, print_facts, progress_wanted, set_up_output
from embedkit.errors import Stopped, UsageError
from embedkit.limits import shown

if TYPE_CHECKING:
    from embedkit.train.settings import Evaluation
    from embedkit.train.trainer import Cut


@click.command("train")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Where log, checkpoints and model go."
)
@click.option("--resume", is_flag=True, help="Go on where an earlier run of this command ended.")
@click.option("--plan", "plan_only", is_flag=True, help="Print data, batches, steps, memory and time, and stop.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@output_options
def train_command(
    recipe: str,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: bool,
    plan_only: bool,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Train a model by a recipe.

    \b
    embedkit train elastic --plan
    embedkit train my-recipe.yaml batch.size=128 data.0.path=pairs.jsonl -o my-run
    embedkit train my-recipe.yaml -o my-run --resume

    RECIPE is a YAML file, or the name of one that embedkit brings; KEY=VALUE changes a setting of it. Writes DIR/model, a folder
    that SentenceTransformer opens too, and DIR/log.jsonl, one line a step, with its picture, DIR/loss.svg. However a run ends,
    the same command with --resume goes on with it, and gives the same model as one that was not stopped. On several GPUs of
    a machine: torchrun --nproc-per-node 4 --no-python embedkit train my-recipe.yaml -o my-run.
    """
    set_up_output(quiet, log)
    from embedkit.train.settings import read_training_recipe

    settings = read_training_recipe(recipe, overrides)
    if output is None and not plan_only:
        raise UsageError("No folder came for the model; give one with -o, or look at the recipe with --plan.")
    import torch

    from embedkit.train.processes import process_group

    if threads is not None:
        torch.set_num_threads(threads)
    for stage in settings.stages:
        if stage.evaluation:
            _check_evaluation(stage.evaluation)
    with process_group(device) as place:
        if plan_only:
            from embedkit.train.plan import plan

            _print_plan(plan(settings, place), as_json)
            return
        assert output is not None
        from embedkit.cli.learning_curve import draw
        from embedkit.train.gather import world
        from embedkit.train.trainer import train

        try:
            folder = train(
                settings,
                output,
                resume=resume,
                evaluate=_evaluate,
                device=place,
                progress=progress_wanted(quiet) and world()[0] == 0,
            )
        except KeyboardInterrupt:
            if (output / "training.json").exists():
                raise Stopped("Stopped; the last checkpoint is kept: run it again with --resume to go on.") from None
            raise
        if world()[0] == 0:
            draw(output)
            facts = {"model": str(folder), "recipe": settings.hash}
            print_facts(facts, as_json) if as_json else click.echo(f"The model is in {folder}")


def _evaluate(folder: Path, asked: Evaluation, cuts: Sequence[Cut]) -> list[float]:
    """The score that a recipe asks for, of a model folder that is cut in each of these ways."""
    from embedkit.eval.run import evaluate_cuts
    from embedkit.train.settings import from_environment

    with from_environment(asked.task) as task:
        reports = evaluate_cuts(folder, task, cuts, split=asked.split)
    for report in reports:
        _check_metric(asked, report.scores)
    return [report.scores[asked.metric] for report in reports]


def _check_evaluation(asked: Evaluation) -> None:
    """Raises, before anything is trained, what `_evaluate` would raise after the first so many steps."""
    from embedkit.eval.run import find_task, metric_names
    from embedkit.train.settings import from_environment

    with from_environment(asked.task) as task:
        known = metric_names(find_task(task, asked.split))
    _check_metric(asked, known)


def _check_metric(asked: Evaluation, known: Collection[str]) -> None:
    if asked.metric not in known:
        raise UsageError(
            f"evaluation.metric is {shown(asked.metric)}; {asked.task} has {', '.join(known)}: choose one of them."
        )


def _print_plan(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_facts(facts, as_json)
        return
    for stage in facts["stages"]:
        click.echo(f"Stage {stage['name']}: {stage['steps']:,} steps, {stage['epochs']} epochs")
        for name, count in stage["examples"].items():
            click.echo(f"  {count:,} examples of {name}")
            for reason, lost in stage["left_out"][name].items():
                click.echo(f"    left out: {lost:,} {reason}")
        for kind, prompt in stage["saved_prompts"].items():
            click.echo(f"  the model's prompt of a {kind} will be {prompt!r}")
        click.echo(f"  {stage['tokens_a_batch']:,} tokens a batch, {100 * stage['padding']:.1f} % padding")
        for number, batch in enumerate(stage["batches"], 1):
            click.echo(f"  batch {number}")
            for example in batch:
                for key, value in example.items():
                    for text in value if isinstance(value, list) else [value]:
                        click.echo(f"    {key:9}  {text[:160]}")
    memory = "of the GPU's memory" if facts["memory_of"] == "gpu" else "of memory"
    cost = f"{facts['seconds'] / 60:.1f} minutes and {facts['memory_bytes'] / 1e9:.2f} GB {memory}"
    click.echo(f"About {cost}, multiplying in {facts['precision']}")
