"""Flags and JSONs together: what they become, and which combinations are refused, before anything is started."""

import json
import re

import pytest
from config_files import TRAIN_FLAGS, change, write_all

from mindspeed_mm.config import resolve
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    return write_all(tmp_path)


def train(folder, *flags, world_size=1) -> RunConfig:
    files = ["--mm-model", str(folder / "model.json"), "--mm-data", str(folder / "data.json")]
    return resolve.run_config([*files, *TRAIN_FLAGS, *flags], world_size)


def sample(folder, *flags):
    return resolve.sample_config(["--mm-model", str(folder / "sample.json"), *flags])


PUBLISHED_TRAIN_FLAGS = """
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 1 --context-parallel-size 1 --micro-batch-size 1
    --global-batch-size 4 --num-layers 32 --hidden-size 3072 --num-attention-heads 16 --seq-length 1024
    --max-position-embeddings 1024 --attention-dropout 0.0 --hidden-dropout 0.0 --tokenizer-type NullTokenizer
    --vocab-size 0 --position-embedding-type rope --rotary-base 500000 --swiglu --no-masked-softmax-fusion --bf16
    --lr 1e-5 --min-lr 1e-5 --adam-beta1 0.9 --adam-beta2 0.999 --adam-eps 1e-15 --lr-decay-style constant
    --weight-decay 1e-4 --lr-warmup-init 1e-5 --lr-warmup-iters 0 --clip-grad 1.0 --train-iters 100000000
    --no-gradient-accumulation-fusion --use-distributed-optimizer --recompute-granularity full --recompute-method block
    --recompute-num-layers 0 --normalization RMSNorm --use-fused-rmsnorm --qk-layernorm --sequence-parallel
    --optimizer-selection fused_ema_adamw --seed 1024 --data-parallel-random-init --use-ema --load RUN
    --fp32-residual-connection --attention-softmax-in-fp32 --accumulate-allreduce-grads-in-fp32
    --model_custom_precision --clip_grad_ema_decay 0.99 --selective_recom --recom_ffn_layers 32 --save RUN
    --log-interval 1 --save-interval 1000 --distributed-backend nccl
"""


def test_the_published_flags_mean_what_they_say(folder, caplog):
    change(folder / "model.json", "weight_dtype", "bf16")
    files = ["--mm-model", str(folder / "model.json"), "--mm-data", str(folder / "data.json")]
    with caplog.at_level("INFO", logger="mindspeed_mm"):
        config = resolve.run_config([*files, *PUBLISHED_TRAIN_FLAGS.split()], world_size=8)
    assert (config.launch.tensor_size, config.launch.sequence_parallel) == (2, True)
    assert config.precision.denoiser == config.precision.text_encoders == "bf16"
    assert config.precision.autoencoder == "fp32"
    assert config.optimizer.use_ema
    assert config.optimizer.clip_grad_ema_decay == 0.99
    assert config.optimizer.eps == 1e-15
    assert (config.recompute.num_layers, config.recompute.feed_forwards) == (0, 32)
    assert config.seed == 1024
    lines = [record.getMessage() for record in caplog.records if "flags without effect" in record.getMessage()]
    assert len(lines) == 1
    for flag in ("--num-layers", "--swiglu", "--vocab-size", "--qk-layernorm", "--fp32-residual-connection"):
        assert flag in lines[0]


def test_the_published_sampling_flags_are_accepted(folder):
    flags = """
        --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --context-parallel-size 1 --micro-batch-size 1
        --global-batch-size 8 --num-layers 32 --hidden-size 3072 --num-attention-heads 16 --seq-length 1024
        --max-position-embeddings 1024 --attention-dropout 0.0 --hidden-dropout 0.0 --tokenizer-type NullTokenizer
        --vocab-size 0 --position-embedding-type rope --rotary-base 500000 --swiglu --no-masked-softmax-fusion --lr 2e-5
        --min-lr 2e-5 --train-iters 5010 --weight-decay 0 --clip-grad 1 --adam-beta1 0.9 --adam-beta2 0.999
        --no-gradient-accumulation-fusion --no-load-optim --no-load-rng --no-save-optim --no-save-rng
        --sequence-parallel --distributed-timeout-minutes 20 --seed 1235 --optimizer-selection fused_torch_adamw
    """
    config = sample(folder, *flags.split())
    assert config.seed == 1235
    assert config.launch.timeout_minutes == 20


def test_without_custom_precision_the_flag_sets_all_parts(folder):
    precision = train(folder, "--bf16").precision
    assert (precision.denoiser, precision.text_encoders, precision.autoencoder) == ("bf16", "bf16", "bf16")
    precision = train(folder).precision
    assert (precision.denoiser, precision.autoencoder) == ("fp32", "fp32")


def test_the_default_global_batch_is_one_micro_batch_of_each_data_rank(folder):
    config = train(folder, "--micro-batch-size", "2", "--tensor-model-parallel-size", "2", world_size=8)
    assert config.global_batch_size == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pipeline-model-parallel-size 2", "--pipeline-model-parallel-size 2: must be 1"),
        ("--tensor-model-parallel-size 4", "2 heads do not divide by --tensor-model-parallel-size 4"),
        ("--context-parallel-size 4", "2 heads per tensor-parallel rank do not divide by --context-parallel-size 4"),
        ("--tensor-model-parallel-size 2 --sequence-parallel", None),
        (
            "--global-batch-size 3 --micro-batch-size 2",
            "--global-batch-size 3 is not a multiple of --micro-batch-size 2",
        ),
        ("--bf16 --fp16", "--bf16 and --fp16: give one of them"),
        ("--learning-rate 3", "--learning-rate: unknown flag"),
        ("--clip-gradd 3", "--clip-gradd: unknown flag; did you mean '--clip-grad'?"),
        ("--clip_grad_ema_decay 1.5", "--clip_grad_ema_decay 1.5: must be above 0 and below 1"),
        ("--min-lr 1", "must be at least --min-lr 1.0"),
        ("--overlap-param-gather", "--overlap-param-gather: needs --use-distributed-optimizer"),
        ("--recompute-granularity selective", "use --selective_recom"),
        ("--recompute-num-layers 2", "needs --recompute-granularity full"),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 2 --cpu-offloading-num-layers 3",
            "--cpu-offloading-num-layers 3: only the inputs of recomputed blocks wait on the host",
        ),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 2 --selective_recom",
            "--selective_recom: excludes --recompute-num-layers 2",
        ),
        ("--train-iters 0", "--train-iters 0: must be at least 1"),
        ("--micro-batch-size two", "--micro-batch-size two: expected a whole number"),
        ("--mm-tool nothing.json", "nothing.json: no such file"),
    ],
)
def test_impossible_flags_are_one_line_errors(folder, flags, message):
    if message is None:
        assert train(folder, *flags.split(), world_size=2).launch.sequence_parallel
        return
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        train(folder, *flags.split(), world_size=8)
    assert "\n" not in str(error.value)


def test_processes_that_do_not_fit_the_layout(folder):
    with pytest.raises(ConfigError, match=r"3 processes do not divide by .* 2 x .* 1 = 2"):
        train(folder, "--tensor-model-parallel-size", "2", world_size=3)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "model",
            "predictor.num_headz",
            2,
            r"model.json:\d+ predictor.num_headz: unknown key; did you mean 'num_heads'",
        ),
        ("model", "predictor.in_channels", 5, r"model.json:\d+ predictor.in_channels: 5, but ae.latent_dim is 4"),
        ("model", "predictor.out_channels", 8, r"predictor.out_channels: 8, but ae.latent_dim is 4"),
        (
            "model",
            "predictor.from_pretrained",
            "no.pt",
            r"model.json:\d+ predictor.from_pretrained: no.pt: no such file",
        ),
        ("model", "ae.from_pretrained", "no.ckpt", r"model.json:\d+ ae.from_pretrained: no.ckpt: no such file"),
        (
            "model",
            "load_text_features",
            True,
            r"data.json:\d+ dataset_param.basic_parameters.feature_folder: is missing",
        ),
        ("model", "ae.from_pretrained", KeyError, r"ae.from_pretrained: is missing"),
        ("model", "text_encoder_2", KeyError, r"text_encoder_2: "),
        ("model", "ae.scale", [1.0], r"ae.scale: 1 values for latent_dim 4"),
        ("model", "ae.vae_scale_factor", [4, 8, 8], r"these blocks compress by \[8, 8, 8\]"),
        (
            "data",
            "dataset_param.basic_parameters.data_path",
            "no.txt",
            r"data.json:\d+ .*data_path: no.txt: no such file",
        ),
        ("data", "dataset_param.preprocess_parameters.num_frames", 10, r"num_frames: 10 is not 8n\+1"),
        ("data", "dataset_param.preprocess_parameters.ae_stride_t", 4, r"ae_stride_t: 4, but the autoencoder .* by 8"),
        ("data", "dataset_param.preprocess_parameters.max_height", 40, r"force_resolution with max_height"),
        ("data", "dataset_param.enable_text_preproces", True, r"did you mean 'enable_text_preprocess'"),
        ("data", "dataloader_param.batch_size", 3, r"dataloader_param.batch_size: 3, but --micro-batch-size is 1"),
        ("data", "dataset_param.preprocess_parameters.cfg", 1.5, r"cfg: 1.5: must be from 0 to 1"),
    ],
)
def test_impossible_files_name_the_file_and_the_key(folder, file, key, value, message):
    change(folder / f"{file}.json", key, value)
    with pytest.raises(ConfigError, match=message) as error:
        train(folder)
    assert "\n" not in str(error.value)


def test_an_unknown_transform_lists_the_known(folder):
    content = json.loads((folder / "data.json").read_text())
    steps = content["dataset_param"]["preprocess_parameters"]["train_pipeline"]["video"]
    steps[1]["trans_type"] = "CenterCropResizeVide"
    (folder / "data.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(ConfigError, match=r"video\[1\].trans_type: .* did you mean 'CenterCropResizeVideo'"):
        train(folder)


def test_sequence_parallel_needs_tokens_that_divide(folder):
    change(folder / "data.json", "dataset_param.model_max_length", 15)
    with pytest.raises(ConfigError, match="15 text tokens do not divide by 2"):
        train(folder, "--tensor-model-parallel-size", "2", "--sequence-parallel", world_size=2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "pipeline_config.input_size",
            [10, 32, 32],
            r"sample.json:\d+ pipeline_config.input_size: 10 frames: need 8n\+1",
        ),
        ("pipeline_config.input_size", [9, 40, 32], r"height and width must be multiples of 16"),
        ("predictor.from_pretrained", KeyError, r"predictor.from_pretrained: is missing; name the merged weights"),
        ("predictor.from_pretrained", "no.pt", r"predictor.from_pretrained: no.pt: no such file"),
        ("diffusion.num_inference_steps", KeyError, r"num_inference_steps is missing"),
        ("tokenizer_2.from_pretrained", "no", r"tokenizer_2.from_pretrained: no: no such file or directory"),
        ("weight_dtype", "bfloat16", r"'bfloat16' is not one of 'fp32', 'bf16', 'fp16'"),
    ],
)
def test_impossible_sampling_files(folder, key, value, message):
    change(folder / "sample.json", key, value)
    with pytest.raises(ConfigError, match=message):
        sample(folder)


def test_sampling_flags_replace_values_of_the_file(folder):
    model = sample(folder, "--prompt", "a dog", "--save-path", "elsewhere", "--bf16").model
    assert (model.prompt, model.save_path, model.weight_dtype) == ("a dog", "elsewhere", "bf16")
    with pytest.raises(ConfigError, match="--ema: only with --load"):
        sample(folder, "--ema")
    with pytest.raises(ConfigError, match="--load nowhere: no such directory"):
        sample(folder, "--load", "nowhere")


def test_samples_while_training_are_of_the_trained_network(folder):
    flags = ["--mm-sample", str(folder / "sample.json"), "--sample-interval", "5"]
    with pytest.raises(ConfigError, match="--mm-sample: videos are written below --save"):
        train(folder, *flags)
    flags += ["--save", str(folder / "run")]
    found = train(folder, *flags).evaluation
    assert (found.sample_interval, found.sample_model.predictor.num_heads) == (5, 2)
    change(folder / "sample.json", "predictor.num_layers", [2, 4, 2])
    with pytest.raises(
        ConfigError, match=r"sample.json.* num_layers is \(2, 4, 2\), but \(2, 2, 2\) in the model that"
    ):
        train(folder, *flags)
