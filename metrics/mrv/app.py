"""The metric as a Space, as `evaluate`'s template has it. Its widget asks for the gradio that README.md names."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

if __name__ == "__main__":
    launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("mrv.py"))))
