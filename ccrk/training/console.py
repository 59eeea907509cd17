"""What a run shows of its steps: a progress bar, and each log as one line whose figures stand in columns."""

from collections.abc import Mapping

from tqdm.auto import tqdm
from transformers import ProgressCallback

WIDTH = 9  # of a figure: 1.234e-05
UNSHOWN = {"epoch", "step", "total_flos"}  # the line begins with the step


def log_line(logs: Mapping[str, float], step: int, max_steps: int) -> str:
    """A log in one line: the step, and each figure behind its name, as wide whatever it is.

    `   50/2100  loss 10.5       contrastive_loss 2.303 …`; those of an evaluation lose their prefix, and say so once.
    """
    figures = {name: value for name, value in logs.items() if name not in UNSHOWN}
    is_evaluation = all(name.startswith("eval_") for name in figures)
    shown = [f"{step:{len(str(max_steps))}}/{max_steps}"] if max_steps else []  # none where nothing is trained
    shown += ["evaluated"] * is_evaluation
    for name, value in figures.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        shown.append(f"{name.removeprefix('eval_')} {text:{WIDTH}}")
    return "  ".join(shown).rstrip()


class LogLines(ProgressCallback):
    """transformers' progress bar, unless `disable_tqdm` is set, and `log_line` in place of a dictionary of strings."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=args.disable_tqdm)
        self.current_step = 0

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            tqdm.write(log_line(logs, state.global_step, state.max_steps))
