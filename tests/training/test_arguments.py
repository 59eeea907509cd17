"""Which arguments are heeded, and which refused by name."""

from typing import ClassVar

import datasets
import pytest
import transformers
from PIL import Image
from tiny import call, make_trainer

import train_pretrain
from ccrk.training.arguments import WITHOUT_EFFECT, CCRKTrainingArguments
from ccrk.training.trainer import CCRKTrainer
from data_scripts.rows import row_features

# Every argument of transformers that does here what it says; the others are refused by name. One that a new release
# brings belongs to either.
HEEDED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
    hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    fsdp fsdp_config deepspeed debug skip_memory_metrics do_eval resume_from_checkpoint local_rank
""".split()


class TestArguments:
    def test_each_is_heeded_or_refused(self):
        assert not set(HEEDED) & WITHOUT_EFFECT.keys()
        assert set(transformers.TrainingArguments.__dataclass_fields__) == set(HEEDED) | WITHOUT_EFFECT.keys()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("label_smoothing_factor", 0.1),
            ("bf16_full_eval", True),
            ("fp16_full_eval", True),
            ("do_train", False),
            ("do_predict", True),
            ("do_eval", True),
            ("eval_on_start", True),
            ("prediction_loss_only", True),
            ("include_for_metrics", ["loss"]),
            ("eval_accumulation_steps", 2),
            ("batch_eval_metrics", True),
            ("eval_do_concat_batches", False),
            ("eval_use_gather_object", True),
            ("train_sampling_strategy", "group_by_length"),
            ("train_sampling_strategy", "batch_rebalance"),
            ("length_column_name", "tokens"),
            ("neftune_noise_alpha", 5.0),
            ("auto_find_batch_size", True),
            ("use_liger_kernel", True),
            ("liger_kernel_config", {"rope": True}),
            ("label_names", ["labels"]),
            ("include_num_input_tokens_seen", "all"),
            ("average_tokens_across_devices", False),
            ("remove_unused_columns", True),
            ("use_cache", True),
            ("logging_nan_inf_filter", True),
            ("optim_target_modules", "all-linear"),
            ("fsdp_config", {"version": 2}),
            ("load_best_model_at_end", True),
            ("save_strategy", "best"),
        ],
    )
    def test_what_would_do_nothing_is_refused_by_name(self, name, value, tmp_path):
        with pytest.raises(ValueError, match=name) as raised:
            CCRKTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
    def test_functions_that_nothing_calls_are_refused(self, name, tiny_model, processor, shapes, tmp_path):
        arguments = CCRKTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        with pytest.raises(ValueError, match=f"{name} has no effect"):
            CCRKTrainer(tiny_model, arguments, train_dataset=shapes, **{name: lambda *_: None})

    def test_a_script_refuses_in_one_line(self, recipe, monkeypatch):
        with pytest.raises(SystemExit, match=r"^error: .*do_train cannot be False: these scripts train"):
            call(train_pretrain, recipe, "--do_train", "false", monkeypatch=monkeypatch)

    def test_accumulation_is_no_part_of_the_loss(self, tiny_model, processor, shapes, tmp_path):
        """transformers may decide it by what a model's forward takes; the Trainer says so itself."""
        assert make_trainer(tiny_model, processor, shapes, tmp_path).loss_is_scaled_for_ga is False

    @pytest.mark.slow
    def test_tokens_and_a_first_evaluation(self, tiny_model, processor, shapes, tmp_path):
        arguments = {"include_num_input_tokens_seen": "non_padding", "eval_on_start": True, "eval_strategy": "steps"}
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=1, eval_steps=1, **arguments)
        trainer.train()
        assert [log["step"] for log in trainer.state.log_history if "eval_mean_recall" in log] == [0, 1]
        assert 8 * 3 * 5 < trainer.state.num_input_tokens_seen < 8 * 3 * 40


class TestBestMetric:
    STEPS: ClassVar = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("metric", "best"), [("mrv", 1), ("eval_mrv", 1), ("mean_recall", 2), ("recall_de", 2), ("runtime", 1)]
    )
    def test_which_way_is_better(self, metric, best, tiny_model, processor, shapes, tmp_path):
        """Evaluations whose every figure grows: the first is the best where lower is better."""
        arguments = {"load_best_model_at_end": True, "metric_for_best_model": metric, "max_steps": 2}
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **self.STEPS, **arguments)

        def evaluate(*_, **__):
            names = ("mrv", "mean_recall", "recall_de", "runtime")
            trainer.log(metrics := {f"eval_{name}": float(trainer.state.global_step) for name in names})
            trainer.control.should_evaluate = False
            return metrics

        trainer.evaluate = evaluate
        trainer.train()
        assert trainer.state.best_global_step == best

    def test_names_end_alike_in_several_data_sets(self, tmp_path):
        for name, greater in (("far_mrv", False), ("far_mean_recall", True), ("std", False), ("variance", False)):
            arguments = {"metric_for_best_model": name, "output_dir": str(tmp_path), "use_cpu": True}
            assert CCRKTrainingArguments(**arguments).greater_is_better is greater
            with pytest.raises(ValueError, match=rf"{name} is better when .*; leave greater_is_better out"):
                CCRKTrainingArguments(**arguments, greater_is_better=not greater)

    @pytest.mark.parametrize("metric", [None, "loss", "recall_xx", "accuracy", "eval_loss"])
    def test_one_that_cannot_exist_ends_the_run_before_it_begins(self, metric, recipe, tmp_path, monkeypatch):
        arguments = ["--eval_strategy", "steps", "--save_strategy", "steps", "--load_best_model_at_end", "true"]
        arguments += [] if metric is None else ["--metric_for_best_model", metric]
        names = "choose one of recall_en, recall_de, recall_zh, mean_recall, mrv, runtime"
        with pytest.raises(SystemExit, match=f"^error: metric_for_best_model is {metric or 'loss'}, .*{names}$"):
            call(train_pretrain, recipe, *arguments, monkeypatch=monkeypatch)

    def test_the_names_are_those_of_an_evaluation(self, tiny_model, processor, shapes, tmp_path):
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path)
        apart = [{"en": ["a star"], "de": []}, {"en": [], "de": ["ein stern"]}]
        rows = [{"image": Image.new("RGB", (8, 8)), "image_id": str(i), "captions": c} for i, c in enumerate(apart)]
        apart = datasets.Dataset.from_list(rows, features=row_features(["en", "de"]))
        few = shapes.select(range(4))
        for evaluated in (few, {"a": few, "b": few}, apart):
            trainer.eval_dataset = evaluated
            found = [name for name in trainer.evaluate() if name.startswith("eval_")]
            assert [f"eval_{name}" for name in trainer.metric_names()] == found

    def test_schedules_that_follow_a_metric_know_which_way_is_better(self, tiny_model, processor, shapes, tmp_path):
        for metric, mode in (("mrv", "min"), ("mean_recall", "max")):
            arguments = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": metric}
            trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **self.STEPS, **arguments)
            trainer.create_optimizer_and_scheduler(4)
            assert trainer.lr_scheduler.mode == mode
